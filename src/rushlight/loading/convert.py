"""Converts a checkpoint: packs its weights once, into a folder that every later start computes with as it lies."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rushlight import demo
from rushlight.backends import open_backend
from rushlight.backends.dtypes import TABLE_DTYPES, similar_dtype
from rushlight.backends.protocol import Role
from rushlight.checkpoint import open_checkpoint
from rushlight.checkpoint.checkpoint import open_shard
from rushlight.checkpoint.hub import SIDECARS
from rushlight.checkpoint.packed import CONVERTED_DTYPES, FORMAT, LAYOUT, TILE, Conversion, Packing, header_of, in_order
from rushlight.checkpoint.shards import INDEX
from rushlight.errors import CheckpointError, ConversionError, DeviceError, DtypeError, SourceError, first_ten
from rushlight.files.file import File
from rushlight.files.folder import new_folder
from rushlight.host.memory import human_bytes, naming_shortages
from rushlight.loading.identify import identify
from rushlight.models import load_port
from rushlight.models.tied import has_tied_heads, tied_heads
from rushlight.nn.bind import fit
from rushlight.version import __version__

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from rushlight.backends.protocol import Backend
    from rushlight.checkpoint import Checkpoint, Tensor
    from rushlight.models import Architecture

__all__ = ["Converted", "convert"]

SHARD_BYTES = 5_000_000_000
"""The most bytes of tensors in a file, unless one tensor has more: the limit of `save_pretrained`."""
PIECE_BYTES = 64 << 20
"""A matrix is packed in pieces of about this size in the source: rows of outputs, which panels keep together."""
HASH_BYTES = 4 << 20

_LICENCE = re.compile(r"(licen[cs]e|notice|copying|use_policy)([._-].*)?", re.IGNORECASE)
"""Names of files that are copied besides SIDECARS."""
_log = logging.getLogger("rushlight")


class Converted(NamedTuple):
    """What `convert` has written.

    Attributes:
        folder: where.
        files: the names of the files of the weights.
        source_bytes, nbytes: the size of the tensors before and after.
    """

    folder: Path
    files: tuple[str, ...]
    source_bytes: int
    nbytes: int


@naming_shortages("the conversion")
def convert(
    source: str | os.PathLike[str] | None,
    folder: str | os.PathLike[str],
    *,
    dtype: str,
    threads: int | None = None,
    offline: bool = False,
    revision: str | None = None,
    port: str | os.PathLike[str] | None = None,
    force: bool = False,
    progress: Callable[[int, int, str], object] = lambda _done, _total, _note: None,
) -> Converted:
    """Packs the weights of a checkpoint into a folder that every command opens as it opens the original.

    On device cpu, the folder is loaded without packing or quantising anything, and computes the same bits as the source
    with the same dtype. The folder is written in full or not at all, and has the same bytes each time.

    Args:
        source: as for `load`.
        folder: the folder to write; it must not exist, or be empty.
        dtype: of the weights: f32, f16, bf16, int8 or int4.
        threads, offline, revision, port: as for `load`.
        force: whether to replace a folder that this function has written.
        progress: called with the bytes that are done, the bytes in all, and what is being done.

    Raises:
        ConversionError: the source is converted already, or the folder cannot be written.
        DtypeError: the dtype is not one of these.
        RushlightError: the source cannot be loaded, as for `load`.
    """
    if dtype not in CONVERTED_DTYPES:
        meant = similar_dtype(dtype) if isinstance(dtype, str) else None
        remedy = f"use one of: {', '.join(CONVERTED_DTYPES)}"
        remedy = f"did you mean {meant}? {remedy}" if meant in CONVERTED_DTYPES else remedy
        raise DtypeError(f"cannot convert to dtype {dtype!r}", remedy=remedy)
    ops = open_backend("cpu", dtype, threads=threads)
    if ops.tile_version != LAYOUT:
        raise DeviceError(
            "weights are packed by native code, which was not built",
            remedy="install a C++ compiler, then reinstall rushlight",
        )
    target = _target(folder, force)
    ported = None if port is None else load_port(port, source=source)
    with open_checkpoint(
        demo.folder() if source is None else source,
        offline=offline,
        revision=revision,
        allow_missing=partial(tied_heads, architecture=ported),
    ) as checkpoint:
        if checkpoint.conversion is not None:
            raise ConversionError(
                f"already converted, to {checkpoint.conversion.dtype}",
                file=checkpoint.source,
                remedy="convert the checkpoint that it was made of: its numbers are rounded here",
            )
        job = _Job(checkpoint, dtype, ported)
        _require_space(job.nbytes, target)
        try:
            with new_folder(target, replace=force) as part:
                files = job.write(part, ops, progress)
                _copy_sidecars(checkpoint.folder, part)
        except OSError as error:
            raise ConversionError(f"cannot be written: {error.strerror or error}", file=target) from error
        return Converted(target, files, job.source_bytes, job.nbytes)


class _Job:
    """The tensors of a model, how they are packed, and their order."""

    def __init__(self, checkpoint: Checkpoint, dtype: str, port: Architecture | None) -> None:
        self._checkpoint = checkpoint
        self._dtype = dtype
        architecture, config = identify(checkpoint, port)
        module = architecture(config)
        diagnosis = fit(
            module,
            checkpoint,
            rules=architecture.rules,
            tie=has_tied_heads(architecture, config),
            title=f"{module.describe()} ({config})",
            file=checkpoint.source,
        )
        if diagnosis.other_heads:
            _log.warning("left out tensors for other tasks: %s", ", ".join(first_ten(diagnosis.other_heads)))
        self._tensors: dict[str, Tensor] = {}
        packings = {}
        for path, slot in diagnosis.slots.items():
            if path not in diagnosis.ties:
                tensor = checkpoint[diagnosis.found[path].name]
                self._tensors[tensor.name] = tensor
                form = _format(dtype, slot.role)
                packings[tensor.name] = Packing(tensor.shape, tensor.dtype, slot.role.value, form)
        self._packings = in_order(packings.items())
        self.source_bytes = sum(tensor.nbytes for tensor in self._tensors.values())
        self.nbytes = sum(packing.nbytes for packing in self._packings.values())

    def write(self, folder: Path, ops: Backend, progress: Callable[[int, int, str], object]) -> tuple[str, ...]:
        """Writes the weights, in files of at most SHARD_BYTES, and returns the names of the files."""
        paths = [Path(path) for path in self._checkpoint.files]
        total = sum(path.stat().st_size for path in paths) + self.source_bytes
        done = 0

        def advance(n_bytes: int, note: str) -> None:
            nonlocal done
            done += n_bytes
            progress(done, total, note)

        names = self._checkpoint.file_names
        digests = {
            name: _sha256(path, partial(advance, note="hashing")) for name, path in zip(names, paths, strict=True)
        }
        conversion = Conversion(self._dtype, LAYOUT, __version__, digests)
        shards = _shards(self._packings)
        files = ["model.safetensors"]
        if len(shards) > 1:
            files = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
        for name, packings in zip(files, shards, strict=True):
            with (folder / name).open("xb") as file:
                file.write(header_of(packings, conversion))
                for tensor, packing in packings.items():
                    for piece, n_bytes in self._pieces(tensor, packing, ops):
                        file.write(piece)
                        advance(n_bytes, tensor)
        if len(shards) > 1:
            weight_map = {tensor: name for name, packings in zip(files, shards, strict=True) for tensor in packings}
            index = {"metadata": {"total_size": self.nbytes}, "weight_map": dict(sorted(weight_map.items()))}
            (folder / INDEX).write_text(json.dumps(index, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return tuple(files)

    def _pieces(self, name: str, packing: Packing, ops: Backend) -> Iterator[tuple[bytes, int]]:
        """The bytes of a tensor in the converted file, piece by piece, each with the size of its source."""
        tensor, role = self._tensors[name], Role(packing.role)
        for piece in _split(tensor) if role in (Role.TABLE, Role.LINEAR) else [tensor]:
            weight = ops.load_weight(piece, role)
            ops.finish_loading()
            packed = ops.weight_values(weight).astype("<f4").tobytes() if role is Role.VECTOR else weight.tobytes()
            yield packed, piece.nbytes


def _format(dtype: str, role: Role) -> str:
    """The format of a tensor, by the policy of `rushlight.backends.dtypes`."""
    if role is Role.VECTOR:
        return "f32"
    return TABLE_DTYPES.get(dtype, dtype) if role is Role.TABLE else dtype


def _split(tensor: Tensor) -> Iterator[Tensor]:
    """A matrix with rows of outputs in pieces of whole panels."""
    n_rows = tensor.shape[0]
    step = max(PIECE_BYTES * n_rows // max(tensor.nbytes, 1) // TILE, 1) * TILE
    for first in range(0, n_rows, step):
        yield tensor.rows(first, min(step, n_rows - first))


def _shards(packings: Mapping[str, Packing]) -> Sequence[dict[str, Packing]]:
    """The tensors of each file."""
    shards: list[dict[str, Packing]] = [{}]
    size = 0
    for name, packing in packings.items():
        if shards[-1] and size + packing.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = packing
        size += packing.nbytes
    return shards


def _sha256(path: Path, advance: Callable[[int], object]) -> str:
    digest = hashlib.sha256()
    with File(path) as file:
        piece = memoryview(bytearray(HASH_BYTES))
        for start in range(0, file.size, HASH_BYTES):
            part = piece[: file.size - start]
            file.read_into(part, start)
            digest.update(part)
            advance(len(part))
    return digest.hexdigest()


def _target(folder: str | os.PathLike[str], force: bool) -> Path:
    """The folder to write, in a folder that exists.

    Raises:
        ConversionError: it is not free, or the folder that it belongs in does not exist.
    """
    path = Path(folder).absolute()
    if not path.parent.is_dir():
        raise ConversionError("no such folder", file=path.parent, remedy="create it, or write to another one")
    try:
        if path.is_dir() and not any(path.iterdir()):
            return path
    except OSError as error:
        raise ConversionError(f"cannot be read: {error.strerror}", file=path) from None
    if not path.exists() and not path.is_symlink():
        return path
    if not path.is_dir() or path.is_symlink():
        raise ConversionError("not a folder", file=path, remedy="write to another one")
    if not _is_converted(path):
        raise ConversionError("the folder has files in it", file=path, remedy="write to another one")
    if not force:
        raise ConversionError("already a converted checkpoint", file=path, remedy="use --force to replace it")
    return path


def _is_converted(folder: Path) -> bool:
    """Whether all weights in a folder are converted, in any layout."""
    formats = []
    for path in folder.glob("*.safetensors"):
        try:
            shard = open_shard(path, keep_open=False)
        except (CheckpointError, SourceError):
            return False
        formats.append(shard.header.metadata.get("format"))
        shard.file.close()
    return set(formats) == {FORMAT}


def _require_space(n_bytes: int, target: Path) -> None:
    free = shutil.disk_usage(target.parent).free
    if free < n_bytes:
        raise ConversionError(
            "not enough disk space",
            file=target,
            expected=human_bytes(n_bytes),
            found=human_bytes(free),
            remedy="free some, or write to another disk",
        )


def _copy_sidecars(source: Path | None, folder: Path) -> None:
    """Copies what a model is loaded with besides its weights, and its licences."""
    if source is None:
        return
    for path in sorted(source.iterdir()):
        if (path.name in SIDECARS or _LICENCE.fullmatch(path.name)) and path.is_file():
            shutil.copyfile(path, folder / path.name)
    templates = sorted((source / "additional_chat_templates").glob("*.jinja"))
    if templates:
        (folder / "additional_chat_templates").mkdir()
    for path in templates:
        shutil.copyfile(path, folder / "additional_chat_templates" / path.name)
