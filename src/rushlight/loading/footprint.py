"""What a language model needs in memory, from its config and its headers: before it is loaded, or even downloaded."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from rushlight.backends.batch import BLOCK_SIZE, PREFILL_ROWS, KVGroup
from rushlight.backends.dtypes import CHECKPOINT_DTYPES, TABLE_BYTES, WEIGHT_BYTES
from rushlight.backends.protocol import Role
from rushlight.checkpoint import read_config
from rushlight.errors import MemoryLimitError, RushlightError
from rushlight.host.memory import KV_SHARE, human_bytes
from rushlight.models import TextConfig
from rushlight.models.recognition import architecture_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rushlight.checkpoint import Checkpoint
    from rushlight.models import Architecture
    from rushlight.nn import Module

__all__ = ["DTYPES", "Footprint", "footprint", "footprint_of"]

DTYPES = ("f32", "bf16", "int8", "int4")
"""The dtypes that differ in size, the largest first; f16 takes what bf16 takes."""
TOKENS = 2048
"""The tokens that a model must have room for to fit, or its whole context if that is less."""

_SMALLER = {
    "cpu": ("bf16", "int8", "int4"),
    "metal": ("bf16", "int8", "int4"),
    "mlx-cpu": ("bf16", "int8", "int4"),
    "cuda": ("bf16", "int8"),
    "torch-cpu": ("bf16", "int8"),
}
"""The dtypes that a device can keep weights in to save memory, the largest first."""

_KV_BYTES = {"f64": 8, "f32": 4}
"""Bytes of a number in keys and values, with weights in a dtype; 2 with any other."""


class Footprint(NamedTuple):
    """The memory of a model on cpu.

    Attributes:
        n_parameters: its weights, a tied head counted once.
        stored: the dtype of most of the checkpoint, which auto keeps.
        weight_bytes: its weights in each dtype.
        kv_numbers: the keys and values of one token in one layer.
        windows: the window of each layer; None if it keeps all tokens.
        context_length: the most tokens of a sequence.
    """

    n_parameters: int
    stored: str
    weight_bytes: Mapping[str, int]
    kv_numbers: int
    windows: tuple[int | None, ...]
    context_length: int

    def kv_bytes(self, dtype: str, n_tokens: int) -> int:
        """The keys and values of a sequence, with weights in a dtype."""
        kept = sum(n_tokens if window is None else min(n_tokens, window) for window in self.windows)
        return self.kv_numbers * kept * _KV_BYTES.get(dtype, 2)

    @property
    def tokens(self) -> int:
        """The tokens that there must be room for."""
        return min(TOKENS, self.context_length)

    def need_bytes(self, dtype: str) -> int:
        """Weights, and keys and values of `tokens`."""
        return self.weight_bytes[dtype] + self.kv_bytes(dtype, self.tokens)

    def fitting(self, have_bytes: int, dtype: str = "auto") -> str | None:
        """The dtype in which the model fits: the requested one, or else the largest below it; None if none does."""
        wanted = self.stored if dtype == "auto" else dtype
        below = [dtype for dtype in DTYPES if WEIGHT_BYTES[dtype] < WEIGHT_BYTES[wanted]]
        return next((dtype for dtype in (wanted, *below) if self.need_bytes(dtype) <= have_bytes), None)

    def describe(self) -> str:
        """The weights in each dtype, and the keys and values of some tokens and of the full context."""
        stored_bytes = self.weight_bytes[self.stored]
        others = [f"{dtype} {human_bytes(n)}" for dtype in DTYPES if (n := self.weight_bytes[dtype]) != stored_bytes]
        amounts = [
            f"{human_bytes(self.kv_bytes(self.stored, n))} for {'all ' if n == self.context_length else ''}{n:,} tokens"
            for n in dict.fromkeys((self.tokens, self.context_length))
        ]
        weights = f"{self.stored} {human_bytes(stored_bytes)} ({', '.join(others)})"
        return f"weights in {weights}; keys and values {', '.join(amounts)}"

    def describe_fit(self, have_bytes: int, dtype: str = "auto") -> str:
        """Whether the model fits in the requested dtype, and the dtype that would."""
        wanted = self.stored if dtype == "auto" else dtype
        fitting = self.fitting(have_bytes, wanted)
        needed = human_bytes(self.need_bytes(fitting or DTYPES[-1]))
        have = f"{human_bytes(have_bytes)} available"
        if fitting == wanted:
            return f"fits in {wanted} ({needed} of {have})"
        if fitting is None:
            return f"does not fit: even {DTYPES[-1]} needs {needed} of {have}"
        more = human_bytes(self.need_bytes(wanted))
        return f"fits with --dtype {fitting} ({needed} of {have}; {wanted} needs {more})"

    def context_bytes(self, dtype: str) -> int:
        """The keys and values of a full context as the cache holds them: in blocks, of a window those of a step."""
        layers = (KVGroup(1, 1, 1, window, ()) for window in self.windows)
        n_blocks = sum(layer.n_blocks_for(self.context_length, PREFILL_ROWS) for layer in layers)
        return self.kv_numbers * n_blocks * BLOCK_SIZE * _KV_BYTES.get(dtype, 2)

    def require(self, dtype: str, device: str, have_bytes: int, *, context: int | None, kv_bytes: int | None) -> None:
        """Checks that the weights fit in memory and, if the caller sets the context, one full context beside them.

        Args:
            dtype: the requested dtype.
            device: where the weights go.
            have_bytes: the available memory there.
            context: the context length, if the caller sets it.
            kv_bytes: the caller's limit for keys and values; None is `KV_SHARE` of what the weights leave.

        Raises:
            MemoryLimitError: they do not fit; the message has the dtype or the context that would.
        """
        dtype = self.stored if dtype == "auto" else dtype
        weights = self.weight_bytes[dtype]
        if weights > have_bytes:
            sizes = {each: self.weight_bytes[each] for each in _SMALLER.get(device.partition(":")[0], ())}
            fits = next((each for each, size in sizes.items() if size <= have_bytes), None)
            least = min(sizes, key=lambda each: sizes[each], default=None)
            remedy = "free memory, or use a smaller model"
            if fits is not None:
                remedy = f"use --dtype {fits} ({sizes[fits] / 1e6:,.1f} MB), which fits"
            elif least is not None:
                remedy += f"; even in {least} this one takes {sizes[least] / 1e6:,.1f} MB"
            raise MemoryLimitError(
                "the model does not fit in memory", need_bytes=weights, have_bytes=have_bytes, remedy=remedy
            )
        room = int((have_bytes - weights) * KV_SHARE) if kv_bytes is None else kv_bytes
        need = self.context_bytes(dtype)
        if context is not None and need > room:
            shorter = (n for n in range(context // BLOCK_SIZE * BLOCK_SIZE, 0, -BLOCK_SIZE))
            most = next((n for n in shorter if self._replace(context_length=n).context_bytes(dtype) <= room), None)
            raise MemoryLimitError(
                f"keys and values of one context of {context:,} tokens do not fit in memory beside the weights",
                need_bytes=need,
                have_bytes=room,
                remedy=f"use --context {most} or less, or weights in fewer bits (--dtype)" if most else "free memory",
            )


def footprint(checkpoint: Checkpoint) -> Footprint | None:
    """The footprint of an open checkpoint; None if its type is not built in or its config is not valid."""
    architecture = architecture_of(checkpoint)
    if architecture is None:
        return None
    path = checkpoint.sidecar("config.json")
    try:
        if path is None:
            config = architecture.config_type.from_tensors(checkpoint, file=checkpoint.source)
        else:
            config = architecture.config_type.from_json(read_config(path), file=str(path))
    except RushlightError:
        return None
    if not isinstance(config, TextConfig):
        return None
    return footprint_of(checkpoint, architecture, config, architecture(config))


def footprint_of(checkpoint: Checkpoint, architecture: Architecture, config: TextConfig, module: Module) -> Footprint:
    """The footprint of an open checkpoint whose architecture and config are known, with the module built from them."""
    slots = [
        slot
        for name, slot in module.named_slots()
        if not (config.tie_word_embeddings and name in architecture.rules.tied)
    ]
    stored_bytes = Counter[str]()
    for tensor in checkpoint.values():
        stored_bytes[CHECKPOINT_DTYPES.get(tensor.dtype, "f32")] += tensor.nbytes
    stored = max(stored_bytes, key=lambda dtype: stored_bytes[dtype], default="f32")
    if checkpoint.conversion is not None:
        stored = checkpoint.conversion.dtype
    kv = config.kv_shape
    return Footprint(
        n_parameters=sum(slot.n_elements for slot in slots),
        stored=stored,
        weight_bytes={
            dtype: int(sum(slot.n_elements * _bytes_each(dtype, slot.role) for slot in slots)) for dtype in WEIGHT_BYTES
        },
        kv_numbers=2 * kv.n_kv_head * kv.head_dim,
        windows=config.windows,
        context_length=config.context_length,
    )


def _bytes_each(dtype: str, role: Role) -> float:
    """Bytes of one weight, by the policy of `rushlight.backends.dtypes`."""
    if role is Role.VECTOR:
        return WEIGHT_BYTES["f32"]
    return TABLE_BYTES.get(dtype, WEIGHT_BYTES[dtype]) if role is Role.TABLE else WEIGHT_BYTES[dtype]
