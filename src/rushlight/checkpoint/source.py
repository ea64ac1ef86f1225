"""Opens the checkpoint that a user names: a path, the embedded model, a model on the hub, or a URL."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Collection
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rushlight import demo
from rushlight.checkpoint import hub
from rushlight.checkpoint.checkpoint import Checkpoint, open_shard
from rushlight.checkpoint.shards import INDEX, open_shards, read_index
from rushlight.checkpoint.short_names import SHORT_NAMES, has_form_of_short_name, similar_names
from rushlight.errors import SourceError, first_ten, printable_name
from rushlight.files.sniff import PICKLE_SUFFIXES, how_to_convert

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rushlight.checkpoint.checkpoint import Shard
    from rushlight.checkpoint.shards import Index

__all__ = ["AllowMissing", "could_be_source", "open_checkpoint", "open_headers", "repository_of"]

AllowMissing = Callable[[Checkpoint], Collection[str]]
"""Returns the names of tensors that the index of a checkpoint may list although none of its files contains them."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://(?:huggingface\.co/([\w.-]+/[\w.-]+))?", re.ASCII)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_PATH_STARTS = (".", "/", "~")
_FILE_SUFFIXES = (".safetensors", ".json", *PICKLE_SUFFIXES, ".gguf", ".npz", ".h5", ".msgpack", ".onnx")

_log = logging.getLogger("rushlight")


def open_checkpoint(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    offline: bool = False,
    allow_missing: AllowMissing = lambda _: (),
) -> Checkpoint:
    """Opens a checkpoint and reads its headers, but not its data.

    Args:
        source: a .safetensors file; a folder with model.safetensors, or model.safetensors.index.json and its shards, or
            one other .safetensors file; the path of such an index; or, as a string, "tales" for the embedded model, the
            id of a model on the hub, "owner/name", or a short name such as "smollm2". A path that exists takes
            precedence.
        revision: the branch, tag or commit of a model on the hub.
        offline: do not use the network; a model on the hub must then be in the cache. HF_HUB_OFFLINE=1 in the
            environment does the same.
        allow_missing: returns, for the open checkpoint, the tensors that its index may list although no file holds
            them, such as a tied head; by default none.

    Raises:
        SourceError: the source does not lead to a checkpoint.
        CheckpointError: a file is not a valid safetensors file, or the index does not match the files.
    """
    name = _name(source)
    _refuse_url(name)
    path = _local_path(source, revision)
    if path is None:
        name = _repository(name)
        with _suggesting_short_names(name):
            path = hub.download(name, revision=revision, offline=offline)
    return _open_path(name, path, allow_missing)


def open_headers(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    offline: bool = False,
    allow_missing: AllowMissing = lambda _: (),
) -> Checkpoint:
    """Opens a checkpoint for its headers only: as `open_checkpoint`, but without downloading weights.

    `source` may also be the https:// URL of a .safetensors file or of an index. Only the headers are fetched from a
    URL, or from the hub for a model that is not complete in the cache; the tensors cannot be read. An http:// URL must
    lead to this machine.

    Raises:
        SourceError, CheckpointError: as `open_checkpoint`.
    """
    name = _name(source)
    if url := _URL.match(name):
        return _open_url(name, url[1], revision, offline, allow_missing)
    path = _local_path(source, revision)
    if path is not None:
        return _open_path(name, path, allow_missing)
    from rushlight.checkpoint.remote import open_remote

    name = _repository(name)
    with _suggesting_short_names(name):
        found = hub.locate(name, revision=revision, offline=offline)
    if isinstance(found, Path):
        return _open_path(name, found, allow_missing)
    return _checked(name, found.folder, *open_remote(found.url, hub.authorization(found.url)), allow_missing)


def could_be_source(name: str) -> bool:
    """Whether a string has the form of a source: an existing path, or what could be a path, a URL or a hub id."""
    is_name = _HUB_ID.fullmatch(name) or has_form_of_short_name(name)
    return bool(_URL.match(name) or is_name or _has_form_of_path(name) or _exists(name))


def repository_of(source: str, revision: str | None = None) -> str | None:
    """The id on the hub of a source, whose short name is written out; None for a path and the embedded model.

    Raises:
        SourceError: neither a path nor a hub id.
    """
    _refuse_url(source)
    return None if _local_path(source, revision) else _repository(source)


def _refuse_url(name: str) -> None:
    if url := _URL.match(name):
        hub_id = url[1]
        raise SourceError(
            f"{printable_name(name)} is a URL: weights are not loaded from URLs",
            remedy=f"use the hub id {hub_id}" if hub_id else "download the file and use its path",
        )


def _repository(name: str) -> str:
    """The hub id that a short name stands for, which is logged; any other name unchanged."""
    full = SHORT_NAMES.get(name)
    if full is not None:
        _log.info("%s is %s", name, full)
    return full or name


@contextmanager
def _suggesting_short_names(name: str) -> Iterator[None]:
    """Adds similar short names to an error about a name without an owner, which few models on the hub have."""
    try:
        yield
    except SourceError as error:
        if "/" not in name and (similar := similar_names(name)):
            error.remedy = f"did you mean {' or '.join(similar)}? Otherwise {error.remedy or 'check the spelling'}"
        raise


def _exists(name: str) -> bool:
    return "\0" not in name and os.path.lexists(name)


def _has_form_of_path(name: str) -> bool:
    return name.startswith(_PATH_STARTS) or name.lower().endswith(_FILE_SUFFIXES)


def _open_url(
    url: str, hub_id: str | None, revision: str | None, offline: bool, allow_missing: AllowMissing
) -> Checkpoint:
    if offline:
        raise SourceError("a URL cannot be read offline", file=url, remedy="download the file and use its path")
    if revision is not None:
        raise SourceError("a revision applies to a model on the hub, not to a URL", file=url, remedy="leave it out")
    if hub_id and url.rstrip("/").endswith(f"huggingface.co/{hub_id}"):
        raise SourceError("the page of a model, not a file", file=url, remedy=f"use the hub id {hub_id}")
    from rushlight.checkpoint.remote import open_remote

    return _checked(url, None, *open_remote(url, hub.authorization(url)), allow_missing)


def _name(source: object) -> str:
    """The source as a string.

    Raises:
        SourceError: neither a string nor a path.
    """
    if isinstance(source, str | bytes | os.PathLike):
        return os.fsdecode(source)
    raise SourceError("not a source", expected="a path, or a hub id such as owner/name", found=type(source).__name__)


def _local_path(source: str | os.PathLike[str], revision: str | None) -> Path | None:
    """The path of a source, including that of the embedded model; None if the source has the form of a hub id.

    Raises:
        SourceError: neither a path nor a hub id.
    """
    name = os.fsdecode(source)
    shown = printable_name(name)
    if revision is not None and not isinstance(revision, str):
        raise SourceError(
            "a revision must be a str, the name of a branch, tag or commit", found=type(revision).__name__
        )
    if not name or "\0" in name:
        raise SourceError(
            "the source is empty" if not name else f"the source contains a NUL character: {shown}",
            remedy="use a .safetensors file, a folder with one, or a hub id such as owner/name",
        )
    path = Path(name)
    with suppress(RuntimeError):  # "~" of an unknown user: the path does not exist either
        path = path.expanduser()
    if os.path.lexists(path):
        if revision is not None:
            raise SourceError(
                f"a revision applies to a model on the hub, and {shown} is a local path",
                found=f"revision {printable_name(revision)}",
                remedy="leave the revision out, or run in another folder to use the hub id",
            )
        return path
    if isinstance(source, os.PathLike) or _has_form_of_path(name):
        raise SourceError("no such file or folder", file=path, remedy="check the path")
    if name == demo.NAME:
        if revision is not None:
            raise SourceError(
                f"a revision applies to a model on the hub, and {shown} is the embedded model",
                found=f"revision {printable_name(revision)}",
                remedy="leave the revision out",
            )
        return demo.folder()
    if has_form_of_short_name(name) and name not in SHORT_NAMES:
        similar = similar_names(name)
        raise SourceError(
            f"{shown} is neither an existing path nor a short name of a model",
            remedy=(f"did you mean {' or '.join(similar)}? " if similar else "") + "`rushlight models` lists all",
        )
    if not _HUB_ID.fullmatch(name) and name not in SHORT_NAMES:
        raise SourceError(f"{shown} is neither an existing path nor a valid hub id", remedy="check the spelling")
    return None


def _open_path(source: str, path: Path, allow_missing: AllowMissing) -> Checkpoint:
    try:
        path = _weights_in(path) if path.is_dir() else path
    except OSError as error:
        raise SourceError(f"the folder cannot be read: {error.strerror}", file=path) from None
    if not path.name.endswith(".json"):
        return Checkpoint(source, path.parent, [open_shard(path)])
    index = read_index(path)
    return _checked(source, path.parent, open_shards(index), index, allow_missing)


def _checked(
    source: str, folder: Path | None, shards: Sequence[Shard], index: Index | None, allow_missing: AllowMissing
) -> Checkpoint:
    """The checkpoint of some shards, checked against their index."""
    with ExitStack() as opened:
        checkpoint = opened.enter_context(Checkpoint(source, folder, shards))
        if index is not None:
            index.check(shards, allow_missing(checkpoint))
        opened.pop_all()
    return checkpoint


def _weights_in(folder: Path) -> Path:
    """The file to open in a folder: its weights, or the index of its shards."""
    for name in ("model.safetensors", INDEX):
        if os.path.lexists(folder / name):
            return folder / name
    files = sorted(folder.iterdir())
    weights = [file for file in files if file.name.endswith(".safetensors")]
    if len(weights) == 1:
        return weights[0]
    if weights:
        raise SourceError(
            "several .safetensors files, but no model.safetensors or model.safetensors.index.json",
            file=folder,
            found=", ".join(first_ten([file.name for file in weights])),
            remedy="name one of the files, or add the index of the shards",
        )
    if pickles := [file for file in files if file.name.endswith(PICKLE_SUFFIXES)]:
        raise SourceError(
            "no .safetensors file in this folder, only pickles, which are never unpickled",
            file=folder,
            found=", ".join(first_ten([file.name for file in pickles])),
            remedy=how_to_convert(*pickles),
        )
    raise SourceError(
        "no .safetensors file in this folder",
        file=folder,
        found=", ".join(first_ten([file.name for file in files])) or "an empty folder",
        remedy="name the folder of the weights, or the file itself",
    )
