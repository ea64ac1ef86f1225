"""`rushlight list`: list the downloaded models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rushlight.cli.options import OUTPUT, Debug
from rushlight.cli.terminal import out_json, show, status, write_message
from rushlight.errors import printable_line, printable_name

if TYPE_CHECKING:
    from rich.text import Text

    from rushlight.loading.library import Downloaded

EXAMPLES = """
\b
Examples:
  rushlight list
  rushlight list --json | jq -r '.[] | select(.problems != []) | .repo_id'
"""


def list_models(
    as_json: Annotated[
        bool, typer.Option("--json", rich_help_panel=OUTPUT, help="Print a JSON array on stdout instead.")
    ] = False,
    _debug: Debug = False,
) -> None:
    """List the downloaded models: their size, whether they run here, and what is broken.

    Reads the hub's cache, which other programs fill too: HF_HUB_CACHE, or `hub` in HF_HOME, or
    ~/.cache/huggingface/hub.
    """
    from rushlight.checkpoint.hub_cache import cache_folder
    from rushlight.host.memory import available_bytes, human_bytes
    from rushlight.loading.library import library

    with status("reading the cache"):
        models = library()
    have_bytes = available_bytes()
    if as_json:
        out_json([_to_json(each, have_bytes) for each in models], indent=2)
        return
    where = printable_line(str(cache_folder()))
    if not models:
        write_message(f"no models in {where}; `rushlight pull smollm2` downloads one")
        return
    show(_view(models, have_bytes))
    total = human_bytes(sum(each.cached.nbytes for each in models))
    write_message(f"{len(models)} model{'' if len(models) == 1 else 's'}, {total}, in {where}")


def _view(models: list[Downloaded], have_bytes: int) -> Text:
    from rich.text import Text

    from rushlight.cli.views.listing import listing
    from rushlight.host.memory import human_bytes

    rows: list[Text | list[Text]] = [
        [
            Text(printable_name(each.cached.repo_id), "bold"),
            Text(printable_name(each.model_type or "")),
            Text(human_bytes(each.cached.nbytes)),
            _state(each, have_bytes),
        ]
        for each in models
    ]
    return listing(("model", "type", "size", "here"), rows, numbers=("size",))


def _state(each: Downloaded, have_bytes: int) -> Text:
    """Whether a model runs, or else why not, and its short names."""
    from rich.text import Text

    from rushlight.checkpoint.short_names import short_names
    from rushlight.loading.near_types import describe_type

    parts = [Text(printable_line("; ".join(each.problems)), "red")] if each.problems else []
    if each.footprint is not None:
        style = "green" if each.footprint.fitting(have_bytes) else "yellow"
        parts.append(Text(each.footprint.describe_fit(have_bytes), style))
    elif not parts:
        model_type = printable_name(each.model_type or "")
        parts = [Text(describe_type(model_type) or f"{model_type} is not built in", "yellow")]
    if names := short_names(each.cached.repo_id):
        parts.append(Text.assemble("short name ", (names[0], "cyan")))
    return Text("; ").join(parts)


def _to_json(each: Downloaded, have_bytes: int) -> dict[str, object]:
    from rushlight.checkpoint.short_names import short_names

    needed = each.footprint
    return {
        "repo_id": each.cached.repo_id,
        "short_names": short_names(each.cached.repo_id),
        "model_type": each.model_type,
        "built_in": each.is_built_in,
        "n_parameters": needed and needed.n_parameters,
        "nbytes": each.cached.nbytes,
        "folder": None if each.cached.snapshot is None else str(each.cached.snapshot),
        "commits": each.cached.commits,
        "problems": each.problems,
        "need_bytes": needed and {dtype: needed.need_bytes(dtype) for dtype in needed.weight_bytes},
        "available_bytes": have_bytes,
        "fits_in": needed and needed.fitting(have_bytes),
    }
