"""What a model needs in memory and whether it fits here, in two sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rushlight.cli.views.tree import human_bytes
from rushlight.loading.footprint import DTYPES

if TYPE_CHECKING:
    from rushlight.loading.footprint import Footprint

__all__ = ["fit", "needs"]


def needs(of: Footprint) -> str:
    """The weights in each dtype, and the keys and values of some tokens and of the full context."""
    sizes = {of.weight_bytes[dtype]: dtype for dtype in (*DTYPES, of.stored)}  # f16 takes what bf16 takes
    others = [f"{dtype} {human_bytes(nbytes)}" for nbytes, dtype in sizes.items() if dtype != of.stored]
    weights = f"{of.stored} {human_bytes(of.weight_bytes[of.stored])} ({', '.join(others)})"
    amounts = [
        f"{human_bytes(of.kv_bytes(of.stored, n))} for {'all ' if n == of.context_length else ''}{n:,} tokens"
        for n in dict.fromkeys((of.tokens, of.context_length))
    ]
    return f"weights in {weights}; keys and values {', '.join(amounts)}"


def fit(of: Footprint, have_bytes: int) -> str:
    """Whether it fits in the available memory, and the dtype that would."""
    dtype = of.fitting(have_bytes)
    have = f"{human_bytes(have_bytes)} available"
    if dtype == of.stored:
        return f"fits in {dtype}, {have}"
    needed = f"{of.stored} needs {human_bytes(of.need_bytes(of.stored))}, {have}"
    if dtype is not None:
        return f"fits with --dtype {dtype} ({human_bytes(of.need_bytes(dtype))}); {needed}"
    least = DTYPES[-1]
    return f"does not fit: even {least} needs {human_bytes(of.need_bytes(least))}, {have}"
