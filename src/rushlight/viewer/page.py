"""Self-contained pages: a page's HTML with its style, its script and its data written into it.

`frame.html` holds what every page has; `NAME.html`, `NAME.css` and `NAME.js` make the page NAME of it, on top of
`theme.css` and `theme.js`. A page asks nothing of any network, and its Content-Security-Policy has the browser hold it
to that: only the style and the script whose hashes it names are run. Names from files reach it as JSON in which no "<"
is left, and the script shows them as text alone.
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

_SLOT = re.compile(r"\{\{(\w+)\}\}")


def render_page(name: str, title: str, data: Any) -> str:
    """The page `name` as HTML, with its data, which json can write."""
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
    # In a script element only "</script" and "<!--" mean anything to the parser.
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    parts = {
        "policy": policy,
        "title": html.escape(printable_name(title)),
        "style": style,
        "body": _asset(f"{name}.html"),
        "data": text,
        "script": script,
    }
    # One pass: what stands in a part is never taken for a slot.
    return _SLOT.sub(lambda slot: parts[slot[1]], _asset("frame.html"))


def write_page(path: str | os.PathLike[str], page: str) -> None:
    """Write a page to `path`, over what is there: whole, or not at all.

    Raises:
        OSError: the folder is not there or not to be written to, or the disk is full; nothing is left behind.
    """
    atomic_write(path, page.encode())


def _asset(name: str) -> str:
    return resources.files("rushlight.viewer").joinpath(name).read_text(encoding="utf-8")


def _integrity(text: str) -> str:
    """The hash by which a policy names an inline script or style (https://www.w3.org/TR/CSP3/#match-element-to-source-list)."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
