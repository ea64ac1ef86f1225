"""OPT (Zhang et al., 2022, arXiv:2205.01068), ported to rushlight: one file, loaded by name.

    rushlight generate facebook/opt-125m --port examples/opt/opt.py -p "My name is"

Names and arithmetic are those of transformers' modeling_opt.py. What differs from GPT-2: the tensor names, Linear in
place of Conv1D, queries, keys and values each of their own, ReLU, and positions that are counted from 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rushlight.backends.batch import KVShape
from rushlight.errors import ConfigError
from rushlight.models.schema import MAX_LAYERS, Fields
from rushlight.nn import Activation, Embedding, LayerNorm, Linear, Module, ModuleList, NameRules

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rushlight.backends.batch import Batch
    from rushlight.backends.protocol import Array, Tensor

ACTIVATION_NAMES = {"relu": "relu", "gelu": "gelu_erf", "gelu_new": "gelu_tanh", "silu": "silu"}

FIRST_POSITION = 2
"""Rows of the position table that no token has: it was trained beside a padding index."""

BENIGN_KEYS = frozenset(
    """_name_or_path activation_dropout architectures attention_dropout dropout dtype init_std is_decoder
    is_encoder_decoder layerdrop pad_token_id prefix torch_dtype transformers_version use_cache""".split()
)


@dataclass(frozen=True, kw_only=True)
class OPTConfig:
    """The sizes and switches of an OPT, each under its key in config.json."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    ffn_dim: int
    max_position_embeddings: int
    activation_function: str = "relu"
    enable_bias: bool = True
    tie_word_embeddings: bool = True
    bos_token_id: int | None = None
    eos_token_id: tuple[int, ...] = ()

    @property
    def context_length(self) -> int:
        """The most positions a sequence can have."""
        return self.max_position_embeddings

    @property
    def kv_shape(self) -> KVShape:
        return KVShape(self.num_hidden_layers, self.num_attention_heads, self.hidden_size // self.num_attention_heads)

    @classmethod
    def from_json(cls, values: Mapping[str, Any], *, file: str | None = None) -> OPTConfig:
        """Reads a config.json.

        Raises:
            ConfigError: fields missing, mistyped or out of range, or another arithmetic than this file's, such as that
                of the 350M model, which normalises behind the residual sums and projects its embeddings.
        """
        fields = Fields(values, file)
        vocab_size, hidden_size = fields.size("vocab_size"), fields.size("hidden_size")
        n_heads = fields.size("num_attention_heads")
        if fields.sound and hidden_size % n_heads:
            fields.problem(f"num_attention_heads is {n_heads}, which does not divide hidden_size {hidden_size}")
        fields.choice("model_type", ("opt",), "opt")
        fields.neutral("do_layer_norm_before", True)
        fields.neutral("_remove_final_layer_norm", False)
        fields.neutral("layer_norm_elementwise_affine", True)
        fields.neutral("word_embed_proj_dim", hidden_size)
        fields.neutral("quantization_config")
        bos = fields.token_ids("bos_token_id", vocab_size)
        config = cls(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            num_hidden_layers=fields.size("num_hidden_layers", at_most=MAX_LAYERS),
            num_attention_heads=n_heads,
            ffn_dim=fields.size("ffn_dim"),
            max_position_embeddings=fields.size("max_position_embeddings"),
            activation_function=fields.choice("activation_function", ACTIVATION_NAMES, cls.activation_function),
            enable_bias=fields.flag("enable_bias", cls.enable_bias),
            tie_word_embeddings=fields.flag("tie_word_embeddings", cls.tie_word_embeddings),
            bos_token_id=bos[0] if bos else None,
            eos_token_id=fields.token_ids("eos_token_id", vocab_size),
        )
        fields.finish(BENIGN_KEYS)
        return config

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], *, file: str | None = None) -> OPTConfig:
        """Refuses: the shapes do not tell the number of heads, and published OPTs have several sizes of head."""
        raise ConfigError("there is no config.json", file=file, remedy="put the model's config.json beside the weights")

    def __str__(self) -> str:
        return (
            f"num_hidden_layers {self.num_hidden_layers}, hidden_size {self.hidden_size}, "
            f"num_attention_heads {self.num_attention_heads}"
        )


class Attention(Module):
    """Causal self-attention. (N, C) -> (N, C)"""

    def __init__(self, config: OPTConfig, layer: int) -> None:
        self.layer = layer
        self.n_head = config.num_attention_heads
        self.scale = 1 / math.sqrt(config.hidden_size // config.num_attention_heads)
        size, bias = config.hidden_size, config.enable_bias
        self.k_proj = Linear(size, size, bias=bias)
        self.v_proj = Linear(size, size, bias=bias)
        self.q_proj = Linear(size, size, bias=bias)
        self.out_proj = Linear(size, size, bias=bias)

    def __call__(self, x: Array, batch: Batch) -> Array:
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        heads = self.ops.attention(q, k, v, batch, layer=self.layer, n_head=self.n_head, scale=self.scale)
        return self.out_proj(heads)


class DecoderLayer(Module):
    """Pre-norm transformer block: attention, then two layers with an activation between. (N, C) -> (N, C)"""

    def __init__(self, config: OPTConfig, layer: int) -> None:
        self.self_attn = Attention(config, layer)
        self.activation_fn = Activation(ACTIVATION_NAMES[config.activation_function])
        self.self_attn_layer_norm = LayerNorm(config.hidden_size, eps=1e-5)
        self.fc1 = Linear(config.hidden_size, config.ffn_dim, bias=config.enable_bias)
        self.fc2 = Linear(config.ffn_dim, config.hidden_size, bias=config.enable_bias)
        self.final_layer_norm = LayerNorm(config.hidden_size, eps=1e-5)

    def __call__(self, x: Array, batch: Batch) -> Array:
        x = x + self.self_attn(self.self_attn_layer_norm(x), batch)
        return x + self.fc2(self.activation_fn(self.fc1(self.final_layer_norm(x))))


class Decoder(Module):
    """Token and position embeddings, the layers, a norm. A batch of N rows -> (N, C)"""

    def __init__(self, config: OPTConfig) -> None:
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.embed_positions = Embedding(config.max_position_embeddings + FIRST_POSITION, config.hidden_size)
        self.final_layer_norm = LayerNorm(config.hidden_size, eps=1e-5)
        self.layers = ModuleList(DecoderLayer(config, layer) for layer in range(config.num_hidden_layers))

    def __call__(self, batch: Batch) -> Array:
        x = self.embed_tokens(batch.ids) + self.embed_positions(batch.positions + FIRST_POSITION)  # (N, C)
        for layer in self.layers:
            x = layer(x, batch)
        return self.final_layer_norm(x)


class OPT(Module):
    """The decoder and its head. A batch of N rows -> (R, V) logits"""

    model_type: ClassVar = "opt"
    config_type: ClassVar = OPTConfig
    rules: ClassVar = NameRules(prefixes=("model.",), tied={"lm_head.weight": "decoder.embed_tokens.weight"})
    landmarks: ClassVar = frozenset({"decoder.embed_tokens.weight", "decoder.layers.0.self_attn.q_proj.weight"})

    def __init__(self, config: OPTConfig) -> None:
        self.decoder = Decoder(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)

    def __call__(self, batch: Batch) -> Array:
        x = self.decoder(batch)
        return self.lm_head(self.ops.take(x, batch.logit_rows))  # (R, V): only the rows whose logits are wanted


ARCHITECTURE = OPT
