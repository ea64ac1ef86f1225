"""Finds why rotary angles diverge: theta, the number of channels that turn, the scaling, or the positions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rushlight.proof.compare import distance

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from rushlight.proof.diagnosis.trial import Floats

__all__ = ["PAIRINGS", "angles_of", "cosines_then_sines", "turned", "why_angles"]

PAIRINGS = {False: "pairs (i, i + r/2)", True: "interleaved pairs (2i, 2i + 1)"}
"""`interleaved` -> which channels are turned together."""
SCALED = 1e-3
"""Frequencies that differ by more than this, relatively, are scaled."""


def angles_of(n_rows: int, theta: float, n_channels: int, factor: float = 1.0) -> Floats:
    """(N, r): cosines, then sines, of positions 0 to N - 1 by the textbook formula."""
    frequencies = theta ** -(np.arange(0, n_channels, 2) / n_channels) / factor
    angles = np.arange(n_rows)[:, None] * frequencies
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)


def turned(x: Floats, angles: Floats, head_dim: int, *, interleaved: bool) -> Floats:
    """(N, H·D), (N, r) -> (N, H·D): the rotation of the first r channels of every head."""
    heads = x.reshape(len(x), -1, head_dim).astype(np.float64)
    r = angles.shape[-1]
    cosines, sines = (part[:, None, :] for part in np.split(angles, 2, axis=-1))
    first, second = (slice(0, r, 2), slice(1, r, 2)) if interleaved else (slice(0, r // 2), slice(r // 2, r))
    a, b = heads[..., first], heads[..., second]
    out = heads.copy()
    out[..., first], out[..., second] = a * cosines - b * sines, b * cosines + a * sines
    return out.reshape(x.shape)


def cosines_then_sines(parts: Sequence[NDArray[Any]]) -> NDArray[Any] | None:
    """(N, r): the port's layout of angles, from a recorded pair of cosines and sines; None for other tensors.

    transformers mostly has each number twice: both halves of a head are equal, or two neighbours.
    """
    if len(parts) != 2 or any(part.ndim != 2 or part.dtype.kind != "f" for part in parts):
        return None
    # At position 0 cosines are 1, or their factor, and sines 0: GPT-J returns sines first.
    cosines, sines = parts if np.abs(parts[0][:1]).sum() >= np.abs(parts[1][:1]).sum() else reversed(parts)
    parts = (cosines, sines)
    radii = np.square(cosines.astype(np.float64)) + np.square(sines.astype(np.float64))
    if not radii.size or not radii.max() - radii.min() <= 1e-4 * radii.max():
        return None
    half = cosines.shape[1] // 2
    for first in (slice(0, half), slice(0, None, 2)):
        second = slice(half, None) if first.step is None else slice(1, None, 2)
        if half and all(np.array_equal(part[:, first], part[:, second]) for part in parts):
            return np.concatenate([part[:, first] for part in parts], axis=-1)
    return np.concatenate(parts, axis=-1)


def why_angles(found: Floats, recorded: Floats) -> str:
    """How the angles of a port differ from the recorded ones; empty if no tried cause explains it."""
    if len(found) != len(recorded) or len(found) < 2:
        return ""
    if found.shape != recorded.shape:
        mine, theirs = found.shape[-1], recorded.shape[-1]
        return f"it turns {mine} channels of each head, and the recording {theirs}"
    radius, recorded_radius = _radius(found), _radius(recorded)
    if not np.isclose(radius, recorded_radius, rtol=1e-5):
        return (
            f"cosines and sines are multiplied by {radius:.5g}, and by {recorded_radius:.5g} in the recording, as by"
            " the attention factor of YaRN and LongRoPE"
        )
    mine, theirs = _frequencies(found), _frequencies(recorded)
    if np.allclose(mine, theirs, rtol=SCALED):
        return "" if np.allclose(_phases(found[0]), _phases(recorded[0]), atol=1e-4) else "the positions are shifted"
    return _why_frequencies(mine, theirs)


def _why_frequencies(mine: Floats, theirs: Floats) -> str:
    my_theta, their_theta = _theta(mine), _theta(theirs)
    if my_theta and their_theta:
        return f"theta is {my_theta:.6g}, and {their_theta:.6g} in the recording"
    ratio = theirs / mine
    if np.allclose(ratio, ratio[0], rtol=SCALED):
        times = f"frequencies are {1 / ratio[0]:.4g} times the recorded ones"
        missing = (
            f"linear scaling by {1 / ratio[0]:.4g} is missing" if ratio[0] < 1 else "the recording does not scale them"
        )
        return f"{times}: {missing}"
    if my_theta and ratio.max() < 1 + SCALED:
        n = int((ratio < 1 - SCALED).sum())
        return (
            f"{n} of {len(ratio)} frequencies are lower in the recording: llama3, yarn or longrope scaling is missing"
        )
    if their_theta:
        return "the frequencies are scaled, and those of the recording are not"
    return "the frequencies are scaled in another way than the recorded ones"


def _frequencies(angles: Floats) -> Floats:
    """Radians per position, from the first two rows; those above π appear lower."""
    return np.mod(_phases(angles[1]) - _phases(angles[0]) + np.pi, 2 * np.pi) - np.pi


def _phases(row: Floats) -> Floats:
    cosines, sines = np.split(row.astype(np.float64), 2)
    return np.arctan2(sines, cosines)


def _radius(angles: Floats) -> float:
    cosines, sines = np.split(angles[0].astype(np.float64), 2)
    return float(np.hypot(cosines, sines).mean())


def _theta(frequencies: Floats) -> float:
    """The base of unscaled frequencies, θ^(-2i/r); 0 if they are not of this form."""
    n = len(frequencies)
    if n < 2 or not (frequencies > 0).all():
        return 0.0
    theta = float(frequencies[1] ** -n)
    expected = theta ** -(np.arange(n) / n)
    return float(f"{theta:.4g}") if distance(frequencies / expected, np.ones(n)).absolute < SCALED else 0.0
