"""Triton kernels for the CUDA backend: a decode step of few rows in five launches per block.

Each is compared with the plain PyTorch function of the same name in cuda.py. Sums are float32. Loaded values are cast
immediately: Triton's interpreter, which runs the tests without a GPU, has no bfloat16 arithmetic. Tiles follow from
shapes only and are not tuned by timing, so results do not differ between runs and no first launch stalls.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from rushlight.backends.batch import BLOCK_SIZE

if TYPE_CHECKING:
    from rushlight.backends.device_step import Scoring
    from rushlight.backends.fusion import Fused

MAX_TILE_VALUES = 16384
"""The values of a tile that a program keeps in registers: 256 keys of 64, for example."""

MAX_HEADS_TOGETHER = 8
"""The query heads that a program computes one after the other, from one load of their keys."""

MAX_TILE_INPUTS = 4096
"""The inputs that a program multiplies by one row at a time."""

MULTIPROCESSORS = 132
"""Those of an H100. A product is split into about as many programs, as far as its tiles allow."""


def decode_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    places: torch.Tensor,
    tables: torch.Tensor,
    lengths: torch.Tensor,
    scoring: Scoring,
) -> torch.Tensor:
    """`rushlight.backends.cuda.decode_attention`; keys and values are read in place, those before a window not at all.

    Flash-decoding (Dao et al., 2023): one program per sequence, key head and part of its keys, which are loaded once
    for the query heads that share them. A part has a fixed size, so a sequence is cut at the same keys whatever else is
    in the batch, and a long one still keeps many multiprocessors busy. If there is more than one part, a second kernel
    merges them.
    """
    n, n_head, head_dim = q.shape
    n_kv_head, width = k.shape[1], tables.shape[1]
    group = n_head // n_kv_head
    d_padded = triton.next_power_of_2(head_dim)
    tile_values = MAX_TILE_VALUES if group == 1 else MAX_TILE_VALUES // 2  # a group's keys and values are both kept
    part = min(max(tile_values // d_padded, BLOCK_SIZE), 4 * BLOCK_SIZE)
    n_parts = triton.cdiv(width * BLOCK_SIZE, part)
    out = torch.empty((n, n_head, head_dim), dtype=q.dtype, device=q.device)
    one_part = n_parts == 1
    partial = out if one_part else torch.empty((n, n_head, n_parts, head_dim), dtype=torch.float32, device=q.device)
    sums = None if one_part else torch.empty((n, n_head, n_parts, 2), dtype=torch.float32, device=q.device)
    together = min(group, MAX_HEADS_TOGETHER)
    with torch.cuda.device_of(q):
        _attend[n, n_kv_head * triton.cdiv(group, together), n_parts](
            q, k, v, keys, values, places, tables, lengths, partial, sums,
            scoring.scale, scoring.window, scoring.slopes, scoring.softcap,
            q.stride(0), k.stride(0), v.stride(0), width,
            n_kv_head, group, together, head_dim, d_padded, part, BLOCK_SIZE, num_warps=8,
        )  # fmt: skip
        if not one_part:
            _merge[n, n_head](
                partial, sums, lengths, out, n_parts, scoring.window,
                n_head, head_dim, d_padded, part, triton.next_power_of_2(n_parts),
            )  # fmt: skip
    return out


@triton.jit
def _attend(
    q, k, v, keys, values, places, tables, lengths, out, sums, scale, window, slopes, softcap,
    q_stride, k_stride, v_stride, width,
    n_kv_head: tl.constexpr, GROUP: tl.constexpr, TOGETHER: tl.constexpr, head_dim: tl.constexpr,
    D: tl.constexpr, PART: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One part of one sequence's keys, for up to TOGETHER of the query heads that share them.

    The program of the last part writes the row's own key; if there are several such programs, the same values. Without
    `sums` there is one part, and `out` (S, H, D) is the result; else `out` is (S, H, parts, D). Arguments that are None
    are left out.
    """
    s, part = tl.program_id(0), tl.program_id(2)
    n_programs: tl.constexpr = (GROUP + TOGETHER - 1) // TOGETHER  # of a key head
    kv_head, first = tl.program_id(1) // n_programs, tl.program_id(1) % n_programs * TOGETHER
    d, n = tl.arange(0, D), part * PART + tl.arange(0, PART)
    last = tl.load(lengths + s).to(tl.int32) - 1
    if part * PART > last:
        return
    seen = n <= last
    if window is not None:
        if part * PART + PART <= last + 1 - window:
            return
        seen = seen & (n > last - window)
    in_head = d < head_dim
    key = tl.load(k + s * k_stride + kv_head * head_dim + d, mask=in_head, other=0.0)
    value = tl.load(v + s * v_stride + kv_head * head_dim + d, mask=in_head, other=0.0)
    place = (tl.load(places + s) * n_kv_head + kv_head) * head_dim + d
    if last < part * PART + PART:
        tl.store(keys + place, key, mask=in_head)
        tl.store(values + place, value, mask=in_head)

    before = seen & (n < last)
    block = tl.load(tables + s * width + n // BLOCK, mask=before, other=0)
    at = ((block * BLOCK + n % BLOCK) * n_kv_head + kv_head)[:, None] * head_dim + d[None, :]
    there = before[:, None] & in_head[None, :]
    here = (n == last)[:, None]
    k_rows = tl.where(here, key.to(tl.float32)[None, :], tl.load(keys + at, mask=there, other=0.0).to(tl.float32))
    v_rows = tl.where(here, value.to(tl.float32)[None, :], tl.load(values + at, mask=there, other=0.0).to(tl.float32))
    for in_group in range(first, min(first + TOGETHER, GROUP)):
        h = kv_head * GROUP + in_group
        query = tl.load(q + s * q_stride + h * head_dim + d, mask=in_head, other=0.0).to(tl.float32) * scale
        scores = tl.sum(query[None, :] * k_rows, 1)
        if softcap is not None:
            scores = softcap * _activate(scores / softcap, "tanh")
        if slopes is not None:
            scores += tl.load(slopes + h) * (n - last).to(tl.float32)
        scores = tl.where(seen, scores, float("-inf"))
        m = tl.max(scores, 0)
        p = tl.exp(scores - m)
        total = tl.sum(p, 0)
        o = tl.sum(p[:, None] * v_rows, 0)
        at_part = (s * n_kv_head * GROUP + h) * tl.num_programs(2) + part
        if sums is None:
            o = o / total
        else:
            tl.store(sums + at_part * 2, m)
            tl.store(sums + at_part * 2 + 1, total)
        tl.store(out + at_part * head_dim + d, o.to(out.dtype.element_ty), mask=in_head)


@triton.jit
def _merge(
    partial, sums, lengths, out, n_parts, window,
    n_head: tl.constexpr, head_dim: tl.constexpr, D: tl.constexpr, PART: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Merges the parts of one sequence's head, each rescaled to the largest score of all."""
    s = tl.program_id(0)
    row = s * n_head + tl.program_id(1)
    d, p = tl.arange(0, D), tl.arange(0, P)
    length = tl.load(lengths + s)
    there = p * PART < length
    if window is not None:
        there = there & (p * PART + PART > length - window)
    m = tl.load(sums + (row * n_parts + p) * 2, mask=there, other=float("-inf"))
    total = tl.load(sums + (row * n_parts + p) * 2 + 1, mask=there, other=0.0)
    rescale = tl.exp(m - tl.max(m, 0))
    at = (row * n_parts + p)[:, None] * head_dim + d[None, :]
    o = tl.load(partial + at, mask=there[:, None] & (d < head_dim)[None, :], other=0.0)
    o = tl.sum(o * rescale[:, None], 0) / tl.sum(total * rescale, 0)
    tl.store(out + row * head_dim + d, o.to(out.dtype.element_ty), mask=d < head_dim)


def rotary(x: torch.Tensor, angles: torch.Tensor, n_head: int, interleaved: bool) -> torch.Tensor:
    """`TorchBackend.rotary` in one launch."""
    n, width = x.shape
    head_dim = width // n_head
    out = torch.empty((n, width), dtype=x.dtype, device=x.device)
    with torch.cuda.device_of(x):
        _rotary[n, n_head](
            x, angles.contiguous(), out, x.stride(0),
            n_head, head_dim, angles.shape[1], interleaved, triton.next_power_of_2(head_dim),
        )  # fmt: skip
    return out


@triton.jit
def _rotary(
    x, angles, out, x_stride,
    n_head: tl.constexpr, head_dim: tl.constexpr, N_ROTATED: tl.constexpr, INTERLEAVED: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """One head of one row: of the pairs (a, b), a cos - b sin and b cos + a sin."""
    row, h = tl.program_id(0).to(tl.int64), tl.program_id(1)
    d = tl.arange(0, D)
    half: tl.constexpr = N_ROTATED // 2
    if INTERLEAVED:
        is_a, pair = d % 2 == 0, d // 2
        partner = tl.where(is_a, d + 1, d - 1)
    else:
        is_a = d < half
        pair = tl.where(is_a, d, d - half)
        partner = tl.where(is_a, d + half, d - half)
    rotated, head = d < N_ROTATED, x + row * x_stride + h * head_dim
    own = tl.load(head + d, mask=d < head_dim, other=0.0).to(tl.float32)
    other = tl.load(head + partner, mask=rotated, other=0.0).to(tl.float32)
    cos = tl.load(angles + row * N_ROTATED + pair, mask=rotated, other=1.0)
    sin = tl.load(angles + row * N_ROTATED + half + pair, mask=rotated, other=0.0)
    y = own * cos + tl.where(is_a, -other, other) * sin
    tl.store(out + (row * n_head + h) * head_dim + d, y.to(out.dtype.element_ty), mask=d < head_dim)


def linear(fused: Fused) -> torch.Tensor:
    """`rushlight.backends.cuda.compute` of a product of at most 16 rows, in one launch that reads each weight once.

    int8 weights are read as bytes. Every program computes the norm again, which for few rows costs less than a launch.
    Sums run over the inputs in the same order whatever the number of rows, but for a single row, which is summed
    without tensor cores, in another order.
    """
    x, norm, weight, bias, activation, factor, gated, residual = fused
    values, scales = (weight, None) if isinstance(weight, torch.Tensor) else weight
    kept = x.dtype if scales is not None else values.dtype
    (n, n_in), n_out = x.shape, len(values)
    out_type = kept
    for other in (gated, residual):
        out_type = out_type if other is None else torch.promote_types(out_type, other.dtype)
    y = torch.empty((n, n_out), dtype=out_type, device=x.device)
    gain, shift, eps, offset, rms = norm or (None, None, 0.0, 0.0, False)
    factor = 1.0 if factor is None else float(factor)
    rows, outputs, inputs = _tile(n, n_in, n_out, kept)
    with torch.cuda.device_of(x):
        _linear[(triton.cdiv(n_out, outputs),)](
            x.contiguous(), gain, shift, values, scales, bias, _contiguous(gated), _contiguous(residual), y,
            n, n_out, eps, float(offset), factor, n_in, rms, activation, *_TYPES[kept], rows, outputs, inputs,
            min(triton.next_power_of_2(n_in), MAX_TILE_VALUES // rows),
            num_warps=8 if inputs == MAX_TILE_INPUTS else 4, num_stages=4,
        )  # fmt: skip
    return y


def _contiguous(x: torch.Tensor | None) -> torch.Tensor | None:
    return None if x is None else x.contiguous()


_TYPES = {
    torch.float32: (tl.float32, "ieee"),
    torch.float16: (tl.float16, "tf32"),
    torch.bfloat16: (tl.bfloat16, "tf32"),
}
"""What rows are multiplied in, and how: TF32 represents float16, bfloat16 and 8-bit integers exactly."""


def _tile(n: int, n_in: int, n_out: int, kept: torch.dtype) -> tuple[int, int, int]:
    """Rows, outputs and inputs that a program computes at a time."""
    outputs = 1 << (n_out // MULTIPROCESSORS).bit_length() >> 1
    if n > 1:
        return 16, min(max(outputs, 16), 32), 512 // kept.itemsize
    inputs = min(triton.next_power_of_2(n_in), MAX_TILE_INPUTS)
    return 1, 8 if outputs >= 8 and inputs <= 1024 else 4, inputs


@triton.jit
def _linear(
    x, gain, shift, values, scales, bias, gated, residual, y, n, n_out, eps, offset, factor,
    n_in: tl.constexpr, RMS: tl.constexpr, ACTIVATION: tl.constexpr, KEPT: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """All rows by OUTPUTS outputs; arguments that are None are left out."""
    row, o = tl.arange(0, ROWS), tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    x_rows, in_n = x + row[:, None] * n_in, (row < n)[:, None]
    w_rows, in_out = values + o.to(tl.int64)[:, None] * n_in, (o < n_out)[:, None]
    if ROWS == 1:  # they arrive while the norm is computed
        i = tl.arange(0, INPUTS)[None, :]
        weights = tl.load(w_rows + i, mask=in_out & (i < n_in), other=0)
    if gain is not None:
        w = tl.arange(0, WIDTH)[None, :]
        mean = tl.zeros([ROWS, 1], tl.float32)
        if not RMS:
            for first in range(0, n_in, WIDTH):
                there = in_n & (first + w < n_in)
                mean += tl.sum(tl.load(x_rows + first + w, mask=there, other=0.0).to(tl.float32), 1)[:, None] / n_in
        variance = tl.zeros([ROWS, 1], tl.float32)
        for first in range(0, n_in, WIDTH):
            there = in_n & (first + w < n_in)
            off = tl.where(there, tl.load(x_rows + first + w, mask=there, other=0.0).to(tl.float32) - mean, 0.0)
            variance += tl.sum(off * off, 1)[:, None] / n_in
        rescale = 1 / tl.sqrt(variance + eps)
    total = tl.zeros([ROWS, OUTPUTS], tl.float32)
    for first in range(0, n_in, INPUTS):
        i = first + tl.arange(0, INPUTS)[None, :]
        there = i < n_in
        rows = tl.load(x_rows + i, mask=in_n & there, other=0.0).to(tl.float32)
        if gain is not None:
            gains = tl.load(gain + i, mask=there, other=0.0).to(tl.float32)
            if RMS:
                gains += offset
            rows = (rows - mean) * rescale * gains
            if shift is not None:
                rows += tl.load(shift + i, mask=there, other=0.0).to(tl.float32)
        rows = rows.to(KEPT).to(tl.float32)
        if ROWS == 1:
            now = weights.to(tl.float32)
            if n_in > INPUTS:
                weights = tl.load(w_rows + i + INPUTS, mask=in_out & (i + INPUTS < n_in), other=0)
            total += tl.sum(rows * now, 1)[None, :]
        else:
            now = tl.load(w_rows + i, mask=in_out & there, other=0).to(tl.float32)
            total = tl.dot(rows, tl.trans(now), total, input_precision=PRECISION)
    at = row[:, None] * n_out + o[None, :]
    there = in_n & (o < n_out)[None, :]
    if scales is not None:
        total *= tl.load(scales + o, mask=o < n_out, other=0.0)[None, :]
    if bias is not None:
        total += tl.load(bias + o, mask=o < n_out, other=0.0).to(tl.float32)[None, :]
    total = _activate(total, ACTIVATION) * factor
    if gated is not None:
        total *= tl.load(gated + at, mask=there, other=0.0).to(tl.float32)
    if residual is not None:
        total += tl.load(residual + at, mask=there, other=0.0).to(tl.float32)
    tl.store(y + at, total.to(y.dtype.element_ty), mask=there)


@triton.jit
def _activate(x, NAME: tl.constexpr):
    """`rushlight.nn.ACTIVATIONS`; with u = tanh's argument, 0.5 (1 + tanh(u)) is the sigmoid of 2u."""
    if NAME == "gelu_tanh":
        x = x / (1 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))  # 2 √(2/π)
    elif NAME == "gelu_erf":
        x = 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))
    elif NAME == "relu":
        x = tl.where(x < 0, 0.0, x)  # NaN stays
    elif NAME == "silu":
        x = x / (1 + tl.exp(-x))
    elif NAME == "quick_gelu":
        x = x / (1 + tl.exp(-1.702 * x))
    elif NAME == "sigmoid":
        x = 1 / (1 + tl.exp(-x))
    elif NAME == "tanh":
        x = 2 / (1 + tl.exp(-2 * x)) - 1
    return x
