"""Sharded checkpoints: the index that maps tensors to files, checked against the files.

    {"metadata": {"total_size": ...}, "weight_map": {"wte.weight": "model-00001-of-00002.safetensors", ...}}

`save_pretrained` of transformers and `save_torch_state_dict` of huggingface_hub write it. File names carry no meaning;
the files may lie anywhere in the index's folder or below it, and nowhere else.
"""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rushlight.checkpoint.checkpoint import Shard, open_shard
from rushlight.errors import FormatError, first_ten
from rushlight.files.json_file import read_json_object

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from typing import Any

__all__ = ["INDEX", "MAX_INDEX_BYTES", "Index", "open_shards", "read_index"]

INDEX = "model.safetensors.index.json"
"""The name of the index in a folder or a repository."""
MAX_INDEX_BYTES = 32 << 20
MAX_OPEN_SHARDS = 16
"""With more shards, files are not kept open: the limit of open files can be low, such as 256 on macOS."""

_INSIDE = "the index may name only .safetensors files in its own folder or below it"


@dataclass(frozen=True)
class Index:
    """The file of each tensor.

    Attributes:
        file: the path or the URL of the index.
        weight_map: tensor name -> file, as a relative path with slashes that does not leave the index's folder.
    """

    file: str | os.PathLike[str]
    weight_map: Mapping[str, str]

    @classmethod
    def parse(cls, values: dict[str, Any], file: str | os.PathLike[str]) -> Index:
        """The index in a JSON object.

        Raises:
            FormatError: not an index, or one that names something other than .safetensors files in its folder.
        """
        weight_map = values.get("weight_map")
        if weight_map is None:
            raise FormatError(
                "not the index of a checkpoint: weight_map is missing",
                file=file,
                remedy="name the folder, the .safetensors file or the .safetensors.index.json",
            )
        if (
            not isinstance(weight_map, dict)
            or not weight_map
            or not all(isinstance(name, str) for name in weight_map.values())
        ):
            raise FormatError("weight_map does not map tensor names to file names", file=file)
        paths = {name: _inside(name) for name in sorted(set(weight_map.values()))}
        if bad := [
            f"{name}: not a .safetensors file inside the folder" for name, path in paths.items() if path is None
        ]:
            raise _disagreement(file, bad, _INSIDE)
        return cls(file, {tensor: paths[name] or "" for tensor, name in weight_map.items()})

    @property
    def names(self) -> list[str]:
        """The files, sorted by name."""
        return sorted(set(self.weight_map.values()))

    def check(self, shards: Sequence[Shard], allow_missing: Collection[str] = ()) -> None:
        """Requires that the files contain the tensors that the index lists for them, each tensor once.

        Args:
            shards: the files, in the order of `names`.
            allow_missing: tensors that the index may list although no file contains them.

        Raises:
            FormatError: they do not; lists the first ten differences.
        """
        holder: dict[str, str] = {}
        problems = []
        for file, shard in zip(self.names, shards, strict=True):
            for tensor in shard.header.tensors:
                if tensor in holder:
                    problems.append(f"{tensor} is in {holder[tensor]} and in {file}")
                holder.setdefault(tensor, file)
        for tensor, file in self.weight_map.items():
            if tensor not in holder:
                if tensor not in allow_missing:
                    problems.append(f"{tensor} is not in {file}, nor in any other file")
            elif holder[tensor] != file:
                problems.append(f"{tensor} is in {holder[tensor]}, not in {file}")
        if problems:
            raise _disagreement(self.file, problems, "download index and files again, all from the same revision")


def read_index(path: Path) -> Index:
    """Reads an index.

    Raises:
        FormatError: as `Index.parse`, or the file is not strict JSON.
    """
    return Index.parse(read_json_object(path, max_bytes=MAX_INDEX_BYTES), path)


def open_shards(index: Index) -> list[Shard]:
    """Opens the files that a local index names, sorted by name.

    A symbolic link may lead out of the index's folder only as those in the cache of huggingface_hub do. If there are
    more than `MAX_OPEN_SHARDS`, each file is closed after its header is read.

    Raises:
        FormatError: files are missing, or lie elsewhere; lists the first ten.
        CheckpointError: a file is not a valid safetensors file.
        SourceError: a file cannot be opened.
    """
    folder = Path(index.file).parent
    names = index.names
    if bad := [f"{name}: {why}" for name in names if (why := _refusal(folder, name))]:
        raise _disagreement(index.file, bad, _INSIDE)
    missing = [name for name in names if not os.path.lexists(folder / name)]
    if missing:
        n_tensors = Counter(index.weight_map.values())
        raise _disagreement(
            index.file,
            [f"{name} is missing; it contains {_count(n_tensors[name], 'tensor')}" for name in missing],
            "download the missing files, all from the same revision",
        )
    with ExitStack() as opened:
        shards = []
        for name in names:
            shards.append(open_shard(folder / name, keep_open=len(names) <= MAX_OPEN_SHARDS))
            opened.callback(shards[-1].file.close)
        opened.pop_all()
    return shards


def _inside(name: str) -> str | None:
    """The path of a name in an index, relative to the index's folder; None if it leads out of it."""
    path = posixpath.normpath(name)
    leads_out = path.startswith(("/", "../")) or "://" in name or "\\" in name
    return None if leads_out or "\0" in name or not path.endswith(".safetensors") else path


def _refusal(folder: Path, name: str) -> str | None:
    """Why a shard must not be opened; None if it may be."""
    root = Path(os.path.realpath(folder))
    target = Path(os.path.realpath(root / name))
    if target.is_relative_to(root):
        return None
    # <cache>/models--owner--name/snapshots/<revision>/ links to ../../blobs, or to the blobs that all models share.
    for snapshots in root.parents:
        if snapshots.name == "snapshots":
            repository = snapshots.parent
            if any(target.is_relative_to(place / "blobs") for place in (repository, repository.parent)):
                return None
    return f"a symbolic link out of the folder, to {target}"


def _disagreement(index: str | os.PathLike[str], problems: list[str], remedy: str) -> FormatError:
    head = f"the index does not match the files: {_count(len(problems), 'problem')}"
    return FormatError("\n  ".join([head, *first_ten(problems)]), file=index, remedy=remedy)


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"
