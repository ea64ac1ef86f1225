"""The installed size of a package with its dependencies."""

from __future__ import annotations

import re
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement


def installed_bytes(*names: str) -> int | None:
    """Bytes of distributions and their dependencies without extras; None if one is not installed, or editable."""
    if not all(map(_is_measurable, names)):
        return None
    seen: dict[str, Distribution] = {}
    waiting = list(names)
    while waiting:
        key = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if key in seen:
            continue
        try:
            seen[key] = found = distribution(key)
        except PackageNotFoundError:
            continue  # a requirement for other platforms
        requirements = map(Requirement, found.requires or ())
        waiting += [each.name for each in requirements if each.marker is None or each.marker.evaluate({"extra": ""})]
    return sum(map(_bytes, seen.values()))


def _is_measurable(name: str) -> bool:
    """Whether a distribution is installed with its files, not as an editable working copy (PEP 610)."""
    try:
        origin = distribution(name).read_text("direct_url.json") or ""
    except PackageNotFoundError:
        return False
    return '"editable": true' not in origin


def _bytes(found: Distribution) -> int:
    paths = {Path(str(found.locate_file(file))) for file in found.files or ()}
    return sum(path.stat().st_size for path in paths if path.is_file())
