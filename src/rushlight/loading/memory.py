"""The memory that a model needs, before its weights are read, and the dtype in which it would fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rushlight.backends.batch import BLOCK_SIZE, PREFILL_ROWS
from rushlight.backends.dtypes import WEIGHT_BYTES
from rushlight.errors import MemoryLimitError
from rushlight.host.memory import KV_SHARE
from rushlight.nn import Role

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rushlight.models import TextConfig
    from rushlight.nn import Slot

SMALLER_DTYPES = {
    "cpu": ("bf16", "int8", "int4"),
    "metal": ("bf16", "int8", "int4"),
    "mlx-cpu": ("bf16", "int8", "int4"),
    "cuda": ("bf16", "int8"),
    "torch-cpu": ("bf16", "int8"),
}
"""The dtypes that a device may be asked for to save memory, the largest first; none for others."""


class MemoryNeed(NamedTuple):
    """The memory of a model in one dtype.

    Attributes:
        weights: bytes of the weights.
        kv: bytes of the keys and values of one sequence of `context` positions. They are allocated as it grows.
        context: the positions.
    """

    weights: int
    kv: int
    context: int

    @property
    def total(self) -> int:
        """Bytes of the model with one full context."""
        return self.weights + self.kv


def memory_needed(
    config: TextConfig, slots: Iterable[Slot], dtype: str, *, context: int | None = None, stored_bytes: float = 2.0
) -> MemoryNeed:
    """The memory that a model needs.

    Args:
        config: its config.
        slots: its parameters; of a tied head and table only one.
        dtype: the dtype of the weights in memory; auto keeps the stored one.
        context: the positions; None is the context length.
        stored_bytes: the bytes of a stored number: 2 for f16 and bf16, 4 for f32.
    """
    weights = 0.0
    for slot in slots:
        each = WEIGHT_BYTES.get(dtype, stored_bytes)
        if slot.role in (Role.VECTOR, Role.CONSTANT):
            each = WEIGHT_BYTES["f32"]
        elif slot.role is Role.TABLE and dtype == "int4":
            each = WEIGHT_BYTES["int8"]
        weights += slot.n_elements * each
    length = context or config.context_length
    number_bytes = {"f64": 8, "f32": 4}.get(dtype, 4 if dtype == "auto" and stored_bytes > 2 else 2)
    return MemoryNeed(int(weights), number_bytes * _kv_numbers(config, length), length)


def _kv_numbers(config: TextConfig, length: int) -> int:
    """The keys and values of one sequence; of layers with a window only those that are kept at once."""
    return sum(
        group.n_blocks_for(length, PREFILL_ROWS) * BLOCK_SIZE * 2 * group.n_layer * group.n_kv_head * group.head_dim
        for group in config.kv_shape.groups
    )


def require_fits(
    config: TextConfig,
    slots: Iterable[Slot],
    dtype: str,
    *,
    device: str,
    have_bytes: int,
    stored_bytes: float,
    kv_bytes: int | None = None,
) -> None:
    """Checks that the weights fit in memory and, if the caller limits the context, one full context beside them.

    Args:
        config, slots, dtype, stored_bytes: as for `memory_needed`.
        device: where the weights go.
        have_bytes: the available memory there.
        kv_bytes: the caller's limit for keys and values.

    Raises:
        MemoryLimitError: they do not; the message has the dtype that would fit.
    """
    slots = list(slots)
    need = memory_needed(config, slots, dtype, stored_bytes=stored_bytes)
    if need.weights > have_bytes:
        smaller = [
            (each, size)
            for each in SMALLER_DTYPES.get(device.partition(":")[0], ())
            if (size := memory_needed(config, slots, each).weights) < need.weights
        ]
        fits = next((f"--dtype {each} ({size / 1e6:,.0f} MB)" for each, size in smaller if size <= have_bytes), None)
        least = f"; in {smaller[-1][0]} it takes {smaller[-1][1] / 1e6:,.0f} MB" if smaller else ""
        remedy = f"use {fits}, which fits" if fits else f"free memory, or use a smaller model{least}"
        raise MemoryLimitError(
            "the model does not fit in memory", need_bytes=need.weights, have_bytes=have_bytes, remedy=remedy
        )
    room = int((have_bytes - need.weights) * KV_SHARE) if kv_bytes is None else kv_bytes
    if config.context is not None and need.kv > room:
        per_block = memory_needed(config, (), dtype, context=BLOCK_SIZE, stored_bytes=stored_bytes).kv
        most = min(config.context - 1, room // per_block * BLOCK_SIZE)
        raise MemoryLimitError(
            f"keys and values of one context of {need.context:,} positions do not fit in memory beside the weights",
            need_bytes=need.kv,
            have_bytes=room,
            remedy=f"use --context {most} or less, or weights in fewer bits (--dtype)" if most else "free memory",
        )
