"""GPT-Neo: TinyStories and GPT-Neo 125M to 2.7B. Every other layer sees a window, and scores are not scaled.

Black et al., "GPT-Neo: Large Scale Autoregressive Language Modeling with Mesh-Tensorflow", 2021. Names and arithmetic
are those of transformers' modeling_gpt_neo.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rushlight.models import ACTIVATION_NAMES, OTHER_HEADS, Fields, PretrainedModel, TextConfig, field
from rushlight.nn import Activation, Embedding, LayerNorm, Linear, Module, ModuleList, NameRules

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rushlight.nn import Array, Batch

KINDS = ("global", "local")


def read_windows(fields: Fields, _name: str, before: Mapping[str, Any]) -> tuple[int | None, ...]:
    """The window of each layer, from `attention_layers` and `attention_types`: [[[kind, ...], repetitions], ...]."""
    n, window = before["num_layers"], fields.size("window_size", 256)
    layers = list(fields.words("attention_layers", n, KINDS))
    if fields.has("attention_types") or not layers:
        try:
            types = fields.raw("attention_types", [[KINDS, 12]])
            repeated = [kind for kinds, times in types for _ in range(min(times, n)) for kind in kinds]
        except (TypeError, ValueError):
            repeated = []
        if len(repeated) != n or any(kind not in KINDS for kind in repeated) or (layers and layers != repeated):
            example = '[[["global", "local"], 6]] for 12 layers'
            also = ", the same as attention_layers" if layers else ""
            fields.problem(f"attention_types is not a list of {n} layers{also}; expected one such as {example}")
        layers = repeated
    return tuple(window if kind == "local" else None for kind in layers)


@dataclass(frozen=True, kw_only=True)
class GPTNeoConfig(TextConfig):
    """The sizes and switches of a GPT-Neo, each under its key in config.json."""

    model_type: ClassVar = "gpt_neo"

    max_position_embeddings: int = field.positions(axis=("wpe.weight", 0))
    hidden_size: int = field.width(axis=("wte.weight", 1))
    num_layers: int = field.layers(blocks="h", aliases=("num_hidden_layers",))
    num_heads: int = field.heads(aliases=("num_attention_heads",))
    intermediate_size: int = field.size(lambda read: 4 * read["hidden_size"], at_most=2**26)
    attention_layers: tuple[int | None, ...] = field.computed(read_windows, role="windows")
    activation_function: str = field.activation("gelu_new")
    layer_norm_epsilon: float = field.positive(1e-5)


class SelfAttention(Module):
    """Causal self-attention, in local layers within a window. (N, C) -> (N, C)"""

    def __init__(self, config: GPTNeoConfig, layer: int) -> None:
        self.layer, self.n_head, self.window = layer, config.num_heads, config.windows[layer]
        self.q_proj = Linear(config.hidden_size, config.hidden_size, bias=False)
        self.k_proj = Linear(config.hidden_size, config.hidden_size, bias=False)
        self.v_proj = Linear(config.hidden_size, config.hidden_size, bias=False)
        self.out_proj = Linear(config.hidden_size, config.hidden_size)

    def __call__(self, x: Array, batch: Batch) -> Array:
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        options: Any = {"layer": self.layer, "n_head": self.n_head, "scale": 1.0, "window": self.window}
        return self.out_proj(self.ops.attention(q, k, v, batch, **options))


class Attention(Module):
    """The attention that the checkpoint has under `attention`. (N, C) -> (N, C)"""

    def __init__(self, config: GPTNeoConfig, layer: int) -> None:
        self.attention = SelfAttention(config, layer)

    def __call__(self, x: Array, batch: Batch) -> Array:
        return self.attention(x, batch)


class MLP(Module):
    """Two layers with an activation between. (N, C) -> (N, C)"""

    def __init__(self, width: int, n_inner: int, activation: str) -> None:
        self.c_fc = Linear(width, n_inner)
        self.act = Activation(ACTIVATION_NAMES[activation])
        self.c_proj = Linear(n_inner, width)

    def __call__(self, x: Array) -> Array:
        return self.c_proj(self.act(self.c_fc(x)))


class Block(Module):
    """Pre-norm transformer block: attention, then MLP, each added to the residual stream. (N, C) -> (N, C)"""

    def __init__(self, config: GPTNeoConfig, layer: int) -> None:
        self.ln_1 = LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.attn = Attention(config, layer)
        self.ln_2 = LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.mlp = MLP(config.hidden_size, config.intermediate_size, config.activation_function)

    def __call__(self, x: Array, batch: Batch) -> Array:
        x = x + self.attn(self.ln_1(x), batch)
        return x + self.mlp(self.ln_2(x))


class GPTNeo(PretrainedModel):
    """Token and position embeddings, blocks, a norm, and the head. A batch of N rows -> (R, V) logits"""

    config_type: ClassVar = GPTNeoConfig
    rules: ClassVar = NameRules(
        prefixes=("transformer.",),
        buffers=(r"h\.\d+\.attn\.attention\.(bias|masked_bias)",),
        heads=OTHER_HEADS,
        tied={"lm_head.weight": "wte.weight"},
    )

    def __init__(self, config: GPTNeoConfig) -> None:
        self.wte = Embedding(config.vocab_size, config.hidden_size)
        self.wpe = Embedding(config.max_position_embeddings, config.hidden_size)
        self.h = ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.ln_f = LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)

    def __call__(self, batch: Batch) -> Array:
        x = self.wte(batch.ids) + self.wpe(batch.positions)  # (N, C)
        for block in self.h:
            x = block(x, batch)
        return self.readout(self.ops.take(x, batch.logit_rows))  # (R, C): only the rows that need logits

    def readout(self, x: Array) -> Array:
        """The residual stream -> logits. (R, C) -> (R, V)"""
        return self.lm_head(self.ln_f(x))


ARCHITECTURE = GPTNeo
