"""Triton kernels for the CUDA backend, where PyTorch's operations would read memory twice.

Each is compared with the plain PyTorch form of the same name in cuda.py. Sums are float32. Loaded values are cast at
once: Triton's interpreter, in which the tests run without a GPU, has no bfloat16 arithmetic.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from rushlight.backends.batch import BLOCK_SIZE

SPLIT = 4 * BLOCK_SIZE
"""Keys that one program reads of one head. A fixed size, not a fixed number of parts: a sequence is cut at the same
keys whatever is computed beside it, and a long one still keeps many multiprocessors busy."""

MAX_LINEAR_ROWS = 16
"""Rows of one tensor-core product. Beyond them PyTorch's products win, which read each weight once for many rows."""


def decode_attention(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    tables: torch.Tensor,
    lengths: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """As `rushlight.backends.cuda.decode_attention`, each key and value read once, where it lies.

    Flash-decoding (Dao et al., 2023): one program a sequence, head and SPLIT keys; a second kernel merges the parts.
    """
    n, n_head, head_dim = q.shape
    width = tables.shape[1]
    n_parts = triton.cdiv(width * BLOCK_SIZE, SPLIT)
    partial = torch.empty((n, n_head, n_parts, head_dim), dtype=torch.float32, device=q.device)
    sums = torch.empty((n, n_head, n_parts, 2), dtype=torch.float32, device=q.device)
    out = torch.empty((n, n_head, head_dim), dtype=q.dtype, device=q.device)
    d_padded = triton.next_power_of_2(head_dim)
    with torch.cuda.device_of(q):
        _attend_part[n, n_head, n_parts](
            q, keys, values, tables, lengths, partial, sums, scale, q.stride(0), width,
            n_head, head_dim, d_padded, SPLIT, BLOCK_SIZE,
        )  # fmt: skip
        _merge_parts[n, n_head](
            partial, sums, out, n_parts, n_head, head_dim, d_padded, triton.next_power_of_2(n_parts)
        )
    return out


@triton.jit
def _attend_part(
    q, keys, values, tables, lengths, partial, sums, scale, q_stride, width,
    n_head: tl.constexpr, head_dim: tl.constexpr, D: tl.constexpr, PART: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The recurrence of FlashAttention over one part of one sequence's keys, in one head."""
    s, h, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    d, n = tl.arange(0, D), tl.arange(0, BLOCK)
    length = tl.load(lengths + s).to(tl.int32)
    query = tl.load(q + s * q_stride + h * head_dim + d, mask=d < head_dim, other=0.0).to(tl.float32) * scale
    m = float("-inf")
    total = 0.0
    o = tl.zeros([D], tl.float32)
    for first in range(part * PART, tl.minimum(part * PART + PART, length), BLOCK):
        block = tl.load(tables + s * width + first // BLOCK)
        at = ((block * BLOCK + n) * n_head + h)[:, None] * head_dim + d[None, :]
        seen = first + n < length
        there = seen[:, None] & (d < head_dim)[None, :]
        k = tl.load(keys + at, mask=there, other=0.0).to(tl.float32)
        v = tl.load(values + at, mask=there, other=0.0).to(tl.float32)
        scores = tl.where(seen, tl.sum(query[None, :] * k, 1), float("-inf"))
        m_new = tl.maximum(m, tl.max(scores, 0))
        p = tl.exp(scores - m_new)
        rescale = tl.exp(m - m_new)
        total = total * rescale + tl.sum(p, 0)
        o = o * rescale + tl.sum(p[:, None] * v, 0)
        m = m_new
    at_part = (s * n_head + h) * tl.num_programs(2) + part
    tl.store(partial + at_part * head_dim + d, o, mask=d < head_dim)
    tl.store(sums + at_part * 2, m)
    tl.store(sums + at_part * 2 + 1, total)


@triton.jit
def _merge_parts(
    partial, sums, out, n_parts,
    n_head: tl.constexpr, head_dim: tl.constexpr, D: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """One sequence's head from its parts, each rescaled to the greatest score of all."""
    row = tl.program_id(0) * n_head + tl.program_id(1)
    d, p = tl.arange(0, D), tl.arange(0, P)
    there = p < n_parts
    m = tl.load(sums + (row * n_parts + p) * 2, mask=there, other=float("-inf"))
    total = tl.load(sums + (row * n_parts + p) * 2 + 1, mask=there, other=0.0)
    rescale = tl.exp(m - tl.max(m, 0))
    at = (row * n_parts + p)[:, None] * head_dim + d[None, :]
    o = tl.load(partial + at, mask=there[:, None] & (d < head_dim)[None, :], other=0.0)
    o = tl.sum(o * rescale[:, None], 0) / tl.sum(total * rescale, 0)
    tl.store(out + row * head_dim + d, o.to(out.dtype.element_ty), mask=d < head_dim)


def int8_linear(x: torch.Tensor, values: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """As `rushlight.backends.cuda.int8_linear` for at most MAX_LINEAR_ROWS rows: weights are read once, as bytes."""
    (n, n_in), n_out = x.shape, len(values)
    x = x.contiguous()
    y = torch.empty((n, n_out), dtype=x.dtype, device=x.device)
    with torch.cuda.device_of(x):
        _int8_linear[(triton.cdiv(n_out, 32),)](
            x, values, scales, scales if bias is None else bias, y, n, n_in, n_out,
            bias is not None, MAX_LINEAR_ROWS, 32, 128,
        )  # fmt: skip
    return y


@triton.jit
def _int8_linear(
    x, values, scales, bias, y, n, n_in, n_out,
    HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr,
):  # fmt: skip
    """All rows by OUTPUTS outputs. Products of bf16 and eight-bit integers are exact in TF32."""
    row, o, i = tl.arange(0, ROWS), tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS), tl.arange(0, INPUTS)
    total = tl.zeros([ROWS, OUTPUTS], tl.float32)
    for first in range(0, n_in, INPUTS):
        at = first + i
        rows = tl.load(
            x + row[:, None] * n_in + at[None, :], mask=(row < n)[:, None] & (at < n_in)[None, :], other=0.0
        ).to(tl.float32)
        weights = tl.load(
            values + o.to(tl.int64)[None, :] * n_in + at[:, None],
            mask=(o < n_out)[None, :] & (at < n_in)[:, None],
            other=0,
        ).to(tl.float32)
        total = tl.dot(rows, weights, total, input_precision="tf32")
    total *= tl.load(scales + o, mask=o < n_out, other=0.0)[None, :]
    if HAS_BIAS:
        total += tl.load(bias + o, mask=o < n_out, other=0.0).to(tl.float32)[None, :]
    at = row[:, None] * n_out + o[None, :]
    tl.store(y + at, total.to(y.dtype.element_ty), mask=(row < n)[:, None] & (o < n_out)[None, :])
