"""Recognises a decoder of Llama's or GPT-NeoX's form by its names, shapes and config.json."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from rushlight.porting.scaffold.infer import is_head_name, is_table_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rushlight.porting.scaffold.tree import Node

__all__ = ["AttentionForm", "Form", "MLPForm", "NormForm", "body_prefix", "config_key"]

Shape = tuple[int, ...]

SEPARATE = (("q_proj", "k_proj", "v_proj"), ("q", "k", "v"), ("wq", "wk", "wv"), ("query", "key", "value"))
FUSED = ("qkv_proj", "qkv", "Wqkv", "c_attn", "in_proj")
"""Names of one projection to q, k and v, one after the other."""
BY_HEAD = ("query_key_value",)
"""Names of one projection to q, k and v of each head in turn."""
OUT = ("o_proj", "out_proj", "dense", "c_proj", "wo", "o")
HEAD_NORMS = (("q_norm", "k_norm"), ("q_layernorm", "k_layernorm"), ("query_layernorm", "key_layernorm"))
GATED = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"), ("gate", "up", "down"))
"""Names of the gate, of what it multiplies, and of the output."""
GATE_AND_UP = (("gate_up_proj", "down_proj"), ("wi", "wo"))
PLAIN = (
    ("c_fc", "c_proj"),
    ("fc1", "fc2"),
    ("fc_in", "fc_out"),
    ("dense_h_to_4h", "dense_4h_to_h"),
    ("up_proj", "down_proj"),
    ("w1", "w2"),
)
ACTIVATIONS = ("act_fn", "act", "activation")
ORDERS = {
    "pre": (
        ("input_layernorm", "post_attention_layernorm"),
        ("attention_norm", "ffn_norm"),
        ("attn_norm", "mlp_norm"),
        ("ln_1", "ln_2"),
        ("norm1", "norm2"),
        ("norm_1", "norm_2"),
    ),
    "post": (("post_attention_layernorm", "post_feedforward_layernorm"),),
    "sandwich": (
        ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
    ),
    "shared": (("input_layernorm",), ("ln_1",), ("norm",)),
}
"""Where the norms of a block are -> the names of its norms, in the order in which they compute."""

KEYS = {
    "hidden_size": ("n_embd", "d_model", "dim"),
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "num_attention_heads": ("n_head", "n_heads", "num_heads"),
    "num_key_value_heads": ("n_kv_heads", "num_kv_heads"),
    "head_dim": (),
    "intermediate_size": ("n_inner", "ffn_dim", "ffn_hidden_size", "hidden_dim"),
    "max_position_embeddings": ("n_positions", "max_seq_len", "max_sequence_length", "seq_length", "n_ctx"),
    "eps": (
        "rms_norm_eps",
        "layer_norm_eps",
        "layer_norm_epsilon",
        "norm_eps",
        "norm_epsilon",
        "rms_norm_epsilon",
        "layernorm_epsilon",
    ),
    "activation": ("hidden_act", "hidden_activation", "activation_function", "activation", "act"),
}
"""A setting -> the keys of config.json that may have it, beside its own name."""

_BLOCKS = re.compile(r"(.*?)(layers|h|blocks|block)\.\d+\.")


class NormForm(NamedTuple):
    """A norm: the attribute, and its layer."""

    name: str
    kind: str
    has_bias: bool
    n_channels: int


@dataclass(frozen=True)
class AttentionForm:
    """Attention whose layers have the names of a known set.

    Attributes:
        projections: the layers for q, k and v: three, or one that is fused.
        by_head: whether the fused layer has q, k and v of each head in turn.
        out: the output layer.
        norms: the norms of queries and keys; empty if there are none.
        biases: the layers that have a bias.
    """

    projections: tuple[str, ...]
    by_head: bool
    out: str
    norms: tuple[NormForm, ...]
    biases: frozenset[str]


@dataclass(frozen=True)
class MLPForm:
    """An MLP whose layers have the names of a known set: gate, up and down; gate with up, and down; or up and down."""

    layers: tuple[str, ...]
    kind: str
    biases: frozenset[str]


@dataclass(frozen=True)
class Form:
    """A decoder: embedding, blocks of attention and MLP, a norm, and a head.

    Attributes:
        embedding, blocks, norm, head: the attributes of the model; no head is stored if it is "".
        attention_name, mlp_name: the attributes of a block.
        attention, mlp: their forms; None where their layers are not of a known set.
        norms: the norms of a block, in the order of its names.
        order: pre, post, sandwich, or shared: where the norms are.
        sizes: the settings that shapes and config.json show, by the keys of KEYS.
    """

    embedding: str
    blocks: str
    norm: NormForm
    head: str
    head_has_bias: bool
    attention_name: str
    mlp_name: str
    attention: AttentionForm | None
    mlp: MLPForm | None
    norms: tuple[NormForm, ...]
    order: str
    sizes: Mapping[str, int]

    @classmethod
    def of(cls, root: Node, values: Mapping[str, Any]) -> Form | None:
        """The form of the tree of a checkpoint without its prefix; None if it is not such a decoder.

        Args:
            root: the tree.
            values: config.json.
        """
        return _Reader(root, values).form()


def body_prefix(names: Iterable[str]) -> str:
    """The prefix of the names of blocks, such as `model.`; empty if they have none."""
    matches = [match for name in names if (match := _BLOCKS.match(name))]
    return matches[0][1] if matches and len({match[1] for match in matches}) == 1 else ""


def config_key(setting: str, values: Mapping[str, Any]) -> str:
    """The key of config.json that has a setting; empty if none has."""
    return next((key for key in (setting, *KEYS[setting]) if values.get(key) is not None), "")


class _Reader:
    """Reads the form of one tree."""

    def __init__(self, root: Node, values: Mapping[str, Any]) -> None:
        self.root, self.values = root, values
        self.sizes: dict[str, int] = {}

    def size(self, setting: str) -> int:
        value = self.values.get(config_key(setting, self.values))
        return value if type(value) is int else 0

    def form(self) -> Form | None:
        children = self.root.children
        matrices = {name: node.tensors["weight"] for name, node in children.items() if _is_matrix(node)}
        norms = [norm for name, node in children.items() if (norm := _norm(name, node))]
        lists = [name for name, node in children.items() if node.is_list]
        if len(lists) != 1 or len(norms) != 1 or not 1 <= len(matrices) <= 2 or self.root.tensors:
            return None
        if set(children) != {*matrices, norms[0].name, *lists}:
            return None
        heads = [name for name in matrices if is_head_name(name)] if len(matrices) == 2 else []
        tables = [name for name in matrices if name not in heads and is_table_name(name)]
        if len(tables) != 1 or len(heads) != len(matrices) - 1:
            return None
        embedding, head = children[tables[0]], children[heads[0]] if heads else None
        shape = embedding.tensors["weight"]
        if "bias" in embedding.tensors or (head is not None and head.tensors["weight"] != shape):
            return None
        blocks = list(children[lists[0]].children.values())
        self.sizes = {"vocab_size": shape[0], "hidden_size": shape[1], "num_hidden_layers": len(blocks)}
        self.sizes |= {key: self.size(key) for key in ("num_attention_heads", "max_position_embeddings")}
        is_config_right = all(self.size(key) == self.sizes[key] for key in ("hidden_size", "num_hidden_layers"))
        if not is_config_right or 0 in self.sizes.values() or self.values.get("vocab_size") != shape[0]:
            return None
        return self.with_block(blocks, embedding.name, lists[0], norms[0], head)

    def with_block(
        self, blocks: list[Node], embedding: str, name: str, norm: NormForm, head: Node | None
    ) -> Form | None:
        block = blocks[0]
        if any(_shapes(each) != _shapes(block) for each in blocks) or block.tensors:
            return None
        attention = [name for name in block.children if re.search(r"attn|attention$", name) and "norm" not in name]
        mlp = [name for name in block.children if re.search(r"mlp|ffn|feed_?forward|moe", name) and "norm" not in name]
        norms = {name: form for name, node in block.children.items() if (form := _norm(name, node))}
        if len(attention) != 1 or len(mlp) != 1 or set(block.children) != {*attention, *mlp, *norms}:
            return None
        order = next((each for each, sets in ORDERS.items() if any(set(names) == set(norms) for names in sets)), "")
        if not order:
            return None
        names = next(names for names in ORDERS[order] if set(names) == set(norms))
        return Form(
            embedding,
            name,
            norm,
            "" if head is None else head.name,
            head is not None and "bias" in head.tensors,
            attention[0],
            mlp[0],
            self.attention(block.children[attention[0]]),
            self.mlp(block.children[mlp[0]]),
            tuple(norms[each] for each in names),
            order,
            self.sizes,
        )

    def attention(self, node: Node) -> AttentionForm | None:
        """The form of attention, whose heads are added to the sizes."""
        n, width = self.sizes["num_attention_heads"], self.sizes["hidden_size"]
        usual = width // n
        head_dim, n_kv = self.size("head_dim"), self.size("num_key_value_heads")
        self.sizes |= {"head_dim": head_dim or usual, "num_key_value_heads": n_kv or n}
        layers = {name: child.tensors["weight"] for name, child in node.children.items() if _is_matrix(child)}
        norms = tuple(norm for name, child in node.children.items() if (norm := _norm(name, child)))
        out = next((name for name in OUT if name in layers), "")
        q_k_v = next((each for each in SEPARATE if set(each) <= set(layers)), ())
        fused = next((name for name in (*FUSED, *BY_HEAD) if name in layers), "")
        projections = q_k_v or ((fused,) if fused else ())
        by_head = fused in BY_HEAD
        if not out or {*projections, out} != set(layers) or set(node.children) != {*layers, *(n.name for n in norms)}:
            return None
        if not projections or node.tensors or any(layers[name][1] != width for name in projections):
            return None
        rows = [layers[name][0] for name in projections]
        if q_k_v:
            dim = head_dim or rows[0] // n
            n_kv = n_kv or rows[1] // dim
            fits = rows == [n * dim, n_kv * dim, n_kv * dim]
        else:
            dim = head_dim or usual
            n_kv = n_kv or (rows[0] // dim - n) // 2
            fits = rows == [(n + 2 * n_kv) * dim]
            by_head = by_head and n_kv == n
        if not fits or layers[out] != (width, n * dim) or n_kv < 1 or n % n_kv:
            return None
        self.sizes |= {"head_dim": dim, "num_key_value_heads": n_kv}
        names = next((each for each in HEAD_NORMS if set(each) == {norm.name for norm in norms}), ())
        by_name = {norm.name: norm for norm in norms}
        ordered = tuple(by_name[name] for name in names)
        if len(ordered) != len(norms):
            return None
        widths = [norm.n_channels for norm in ordered]
        is_per_head = widths == [dim, dim] and all(norm.kind == "RMSNorm" for norm in ordered)
        if ordered and not is_per_head and widths != [n * dim, n_kv * dim]:
            return None
        return AttentionForm(projections, by_head, out, ordered, _biases(node))

    def mlp(self, node: Node) -> MLPForm | None:
        """The form of the MLP, whose width is added to the sizes."""
        width = self.sizes["hidden_size"]
        layers = {name: child.tensors["weight"] for name, child in node.children.items() if _is_matrix(child)}
        if node.tensors or set(layers) != set(node.children):
            return None
        for kind, sets in (("gated", GATED), ("fused", GATE_AND_UP), ("plain", PLAIN)):
            names = next((each for each in sets if set(each) == set(layers)), None)
            if names is None:
                continue
            n_inner = layers[names[-1]][1]
            rows = 2 * n_inner if kind == "fused" else n_inner
            if layers[names[-1]][0] != width or any(layers[name] != (rows, width) for name in names[:-1]):
                return None
            self.sizes["intermediate_size"] = n_inner
            return MLPForm(names, kind, _biases(node))
        return None


def _is_matrix(node: Node) -> bool:
    """Whether a module has the tensors of a Linear or an Embedding."""
    weight, bias = node.tensors.get("weight", ()), node.tensors.get("bias")
    return not node.children and len(weight) == 2 and bias in {None, weight[:1]} and set(node.tensors) <= _LAYER


def _norm(name: str, node: Node) -> NormForm | None:
    """The norm that has exactly these tensors; None if it has others."""
    weight, bias = node.tensors.get("weight", ()), node.tensors.get("bias")
    if node.children or len(weight) != 1 or bias not in {None, weight} or not set(node.tensors) <= _LAYER:
        return None
    if bias is None and not re.search(r"norm|^ln", name, re.IGNORECASE):
        return None
    return NormForm(name, "RMSNorm" if bias is None else "LayerNorm", bias is not None, weight[0])


_LAYER = {"weight", "bias"}


def _biases(node: Node) -> frozenset[str]:
    return frozenset(name for name, child in node.children.items() if "bias" in child.tensors)


def _shapes(node: Node) -> dict[str, Shape]:
    """The shapes of all tensors below a module, by their names in it."""
    shapes = dict(node.tensors)
    for name, child in node.children.items():
        shapes |= {f"{name}.{path}": shape for path, shape in _shapes(child).items()}
    return shapes
