"""The files of results: a record, a report and a plot for each kind of processor, and the pages that quote them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from benchmarks.handle import ROOT
from benchmarks.plot import svg
from benchmarks.report import markdown, missed, summary, with_block
from rushlight.files.atomic import atomic_write

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RESULTS = ROOT / "benchmarks" / "results"
KINDS = ("sapphire-rapids", "zen4", "zen3")
"""The kinds of processors that come first in README.md, in this order; others follow."""

PLOT = "tokens a second of rushlight, llama.cpp, transformers, CTranslate2 and OpenVINO"

Records = dict[str, dict[str, Any]]
"""Names of models -> their records."""


def load(folder: Path, kind: str) -> Records:
    """The records of a kind of processor; empty if it was not measured."""
    path = folder / f"{kind}.json"
    return json.loads(path.read_text(encoding="utf-8"))["models"] if path.exists() else {}


def load_all(folder: Path) -> dict[str, Records]:
    """The records of every kind of processor that was measured."""
    found = {path.stem for path in folder.glob("*.json") if path.stem != "threads"}
    order = [kind for kind in KINDS if kind in found] + sorted(found.difference(KINDS))
    return {kind: load(folder, kind) for kind in order}


def busy(folder: Path, kind: str) -> dict[str, Any] | None:
    """The date of results/threads.json, if of this kind, and the least ratio of the default to the best."""
    path = folder / "threads.json"
    if not path.exists():
        return None
    record = json.loads(path.read_text(encoding="utf-8"))
    if record.get("kind") != kind:
        return None
    from benchmarks.threads import default_over_best

    rows = [row for row in record["rows"] if row["neighbours"] != "0"]
    return {"date": record["date"], "default_over_best": min(map(default_over_best, rows))} if rows else None


def save(folder: Path, kind: str, models: Records) -> None:
    """Writes the record; small enough to be written after every round."""
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / f"{kind}.json", (_json({"kind": kind, "models": models}) + "\n").encode())


def render(folder: Path, kind: str) -> str:
    """Writes the report and the plot of a kind, and returns the report."""
    models = load(folder, kind)
    text = markdown(kind, models, busy(folder, kind))
    (folder / f"{kind}.md").write_text(text, encoding="utf-8")
    if models:
        plotted = models.get("gpt2") or next(iter(models.values()))
        (folder / f"{kind}.svg").write_text(svg(plotted), encoding="utf-8")
    return text


def pages(folder: Path = RESULTS) -> Iterator[tuple[Path, str]]:
    """The pages that quote the results, and their current text."""
    kinds = load_all(folder)
    plot = f"![{PLOT}](benchmarks/results/{next(iter(kinds))}.svg)"
    quoted = summary(kinds)
    readme = ROOT / "README.md"
    yield readme, with_block(readme.read_text(encoding="utf-8"), "benchmarks", f"{quoted}\n\n{plot}")
    page = ROOT / "docs" / "performance.md"
    text = with_block(page.read_text(encoding="utf-8"), "benchmarks", quoted.replace("](benchmarks", "](../benchmarks"))
    every = {kind: found for kind in kinds if (found := busy(folder, kind))}
    yield page, with_block(text, "missed goals", missed(kinds, every))


def _json(value: Any, indent: int = 0) -> str:
    """JSON with lists of numbers on one line."""
    pad = " " * (indent + 1)
    if isinstance(value, dict) and value:
        inner = ",\n".join(f"{pad}{json.dumps(key)}: {_json(each, indent + 1)}" for key, each in value.items())
        return "{\n" + inner + "\n" + " " * indent + "}"
    return json.dumps(value)
