"""`rushlight models`: list the built-in model types, with well-known checkpoints of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rushlight.cli.options import OUTPUT, Debug
from rushlight.cli.terminal import out_json, show, write_message

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.text import Text

    from rushlight.models.catalogue import ModelType

EXAMPLES = """
\b
Examples:
  rushlight models
  rushlight models qwen3
  rushlight models smollm2
  rushlight models --json | jq '.[].model_type'
"""


def _names(incomplete: str) -> list[str]:
    from rushlight.models.catalogue import CATALOGUE

    names = {each.model_type for each in CATALOGUE}.union(*map(_families, CATALOGUE))
    return sorted(name for name in names if name.startswith(incomplete))


def models(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME", autocompletion=_names, help="Show only this type or short name, such as qwen3 or smollm2."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", rich_help_panel=OUTPUT, help="Print a JSON array on stdout instead.")
    ] = False,
    _debug: Debug = False,
) -> None:
    """List the built-in model types, with well-known checkpoints and their short names.

    A checkpoint runs if the model_type in its config.json is one of these. Any other decoder can be ported. The hub
    serves a gated one after you accept its licence there and sign in.
    """
    from rushlight.models.catalogue import CATALOGUE

    shown = list(CATALOGUE) if name is None else _named(name, CATALOGUE)
    if not shown:
        raise typer.BadParameter(_unknown(str(name)), param_hint="NAME")
    if as_json:
        out_json([_to_json(each) for each in shown], indent=2)
        return
    show(_view(shown))
    if gated := [row.repo_id for each in shown for row in each.published if row.is_gated]:
        write_message(f"gated: accept the licence at https://huggingface.co/{gated[0]}, then run `hf auth login`")


def _named(name: str, types: Iterable[ModelType]) -> list[ModelType]:
    """The type of a name, and of other types the checkpoints with this short name: gemma3 is both."""
    from rushlight.checkpoint.short_names import short_names

    shown = []
    for each in types:
        rows = tuple(
            row
            for row in each.published
            if any(name in (short, short.partition(":")[0]) for short in short_names(row.repo_id))
        )
        if name == each.model_type:
            shown.append(each)
        elif rows:
            shown.append(each._replace(published=rows))
    return shown


def _families(each: ModelType) -> set[str]:
    """The short names of a type's checkpoints, without the size after the colon."""
    from rushlight.checkpoint.short_names import short_names

    return {short.partition(":")[0] for row in each.published for short in short_names(row.repo_id)}


def _unknown(name: str) -> str:
    from rushlight.cli.options import quoted
    from rushlight.loading.near_types import describe_type

    return (
        describe_type(name)
        or f"{quoted(name)} is neither a built-in type nor a short name; `rushlight models` lists all"
    )


def _view(shown: list[ModelType]) -> Text:
    from rich.text import Text

    from rushlight.checkpoint.short_names import short_names
    from rushlight.cli.views.listing import listing

    rows: list[Text | list[Text]] = []
    for each in shown:
        rows.append(Text.assemble((each.model_type, "bold yellow"), f"  {each.title}: ", (each.special, "dim")))
        for published in each.published:
            names = ", ".join(short_names(published.repo_id))
            context = Text(f"{published.context:,}")
            last = Text(names, "cyan")
            if published.is_gated:
                last += Text.assemble("; " if names else "", ("gated", "yellow"))
            rows.append([Text(f"  {published.repo_id}"), Text(published.size), context, last])
    return listing(("  checkpoint", "size", "context", "short name"), rows, numbers=("size", "context"))


def _to_json(each: ModelType) -> dict[str, object]:
    from rushlight.checkpoint.short_names import short_names

    published = [{**row._asdict(), "short_names": short_names(row.repo_id)} for row in each.published]
    return {**each._asdict(), "published": published}
