"""`rushlight rm`: delete a downloaded model."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from rushlight.cli.options import MODEL, Debug
from rushlight.cli.terminal import write_err
from rushlight.errors import printable_line

EXAMPLES = """
\b
Examples:
  rushlight rm smollm2
  rushlight rm openai-community/gpt2 --yes
"""


def _cached(incomplete: str) -> list[str]:
    from rushlight.checkpoint.hub_cache import cached_models

    return [model.repo_id for model in cached_models() if model.repo_id.startswith(incomplete)]


def remove(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            autocompletion=_cached,
            show_default=False,
            rich_help_panel=MODEL,
            help="A downloaded model, as `rushlight list` shows it, or its short name.",
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    _debug: Debug = False,
) -> None:
    """Delete a downloaded model, after asking.

    Deletes the model's folder in the hub's cache with all its revisions, also for other programs. Nothing outside the
    cache is deleted.
    """
    from rushlight.checkpoint.hub_cache import delete, find_cached
    from rushlight.host.memory import human_bytes

    model = find_cached(source)
    what = printable_line(f"{model.repo_id}, {human_bytes(model.nbytes)} in {model.folder}")
    if not yes and not _confirmed(f"delete {what}?"):
        write_err("nothing was deleted")
        return
    write_err(printable_line(f"deleted {model.repo_id}: {human_bytes(delete(model))} freed"))


def _confirmed(question: str) -> bool:
    if sys.stdin is None or not sys.stdin.isatty():
        raise typer.BadParameter(f"{question} stdin is not a terminal: confirm with --yes", param_hint="--yes")
    if sys.stderr is not None:
        sys.stderr.write(f"{question} [y/N] ")
        sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in {"y", "yes"}
