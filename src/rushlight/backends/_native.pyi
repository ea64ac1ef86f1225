"""The native extension: kernels over packed weights, and the arrays that they compute. Built from native/."""

from collections.abc import Callable, Sequence
from enum import Enum
from typing import overload

import numpy as np
from numpy.typing import NDArray

from rushlight.backends.batch import Batch
from rushlight.backends.protocol import SamplingRow

TILE_VERSION: int
"""Changes whenever the layout or the meaning of packed weights does, in any format; see native/panel.h."""

def instruction_sets() -> list[str]:
    """The names of the instruction sets that this processor has kernels for, the fastest first."""

def is_instruction_set(name: str) -> bool:
    """Whether it is the name of an instruction set, on any processor."""

class Array:
    """(N, C) float32, readable through the buffer protocol: `numpy.asarray(array)` is a view."""

    @property
    def shape(self) -> tuple[int, int]: ...
    def __add__(self, other: Array, /) -> Array: ...
    def __mul__(self, other: Array | float, /) -> Array: ...
    def __rmul__(self, other: float, /) -> Array: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

class Vector:
    """(C,) float32: a bias, a gain or a constant. Opaque: arithmetic and `numpy.asarray` raise TypeError."""

    @property
    def shape(self) -> tuple[int]: ...

class Weight:
    """A packed matrix, for rows by id and for products. Opaque: arithmetic and `numpy.asarray` raise TypeError."""

    @property
    def shape(self) -> tuple[int, int]:
        """(n_out, n_in)"""

    @property
    def format(self) -> str: ...
    @property
    def nbytes(self) -> int: ...
    def tobytes(self) -> bytes:
        """The tiles, panel by panel, in the layout of native/panel.h and TILE_VERSION."""

class Mapping:
    """A file mapped into memory for reading: if it is cut meanwhile, it reads as zeros and `failed` is true."""

    def __init__(self, fd: int, n_bytes: int) -> None:
        """Maps an open file, whose descriptor is duplicated. Raises OSError if it cannot be mapped."""

    @staticmethod
    def guard() -> None:
        """Installs the handler of SIGBUS again if something has removed it."""

    @property
    def fd(self) -> int:
        """A descriptor of the file, as long as this object lives."""
    @property
    def failed(self) -> bool:
        """Whether a page could not be read, so that everything computed since may be wrong."""

class KVCache:
    """Keys and values of all layers, in blocks."""

    @property
    def groups(self) -> list[tuple[int, int]]:
        """The window and the number of blocks of each group of layers."""

    @property
    def format(self) -> str: ...
    @property
    def nbytes(self) -> int: ...

class Rows:
    """A batch's rows, validated against a cache: the sequence of each, and the blocks of each sequence."""

class LoadProblem(Enum):
    """Why a weight could not be loaded."""

    NONE = ...
    NOT_FINITE = ...
    """A value is not finite, or beyond the range of the weight's format."""
    NOT_READ = ...
    """The file ends too early, or the operating system reports an error."""

class Load:
    """A weight or vector and the source of its bytes: an open file, an offset, and a safetensors dtype word."""

    @overload
    def __init__(self, to: Weight, fd: int, offset: int, dtype: str, rows_are_inputs: bool) -> None: ...
    @overload
    def __init__(self, to: Weight, fd: int, offset: int) -> None:
        """The panels themselves are in the file, as in a converted one."""

    @overload
    def __init__(self, to: Vector, fd: int, offset: int, dtype: str) -> None: ...

class Ids:
    """The ids, positions or logit rows of a plan: opaque, to be passed to operations.

    Arithmetic, comparison, indexing, iteration and conversion raise NotRecordableError.
    """

    @property
    def shape(self) -> tuple[int]: ...
    def __len__(self) -> int: ...

class Plan:
    """A recorded step of a model, for one number of rows and of logits.

    While it is recorded it takes the place of the batch. The attributes of a batch that it lacks raise
    NotRecordableError.
    """

    @property
    def ids(self) -> Ids: ...
    @property
    def positions(self) -> Ids: ...
    @property
    def logit_rows(self) -> Ids: ...
    @property
    def n_stages(self) -> int:
        """How many times the threads wait for each other in a step. 0 until it is finished. For tests."""
    @property
    def rows(self) -> Rows: ...
    @property
    def cache(self) -> KVCache: ...
    def record(self, forward: Callable[[Plan], Array]) -> Array:
        """Runs the forward on this plan, and records the operations that this thread calls meanwhile.

        Raises ValueError the second time.
        """

    def finish(self, out: Array) -> Array:
        """Ends the recording of a step whose result is `out`, and returns a copy of it.

        Raises NotRecordableError if the step cannot be repeated, ValueError unless a recording has ended.
        """

    def run(self, batch: Batch) -> Array | None:
        """The same step on another batch. None if another thread is running it, or the batch does not fit it.

        Raises ValueError unless `finish` has returned.
        """

class Governor:
    """Chooses the number of threads for each kind of work; see native/governor.h. Times are in nanoseconds."""

    def __init__(self, most: int) -> None: ...
    def threads(self, what: int, work: float, now: int) -> int:
        """The number of threads for a run that begins now."""

    def ran(self, what: int, work: float, threads: int, began: int, ended: int, waited: int) -> None:
        """Reports a run, and for how long its caller waited for other threads."""

    @staticmethod
    def gives_up(threads: int, elapsed: int, waited: int) -> bool:
        """Whether a caller that has waited for this much of a run is faster without other threads."""

class Device:
    """The operations, with a number of threads and one instruction set. Any thread may call it; the GIL is released.

    If it adapts, an operation gets as many of the threads as speed it up; the bits are the same. An invalid size, shape
    or value raises ValueError, a size beyond memory MemoryError.
    """

    def __init__(self, threads: int, isa: str, exact: bool = False, adapts: bool = False) -> None: ...
    @property
    def threads(self) -> int: ...
    @property
    def isa(self) -> str: ...
    def is_exact(self, format: str) -> bool:  # noqa: A002
        """Whether products of weights in this format are the same bits on every instruction set."""

    @overload
    def weight(self, format: str, n_in: int, n_out: int) -> Weight:
        """Memory for a matrix, which `pack` fills."""

    @overload
    def weight(self, format: str, n_in: int, n_out: int, mapping: Mapping, offset: int) -> Weight:
        """A matrix whose panels lie in a mapped file from this byte on, a multiple of 64."""

    def pack(
        self, weight: Weight, raw: NDArray[np.uint8], dtype: str, columns: int, rows_are_inputs: bool, first: int
    ) -> bool:
        """Packs rows `first` and on of a checkpoint's matrix from their bytes.

        `first` is a multiple of 32, and so is the number of rows, except of the last piece. False if a value is not
        finite in the weight's format.
        """

    def load(self, loads: Sequence[Load]) -> list[LoadProblem]:
        """Reads and packs all of them; returns the problem of each. Uses all threads but one until `hurry`."""

    def hurry(self) -> None:
        """Lets `load` use all threads."""

    def read(self, weight: Weight) -> int:
        """Reads every byte once, with the threads, layout and prefetch of a product of one row; returns a checksum."""

    def peak(self, format: str, parts: int) -> int:  # noqa: A002
        """Multiplies and adds in registers as products of this format do, on all threads; returns the operations."""

    def unpack(self, weight: Weight | Vector) -> NDArray[np.float32]:
        """The numbers that operations compute with: (n_out, n_in), or (C,) of a vector."""

    def vector(self, values: NDArray[np.float32] | int) -> Vector:
        """A vector of these values, or memory for this many."""

    def array(self, values: NDArray[np.float32]) -> Array: ...
    def kv_cache(
        self,
        format: str,  # noqa: A002
        n_layer: int,
        n_kv_head: int,
        head_dim: int,
        n_blocks: int | Sequence[int],
        windows: Sequence[int | None] = (),
    ) -> KVCache:
        """Zeros, in f32 or f16: `n_blocks` in every group of layers with the same window, or in each."""

    def rows(
        self,
        row_starts: NDArray[np.int32],
        positions: NDArray[np.int32],
        block_tables: Sequence[Sequence[NDArray[np.int32]]],
        cache: KVCache,
    ) -> Rows: ...
    def plan(self, batch: Batch) -> Plan:
        """A plan to be recorded with this batch."""

    def embedding(self, ids: NDArray[np.int32] | Ids, table: Weight, first_row: int = 0) -> Array: ...
    def linear(self, x: Array, weight: Weight, bias: Vector | None) -> Array: ...
    def layer_norm(self, x: Array, weight: Vector, bias: Vector | None, eps: float) -> Array: ...
    def rms_norm(self, x: Array, weight: Vector, eps: float, offset: float = 0.0) -> Array: ...
    def activation(self, x: Array, name: str) -> Array: ...
    def exp(self, x: Array) -> Array: ...
    def sample(self, logits: Array, rows: Sequence[SamplingRow]) -> list[int]: ...
    def split(self, x: Array, sizes: int | Sequence[int], *, groups: int = 1) -> Sequence[Array]: ...
    def join(self, parts: Sequence[Array]) -> Array: ...
    def take(self, x: Array, rows: NDArray[np.int32] | Ids) -> Array: ...
    def unfold(self, x: Array, rows: NDArray[np.int32]) -> Array: ...
    def angles(self, positions: NDArray[np.int32] | Ids, frequencies: Vector, scale: float = 1.0) -> Array: ...
    def rotary(self, x: Array, angles: Array, n_head: int, *, interleaved: bool = False) -> Array: ...
    def attention(
        self,
        q: Array,
        k: Array,
        v: Array,
        rows: Rows,
        cache: KVCache,
        layer: int,
        n_head: int,
        scale: float,
        window: int | None = None,
        slopes: Vector | None = None,
        softcap: float | None = None,
    ) -> Array: ...
