"""A checkpoint in several files: the index that says which tensor is in which, held against the files.

    {"metadata": {"total_size": ...}, "weight_map": {"wte.weight": "model-00001-of-00002.safetensors", ...}}

Written by `save_pretrained` of transformers and `save_torch_state_dict` of huggingface_hub.
"""

from __future__ import annotations

import os
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from rushlight.checkpoint.checkpoint import Shard, open_shard
from rushlight.checkpoint.json_file import read_json_object
from rushlight.checkpoint.listing import first_ten
from rushlight.errors import FormatError

if TYPE_CHECKING:
    from typing import Any

__all__ = ["MAX_INDEX_BYTES", "check_agreement", "open_shards", "weight_map_of"]

MAX_INDEX_BYTES = 32 << 20

_BARE_NAMES = "the index may name only .safetensors files in its own folder"


def open_shards(index: Path) -> list[Shard]:
    """Open the files that an index names, in the order of their names.

    A shard stands beside the index, or is a link as the cache of huggingface_hub makes them; no other path is followed.

    Raises:
        FormatError: the index is malformed, or index and files disagree: every problem at once, ten of them listed.
        CheckpointError: a file is not sound safetensors.
        SourceError: a file cannot be opened.
    """
    weight_map = weight_map_of(read_json_object(index, max_bytes=MAX_INDEX_BYTES), index)
    names = sorted(set(weight_map.values()))
    if bad := [f"{name}: {why}" for name in names if (why := _refusal(index.parent, name))]:
        raise _disagreement(index, bad, _BARE_NAMES)
    missing = [name for name in names if not os.path.lexists(index.parent / name)]
    if missing:
        n_tensors = Counter(weight_map.values())
        raise _disagreement(
            index,
            [f"{name} is missing; it holds {_count(n_tensors[name], 'tensor')}" for name in missing],
            "download the missing files, all from the same revision",
        )
    with ExitStack() as opened:
        shards = []
        for name in names:
            shards.append(open_shard(index.parent / name))
            opened.callback(shards[-1].file.close)
        check_agreement(index, weight_map, shards)
        opened.pop_all()
    return shards


def weight_map_of(values: dict[str, Any], index: str | os.PathLike[str]) -> dict[str, str]:
    """From tensor to file name, as the index with these `values` says.

    Raises:
        FormatError: it is no index, or it names what is not the bare name of a .safetensors file.
    """
    weight_map = values.get("weight_map")
    if weight_map is None:
        raise FormatError(
            "not the index of a checkpoint: it has no weight_map",
            file=index,
            remedy="name the folder, the .safetensors file or the .safetensors.index.json",
        )
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise FormatError("weight_map does not map tensor names to file names", file=index)
    names = sorted(set(weight_map.values()))
    if bad := [name for name in names if not name.endswith(".safetensors") or any(c in name for c in "/\\\0")]:
        problems = [f"{name}: not the bare name of a .safetensors file" for name in bad]
        raise _disagreement(index, problems, _BARE_NAMES)
    return weight_map


def check_agreement(index: str | os.PathLike[str], weight_map: dict[str, str], shards: list[Shard]) -> None:
    """Require that the files hold what the index says, each tensor once.

    Raises:
        FormatError: they do not; ten of the differences are listed.
    """
    if problems := _disagreements(weight_map, shards):
        raise _disagreement(index, problems, "download index and files again, all from the same revision")


def _refusal(folder: Path, name: str) -> str | None:
    """Why a shard of this bare name is not opened, or None."""
    root = Path(os.path.realpath(folder))
    target = Path(os.path.realpath(root / name))
    if target.parent == root:
        return None
    # <cache>/models--owner--name/snapshots/<revision>/ links to ../../blobs, or to the blobs that all models share.
    repository = root.parent.parent
    if root.parent.name == "snapshots" and any(
        target.is_relative_to(place / "blobs") for place in (repository, repository.parent)
    ):
        return None
    return f"a link out of the folder, to {target}"


def _disagreements(weight_map: dict[str, str], shards: list[Shard]) -> list[str]:
    """What the index says and the files do not bear out."""
    holder: dict[str, str] = {}
    problems = []
    for shard in shards:
        for name in shard.header.tensors:
            if name in holder:
                problems.append(f"{name} stands in {holder[name]} and in {shard.file.path.name}")
            holder.setdefault(name, shard.file.path.name)
    for name, file in weight_map.items():
        if name not in holder:
            problems.append(f"{name} is not in {file}, nor in any other file")
        elif holder[name] != file:
            problems.append(f"{name} is in {holder[name]}, not in {file}")
    return problems


def _disagreement(index: str | os.PathLike[str], problems: list[str], remedy: str) -> FormatError:
    head = f"the index and the files do not agree: {_count(len(problems), 'problem')}"
    return FormatError("\n  ".join([head, *first_ten(problems)]), file=index, remedy=remedy)


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"
