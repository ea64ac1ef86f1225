"""What a device must do to run a model: the operations, and the batch that they read.

Axis letters, here and everywhere: N tokens (rows of a step, whoever they belong to), C channels, F inner channels,
H heads, D head_dim, V vocabulary, S sequences, T positions, R rows whose logits are wanted.

Activations are (N, C) arrays of the backend's own kind; model code only passes them on, adds them with `+` and
multiplies them, element by element, with `*`. There is no batch axis and no padding: a `Batch` says which rows belong
to which sequence, and only attention and convolutions ask.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    import numpy as np
    from numpy.typing import NDArray

    from rushlight.backends.batch import Batch, KVCache, KVShape

Array = Any
"""An activation on the device: (N, C), with `.shape`, `+` and `*`. NumPy's, MLX's and PyTorch's arrays all are, and
what a backend has not computed yet (`rushlight.backends.fusion`)."""

Forward = Callable[[Any], Array]
"""A model: a `Batch` of N rows -> (R, V) logits on the device."""

Weight = Any
"""A parameter as the backend has placed it: packed, quantised or plain, as it likes. Only operations compute with it.

On `cpu` and `reference`, numpy.asarray gives the values of a vector, (C,), and raises TypeError for a matrix, whose
values are `rushlight.open_checkpoint(source)[name].float32()`.
"""


class Changes(NamedTuple):
    """What becomes of some logits before a token is chosen: (l / factor if l > 0 else l * factor) + offset.

    Attributes:
        ids: (K,) the tokens', each at most once.
        factors: (K,) above 0; the repetition penalty of Keskar et al., arXiv:1909.05858. 1 changes nothing.
        offsets: (K,) what is added then.
    """

    ids: NDArray[np.int32]
    factors: NDArray[np.float64]
    offsets: NDArray[np.float64]


class Draw(NamedTuple):
    """How the token of one row of logits is chosen. The steps are in this order, but for what is allowed: see below.

    Attributes:
        temperature: logits are divided by it; 0 takes the likeliest, of equals the first, and nothing below counts.
        top_k: only the k likeliest, and all that equal the last of them; 0 is all.
        top_p: only the fewest, likeliest first and of equals the first, that have this probability together.
        min_p: only those at least so likely as this share of the likeliest.
        share: in [0, 1): the token is the one that stands at this share of the probabilities that are left, laid one
            after another in the order of ids.
        changes: made before all else.
        allowed: (V,) the tokens that may be chosen, settled before the temperature; None is all. Rows that share the
            same array cost a device less than rows that have equal ones.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    share: float = 0.0
    changes: Changes | None = None
    allowed: NDArray[np.bool_] | None = None


class Role(Enum):
    """How a parameter is used, which is what a backend needs to know to lay it out."""

    VECTOR = "vector"
    """(C,): a bias or a gain."""
    TABLE = "table"
    """(V, C): rows are gathered by id; `tie` makes a tied head's LINEAR of it."""
    LINEAR = "linear"
    """(out, in): PyTorch's nn.Linear, y = x Wᵀ."""
    CONV1D = "conv1d"
    """(in, out): GPT-2's Conv1D, y = x W."""
    CONVOLUTION = "convolution"
    """(out, in, size): PyTorch's nn.Conv1d, as a LINEAR weight over what `windows` lays side by side."""


class Tensor(Protocol):
    """A tensor that can be read; `rushlight.checkpoint.Tensor` is one."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str:
        """The safetensors dtype word: F32, F16, BF16, ..."""
        ...

    @property
    def shape(self) -> tuple[int, ...]: ...
    def float32(self) -> NDArray[np.float32]:
        """The values in float32, C-contiguous, the caller's own."""
        ...

    def read_into(self, raw: NDArray[np.uint8], start: int) -> None:
        """Fills `raw` with the tensor's bytes from byte `start` on, as the file has them: little-endian, row by row."""
        ...

    def same_data(self, other: Any) -> bool:
        """Whether both hold the same bytes."""
        ...


@runtime_checkable
class FileTensor(Tensor, Protocol):
    """A tensor that lies in a file on this machine, for readers other than itself."""

    def opened(self) -> AbstractContextManager[tuple[int, int]]:
        """The file's descriptor, and the offset of the tensor's first byte.

        On leaving, raises TruncatedError if the file has changed since the checkpoint was opened.
        """
        ...


class Backend(Protocol):
    """The operations of one device at one dtype.

    Every operation is pure, but `attention` writes its keys and values into `batch.cache`. A row of a result depends on
    that row of the argument alone (in attention: on that sequence's positions up to the row's own), never on how many
    rows come with it.
    """

    device: str
    """What computes, as the device word for it: cpu, reference, metal, cuda."""
    dtype: str
    """The word for what it computes in: f32, f64, bf16, ..."""

    @property
    def arithmetic(self) -> str:
        """What the bits of a result depend on beside the weights and the input: "exact" for nothing else, or a word for
        the arithmetic that computes, such as an instruction set or a device.
        """
        ...

    def place(self, tensor: Tensor, role: Role) -> Weight:
        """Lays a parameter out for its role. It may be read later: it is there after `settle`."""
        ...

    def settle(self) -> None:
        """Returns when all that was placed is there; may be called on another thread. Raises what reading raises."""
        ...

    def tie(self, table: Weight) -> Weight:
        """A placed TABLE as the LINEAR weight of the same numbers, for a tied head; copies nothing."""
        ...

    def kv_cache(self, shape: KVShape, n_blocks: int) -> KVCache:
        """A zeroed cache of `n_blocks` blocks of keys and values in every layer.

        Where the device can, memory is taken only as blocks are first written; the lower ones are used first.
        """
        ...

    def kv_block_bytes(self, shape: KVShape) -> int:
        """What one block of such a cache takes, of all layers."""
        ...

    def available_bytes(self) -> int:
        """The memory that caches may still take."""
        ...

    def capture(self, forward: Forward) -> Forward:
        """The forward as this device runs it best: its results are as near as the device promises of any two ways to
        compute a row (on cpu and reference the same bits), its errors the same.

        A device may record what a forward asks of it and repeat that without asking, as long as `forward.revision`
        (see `rushlight.nn.Module`) stays; where it does not, this is `forward` itself.
        """
        ...

    def embedding(self, ids: NDArray[np.int32], table: Weight) -> Array:
        """(N,) ids, (V, C) table -> (N, C): the table's rows."""
        ...

    def linear(self, x: Array, weight: Weight, bias: Weight | None) -> Array:
        """(N, C) -> (N, F): x times the weight, in the direction of its role, plus the bias."""
        ...

    def layer_norm(self, x: Array, weight: Weight, bias: Weight, eps: float) -> Array:
        """(N, C) -> (N, C): each row less its mean, over its standard deviation, times weight plus bias."""
        ...

    def activation(self, x: Array, name: str) -> Array:
        """(N, F) -> (N, F), element by element; the names are those of `rushlight.nn.ACTIVATIONS`."""
        ...

    def split(self, x: Array, n: int) -> Sequence[Array]:
        """(N, n·C) -> n arrays (N, C)."""
        ...

    def take(self, x: Array, rows: NDArray[np.int32]) -> Array:
        """(N, C), (R,) -> (R, C): the chosen rows."""
        ...

    def windows(self, x: Array, rows: NDArray[np.int32]) -> Array:
        """(N, C), (N, S) -> (N, S·C): for each row the S rows of x that it names, side by side; zeros for -1."""
        ...

    def attention(self, q: Array, k: Array, v: Array, batch: Batch, *, layer: int, n_head: int, scale: float) -> Array:
        """(N, C) queries, keys, values -> (N, C): causal attention of each row to its own sequence.

        Writes k and v into the cache's layer at the rows' positions, then for each row and head takes
        softmax(scale · q · kᵀ) v over positions 0 to the row's own.
        """
        ...

    def choose(self, logits: Array, draws: Sequence[Draw]) -> list[int]:
        """(R, V) logits and R draws -> a token for each row; -1 where the greatest logit is NaN or infinite.

        The logits stay as they are. What comes back to the host is the ids alone, and where the device computes on its
        own, that is what the host waits for.
        """
        ...

    def from_numpy(self, values: NDArray[np.floating]) -> Array:
        """(N, C) values, as `to_numpy` gives them, on the device."""
        ...

    def to_numpy(self, x: Array) -> NDArray[np.float32]:
        """The values in host memory, in float32 (float64 if that is what the backend computes in)."""
        ...
