"""`rushlight pull`: download a model from the hub."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Annotated

import typer

from rushlight.cli.options import MODEL, Debug, Revision, complete_short_name
from rushlight.cli.terminal import out, status, write_message
from rushlight.errors import SourceError, TruncatedError, printable_line

if TYPE_CHECKING:
    from pathlib import Path

    from rushlight.checkpoint import Checkpoint

EXAMPLES = """
\b
Examples:
  rushlight pull smollm2
  rushlight pull Qwen/Qwen3-0.6B
  rushlight pull openai-community/gpt2 --revision main
"""


def pull(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            autocompletion=complete_short_name,
            show_default=False,
            rich_help_panel=MODEL,
            help="A hub id such as Qwen/Qwen3-0.6B, or a short name such as smollm2 (see `rushlight models`).",
        ),
    ],
    revision: Revision = None,
    _debug: Debug = False,
) -> None:
    """Download a model from the hub, and print the path of its folder.

    Downloads only what rushlight reads, the safetensors, config and tokenizer files, into the cache that other programs
    use too. Says first what the model needs and whether it fits. The same command continues a download that was
    interrupted; complete files are not downloaded again.
    """
    from rushlight.checkpoint import open_checkpoint, open_headers
    from rushlight.checkpoint.source import repository_of
    from rushlight.models.tied import tied_heads

    repo_id = repository_of(source, revision)
    if repo_id is None:
        raise SourceError(
            f"{printable_line(source)} is on this machine: there is nothing to download",
            remedy="use it as it is, or name a model on the hub, such as smollm2",
        )
    try:
        with status(f"looking up {repo_id}"):
            checkpoint = open_headers(repo_id, revision=revision, allow_missing=tied_heads)
    except (SourceError, TruncatedError) as error:
        if "://" not in str(error.file):
            raise
        # The header could not be read from its URL: the download may still succeed, since it retries.
        write_message(f"the size is not known yet: {error}")
    else:
        with checkpoint:
            _describe(checkpoint)
    with open_checkpoint(repo_id, revision=revision, allow_missing=tied_heads) as downloaded:
        out(f"{downloaded.folder}\n")


def _describe(checkpoint: Checkpoint) -> None:
    """Prints on stderr what is about to be downloaded, and refuses what exceeds the disk."""
    from rushlight.checkpoint.hub_cache import cache_folder
    from rushlight.checkpoint.hub_resume import partial_bytes
    from rushlight.host.memory import available_bytes, human_bytes
    from rushlight.loading.footprint import footprint
    from rushlight.loading.near_types import why_not

    nbytes = sum(tensor.nbytes for tensor in checkpoint.values())
    n_there = min(partial_bytes(checkpoint.source), nbytes) if checkpoint.is_remote else 0
    size = f"{human_bytes(nbytes)} to download" if checkpoint.is_remote else "already downloaded"
    size += f", of which {human_bytes(n_there)} are there" if n_there else ""
    write_message(printable_line(f"{checkpoint.source}: {size}"))
    if (needed := footprint(checkpoint)) is not None:
        write_message(f"{needed.n_parameters:,} parameters: {needed.describe()}")
        write_message(needed.describe_fit(available_bytes()))
    elif reason := why_not(checkpoint):
        write_message(printable_line(reason))
    cache = cache_folder()
    if checkpoint.is_remote and (free := _free_bytes(cache)) < nbytes - n_there:
        raise SourceError(
            "not enough disk space for the model",
            file=cache,
            expected=human_bytes(nbytes - n_there),
            found=human_bytes(free),
            remedy="delete models with `rushlight rm`, or set HF_HUB_CACHE to a folder on another disk",
        )


def _free_bytes(folder: Path) -> int:
    """The free space on the disk of a folder that may not exist yet."""
    there = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    return shutil.disk_usage(there).free
