"""GPT-2 and its relatives: 124M to 1.5B, distilgpt2, DialoGPT, and whatever is trained in their shape.

Radford et al., "Language Models are Unsupervised Multitask Learners", 2019. Names and arithmetic are those of
transformers' modeling_gpt2.py, which the published .safetensors files follow.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rushlight.backends.batch import KVShape
from rushlight.errors import ConfigError
from rushlight.models.generation_config import GENERATION_KEYS
from rushlight.models.schema import MAX_LAYERS, Fields
from rushlight.nn import Activation, Conv1D, Embedding, LayerNorm, Linear, Module, ModuleList, NameRules

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rushlight.backends.batch import Batch
    from rushlight.backends.protocol import Array, Tensor

ACTIVATION_NAMES = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",  # the same formula with √(2/π) written out to ten digits
    "gelu": "gelu_erf",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "quick_gelu": "quick_gelu",
}
"""What config.json calls an activation -> what it is."""

BENIGN_KEYS = frozenset(
    # Training, bookkeeping, other heads, how transformers runs it: none changes the logits of the language model.
    """_attn_implementation_autoset _attn_implementation_internal _commit_hash _name_or_path _num_labels architectures
    attn_pdrop auto_map chunk_size_feed_forward decoder_start_token_id dtype embd_pdrop finetuning_task
    gradient_checkpointing id2label initializer_range is_decoder is_encoder_decoder label2id language model_type n_ctx
    num_labels output_attentions output_hidden_states output_past pad_token_id predict_special_tokens prefix
    problem_type resid_pdrop return_dict sep_token_id summary_activation summary_first_dropout summary_hidden_size
    summary_proj_to_labels summary_type summary_use_proj task_specific_params tf_legacy_loss tokenizer_class
    torch_dtype torchscript transformers_version use_cache""".split()
)


@dataclass(frozen=True, kw_only=True)
class GPT2Config:
    """The sizes and switches of a GPT-2, each under its key in config.json."""

    vocab_size: int
    n_positions: int
    n_embd: int
    n_layer: int
    n_head: int
    n_inner: int
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    reorder_and_upcast_attn: bool = False
    """Float32 attention scores, whatever the weights: what every backend here does anyway."""
    tie_word_embeddings: bool = True
    bos_token_id: int | None = None
    eos_token_id: tuple[int, ...] = ()

    @property
    def context_length(self) -> int:
        """The most positions a sequence can have."""
        return self.n_positions

    @property
    def kv_shape(self) -> KVShape:
        return KVShape(self.n_layer, self.n_head, self.n_embd // self.n_head)

    @classmethod
    def from_json(cls, values: Mapping[str, Any], *, file: str | None = None) -> GPT2Config:
        """Reads a config.json.

        Sizes must stand in it, since a wrong guess of n_head passes every check of shapes; the rest defaults as in
        transformers. n_ctx, once the size of the mask that was saved, counts only where n_positions is absent. Keys
        that change nothing are in BENIGN_KEYS; unknown keys are logged.

        Raises:
            ConfigError: fields missing, mistyped, out of range or not honoured: all of them.
        """
        fields = Fields(values, file)
        vocab_size = fields.size("vocab_size")
        n_positions = fields.size("n_positions" if fields.has("n_positions") else "n_ctx")
        n_embd, n_head = fields.size("n_embd"), fields.size("n_head")
        n_layer = fields.size("n_layer", at_most=MAX_LAYERS)
        for alias, key, value in (
            ("max_position_embeddings", "n_positions", n_positions),
            ("hidden_size", "n_embd", n_embd),
            ("num_attention_heads", "n_head", n_head),
            ("num_hidden_layers", "n_layer", n_layer),
        ):
            fields.alias(alias, key, value)
        if fields.sound and n_embd % n_head:
            fields.problem(f"n_head is {n_head}, which does not divide n_embd {n_embd}")
        bos = fields.token_ids("bos_token_id", vocab_size)
        fields.choice("model_type", ("gpt2",), "gpt2")
        fields.neutral("add_cross_attention", False)
        fields.neutral("quantization_config")
        fields.neutral("pruned_heads", {})
        fields.neutral("rope_scaling")
        fields.neutral("sliding_window")
        config = cls(
            vocab_size=vocab_size,
            n_positions=n_positions,
            n_embd=n_embd,
            n_layer=n_layer,
            n_head=n_head,
            n_inner=fields.size("n_inner", 4 * n_embd, at_most=2**26),
            activation_function=fields.choice("activation_function", ACTIVATION_NAMES, cls.activation_function),
            layer_norm_epsilon=fields.positive("layer_norm_epsilon", cls.layer_norm_epsilon),
            scale_attn_weights=fields.flag("scale_attn_weights", cls.scale_attn_weights),
            scale_attn_by_inverse_layer_idx=fields.flag(
                "scale_attn_by_inverse_layer_idx", cls.scale_attn_by_inverse_layer_idx
            ),
            reorder_and_upcast_attn=fields.flag("reorder_and_upcast_attn", cls.reorder_and_upcast_attn),
            tie_word_embeddings=fields.flag("tie_word_embeddings", cls.tie_word_embeddings),
            bos_token_id=bos[0] if bos else None,
            eos_token_id=fields.token_ids("eos_token_id", vocab_size),
        )
        fields.finish(BENIGN_KEYS | GENERATION_KEYS)
        return config

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], *, file: str | None = None) -> GPT2Config:
        """Reads the sizes off a checkpoint that has no config.json; head_dim is 64, as in every published GPT-2.

        Raises:
            ConfigError: the shapes do not tell.
        """
        by_path = {GPT2.rules.canonical(name): tensor for name, tensor in tensors.items()}
        shapes = {path: by_path[path].shape for path in (*GPT2.landmarks, "h.0.mlp.c_fc.weight") if path in by_path}
        unclear = sorted(path for path, shape in shapes.items() if len(shape) != 2 or 0 in shape)
        wte, wpe, c_fc = (shapes.get(path, ()) for path in ("wte.weight", "wpe.weight", "h.0.mlp.c_fc.weight"))
        if unclear or not (wte and wpe and c_fc) or wte[1] % HEAD_DIM:
            why = f"n_embd {wte[1]} is no multiple of {HEAD_DIM}" if wte and not unclear else "the shapes do not tell"
            raise ConfigError(
                f"there is no config.json, and {why}",
                file=file,
                remedy="put the model's config.json beside the weights",
            )
        head = by_path.get("lm_head.weight")
        layers = [int(match[1]) for path in by_path if (match := re.match(r"h\.(\d{1,4})\.", path))]
        return cls(
            vocab_size=wte[0],
            n_positions=wpe[0],
            n_embd=wte[1],
            n_layer=min(max(layers, default=0) + 1, MAX_LAYERS),
            n_head=wte[1] // HEAD_DIM,
            n_inner=c_fc[1] if c_fc[0] == wte[1] else c_fc[0],  # the wrong way round: binding will say so
            tie_word_embeddings=head is None or head.same_data(by_path["wte.weight"]),
            bos_token_id=GPT2_END_OF_TEXT if wte[0] == GPT2_VOCAB_SIZE else None,
            eos_token_id=(GPT2_END_OF_TEXT,) if wte[0] == GPT2_VOCAB_SIZE else (),
        )

    def __str__(self) -> str:
        return f"n_layer {self.n_layer}, n_embd {self.n_embd}, n_head {self.n_head}"


HEAD_DIM = 64
GPT2_VOCAB_SIZE = 50257
GPT2_END_OF_TEXT = 50256


class Attention(Module):
    """Causal self-attention of n_head heads. (N, C) -> (N, C)"""

    def __init__(self, config: GPT2Config, layer: int) -> None:
        self.layer = layer
        self.n_head = config.n_head
        self.scale = 1.0
        if config.scale_attn_weights:
            self.scale /= math.sqrt(config.n_embd // config.n_head)
        if config.scale_attn_by_inverse_layer_idx:
            self.scale /= layer + 1
        self.c_attn = Conv1D(config.n_embd, 3 * config.n_embd)
        self.c_proj = Conv1D(config.n_embd, config.n_embd)

    def __call__(self, x: Array, batch: Batch) -> Array:
        q, k, v = self.ops.split(self.c_attn(x), 3)  # 3 × (N, C)
        heads = self.ops.attention(q, k, v, batch, layer=self.layer, n_head=self.n_head, scale=self.scale)
        return self.c_proj(heads)


class MLP(Module):
    """Two layers with an activation between. (N, C) -> (N, C)"""

    def __init__(self, config: GPT2Config) -> None:
        self.c_fc = Conv1D(config.n_embd, config.n_inner)
        self.act = Activation(ACTIVATION_NAMES[config.activation_function])
        self.c_proj = Conv1D(config.n_inner, config.n_embd)

    def __call__(self, x: Array) -> Array:
        return self.c_proj(self.act(self.c_fc(x)))


class Block(Module):
    """Pre-norm transformer block: attention, then MLP, each added to the residual stream. (N, C) -> (N, C)"""

    def __init__(self, config: GPT2Config, layer: int) -> None:
        self.ln_1 = LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = Attention(config, layer)
        self.ln_2 = LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def __call__(self, x: Array, batch: Batch) -> Array:
        x = x + self.attn(self.ln_1(x), batch)
        return x + self.mlp(self.ln_2(x))


class GPT2(Module):
    """Token and position embeddings, n_layer blocks, a norm, and the head. A batch of N rows -> (R, V) logits"""

    model_type: ClassVar = "gpt2"
    config_type: ClassVar = GPT2Config
    rules: ClassVar = NameRules(
        prefixes=("transformer.",),
        buffers=(r"h\.\d+\.attn\.(bias|masked_bias)",),
        # Of transformers' classes for other tasks, and of reinforcement learning: v_head, value_head, reward_head.
        heads=(r"(\w+_head|score|classifier|qa_outputs)\..*",),
        tied={"lm_head.weight": "wte.weight"},
    )
    landmarks: ClassVar = frozenset({"wte.weight", "wpe.weight", "h.0.attn.c_attn.weight"})
    sizes: ClassVar[Mapping[str, tuple[str, int] | str]] = {
        "vocab_size": ("wte.weight", 0),
        "n_positions": ("wpe.weight", 0),
        "n_embd": ("wte.weight", 1),
        "n_layer": "h",
        "n_inner": ("h.0.mlp.c_fc.bias", 0),
    }

    def __init__(self, config: GPT2Config) -> None:
        self.wte = Embedding(config.vocab_size, config.n_embd)
        self.wpe = Embedding(config.n_positions, config.n_embd)
        self.h = ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.lm_head = Linear(config.n_embd, config.vocab_size, bias=False)

    def __call__(self, batch: Batch) -> Array:
        x = self.wte(batch.ids) + self.wpe(batch.positions)  # (N, C)
        for block in self.h:
            x = block(x, batch)
        return self.readout(self.ops.take(x, batch.logit_rows))  # (R, C): only the rows whose logits are wanted

    def readout(self, x: Array) -> Array:
        """The residual stream -> logits. (R, C) -> (R, V)"""
        return self.lm_head(self.ln_f(x))
