"""The native extension: kernels over packed weights, and the arrays they pass on. Built from native/."""

from collections.abc import Callable, Sequence
from enum import Enum
from typing import overload

import numpy as np
from numpy.typing import NDArray

from rushlight.backends.batch import Batch
from rushlight.backends.protocol import SamplingRow

def instruction_sets() -> list[str]:
    """Those that were compiled and that this processor has, the fastest first."""

def is_instruction_set(name: str) -> bool:
    """Whether it is the name of one at all."""

class Array:
    """(N, C) float32, readable through the buffer protocol: `numpy.asarray(array)` is a view."""

    @property
    def shape(self) -> tuple[int, int]: ...
    def __add__(self, other: Array, /) -> Array: ...
    def __mul__(self, other: Array, /) -> Array: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

class Vector:
    """(C,) float32: a bias or a gain. It takes part in no arithmetic; `numpy.asarray(vector)` is a copy."""

    @property
    def shape(self) -> tuple[int]: ...
    def __array__(self, dtype: object = None, copy: bool | None = None) -> NDArray[np.float32]: ...

class Weight:
    """A packed matrix, for rows by id and for products. `numpy.asarray` of it raises TypeError."""

    @property
    def shape(self) -> tuple[int, int]:
        """(n_out, n_in)"""

    def __array__(self, dtype: object = None, copy: bool | None = None) -> NDArray[np.float32]: ...
    @property
    def format(self) -> str: ...
    @property
    def nbytes(self) -> int: ...

class KVCache:
    """Keys and values of n_blocks blocks in every layer."""

    @property
    def n_blocks(self) -> int: ...
    @property
    def format(self) -> str: ...
    @property
    def nbytes(self) -> int: ...

class Rows:
    """A batch's rows, checked against a cache: whose they are and where their blocks lie."""

class LoadProblem(Enum):
    """What is wrong with a weight that was to be loaded."""

    NONE = ...
    NOT_FINITE = ...
    """A value is not finite, or beyond the weight's format."""
    NOT_READ = ...
    """The file ends too soon, or the operating system reports an error."""

class Load:
    """A weight, or a vector, and where its bytes lie: an open file, an offset, and a dtype word of safetensors."""

    @overload
    def __init__(self, to: Weight, fd: int, offset: int, dtype: str, rows_are_inputs: bool) -> None: ...
    @overload
    def __init__(self, to: Vector, fd: int, offset: int, dtype: str) -> None: ...

class Ids:
    """The input numbers of a plan, to be handed on: they have a length and no values."""

    @property
    def shape(self) -> tuple[int]: ...
    def __len__(self) -> int: ...

class Plan:
    """A step of a model, recorded once for its numbers of rows and of logits: a batch without values while it is."""

    @property
    def ids(self) -> Ids: ...
    @property
    def positions(self) -> Ids: ...
    @property
    def logit_rows(self) -> Ids: ...
    @property
    def rows(self) -> Rows: ...
    @property
    def cache(self) -> KVCache: ...
    def record(self, forward: Callable[[Plan], Array]) -> Array:
        """The forward of this plan, computed; what this thread asks of the device meanwhile is recorded.

        Raises ValueError the second time.
        """

    def finish(self, out: Array) -> Array | None:
        """Ends the recording of what came out: a copy of it, or None if the plan cannot be run.

        Raises ValueError where no recording is over.
        """

    def run(self, batch: Batch) -> Array | None:
        """The same step on another batch. None if another thread is running it, or the batch does not fit it.

        Raises ValueError unless `finish` has returned an array.
        """

class Governor:
    """How many threads a kind of work is given; see native/governor.h. Times are in nanoseconds."""

    def __init__(self, most: int) -> None: ...
    def threads(self, what: int, work: float, now: int) -> int:
        """How many threads to give the run that begins now."""

    def ran(self, what: int, work: float, threads: int, began: int, ended: int, waited: int) -> None:
        """Reports the run: of its time the caller waited for other threads so long."""

    @staticmethod
    def gives_up(threads: int, elapsed: int, waited: int) -> bool:
        """Whether a caller that has waited for so much of a run does better alone."""

class Device:
    """The operations, by a number of threads with one instruction set. Any thread may call it; the GIL is released.

    If it adapts, an operation gets as many of the threads as pay; the bits are the same. What has no valid size, shape
    or value is a ValueError, what is larger than memory a MemoryError.
    """

    def __init__(self, threads: int, isa: str, exact: bool = False, adapts: bool = False) -> None: ...
    @property
    def threads(self) -> int: ...
    @property
    def isa(self) -> str: ...
    def is_exact(self, format: str) -> bool:  # noqa: A002
        """Whether products of weights in this format are the same bits on every instruction set."""

    def weight(self, format: str, n_in: int, n_out: int) -> Weight:  # noqa: A002
        """Room for a matrix; `pack` fills it."""

    def pack(
        self, weight: Weight, raw: NDArray[np.uint8], dtype: str, columns: int, rows_are_inputs: bool, first: int
    ) -> bool:
        """Packs rows `first` and on of a checkpoint's matrix from their bytes.

        `first` is a multiple of 32, and so is the number of rows, but for the last piece. False if a value is not
        finite in the weight's format.
        """

    def load(self, loads: Sequence[Load]) -> list[LoadProblem]:
        """Reads and packs all of them; what is wrong with each."""

    def read(self, weight: Weight) -> int:
        """Reads every byte once, with the threads, layout and prefetch of a product of one row: a checksum of all."""

    def vector(self, values: NDArray[np.float32] | int) -> Vector:
        """A vector of these values, or room for so many."""

    def array(self, values: NDArray[np.float32]) -> Array: ...
    def kv_cache(self, format: str, n_layer: int, n_head: int, head_dim: int, n_blocks: int) -> KVCache:  # noqa: A002
        """Zeros, in f32 or f16."""

    def rows(
        self,
        row_starts: NDArray[np.int32],
        positions: NDArray[np.int32],
        block_tables: NDArray[np.int32],
        n_blocks: int,
    ) -> Rows: ...
    def plan(self, batch: Batch) -> Plan:
        """A plan to be recorded with this batch."""

    def embedding(self, ids: NDArray[np.int32] | Ids, table: Weight) -> Array: ...
    def linear(self, x: Array, weight: Weight, bias: Vector | None) -> Array: ...
    def layer_norm(self, x: Array, weight: Vector, bias: Vector, eps: float) -> Array: ...
    def activation(self, x: Array, name: str) -> Array: ...
    def exp(self, x: Array) -> Array: ...
    def sample(self, logits: Array, draws: Sequence[SamplingRow]) -> list[int]: ...
    def split(self, x: Array, n: int) -> Sequence[Array]: ...
    def take(self, x: Array, rows: NDArray[np.int32] | Ids) -> Array: ...
    def unfold(self, x: Array, rows: NDArray[np.int32]) -> Array: ...
    def attention(
        self, q: Array, k: Array, v: Array, rows: Rows, cache: KVCache, layer: int, n_head: int, scale: float
    ) -> Array: ...
