"""Converted files: safetensors files whose matrices are packed into the panels that `cpu` computes with.

Each matrix is a U8 tensor of (panels, bytes of a panel), the layout of native/panel.h, under its own name; vectors are
F32. The metadata describes them:

    format              "rushlight"
    rushlight.layout    the version of the layout of panels: "1"
    rushlight.dtype     the dtype that was asked for: f32, f16, bf16, int8 or int4
    rushlight.version   the version of rushlight that wrote the file
    rushlight.source    a JSON object: file of the source -> its SHA-256
    rushlight.tensors   a JSON object: name -> {"shape": [out, in], "dtype": "F32", "role": "linear", "format": "int4"},
                        the shape and the dtype in the source, the role in the model, and the format of the panels

The data section begins at a multiple of `ALIGNMENT` in the file, with the panels first, whose sizes are multiples of
it: so panels are aligned, and can be computed with where they lie in a mapped file.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from rushlight.checkpoint.dtypes import FLOAT_DTYPES
from rushlight.checkpoint.header import MAX_RANK, PREFIX_BYTES
from rushlight.errors import FormatError, printable_name
from rushlight.files.strict_json import parse_json_object

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping
    from typing import Any

    import numpy as np
    from numpy.typing import NDArray

    from rushlight.checkpoint.header import Header, TensorInfo

__all__ = [
    "ALIGNMENT",
    "CONVERTED_DTYPES",
    "FORMAT",
    "LAYOUT",
    "TENSORS_KEY",
    "TILE",
    "TILE_BYTES",
    "Conversion",
    "Packing",
    "header_of",
    "in_order",
    "packings_in",
    "unpack",
]

FORMAT = "rushlight"
TENSORS_KEY = "rushlight.tensors"
LAYOUT = 1
"""The version of the layout, `CPUBackend.tile_version`."""
ALIGNMENT = 64
"""The size of a cache line."""
CONVERTED_DTYPES = ("f32", "f16", "bf16", "int8", "int4")
"""The dtypes that a checkpoint is converted to."""
TILE = 32
"""The outputs of a panel, and the inputs of a tile."""
TILE_BYTES = {"f32": 4096, "f16": 2048, "bf16": 2048, "int8": 1088, "int6": 832, "int4": 576}
ROLES = {"vector": None, "table": 2, "linear": 2, "conv1d": 2, "convolution": 3}
"""The roles of `rushlight.backends.protocol.Role` that checkpoints have, with the rank of their tensors."""
MAX_SIDE = 2**31 - 1
"""The most inputs or outputs of a matrix."""
UNPACK_BYTES = 4 << 20
"""Panels are unpacked in pieces of about this size."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_AGAIN = "convert its source again: `rushlight convert SOURCE -o FOLDER --dtype {} --force`"


@dataclass(frozen=True, slots=True)
class Conversion:
    """What a converted checkpoint was made of.

    Attributes:
        dtype: the dtype that was asked for, one of `CONVERTED_DTYPES`.
        layout: the version of the layout.
        version: the version of rushlight that wrote it.
        source: the SHA-256 of each file of the source, by name.
    """

    dtype: str
    layout: int
    version: str
    source: Mapping[str, str]


class Packing(NamedTuple):
    """How a tensor of a converted file was packed.

    Attributes:
        shape, dtype: those in the source.
        role: a key of `ROLES`.
        format: a key of `TILE_BYTES`.
    """

    shape: tuple[int, ...]
    dtype: str
    role: str
    format: str

    @property
    def sides(self) -> tuple[int, int]:
        """n_in and n_out of a matrix."""
        if self.role == "convolution":
            n_out, n_in, size = self.shape
            return size * n_in, n_out
        n_in, n_out = self.shape if self.role == "conv1d" else self.shape[::-1]
        return n_in, n_out

    @property
    def stored(self) -> tuple[str, tuple[int, ...]]:
        """The dtype and the shape in the file."""
        if self.role == "vector":
            return "F32", self.shape
        n_in, n_out = self.sides
        return "U8", (-(-n_out // TILE), -(-n_in // TILE) * TILE_BYTES[self.format])

    @property
    def nbytes(self) -> int:
        """The size in the file."""
        dtype, shape = self.stored
        return math.prod(shape) * (4 if dtype == "F32" else 1)


def header_of(packings: Mapping[str, Packing], conversion: Conversion) -> bytes:
    """The header of a converted file, with the length before it. The tensors lie in this order, panels first."""
    metadata = {
        "format": FORMAT,
        "rushlight.dtype": conversion.dtype,
        "rushlight.layout": str(conversion.layout),
        "rushlight.source": _json(dict(sorted(conversion.source.items()))),
        TENSORS_KEY: _json({name: each._asdict() for name, each in packings.items()}),
        "rushlight.version": conversion.version,
    }
    entries: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, packing in packings.items():
        begin, end = end, end + packing.nbytes
        dtype, shape = packing.stored
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = _json(entries).encode()
    text += b" " * (-(PREFIX_BYTES + len(text)) % ALIGNMENT)
    return len(text).to_bytes(PREFIX_BYTES, "little") + text


def packings_in(header: Header, file: str | os.PathLike[str]) -> tuple[Conversion | None, dict[str, Packing]]:
    """What the metadata of a file declares, checked against its tensors; None and {} if it is not a converted file.

    Raises:
        FormatError: the layout is not known, or metadata and tensors do not agree.
    """
    if header.metadata.get("format") != FORMAT:
        return None, {}
    conversion = _conversion(header.metadata, file)
    entries = _object(header.metadata, TENSORS_KEY, file)
    if unlike := sorted(entries.keys() ^ header.tensors.keys()):
        where = "the file" if unlike[0] in header.tensors else "rushlight.tensors"
        raise FormatError(f"only {where} has this tensor", file=file, tensor=unlike[0])
    packings = {name: _packing(entry, name, file) for name, entry in entries.items()}
    for name, packing in packings.items():
        _check(header.tensors[name], packing, header.data_start, file)
    return conversion, packings


def unpack(panels: NDArray[np.uint8], packing: Packing) -> NDArray[Any]:
    """The values of a matrix in the shape that it had in the source.

    f32 and f16 as such, bf16 as its bits (uint16), the others as float32: the numbers that `cpu` computes with.

    Args:
        panels: (panels, bytes of a panel), as in the file.
        packing: how it was packed.
    """
    import numpy as np

    n_in, n_out = packing.sides
    n_tiles = -(-n_in // TILE)
    dtype = {"f32": "<f4", "f16": "<f2", "bf16": "<u2"}.get(packing.format, "<f4")
    values = np.empty((n_out, n_in), dtype)
    step = max(UNPACK_BYTES // max(panels.shape[1], 1), 1)
    for first in range(0, len(panels), step):
        tiles = panels[first : first + step].reshape(-1, n_tiles, TILE_BYTES[packing.format])
        rows = values[first * TILE : (first + step) * TILE]
        outputs = _outputs_of(tiles, packing.format)  # (panels, outputs, tiles, inputs)
        rows[:] = outputs.reshape(-1, n_tiles * TILE)[: len(rows), :n_in]
    if packing.role == "conv1d":
        return np.ascontiguousarray(values.T)
    if packing.role == "convolution":
        n_out, n_in, size = packing.shape
        return np.ascontiguousarray(values.reshape(n_out, size, n_in).transpose(0, 2, 1))
    return values


def _outputs_of(tiles: NDArray[np.uint8], form: str) -> NDArray[Any]:
    """(panels, tiles, bytes) -> (panels, outputs, tiles, inputs) by the formulas of native/panel.h."""
    import numpy as np

    sides = tiles.shape[:2]
    match form:
        case "f32" | "f16":
            plain = tiles.view("<f4" if form == "f32" else "<f2").reshape(*sides, TILE, TILE)
            return plain.transpose(0, 3, 1, 2)
        case "bf16":
            pairs = tiles.view("<u2").reshape(*sides, 16, TILE, 2)
            return pairs.transpose(0, 3, 1, 2, 4).reshape(sides[0], TILE, sides[1], TILE)
    data = TILE_BYTES[form] - 2 * TILE  # the bytes before the scales or groups
    groups = np.ascontiguousarray(tiles[..., data:]).view("<u2").transpose(0, 2, 1)[..., None]
    lines = tiles[..., :data].reshape(*sides, -1, TILE, 4).transpose(0, 3, 1, 2, 4)  # (…, lines of 4 inputs, 4)
    whole = (sides[0], TILE, sides[1], TILE)
    if form == "int8":
        scale = groups.view("<f2").astype(np.float32)
        return (lines.reshape(whole).astype(np.float32) - np.float32(128)) * scale
    if form == "int4":
        q = np.stack([lines & 15, lines >> 4], axis=-2).reshape(whole)
        zero_step = np.float32(16 / 128)
    else:
        halves = lines.reshape(*whole[:3], 2, 3, 4)
        upper = halves >> 6
        fourth = upper[..., 0, :] | upper[..., 1, :] << 2 | upper[..., 2, :] << 4
        q = np.concatenate([halves & 63, fourth[..., None, :]], axis=-2).reshape(whole)
        zero_step = np.float32(64 / 128)
    scale = ((groups.astype(np.uint32) << 12) + (np.uint32(127 - 24) << 23)).view(np.float32)
    zero = (groups & 127).astype(np.float32) * zero_step
    return scale * (q.astype(np.float32) - zero)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _conversion(metadata: Mapping[str, str], file: str | os.PathLike[str]) -> Conversion:
    dtype, layout, version = (_text(metadata, f"rushlight.{key}", file) for key in ("dtype", "layout", "version"))
    if layout != str(LAYOUT):
        raise FormatError(
            f"converted by rushlight {printable_name(version)}, in a layout that this version does not read",
            file=file,
            expected=f"layout {LAYOUT}",
            found=f"layout {printable_name(layout)}",
            remedy=_AGAIN.format(dtype if dtype in CONVERTED_DTYPES else "DTYPE"),
        )
    if dtype not in CONVERTED_DTYPES:
        raise FormatError(
            "rushlight.dtype is not valid",
            file=file,
            expected=" or ".join(CONVERTED_DTYPES),
            found=printable_name(dtype),
        )
    source = _object(metadata, "rushlight.source", file)
    for name, digest in source.items():
        if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
            raise FormatError(f"rushlight.source has no SHA-256 of {printable_name(name)}", file=file)
    return Conversion(dtype, LAYOUT, version, source)


def _text(metadata: Mapping[str, str], key: str, file: str | os.PathLike[str]) -> str:
    if key not in metadata:
        raise FormatError(f"the metadata of a converted file lacks {key}", file=file, remedy=_AGAIN.format("DTYPE"))
    return metadata[key]


def _object(metadata: Mapping[str, str], key: str, file: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        return parse_json_object(_text(metadata, key, file).encode(), file=file)
    except FormatError as error:
        error.message = error.message if error.remedy else f"{key}: {error.message}"
        raise


def _packing(entry: Any, name: str, file: str | os.PathLike[str]) -> Packing:
    """The entry of a tensor in rushlight.tensors.

    Unknown fields are refused, since they could change the meaning of the others.
    """

    def error(expected: str, found: object) -> FormatError:
        return FormatError(
            "its entry in rushlight.tensors is not valid",
            file=file,
            tensor=name,
            expected=expected,
            found=printable_name(str(found)),
        )

    if not isinstance(entry, dict) or entry.keys() != set(Packing._fields):
        raise error(", ".join(Packing._fields), list(entry) if isinstance(entry, dict) else type(entry).__name__)
    shape, dtype, role, form = (entry[field] for field in Packing._fields)
    if not isinstance(role, str) or role not in ROLES:
        raise error(f"role {' or '.join(ROLES)}", role)
    if not isinstance(form, str) or form not in TILE_BYTES or (role == "vector" and form != "f32"):
        raise error(f"format {'f32' if role == 'vector' else ' or '.join(TILE_BYTES)}", form)
    if not isinstance(dtype, str) or dtype not in FLOAT_DTYPES:
        raise error(f"dtype {' or '.join(FLOAT_DTYPES)}", dtype)
    rank = ROLES[role]
    if not isinstance(shape, list) or (len(shape) != rank if rank else len(shape) > MAX_RANK):
        raise error(f"a shape of {rank} dimensions" if rank else f"a shape of at most {MAX_RANK} dimensions", shape)
    least = 0 if role == "vector" else 1
    if not all(type(side) is int and least <= side <= MAX_SIDE for side in shape):
        raise error(f"dimensions from {least} to {MAX_SIDE}", shape)
    packing = Packing(tuple(shape), dtype, role, form)
    if role == "convolution" and packing.sides[0] > MAX_SIDE:
        raise error(f"at most {MAX_SIDE} inputs", shape)
    return packing


def _check(info: TensorInfo, packing: Packing, data_start: int, file: str | os.PathLike[str]) -> None:
    """Checks that the file stores a tensor as its packing requires."""
    dtype, shape = packing.stored
    if (info.dtype, info.shape) != (dtype, shape):
        raise FormatError(
            f"not the size of a {packing.role} of shape {list(packing.shape)} in {packing.format}",
            file=file,
            tensor=info.name,
            expected=f"{dtype} {list(shape)}",
            found=f"{info.dtype} {list(info.shape)}",
        )
    if packing.role != "vector" and (data_start + info.begin) % ALIGNMENT:
        raise FormatError(
            f"the panels do not begin at a multiple of {ALIGNMENT}",
            file=file,
            tensor=info.name,
            offset=data_start + info.begin,
        )


def in_order(packings: Iterable[tuple[str, Packing]]) -> dict[str, Packing]:
    """Tensors in the order of a file: panels, whose sizes keep the alignment, and then vectors."""
    return dict(sorted(packings, key=lambda item: item[1].role == "vector"))
