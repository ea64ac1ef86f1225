"""The forward passes that are known: GPT-2's, by the names of its modules, whichever layers those are."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rushlight.models import ACTIVATION_NAMES

if TYPE_CHECKING:
    from rushlight.models.gpt2 import GPT2Config

__all__ = ["NANOGPT_GELU", "Known", "gpt2_config", "gpt2_module"]


@dataclass(frozen=True)
class Known:
    """What is known of a module.

    Attributes:
        doc: its docstring.
        before: statements of __init__ that stand before its layers.
        after: attributes that stand after them.
        call: its __call__, and other methods.
        by_layer: whether __init__ takes its block's number.
    """

    doc: str
    call: str
    before: str = ""
    after: str = ""
    by_layer: bool = False


NANOGPT_GELU = "GPT-2 and llm.c have gelu_tanh, nanoGPT since 2023 gelu_erf"


def gpt2_module(parts: frozenset[str], config: GPT2Config, *, sure_of_gelu: bool) -> Known | None:
    """What is known of the module of a GPT-2 that has these parts; None if they are not GPT-2's.

    With `sure_of_gelu` the activation is the config's without a doubt.
    """
    if {"wte", "wpe", "h", "ln_f"} <= parts <= {"wte", "wpe", "h", "ln_f", "lm_head"}:
        return Known(
            "Embeddings, blocks, a norm, and the head. A batch of N rows -> (R, V) logits",
            '''
def __call__(self, batch):
    x = self.wte(batch.ids) + self.wpe(batch.positions)  # (N, C)
    for block in self.h:
        x = block(x, batch)
    return self.readout(self.ops.take(x, batch.logit_rows))

def readout(self, x):
    """The residual stream -> logits. (R, C) -> (R, V)"""
    return self.lm_head(self.ln_f(x))
''',
        )
    if parts == {"ln_1", "attn", "ln_2", "mlp"}:
        return Known(
            "Attention, then MLP, each added to the residual stream. (N, C) -> (N, C)",
            """
def __call__(self, x, batch):
    x = x + self.attn(self.ln_1(x), batch)
    return x + self.mlp(self.ln_2(x))
""",
            by_layer=True,
        )
    if parts == {"c_attn", "c_proj"}:
        head_dim = "1.0 / math.sqrt(config.n_embd // config.n_head)" if config.scale_attn_weights else "1.0"
        by_depth = " / (layer + 1)" if config.scale_attn_by_inverse_layer_idx else ""
        return Known(
            "Causal self-attention of n_head heads. (N, C) -> (N, C)",
            """
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
""",
            before=f"self.layer = layer\nself.n_head = config.n_head\nself.scale = {head_dim}{by_depth}\n",
            by_layer=True,
        )
    if parts == {"c_fc", "c_proj"}:
        return Known(
            "Two layers with an activation between. (N, C) -> (N, C)",
            """
def __call__(self, x):
    return self.c_proj(self.act(self.c_fc(x)))
""",
            after=("" if sure_of_gelu else f"# Inferred: {NANOGPT_GELU}.\n")
            + f'self.act = Activation("{ACTIVATION_NAMES[config.activation_function]}")\n',
        )
    return None


def gpt2_config(config: GPT2Config) -> str:
    """A config class with the sizes of `config` for defaults, which refuses a config.json of other arithmetic."""
    sizes = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner")
    fixed = ("scale_attn_weights", "scale_attn_by_inverse_layer_idx")
    activation = ACTIVATION_NAMES[config.activation_function]
    same = [f'"{name}"' for name, meaning in ACTIVATION_NAMES.items() if meaning == activation]
    values = dataclasses.asdict(config)
    fields = "\n".join(f"    {name}: int = {values[name]}" for name in sizes)
    read = "\n".join(f'            {name}=fields.size("{name}", cls.{name}),' for name in sizes)
    activation_line = f'        fields.neutral("activation_function", {", ".join(same)})\n'
    if len(activation_line) > 89:
        lines = "".join(f"            {name},\n" for name in ('"activation_function"', *same))
        activation_line = f"        fields.neutral(\n{lines}        )\n"
    refuse = activation_line + "\n".join(f'        fields.neutral("{name}", {values[name]})' for name in fixed)
    return f'''@dataclass(frozen=True, kw_only=True)
class Config:
    """The sizes of the checkpoint, each under its key in config.json."""

{fields}
    layer_norm_epsilon: float = {config.layer_norm_epsilon!r}
    tie_word_embeddings: bool = {config.tie_word_embeddings}
    bos_token_id: int | None = {config.bos_token_id}
    eos_token_id: tuple[int, ...] = {config.eos_token_id!r}

    def __str__(self):
        return f"n_layer {{self.n_layer}}, n_embd {{self.n_embd}}, n_head {{self.n_head}}"

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
{refuse}
        config = cls(
{read}
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
'''.replace('            vocab_size=fields.size("vocab_size", cls.vocab_size),', "            vocab_size=vocab_size,")
