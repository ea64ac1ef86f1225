"""A port of demo, written by `rushlight port`.

As it is, it takes every tensor; nothing is left to write.

    rushlight check SOURCE --port FILE
    rushlight generate SOURCE --port FILE -p TEXT
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from rushlight.backends.batch import KVShape
from rushlight.models import Fields, PretrainedModel
from rushlight.nn import (
    Activation,
    Conv1D,
    Embedding,
    LayerNorm,
    Linear,
    Module,
    ModuleList,
    NameRules,
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """The sizes of the checkpoint, each under its key in config.json."""

    vocab_size: int = 4096
    n_positions: int = 512
    n_embd: int = 192
    n_layer: int = 6
    n_head: int = 3
    n_inner: int = 768
    layer_norm_epsilon: float = 1e-05
    tie_word_embeddings: bool = True
    bos_token_id: int | None = 0
    eos_token_id: tuple[int, ...] = (0,)

    def __str__(self):
        return f"n_layer {self.n_layer}, n_embd {self.n_embd}, n_head {self.n_head}"

    @property
    def context_length(self):
        """The most positions a sequence can have."""
        return self.n_positions

    @property
    def kv_shape(self):
        """What attention keeps of every position."""
        return KVShape(self.n_layer, self.n_head, self.n_embd // self.n_head)

    @classmethod
    def from_json(cls, values, *, file=None):
        """Read a config.json; what would change the arithmetic is refused."""
        fields = Fields(values, file)
        vocab_size = fields.size("vocab_size", cls.vocab_size)
        bos = fields.token_ids("bos_token_id", vocab_size)
        fields.neutral(
            "activation_function",
            "gelu_new",
            "gelu_pytorch_tanh",
            "gelu_fast",
        )
        fields.neutral("scale_attn_weights", True)
        fields.neutral("scale_attn_by_inverse_layer_idx", False)
        config = cls(
            vocab_size=vocab_size,
            n_positions=fields.size("n_positions", cls.n_positions),
            n_embd=fields.size("n_embd", cls.n_embd),
            n_layer=fields.size("n_layer", cls.n_layer),
            n_head=fields.size("n_head", cls.n_head),
            n_inner=fields.size("n_inner", cls.n_inner),
            layer_norm_epsilon=fields.positive(
                "layer_norm_epsilon",
                cls.layer_norm_epsilon,
            ),
            tie_word_embeddings=fields.flag(
                "tie_word_embeddings",
                cls.tie_word_embeddings,
            ),
            bos_token_id=bos[0] if bos else None,
            eos_token_id=fields.token_ids("eos_token_id", vocab_size),
        )
        fields.finish(benign=values)
        return config

    @classmethod
    def from_tensors(cls, tensors, *, file=None):
        """The sizes that this file was written with."""
        return cls()


class Attention(Module):
    """Causal self-attention of n_head heads. (N, C) -> (N, C)"""

    def __init__(self, config, layer):
        self.layer = layer
        self.n_head = config.n_head
        self.scale = 1.0 / math.sqrt(config.n_embd // config.n_head)
        self.c_attn = Conv1D(config.n_embd, 3 * config.n_embd)
        # Inferred: a square weight may be either way round; here as the others are.
        self.c_proj = Conv1D(config.n_embd, config.n_embd)

    def __call__(self, x, batch):
        q, k, v = self.ops.split(self.c_attn(x), 3)  # three of (N, C)
        heads = self.ops.attention(
            q,
            k,
            v,
            batch,
            layer=self.layer,
            n_head=self.n_head,
            scale=self.scale,
        )
        return self.c_proj(heads)


class MLP(Module):
    """Two layers with an activation between. (N, C) -> (N, C)"""

    def __init__(self, config):
        self.c_fc = Conv1D(config.n_embd, config.n_inner)
        self.c_proj = Conv1D(config.n_inner, config.n_embd)
        self.act = Activation("gelu_tanh")

    def __call__(self, x):
        return self.c_proj(self.act(self.c_fc(x)))


class Block(Module):
    """Attention, then MLP, each added to the residual stream. (N, C) -> (N, C)"""

    def __init__(self, config, layer):
        self.ln_1 = LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = Attention(config, layer)
        self.ln_2 = LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def __call__(self, x, batch):
        x = x + self.attn(self.ln_1(x), batch)
        return x + self.mlp(self.ln_2(x))


class GPT2(PretrainedModel):
    """Embeddings, blocks, a norm, and the head. A batch of N rows -> (R, V) logits"""

    config_type: ClassVar = Config
    rules: ClassVar = NameRules(
        prefixes=("transformer.",),
        buffers=(r"h\.\d+\.attn\.(bias|masked_bias)",),
        tied={"lm_head.weight": "wte.weight"},
    )

    def __init__(self, config):
        self.wte = Embedding(config.vocab_size, config.n_embd)
        self.wpe = Embedding(config.n_positions, config.n_embd)
        self.h = ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.lm_head = Linear(config.n_embd, config.vocab_size, bias=False)

    def __call__(self, batch):
        x = self.wte(batch.ids) + self.wpe(batch.positions)  # (N, C)
        for block in self.h:
            x = block(x, batch)
        return self.readout(self.ops.take(x, batch.logit_rows))

    def readout(self, x):
        """The residual stream -> logits. (R, C) -> (R, V)"""
        return self.lm_head(self.ln_f(x))


ARCHITECTURE = GPT2
