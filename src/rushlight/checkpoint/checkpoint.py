"""An open checkpoint: a mapping from tensor names to tensors, which are read on demand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from rushlight.checkpoint.dtypes import DTYPES, FLOAT_DTYPES, to_float32
from rushlight.checkpoint.header import PREFIX_BYTES, START_BYTES, header_bytes, parse_header
from rushlight.checkpoint.packed import packings_in, unpack
from rushlight.errors import CheckpointError, FormatError, SourceError
from rushlight.files.file import File
from rushlight.files.sniff import SNIFF_BYTES, sniff

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from types import TracebackType
    from typing import Any, Self

    import numpy as np
    from numpy.typing import NDArray

    from rushlight.checkpoint.header import Header, TensorInfo
    from rushlight.checkpoint.packed import Conversion, Packing

__all__ = ["ByteSource", "Checkpoint", "PackedTensor", "Shard", "Tensor", "open_shard", "read_header"]

_COMPARE_BYTES = 4 << 20


class ByteSource(Protocol):
    """The bytes of a safetensors file: a local `File`, or a `RemoteFile` on a web server.

    Attributes:
        path: its path; of a remote file, its name, as in the index if there is one.
        size: its size in bytes.
    """

    path: Path
    size: int

    def read(self, offset: int, n_bytes: int) -> bytes: ...
    def read_into(self, buffer: memoryview, offset: int) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Shard:
    """One open safetensors file with its header."""

    file: ByteSource
    header: Header


def open_shard(path: Path, *, keep_open: bool = True) -> Shard:
    """Opens a safetensors file and reads its header, but not its data.

    Args:
        path: the file.
        keep_open: whether the file stays open; otherwise each read of its data reopens it.

    Raises:
        SourceError: no such file, not a regular file, or not readable.
        FormatError: not a safetensors file (a known other kind is named), or its header violates the format.
        TruncatedError: bytes are missing.
    """
    file = File(path)
    try:
        shard = Shard(file, read_header(file))
        if not keep_open:
            file.release()
        return shard
    except BaseException:
        file.close()
        raise


def read_header(file: ByteSource) -> Header:
    """The header of a safetensors file. Nothing beyond the header is read.

    Raises:
        FormatError, TruncatedError: as `open_shard`.
    """
    try:
        n_bytes = header_bytes(file.read(0, min(START_BYTES, file.size)), file.size, file=file.path)
    except CheckpointError:
        if file.size <= PREFIX_BYTES:
            raise
        start = file.read(0, min(SNIFF_BYTES, file.size))
        kind = sniff(start, file.path, quote=not isinstance(file, File))
        if kind is None:
            raise
        raise FormatError(f"not safetensors but {kind.name}", file=file.path, remedy=kind.remedy) from None
    data_start = PREFIX_BYTES + n_bytes
    return parse_header(file.read(PREFIX_BYTES, n_bytes), file.size - data_start, file=file.path)


class Tensor:
    """A tensor in a checkpoint file, read on demand.

    Attributes:
        name: its name in the file.
        dtype: "F32", "F16", "BF16", ...: a key of `rushlight.checkpoint.dtypes.DTYPES`.
        shape: its dimensions, outermost first; `()` for a scalar.
        nbytes, n_elements: its size.
        file: the path of the file that contains it.
    """

    __slots__ = ("_info", "_shard")

    def __init__(self, shard: Shard, info: TensorInfo) -> None:
        self._shard = shard
        self._info = info

    @property
    def name(self) -> str:
        return self._info.name

    @property
    def dtype(self) -> str:
        return self._info.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self._info.shape

    @property
    def nbytes(self) -> int:
        return self._info.end - self._info.begin

    @property
    def n_elements(self) -> int:
        return self.nbytes // DTYPES[self.dtype].itemsize

    @property
    def file(self) -> Path:
        return self._shard.file.path

    @contextmanager
    def opened(self) -> Iterator[tuple[int, int]]:
        """The file's descriptor and the offset of the tensor's first byte, for native readers.

        Raises:
            SourceError: the file is remote.
            TruncatedError: on exit: the file has changed since it was first opened.
        """
        with self._local_file.opened() as descriptor:
            yield descriptor, self._shard.header.data_start + self._info.begin

    def rows(self, first: int, n: int) -> Tensor:
        """The tensor of `n` of its rows, from row `first` on."""
        row_bytes = self.nbytes // self.shape[0]
        begin = self._info.begin + first * row_bytes
        info = replace(self._info, shape=(n, *self.shape[1:]), begin=begin, end=begin + n * row_bytes)
        return Tensor(self._shard, info)

    @property
    def _local_file(self) -> File:
        if not isinstance(self._shard.file, File):
            raise SourceError("the tensors of a remote checkpoint cannot be read", file=self.file, tensor=self.name)
        return self._shard.file

    def __repr__(self) -> str:
        return f"Tensor({self.name!r}, {self.dtype}, {list(self.shape)})"

    def read(self) -> NDArray[Any]:
        """The stored values, in a new, C-contiguous, writable array of the tensor's shape.

        Each dtype becomes the little-endian NumPy type of the same name, except BF16 (its bits as uint16) and the 8-bit
        floats (their bits as uint8).

        Raises:
            TruncatedError: the file has changed since it was opened.
            FormatError: a BOOL tensor contains a byte other than 0 and 1.
        """
        import numpy as np

        array = np.empty(self.shape, DTYPES[self.dtype].numpy)
        raw = array.reshape(-1).view(np.uint8)
        self.read_into(raw, 0)
        if self.dtype == "BOOL" and raw.size and raw.max() > 1:
            raise FormatError("a BOOL tensor contains a byte other than 0 and 1", file=self.file, tensor=self.name)
        return array

    def float32(self) -> NDArray[np.float32]:
        """The values as float32, in a new array: exact for F32, F16 and BF16, rounded to nearest for F64.

        Raises:
            CheckpointError: the tensor has another dtype, or an F64 value is out of the range of float32.
            TruncatedError: the file has changed since it was opened.
        """
        if self.dtype not in FLOAT_DTYPES:
            raise CheckpointError(
                "not a supported floating-point dtype",
                file=self.file,
                tensor=self.name,
                expected=", ".join(FLOAT_DTYPES),
                found=self.dtype,
            )
        try:
            return to_float32(self.read(), self.dtype)
        except FloatingPointError:
            raise CheckpointError("an F64 value is too large for float32", file=self.file, tensor=self.name) from None

    def chunks(self, max_elements: int) -> Iterator[NDArray[Any]]:
        """The stored values in order, at most `max_elements` at a time, in one buffer that each chunk refills.

        Raises:
            TruncatedError: the file has changed since it was opened.
        """
        import numpy as np

        dtype = DTYPES[self.dtype]
        buffer = np.empty(min(self.n_elements, max_elements), dtype.numpy)
        for start in range(0, self.n_elements, max_elements):
            chunk = buffer[: self.n_elements - start]
            self.read_into(chunk.view(np.uint8), start * dtype.itemsize)
            yield chunk

    def same_data(self, other: Tensor) -> bool:
        """Whether dtype, shape and every byte are equal. Reads in chunks, and stops at the first difference.

        Raises:
            TruncatedError: a file has changed since it was opened.
        """
        import numpy as np

        if (self.dtype, self.shape) != (other.dtype, other.shape):
            return False
        if self._shard.file is other._shard.file and self._info.begin == other._info.begin:
            return True
        mine, theirs = (np.empty(min(self.nbytes, _COMPARE_BYTES), np.uint8) for _ in range(2))
        for start in range(0, self.nbytes, _COMPARE_BYTES):
            n_bytes = min(_COMPARE_BYTES, self.nbytes - start)
            self._read_stored(mine[:n_bytes], start)
            other._read_stored(theirs[:n_bytes], start)
            if not np.array_equal(mine[:n_bytes], theirs[:n_bytes]):
                return False
        return True

    def read_into(self, raw: NDArray[np.uint8], start: int) -> None:
        """Fills `raw` with the bytes of the tensor, row by row, from its byte `start` on.

        Raises:
            TruncatedError: the file has changed since it was opened.
        """
        self._read_stored(raw, start)

    def _read_stored(self, raw: NDArray[np.uint8], start: int) -> None:
        if raw.size:
            self._shard.file.read_into(raw.data, self._shard.header.data_start + self._info.begin + start)


class PackedTensor(Tensor):
    """A matrix in a converted file. It reads like one in the source's layout, whose values are those of its format.

    Attributes:
        dtype: that of its format: F32, F16, BF16, INT8, INT6 or INT4. The integers are read as float32.
        shape: that of the tensor in the source.
        nbytes: its size in the file.
        packing: its format, its role in the model, and its dtype in the source.
        converted_dtype: the dtype that the file was converted to.
    """

    __slots__ = ("converted_dtype", "packing")

    def __init__(self, shard: Shard, info: TensorInfo, packing: Packing, converted_dtype: str) -> None:
        super().__init__(shard, info)
        self.packing = packing
        self.converted_dtype = converted_dtype

    @property
    def dtype(self) -> str:
        return self.packing.format.upper()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.packing.shape

    @property
    def n_elements(self) -> int:
        return math.prod(self.shape)

    def read(self) -> NDArray[Any]:
        import numpy as np

        panels = np.empty(self._info.shape, np.uint8)
        self._read_stored(panels.reshape(-1), 0)
        return unpack(panels, self.packing)

    def float32(self) -> NDArray[np.float32]:
        values = self.read()
        return to_float32(values, self.dtype) if self.dtype in FLOAT_DTYPES else values

    def chunks(self, max_elements: int) -> Iterator[NDArray[Any]]:
        values = self.read().reshape(-1)
        for start in range(0, len(values), max_elements):
            yield values[start : start + max_elements]

    def same_data(self, other: Tensor) -> bool:
        return self.nbytes == other.nbytes and super().same_data(other)

    def read_into(self, raw: NDArray[np.uint8], start: int) -> None:
        import numpy as np

        raw[:] = self.read().reshape(-1).view(np.uint8)[start : start + len(raw)]

    @property
    def is_rounded(self) -> bool:
        """Whether its format does not have every number of the source's dtype; F64 counts as its float32 copy."""
        exact = {"F64": ("f32",), "F32": ("f32",), "F16": ("f32", "f16"), "BF16": ("f32", "bf16")}
        return self.packing.format not in exact[self.packing.dtype]

    @property
    def file_bytes(self) -> int:
        """The size of the file."""
        return self._shard.file.size

    def require_unchanged(self, descriptor: int) -> None:
        """Checks that the descriptor leads to the tensor's file as it was when the checkpoint was opened.

        Raises:
            TruncatedError: it does not.
        """
        self._local_file.require_unchanged(descriptor)


class Checkpoint(Mapping[str, Tensor]):
    """The tensors of one or more safetensors files by name, in the order of the files and of the data in them.

    A context manager that closes the files on exit; reading a tensor afterwards raises ValueError.

    Attributes:
        source: the path, URL or hub id that the user named.
        folder: the folder of the files, in which `sidecar` looks; None for remote files.
        is_remote: whether the files are on a web server, so that only their headers can be read.
        files: the paths of the weights.
        metadata: the `__metadata__` of the files; where two files differ, the first one's value.
        conversion: what a converted checkpoint was made of; None for any other.
    """

    def __init__(self, source: str, folder: Path | None, shards: Sequence[Shard]) -> None:
        self.source = source
        self.folder = folder
        self.files = tuple(shard.file.path for shard in shards)
        self.is_remote = any(not isinstance(shard.file, File) for shard in shards)
        self.metadata: dict[str, str] = {}
        self.conversion: Conversion | None = None
        self._tensors: dict[str, Tensor] = {}
        self._open_files = ExitStack()
        for shard in shards:
            self._open_files.callback(shard.file.close)
        with ExitStack() as on_error:
            on_error.callback(self.close)
            for shard in shards:
                self._add(shard, is_first=shard is shards[0])
            on_error.pop_all()

    def _add(self, shard: Shard, *, is_first: bool) -> None:
        self.metadata = shard.header.metadata | self.metadata
        conversion, packings = packings_in(shard.header, shard.file.path)
        if is_first:
            self.conversion = conversion
        elif conversion != self.conversion:
            raise FormatError(
                f"not of the same conversion as {self.files[0].name}",
                file=shard.file.path,
                remedy="convert again, or copy all files of the folder",
            )
        for name, info in shard.header.tensors.items():
            if conversion is None or packings[name].role == "vector":
                self._tensors[name] = Tensor(shard, info)
            else:
                self._tensors[name] = PackedTensor(shard, info, packings[name], conversion.dtype)

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        return f"<Checkpoint {self.source!r}: {len(self)} tensors>"

    @property
    def file_names(self) -> list[str]:
        """The files of the weights, relative to the folder, with slashes, as an index names them."""
        inside = [
            path.relative_to(self.folder) if self.folder and path.is_relative_to(self.folder) else path
            for path in self.files
        ]
        return [path.as_posix() for path in inside]

    def sidecar(self, name: str) -> Path | None:
        """The path of a file next to the weights, such as "config.json"; None if it does not exist."""
        if self.folder is None:
            return None
        path = self.folder / name
        # A broken link counts as existing, so that reading it raises instead of the file being ignored.
        return path if path.exists() or path.is_symlink() else None

    def close(self) -> None:
        """Closes the files."""
        self._open_files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
