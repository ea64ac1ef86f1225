"""An open checkpoint: a mapping from tensor names to tensors that are read when asked for."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from rushlight.checkpoint.dtypes import DTYPES, FLOAT_DTYPES, to_float32
from rushlight.checkpoint.header import PREFIX_BYTES, START_BYTES, header_bytes, parse_header
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

__all__ = ["ByteSource", "Checkpoint", "Shard", "Tensor", "open_shard", "read_header"]

_COMPARE_BYTES = 4 << 20


class ByteSource(Protocol):
    """What a safetensors file is read from: a `File` on this machine, a `RemoteFile` on another.

    Attributes:
        path: the path; of a file elsewhere, the name, as the index has it if one does.
        size: bytes in the file.
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
    """Open a safetensors file and read its header, and nothing of its data.

    With `keep_open` it stays open; otherwise each read of its data opens it again.

    Raises:
        SourceError: there is no regular file that may be read.
        FormatError: it is not safetensors, and then named if it is something known; or its header breaks a rule.
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
    """The header of a safetensors file; nothing beyond it is read, and a little of what is not safetensors.

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
    """A tensor in a checkpoint file, read only when asked for.

    Attributes:
        name: as in the file.
        dtype: "F32", "F16", "BF16", ...: a key of `rushlight.checkpoint.dtypes.DTYPES`.
        shape: outermost dimension first; `()` for a scalar.
        nbytes, n_elements: its size.
        file: the path of the file that holds it.
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
        """The file's descriptor and the offset of the tensor's first byte, for readers that are not Python.

        Raises:
            SourceError: the file is on another machine.
            TruncatedError: on leaving, the file was changed or cut since it was opened first.
        """
        if not isinstance(self._shard.file, File):
            raise SourceError("only its header is read on another machine", file=self.file, tensor=self.name)
        with self._shard.file.opened() as descriptor:
            yield descriptor, self._shard.header.data_start + self._info.begin

    def __repr__(self) -> str:
        return f"Tensor({self.name!r}, {self.dtype}, {list(self.shape)})"

    def read(self) -> NDArray[Any]:
        """The tensor as it is stored, in a new, C-contiguous, writable array of its shape.

        Every dtype is read as NumPy's own, little-endian, except BF16 (its bits as uint16) and the 8-bit floats (their
        bits as uint8).

        Raises:
            TruncatedError: the file was changed or cut since it was opened.
            FormatError: a BOOL tensor holds a byte other than 0 and 1.
        """
        import numpy as np

        array = np.empty(self.shape, DTYPES[self.dtype].numpy)
        raw = array.reshape(-1).view(np.uint8)
        self.read_into(raw, 0)
        if self.dtype == "BOOL" and raw.size and raw.max() > 1:
            raise FormatError("a BOOL tensor holds a byte other than 0 and 1", file=self.file, tensor=self.name)
        return array

    def float32(self) -> NDArray[np.float32]:
        """The tensor in float32, in a new array: exact from F32, F16 and BF16, rounded to nearest from F64.

        Raises:
            CheckpointError: the tensor is stored in something else, or an F64 value is beyond the range of float32.
            TruncatedError: the file was changed or cut since it was opened.
        """
        if self.dtype not in FLOAT_DTYPES:
            raise CheckpointError(
                "not floating-point numbers",
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
        """The elements as they are stored, in order, at most so many at once: one buffer, refilled for each piece.

        Raises:
            TruncatedError: the file was changed or cut since it was opened.
        """
        import numpy as np

        dtype = DTYPES[self.dtype]
        buffer = np.empty(min(self.n_elements, max_elements), dtype.numpy)
        for start in range(0, self.n_elements, max_elements):
            piece = buffer[: self.n_elements - start]
            self.read_into(piece.view(np.uint8), start * dtype.itemsize)
            yield piece

    def same_data(self, other: Tensor) -> bool:
        """Whether dtype, shape and every byte are equal; read in pieces, only as far as they are equal.

        Raises:
            TruncatedError: a file was changed or cut since it was opened.
        """
        import numpy as np

        if (self.dtype, self.shape) != (other.dtype, other.shape):
            return False
        if self._shard.file is other._shard.file and self._info.begin == other._info.begin:
            return True
        mine, theirs = (np.empty(min(self.nbytes, _COMPARE_BYTES), np.uint8) for _ in range(2))
        for start in range(0, self.nbytes, _COMPARE_BYTES):
            n_bytes = min(_COMPARE_BYTES, self.nbytes - start)
            self.read_into(mine[:n_bytes], start)
            other.read_into(theirs[:n_bytes], start)
            if not np.array_equal(mine[:n_bytes], theirs[:n_bytes]):
                return False
        return True

    def read_into(self, raw: NDArray[np.uint8], start: int) -> None:
        """Fill `raw` with the tensor's bytes from its byte `start` on, as they are stored.

        Raises:
            TruncatedError: the file was changed or cut since it was opened.
        """
        if raw.size:
            self._shard.file.read_into(raw.data, self._shard.header.data_start + self._info.begin + start)


class Checkpoint(Mapping[str, Tensor]):
    """The tensors of one or more safetensors files, by name, in the order of the files and of the data in them.

    A context manager: leaving it closes the files, after which a tensor that is read raises ValueError.

    Attributes:
        source: what the user named: a path or a hub id.
        folder: where the files stand, and where `sidecar` looks; None for files on another machine.
        is_remote: whether the files are on another machine, where only their headers are read.
        files: the paths of the weights.
        metadata: the free `__metadata__` of the files; where two differ, the first stands.
    """

    def __init__(self, source: str, folder: Path | None, shards: Sequence[Shard]) -> None:
        self.source = source
        self.folder = folder
        self.files = tuple(shard.file.path for shard in shards)
        self.is_remote = any(not isinstance(shard.file, File) for shard in shards)
        self.metadata: dict[str, str] = {}
        self._tensors: dict[str, Tensor] = {}
        self._open_files = ExitStack()
        for shard in shards:
            self._open_files.callback(shard.file.close)
            self.metadata = shard.header.metadata | self.metadata
            self._tensors |= {name: Tensor(shard, info) for name, info in shard.header.tensors.items()}

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
        """The files of the weights as an index names them: from the folder, with slashes."""
        inside = [
            path.relative_to(self.folder) if self.folder and path.is_relative_to(self.folder) else path
            for path in self.files
        ]
        return [path.as_posix() for path in inside]

    def sidecar(self, name: str) -> Path | None:
        """The path of a file beside the weights, such as "config.json", or None if there is none."""
        if self.folder is None:
            return None
        path = self.folder / name
        # A dangling link counts as there: reading it says what is wrong, where None would say it was never meant to be.
        return path if path.exists() or path.is_symlink() else None

    def close(self) -> None:
        """Close the files."""
        self._open_files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
