"""`rushlight models`: list the built-in model types, with well-known checkpoints of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rushlight.cli.options import OUTPUT, Debug
from rushlight.cli.terminal import out_json, show

if TYPE_CHECKING:
    from rich.text import Text

    from rushlight.models.catalogue import ModelType

EXAMPLES = """
\b
Examples:
  rushlight models
  rushlight models qwen3
  rushlight models --json | jq '.[].model_type'
"""


def _types(incomplete: str) -> list[str]:
    from rushlight.models.catalogue import CATALOGUE

    return [each.model_type for each in CATALOGUE if each.model_type.startswith(incomplete)]


def models(
    model_type: Annotated[
        str | None,
        typer.Argument(metavar="TYPE", autocompletion=_types, help="Show only this type, such as qwen3."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", rich_help_panel=OUTPUT, help="Print a JSON array on stdout instead.")
    ] = False,
    _debug: Debug = False,
) -> None:
    """List the built-in model types, with well-known checkpoints and their short names.

    A checkpoint runs if the model_type in its config.json is one of these. Any other decoder can be ported.
    """
    from rushlight.models.catalogue import CATALOGUE

    shown = [each for each in CATALOGUE if model_type in (None, each.model_type)]
    if not shown:
        raise typer.BadParameter(_unknown(str(model_type)), param_hint="TYPE")
    if as_json:
        out_json([_to_json(each) for each in shown], indent=2)
    else:
        show(_view(shown))


def _unknown(model_type: str) -> str:
    from rushlight.cli.options import quoted
    from rushlight.loading.near_types import describe_type

    return describe_type(model_type) or f"{quoted(model_type)} is not a built-in type; `rushlight models` lists all"


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
            rows.append([Text(f"  {published.repo_id}"), Text(published.size), context, Text(names, "cyan")])
    return listing(("  checkpoint", "size", "context", "short name"), rows, numbers=("size", "context"))


def _to_json(each: ModelType) -> dict[str, object]:
    from rushlight.checkpoint.short_names import short_names

    published = [{**row._asdict(), "short_names": short_names(row.repo_id)} for row in each.published]
    return {**each._asdict(), "published": published}
