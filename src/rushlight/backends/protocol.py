"""The protocol of a backend: a device's operations, weights and KV caches, at one dtype.

Axis letters, here and everywhere: N tokens (rows of a step, whichever sequences they belong to), C channels, F inner
channels, H heads, K key/value heads, D head_dim, V vocabulary, S sequences, T positions, R rows that get logits.

Activations are (N, C) arrays of the backend's own kind. Model code passes them on, adds them with `+`, and multiplies
them element by element, or by a number, with `*`. There is no batch axis and no padding: a `Batch` lists which
rows belong to which sequence, and only attention and convolutions read it.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeGuard, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from rushlight.backends.batch import Batch, KVCache, KVGroup, KVShape

Array = Any
"""An activation on the device: (N, C), with `.shape`, `+`, and `*` with another one or with a number. Arrays of NumPy,
MLX and PyTorch qualify, and so does an operation that is not computed yet (`rushlight.backends.fusion`)."""

Forward = Callable[[Any], Array]
"""A model: a `Batch` of N rows -> (R, V) logits on the device."""


Weight = Any
"""A loaded parameter: packed, quantised or plain, as the backend likes. Opaque on every backend: only operations
compute with it, and `Backend.weight_values` returns its numbers. A matrix has `nbytes`, the memory that it
takes."""


def version_of(forward: Forward) -> int:
    """A number that grows when a module of the forward changes, see `rushlight.nn.Module`; 0 for a plain function."""
    return getattr(forward, "version", 0)


class LogitAdjustments(NamedTuple):
    """Logit adjustments applied before sampling: l becomes (l / factor if l > 0 else l * factor) + offset.

    Attributes:
        ids: (K,) token ids, each at most once.
        factors: (K,) above 0; the repetition penalty of Keskar et al., arXiv:1909.05858. 1 leaves a logit unchanged.
        offsets: (K,) added after that.
    """

    ids: NDArray[np.int32]
    factors: NDArray[np.float64]
    offsets: NDArray[np.float64]


class SamplingRow(NamedTuple):
    """How to sample a token from one row of logits.

    Applied in this order: adjustments, allowed tokens, temperature, top-k, top-p, min-p; then the draw itself.

    Attributes:
        temperature: divides the logits; 0 takes the most likely token, the first of equals, and ignores what follows.
        top_k: keeps the k most likely tokens and all that equal the last of them; 0 keeps all.
        top_p: keeps the fewest tokens, most likely first and the first of equals, whose probability reaches this.
        min_p: keeps the tokens at least this fraction as likely as the most likely one.
        uniform: a random number in [0, 1): the token at this point of the cumulative probability, in order of ids.
        adjustments: of logits, applied first, or None.
        allowed: (V,) the tokens that may be sampled; None is all. Rows that share one array cost a device less than
            rows that hold equal ones.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    uniform: float = 0.0
    adjustments: LogitAdjustments | None = None
    allowed: NDArray[np.bool_] | None = None


class NotRecordableError(BaseException):
    """Raised while a step is being recorded, by whatever needs a value that is only known when the step runs.

    `Backend.capture` logs its message once, at INFO, and runs the forward eagerly from then on. Not an Exception: a
    forward that handles exceptions would otherwise be recorded the way it runs after one.
    """


class Role(Enum):
    """How a parameter is used, which determines its layout on a device."""

    VECTOR = "vector"
    """(C,): a bias or a gain."""
    TABLE = "table"
    """(V, C): rows are gathered by id; `tie` turns it into the LINEAR of a tied head."""
    LINEAR = "linear"
    """(out, in): PyTorch's nn.Linear, y = x Wᵀ."""
    CONV1D = "conv1d"
    """(in, out): GPT-2's Conv1D, y = x W."""
    CONVOLUTION = "convolution"
    """(out, in, size): PyTorch's nn.Conv1d, as a LINEAR weight over the rows that `unfold` puts side by side."""
    CONSTANT = "constant"
    """(C,): numbers that follow from the config and are in no checkpoint, such as rotary frequencies and ALiBi slopes.
    Float32 on every backend, whatever the dtype of the weights."""


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
        """The values in float32, C-contiguous, in an array that the caller may change."""
        ...

    def read_into(self, raw: NDArray[np.uint8], start: int) -> None:
        """Fills `raw` with the tensor's bytes from byte `start` on, as the file has them: little-endian, row by row."""
        ...

    def same_data(self, other: Any) -> bool:
        """Whether both hold the same bytes."""
        ...


@runtime_checkable
class FileTensor(Tensor, Protocol):
    """A tensor in a local file, which native code can read without the checkpoint."""

    def opened(self) -> AbstractContextManager[tuple[int, int]]:
        """The file's descriptor, and the offset of the tensor's first byte.

        On leaving, raises TruncatedError if the file has changed since the checkpoint was opened.
        """
        ...


class Packing(Protocol):
    """How a matrix was packed; `rushlight.checkpoint.packed.Packing` is one."""

    @property
    def role(self) -> str:
        """The value of its `Role`."""
        ...

    @property
    def format(self) -> str:
        """f32, f16, bf16, int8, int6 or int4."""
        ...

    @property
    def sides(self) -> tuple[int, int]:
        """The number of inputs and of outputs."""
        ...


class PackedTensor(FileTensor, Protocol):
    """A matrix in a converted file, whose bytes are panels in the layout of native/panel.h."""

    @property
    def packing(self) -> Packing: ...
    @property
    def converted_dtype(self) -> str:
        """The dtype that the file was converted to."""
        ...

    @property
    def file(self) -> Path: ...
    @property
    def file_bytes(self) -> int:
        """The size of the file."""
        ...

    def require_unchanged(self, descriptor: int) -> None:
        """Raises TruncatedError if the file has changed since the checkpoint was opened.

        Args:
            descriptor: of the file, duplicated from that of `opened`.
        """
        ...


def is_packed(tensor: Tensor) -> TypeGuard[PackedTensor]:
    """Whether a tensor is a `PackedTensor`: `isinstance` would take as long as mapping the weights of a model."""
    return hasattr(tensor, "packing")


class Backend(Protocol):
    """The operations of one device at one dtype.

    Every operation is pure, except that `attention` writes keys and values into `batch.cache`. A row of a result
    depends only on the same row of the argument (in attention: on its own sequence up to its position), never on the
    number of rows that are computed with it.
    """

    @property
    def device(self) -> str:
        """The device's name, as `open_backend` takes it: cpu, reference, metal, cuda, cuda:1."""
        ...

    @property
    def weight_dtypes(self) -> frozenset[str]:
        """The dtypes of the loaded matrices: f32, f64, f16, bf16, int8, int6, int4. Before the first, the requested
        one.
        """
        ...

    @property
    def compute_dtype(self) -> str:
        """The dtype of activations; final once weights are loaded."""
        ...

    @property
    def kv_dtype(self) -> str:
        """The dtype of keys and values in the cache; final once weights are loaded."""
        ...

    @property
    def dtype_label(self) -> str:
        """The weights' dtype for display, such as "bf16/f32". Never parsed."""
        ...

    @property
    def arithmetic(self) -> str:
        """The hardware that the bits of a result depend on: "exact" if they depend only on weights and input, otherwise
        the name of an instruction set, device or library.
        """
        ...

    @property
    def tile_version(self) -> int | None:
        """The layout of the packed weights that the device computes with as they lie in a converted file; None if it
        takes none, and loads their values instead.
        """
        ...

    # Weights and caches

    def load_weight(self, tensor: Tensor, role: Role) -> Weight:
        """Lay a parameter out for its role. The tensor may be read later: it is loaded after `finish_loading`."""
        ...

    def finish_loading(self, *, spare_core: bool = False) -> None:
        """Wait until every weight is loaded, and raise any error of reading them. May be called on another thread.

        Args:
            spare_core: leave a core to other threads until one of them calls `hurry`.
        """
        ...

    def hurry(self) -> None:
        """Load with every core from now on: the calling thread is going to wait for the weights."""
        ...

    def tie(self, table: Weight) -> Weight:
        """A loaded TABLE as the LINEAR weight of the same numbers, for a tied head; copies nothing."""
        ...

    def check_weights(self) -> None:
        """Checks that the files that weights are mapped from are as they were, so that results since are right.

        Called after every step, before its results are used.

        Raises:
            CheckpointError: a file has changed, or can no longer be read.
        """
        ...

    def weight_values(self, weight: Weight) -> NDArray[np.float32]:
        """The numbers that the device computes with, in the shape that the tensor had; a copy."""
        ...

    def kv_cache(self, shape: KVShape, n_blocks: int | Sequence[int]) -> KVCache:
        """A zeroed cache of `n_blocks` blocks of keys and values in every layer, or of that many in each group.

        Where the device can, memory is taken only when a block is first written; lower blocks are used first.
        """
        ...

    def kv_block_bytes(self, shape: KVShape | KVGroup) -> int:
        """The size of one block of such a cache, of all layers or of those of a group."""
        ...

    def available_bytes(self) -> int:
        """The memory that caches may still take."""
        ...

    def capture(self, forward: Forward) -> Forward:
        """The forward in its fastest form on this device, such as a recorded plan or graph.

        Results agree as closely as the device promises for any two ways to compute a row (on cpu and reference, bit for
        bit), and errors are the same. A recording is repeated as long as `forward.version` (see `rushlight.nn.Module`)
        stays the same. A device that records nothing returns `forward` itself. A forward that cannot be recorded is
        logged once at INFO, with the reason, and runs eagerly.
        """
        ...

    # Operations

    def embedding(self, ids: NDArray[np.int32], table: Weight, first_row: int = 0) -> Array:
        """(N,) ids, (V, C) table -> (N, C): row `first_row` + id of the table, for each id."""
        ...

    def linear(self, x: Array, weight: Weight, bias: Weight | None) -> Array:
        """(N, C) -> (N, F): x times the weight, in the direction of its role, plus the bias."""
        ...

    def layer_norm(self, x: Array, weight: Weight, bias: Weight | None, eps: float) -> Array:
        """(N, C) -> (N, C): (x - mean) / √(variance + eps) · weight + bias, of each row."""
        ...

    def rms_norm(self, x: Array, weight: Weight, eps: float, offset: float = 0.0) -> Array:
        """(N, G·C) -> (N, G·C): x / √(mean of squares + eps) · (offset + weight), of each of G groups of C channels.

        C is the length of the weight, so that one operation normalises entire rows, (C,), or every head, (D,). Sums and
        `offset + weight` are float32.
        """
        ...

    def activation(self, x: Array, name: str) -> Array:
        """(N, F) -> (N, F), element by element; the names are those of `rushlight.nn.ACTIVATIONS`."""
        ...

    def split(self, x: Array, sizes: int | Sequence[int], *, groups: int = 1) -> Sequence[Array]:
        """(N, C) -> parts of these sizes, or that many equal parts, in order.

        With `groups`, the channels are that many equal groups, each of which is split alike: part i is the i-th part of
        every group, side by side: (N, groups · size). GPT-NeoX's fused projection is `split(x, 3, groups=n_head)`.
        """
        ...

    def join(self, parts: Sequence[Array]) -> Array:
        """Arrays of N rows -> (N, sum of their columns): side by side, in order; undoes `split` of one group."""
        ...

    def take(self, x: Array, rows: NDArray[np.int32]) -> Array:
        """(N, C), (R,) -> (R, C): the rows with these indices."""
        ...

    def unfold(self, x: Array, rows: NDArray[np.int32]) -> Array:
        """(N, C), (N, S) -> (N, S·C): for each row, the rows of x with its S indices, side by side; zeros for -1."""
        ...

    def angles(self, positions: NDArray[np.int32], frequencies: Weight, scale: float = 1.0) -> Array:
        """(N,) positions, (r/2,) frequencies -> (N, r): cosines, then sines, of position · frequency, times scale.

        The product is rounded to float32, as PyTorch's is, and cosine and sine are those of that number. Float32,
        whatever the dtype of the weights.
        """
        ...

    def rotary(self, x: Array, angles: Array, n_head: int, *, interleaved: bool = False) -> Array:
        """(N, H·D), (N, r) angles -> (N, H·D): rotary position embedding of the first r channels of each head.

        Su et al., arXiv:2104.09864. Channel i is paired with i + r/2, or, interleaved, 2i with 2i + 1:
        (a, b) -> (a cos - b sin, b cos + a sin). The other channels stay unchanged.
        """
        ...

    def attention(
        self,
        q: Array,
        k: Array,
        v: Array,
        batch: Batch,
        *,
        layer: int,
        n_head: int,
        scale: float,
        window: int | None = None,
        slopes: Weight | None = None,
        softcap: float | None = None,
    ) -> Array:
        """(N, H·D) queries, (N, K·D) keys and values -> (N, H·D): causal attention of each row to its own sequence.

        Writes k and v into the cache's layer at the rows' positions. Then for each row at position p and each head h,
        takes softmax(score) · v over positions 0 to p, where score(t) = scale · q · k of key head h·K // H at t.

        Args:
            window: a row sees this many positions, its own being the last; None is all. At most the layer's window in
                `KVShape.windows`, if it has one.
            slopes: (H,) ALiBi's: slope · (t - p) is added to a score. Press et al., arXiv:2108.12409.
            softcap: scores become softcap · tanh(score / softcap), before slopes are added. Gemma 2, arXiv:2408.00118.
        """
        ...

    def sample(self, logits: Array, rows: Sequence[SamplingRow]) -> list[int]:
        """(R, V) logits -> a token id for each row; -1 where the largest logit is NaN or infinite.

        The logits stay unchanged. Only the ids come back to the host, which waits for nothing else.
        """
        ...

    def from_numpy(self, values: NDArray[np.floating]) -> Array:
        """(N, C) values, as `to_numpy` returns them, on the device."""
        ...

    def to_numpy(self, x: Array) -> NDArray[np.float32]:
        """The values in host memory, in float32 (float64 if that is what the backend computes in)."""
        ...
