"""Checks of the arguments of operations, shared by the backends in Python; native code has its own.

Array libraries broadcast and wrap negative indices, so that a port's mistake would give a wrong result on one device
and an error on another.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


def require(holds: bool, problem: str) -> None:
    """Raises ValueError with the problem unless the condition holds."""
    if not holds:
        raise ValueError(problem)


def part_sizes(n_channels: int, sizes: int | Sequence[int], groups: int = 1) -> list[int]:
    """The sizes of the parts of each group that `Backend.split` makes.

    Raises:
        ValueError: the channels are not that many equal groups, or the sizes do not add up to those of a group.
    """
    require(groups > 0 and n_channels % groups == 0, f"{n_channels} columns cannot be split into {groups} equal groups")
    group = n_channels // groups
    if hasattr(sizes, "__index__"):
        n = int(sizes)
        require(n > 0 and group % n == 0, f"{group} columns cannot be split evenly into {n} parts")
        return [group // n] * n
    parts = list(sizes)
    valid = bool(parts) and min(parts) > 0 and sum(parts) == group
    require(valid, f"expected sizes above 0 that add up to the {group} columns to split, found {parts}")
    return parts


def check_join(parts: Sequence[Any]) -> None:
    """Raises ValueError unless `Backend.join` can put these arrays side by side."""
    require(bool(parts), "expected at least one array to join")
    rows = [part.shape[0] for part in parts]
    require(len(set(rows)) == 1, f"the arrays to join differ in rows: {', '.join(map(str, rows))}")


def check_rotary(x: Any, angles: Any, n_head: int) -> None:
    """Raises ValueError unless `Backend.rotary` can rotate (N, H·D) by (N, r) angles."""
    n, n_channels = x.shape
    require(
        n_head > 0 and n_channels % n_head == 0,
        f"x has {n_channels} columns, which do not split into {n_head} equal heads",
    )
    n_angles, n_rotated = angles.shape
    require(n_angles == n, f"x and angles differ in rows: {n} and {n_angles}")
    head_dim = n_channels // n_head
    require(
        n_rotated % 2 == 0 and n_rotated <= head_dim,
        f"angles have {n_rotated} columns: expected an even number up to the head's {head_dim} channels",
    )


def check_window(window: int | None, kept: int | None, layer: int) -> None:
    """Raises ValueError if attention would see positions that the cache does not keep for this layer."""
    require(
        kept is None or (window is not None and window <= kept),
        f"the cache keeps only the last {kept} positions of layer {layer}: pass a window of at most that",
    )


def check_norm(x: Any, weight_size: int, bias_size: int | None = None, *, grouped: bool = False) -> None:
    """Raises ValueError unless weight and bias have a value for each of x's channels, or of those of a group."""
    n_channels = x.shape[1]
    if grouped:
        require(
            weight_size > 0 and n_channels % weight_size == 0,
            f"x has {n_channels} columns, not a multiple of the weight's length {weight_size}",
        )
    else:
        sizes = [n_channels, weight_size, weight_size if bias_size is None else bias_size]
        require(len(set(sizes)) == 1, f"x, weight and bias differ in length: {', '.join(map(str, sizes))}")


def check_attention(
    q: Any,
    k: Any,
    v: Any,
    cached: Sequence[int],
    *,
    n_head: int,
    window: int | None,
    n_slopes: int | None,
    softcap: float | None,
) -> None:
    """Raises ValueError unless the arguments of `Backend.attention` fit together.

    Args:
        q, k, v: two-dimensional.
        cached: (K, D) of the cache.
        n_head, window, softcap: those of `Backend.attention`.
        n_slopes: the number of slopes; None if there are none.
    """
    n_kv_head, head_dim = cached
    require(
        n_head > 0 and n_head % n_kv_head == 0,
        f"the cache is for a different number of heads: {n_head} query heads are not a multiple of {n_kv_head} "
        "key/value heads",
    )
    n = q.shape[0]
    for name, x, heads in (("queries", q, n_head), ("keys", k, n_kv_head), ("values", v, n_kv_head)):
        require(
            tuple(x.shape) == (n, heads * head_dim),
            f"{name} do not fit the batch and the cache: expected {n} rows of {heads} heads of {head_dim}, "
            f"found {tuple(x.shape)}",
        )
    require(window is None or window > 0, f"window is {window}: expected at least 1")
    require(
        softcap is None or (softcap > 0 and math.isfinite(softcap)), f"softcap is {softcap}: expected a positive number"
    )
    require(n_slopes is None or n_slopes == n_head, f"expected {n_head} slopes, one for each head, found {n_slopes}")
