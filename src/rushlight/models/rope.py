"""Rotary position embeddings as config.json describes them: base, rotated fraction and scaling, and their frequencies.

Su et al., arXiv:2104.09864. Formulas and keys are those of transformers' modeling_rope_utils.py. The frequencies are
computed as PyTorch does, in float32 except for the power: one that is off by an ulp moves the angles at position 8,000
by more than `rushlight verify` tolerates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from rushlight.models.schema import Fields

__all__ = ["Rope", "read_rope"]

_ALIASES = {"su": "longrope", "dynamic": "default"}
"""Other names. Dynamic scaling changes only positions beyond the context length, which rushlight does not compute."""


@dataclass(frozen=True)
class Rope:
    """The rotary embedding of queries and keys.

    Attributes:
        theta: the base of the frequencies.
        n_channels: the channels of each head that are rotated; of an odd number, the next even one is.
        kind: the scaling: default, linear, llama3, yarn or longrope.
        settings: the parameters of the scaling, by their keys in config.json.
        scale: a factor of cosines and sines, other than 1 for yarn and longrope.
    """

    theta: float
    n_channels: int
    kind: str = "default"
    settings: Mapping[str, Any] = field(default_factory=dict)
    scale: float = 1.0

    def frequencies(self, context_length: int) -> NDArray[np.float32]:
        """(r/2,) radians per position.

        Args:
            context_length: the most positions of a sequence. LongRoPE has two lists of factors: one up to the original
                context length, one for longer contexts.
        """
        import numpy as np

        exponents = np.arange(0, self.n_channels, 2, dtype=np.float32) / np.float32(self.n_channels)
        powers = (np.float64(self.theta) ** exponents.astype(np.float64)).astype(np.float32)
        return _KINDS[self.kind].frequencies(self, powers, context_length)

    def default_context_length(self, longest: int) -> int:
        """The context length to use unless the caller asks for another one, of a model with `longest` positions.

        With LongRoPE it is the original one, since the factors for longer contexts also change what the model computes
        for short ones.
        """
        return min(longest, self.settings["original_max_position_embeddings"]) if self.kind == "longrope" else longest

    def __str__(self) -> str:
        return f"theta {self.theta:g}" if self.kind == "default" else f"theta {self.theta:g}, {self.kind}"


def read_rope(
    fields: Fields,
    *,
    head_dim: int,
    positions: int,
    theta: float = 10000.0,
    fraction: float | None = None,
    original: int | None = None,
    theta_key: str = "rope_theta",
    fraction_key: str = "partial_rotary_factor",
    layer_type: str = "",
    scaled: bool = True,
    aliases: Mapping[str, str] = _ALIASES,
) -> Rope:
    """Reads the rotary embedding from either style of config.json.

    transformers 5 writes `rope_parameters`, by layer type if layers differ; earlier versions write `rope_theta` and
    `partial_rotary_factor` beside `rope_scaling`.

    Args:
        fields: the fields of config.json, which collect the problems.
        head_dim: the channels of a head.
        positions: max_position_embeddings.
        theta: the architecture's default base.
        fraction: the architecture's default share of the channels of a head that are rotated; None is all of them, and
            another share is refused.
        original: the architecture's default original context length, before scaling; None is `positions`.
        theta_key, fraction_key: their keys in the earlier style.
        layer_type: the kind of layer in `rope_parameters`, such as "full_attention"; "" for all layers.
        scaled: whether the earlier style's `rope_scaling` applies to this kind of layer.
        aliases: other names of kinds of scaling.
    """
    if fields.has("rope_parameters") and fields.has("rope_scaling"):
        fields.raw("rope_scaling")
        fields.problem("rope_parameters and rope_scaling are both set, expected one of them")
    if fields.has("rope_parameters"):
        settings = fields.child("rope_parameters")
        if layer_type:
            by_layer_type, settings = settings, settings.child(layer_type)
            by_layer_type.refuse_unread(known=_LAYER_TYPES)
    else:
        settings = fields.child("rope_scaling", used=scaled)
    usual_key = theta_key if layer_type else "rope_theta"
    theta = settings.positive("rope_theta", _of_either_key(fields, theta_key, usual_key, theta))
    if theta <= 1:
        within, key = (settings, "rope_theta") if settings.has("rope_theta") else (fields, theta_key)
        within.problem(f"{key} is {theta:g}, expected a number above 1")
    n_channels = _n_channels(fields, settings, fraction_key, fraction, head_dim)
    n_frequencies = math.ceil(n_channels / 2)
    original = settings.size("original_max_position_embeddings", original or positions)
    original = fields.size("original_max_position_embeddings", original)
    kind = settings.choice("rope_type", {*_KINDS, *aliases}, settings.choice("type", {*_KINDS, *aliases}, "default"))
    kind = aliases.get(kind, kind)
    if kind == "yarn" and fields.is_valid and n_channels % 2:
        settings.problem(f"rope_type is 'yarn', expected an even number of rotated channels, not {n_channels}")
    values, scale = _KINDS[kind].read(settings, n_frequencies, original, positions)
    settings.refuse_unread(known=_KEYS)
    return Rope(theta, n_channels, kind, values, scale)


def _of_either_key(fields: Fields, key: str, usual_key: str, default: float) -> float:
    """A number under an architecture's own key; transformers 4.45 to 4.57 write GPT-NeoX's under the usual one too."""
    value = fields.positive(key, default)
    usual = value if usual_key == key else fields.positive(usual_key, value)
    if fields.is_valid and usual != value:
        fields.problem(f"{usual_key} is {usual:g} and {key} is {value:g}, expected equal values")
    return value


def _n_channels(fields: Fields, settings: Fields, key: str, default: float | None, head_dim: int) -> int:
    """The channels of a head that are rotated; the key of the share is always partial_rotary_factor in `settings`."""
    if default is None:
        fields.neutral(key, 1, 1.0)
        settings.neutral("partial_rotary_factor", 1, 1.0)
        if fields.is_valid and head_dim % 2:
            fields.problem(f"head_dim is {head_dim}, expected an even number")
        return head_dim
    usual_key = "partial_rotary_factor"
    fraction, within = _of_either_key(fields, key, usual_key, default), fields
    if settings.has(usual_key):
        fraction, within, key = settings.positive(usual_key), settings, usual_key
    n_channels = int(head_dim * fraction)
    if 0 < n_channels + n_channels % 2 <= head_dim:
        return n_channels
    if fields.is_valid:
        within.problem(f"{key} is {fraction:g}, expected a share of the {head_dim} channels of a head")
    return head_dim


class _Kind(NamedTuple):
    """A kind of scaling.

    Attributes:
        read: settings, the number of frequencies, the original and the present context length -> the values that the
            formula needs, and the factor of cosines and sines.
        frequencies: a Rope, (r/2,) powers of theta and the context length -> (r/2,) frequencies.
    """

    read: Callable[[Fields, int, int, int], tuple[dict[str, Any], float]]
    frequencies: Callable[[Rope, NDArray[np.float32], int], NDArray[np.float32]]


def _read_default(*_: object) -> tuple[dict[str, Any], float]:
    return {}, 1.0


def _default(_rope: Rope, powers: NDArray[np.float32], _context_length: int) -> NDArray[np.float32]:
    import numpy as np

    return np.float32(1) / powers


def _read_linear(settings: Fields, *_: object) -> tuple[dict[str, Any], float]:
    return {"factor": settings.positive("factor")}, 1.0


def _linear(rope: Rope, powers: NDArray[np.float32], context_length: int) -> NDArray[np.float32]:
    """Positions divided by a factor: Chen et al., arXiv:2306.15595."""
    factor: float = rope.settings["factor"]
    return _default(rope, powers, context_length) / factor


def _read_llama3(settings: Fields, _n: int, original: int, _positions: int) -> tuple[dict[str, Any], float]:
    keys = ("factor", "low_freq_factor", "high_freq_factor")
    values = {key: settings.positive(key) for key in keys} | {"original_max_position_embeddings": original}
    if values["low_freq_factor"] >= values["high_freq_factor"] and settings.is_valid:
        low, high = values["low_freq_factor"], values["high_freq_factor"]
        settings.problem(f"low_freq_factor is {low:g}, expected a number below high_freq_factor, {high:g}")
    return values, 1.0


def _llama3(rope: Rope, powers: NDArray[np.float32], context_length: int) -> NDArray[np.float32]:
    """Llama 3.1's: slow frequencies divided by a factor, fast ones unchanged, blended in between."""
    import numpy as np

    factor, low, high, original = (rope.settings[key] for key in _LLAMA3)
    frequencies = _default(rope, powers, context_length)
    wavelengths = np.float32(2 * math.pi) / frequencies
    scaled = np.where(wavelengths > original / low, frequencies / factor, frequencies)
    smooth = (original / wavelengths - low) / (high - low)
    blended = (1 - smooth) * scaled / factor + smooth * scaled
    between = (wavelengths >= original / high) & (wavelengths <= original / low)
    return np.where(between, blended, scaled)


def _read_yarn(settings: Fields, _n: int, original: int, positions: int) -> tuple[dict[str, Any], float]:
    factor = settings.positive("factor", positions / original)
    mscale, mscale_all_dim = settings.number("mscale", 0.0), settings.number("mscale_all_dim", 0.0)

    def attention_factor(m: float) -> float:
        return 0.1 * m * math.log(factor) + 1.0 if factor > 1 else 1.0

    scale = attention_factor(mscale) / attention_factor(mscale_all_dim) if mscale and mscale_all_dim else None
    values = {
        "factor": factor,
        "original_max_position_embeddings": original,
        "beta_fast": settings.positive("beta_fast", 32.0),
        "beta_slow": settings.positive("beta_slow", 1.0),
        "truncate": settings.flag("truncate", True),
    }
    return values, settings.positive("attention_factor", scale or attention_factor(1.0))


def _yarn(rope: Rope, powers: NDArray[np.float32], context_length: int) -> NDArray[np.float32]:
    """YaRN: frequencies of few turns in the original context are divided by a factor. Peng et al., arXiv:2309.00071."""
    import numpy as np

    factor, original, fast, slow, truncate = (rope.settings[key] for key in _YARN)

    def channel(turns: float) -> float:
        """The channel whose angle makes this many turns in the original context."""
        return rope.n_channels * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = channel(fast), channel(slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.n_channels - 1)
    if low == high:
        high += 0.001
    ramp = np.clip((np.arange(rope.n_channels // 2, dtype=np.float32) - low) / (high - low), 0, 1)
    kept = 1 - ramp.astype(np.float32)
    divided = np.float32(1) / (factor * powers)
    blended: NDArray[np.float32] = divided * (1 - kept) + _default(rope, powers, context_length) * kept
    return blended


def _read_longrope(settings: Fields, n: int, original: int, positions: int) -> tuple[dict[str, Any], float]:
    factor = settings.positive("factor", positions / original)
    values = {
        "short_factor": settings.positives("short_factor", n),
        "long_factor": settings.positives("long_factor", n),
        "original_max_position_embeddings": original,
    }
    scale = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 and original > 1 else 1.0
    return values, settings.positive("attention_factor", scale)


def _longrope(rope: Rope, powers: NDArray[np.float32], context_length: int) -> NDArray[np.float32]:
    """LongRoPE: each frequency divided by a factor of its own. Ding et al., arXiv:2402.13753."""
    import numpy as np

    is_long = context_length > rope.settings["original_max_position_embeddings"]
    factors = np.array(rope.settings["long_factor" if is_long else "short_factor"], np.float32)
    return np.float32(1) / (factors * powers)


_LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
_YARN = ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "truncate")
_KINDS = {
    "default": _Kind(_read_default, _default),
    "linear": _Kind(_read_linear, _linear),
    "llama3": _Kind(_read_llama3, _llama3),
    "yarn": _Kind(_read_yarn, _yarn),
    "longrope": _Kind(_read_longrope, _longrope),
}
_LAYER_TYPES = ("full_attention", "sliding_attention")
_KEYS = frozenset(
    {"finetuned", "mscale", "mscale_all_dim", "attention_factor", "short_factor", "long_factor", *_LLAMA3, *_YARN}
)
"""Keys that may be in a config whose kind of scaling does not use them."""
