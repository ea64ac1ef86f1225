"""Renders self-contained web pages, with the style, script and data inlined.

`frame.html` is the frame of every page; `NAME.html`, `NAME.css` and `NAME.js` define the page NAME, on top of
`theme.css` and `theme.js`. A page makes no network requests: its Content-Security-Policy allows only the style and the
script with the given hashes. Names from files are embedded as JSON without "<", and the script inserts them as text.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from importlib import resources
from typing import TYPE_CHECKING, Any

from rushlight.errors import printable_name
from rushlight.files.atomic import atomic_write

if TYPE_CHECKING:
    import os

__all__ = ["render_page", "write_page"]

_PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")


def render_page(name: str, title: str, data: Any) -> str:
    """The HTML of the page `name`, with data that is serialisable as JSON."""
    style, script = (_asset(f"theme.{kind}") + _asset(f"{name}.{kind}") for kind in ("css", "js"))
    policy = "; ".join(
        [
            "default-src 'none'",
            f"style-src '{_integrity(style)}'",
            f"script-src '{_integrity(script)}'",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    # In a script element the parser recognises only "</script" and "<!--".
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    parts = {
        "policy": policy,
        "title": html.escape(printable_name(title)),
        "style": style,
        "body": _asset(f"{name}.html"),
        "data": text,
        "script": script,
    }
    # One pass, so that placeholders inside the parts are not replaced.
    return _PLACEHOLDER.sub(lambda match: parts[match[1]], _asset("frame.html"))


def write_page(path: str | os.PathLike[str], page: str) -> None:
    """Write a page to `path` atomically, replacing an existing file.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full; no partial file remains.
    """
    atomic_write(path, page.encode())


def _asset(name: str) -> str:
    return resources.files("rushlight.viewer").joinpath(name).read_text(encoding="utf-8")


def _integrity(text: str) -> str:
    """The hash by which a policy names an inline script or style (https://www.w3.org/TR/CSP3/#match-element-to-source-list)."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
