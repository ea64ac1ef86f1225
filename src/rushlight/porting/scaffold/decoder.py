"""Writes a port of a decoder of a known form, complete with its forward; what shapes do not show is marked as assumed.

Comments that begin with "Assumed:" mark what to check. Modules whose layers have unknown names are left to write.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from rushlight.models import ACTIVATION_NAMES
from rushlight.models.schema import BENIGN_KEYS, may_change_arithmetic
from rushlight.porting.scaffold.files import TO_WRITE, USAGE, Scaffold, port_test
from rushlight.porting.scaffold.form import KEYS, config_key
from rushlight.porting.scaffold.source_text import (
    MODEL_WIDTH,
    call_lines,
    comment_lines,
    dict_lines,
    imported,
    indented,
    one_line,
    set_lines,
    string_literal,
    tuple_literal,
)
from rushlight.porting.scaffold.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from rushlight.checkpoint import Checkpoint
    from rushlight.porting.scaffold.form import AttentionForm, Form, MLPForm, NormForm
    from rushlight.porting.scaffold.tree import Node

__all__ = ["DecoderWriter"]

C = "config.hidden_size"
READ_KEYS = frozenset({"vocab_size", "tie_word_embeddings", "bos_token_id", "eos_token_id"})
"""Keys that every written config reads."""
ROPE_KEYS = frozenset(
    """rope_theta rope_parameters rope_scaling original_max_position_embeddings partial_rotary_factor rotary_emb_base
    rotary_pct""".split()
)
"""Keys that `field.rope` reads."""
WINDOW_KEYS = frozenset({"layer_types", "sliding_window", "use_sliding_window"})
"""Keys that `field.windows` reads."""
SHOWN_KEYS = re.compile(r"(^|_)bias$|^use_\w*bias$|^(use_)?qk_(layer)?norm$|^(use_)?rms_?norm$|^multi_query$")
"""Keys that only say which tensors there are: the file has the layers of the tensors."""
STEPS = {"pre": "nanm", "post": "anmn", "sandwich": "nannmn", "shared": "nam"}
"""An order of `form.ORDERS` -> the modules of a block as they compute: norms, attention and MLP."""
PARALLEL = ("use_parallel_residual", "parallel_attn", "parallel_residual")
INTERLEAVED = ("rope_interleaved", "rope_interleave", "rotary_interleaved")


class DecoderWriter(Writer):
    """Writes a decoder.

    Args:
        checkpoint: the checkpoint.
        weights: the shapes of its weights, by attribute path.
        form: the form of the model.
        prefix: the prefix of the names of its body.
        buffers: patterns of the tensors that are not weights.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        weights: Mapping[str, tuple[int, ...]],
        *,
        form: Form,
        prefix: str,
        buffers: tuple[str, ...],
    ) -> None:
        self.form_of_model, self.prefix = form, prefix
        super().__init__(checkpoint, [*weights.items()])
        self.buffers = buffers
        self.to_check: list[str] = []
        self.models: set[str] = {"PretrainedModel", "TextConfig", "field"}
        self.fixed: dict[str, Any] = {}
        """Keys of config.json whose value the file has written out; another one is refused."""
        self.is_tied = not form.head or self.values.get("tie_word_embeddings") is True
        self.head = form.head or "lm_head"
        key = config_key("activation", self.values)
        self.activation_key = key or "hidden_act"
        value = self.values.get(key)
        self.is_squared = value == "relu2"
        self.is_activation_known = not key or self.is_squared or (isinstance(value, str) and value in ACTIVATION_NAMES)
        self.eps_key = config_key("eps", self.values) or "norm_eps"
        self.has_windows = bool(self.values.get("sliding_window") or self.values.get("layer_types"))
        named = ("intermediate_size", "vocab_size", "hidden_size")
        self.sizes = {form.sizes[key]: key for key in named if key in form.sizes}
        settings = self.values.get("rope_parameters")
        self.layer_types = (
            [key for key in ("full_attention", "sliding_attention") if isinstance(settings.get(key), dict)]
            if isinstance(settings, dict)
            else []
        )
        """The kinds of layers with rotary embeddings of their own."""
        self.is_rotary = form.attention is not None or bool(ROPE_KEYS & self.values.keys())

    def name_sizes(self) -> dict[int, str]:
        return {}

    def scaffold(self, file: Path) -> Scaffold:
        form = self.form_of_model
        if form.attention is not None:
            self.classes["Attention"] = self.attention(form.attention)
        else:
            self.left_to_write("Attention", self.block_node().children[form.attention_name])
        if form.mlp is not None and self.is_activation_known:
            self.classes["MLP"] = self.mlp(form.mlp)
        else:
            self.left_to_write("MLP", self.block_node().children[form.mlp_name])
        self.classes["Block"] = self.block()
        self.classes[self.root_name] = self.root_class()
        config = self.config_class()
        parts = [self.header(), config, *self.classes.values(), f"ARCHITECTURE = {self.root_name}\n"]
        test = port_test(self.checkpoint.source, file, computes_logits=not self.to_write)
        return Scaffold("\n\n".join(parts), test, tuple(self.to_write), tuple(self.to_check))

    def header(self) -> str:
        return "\n".join(
            [
                f'"""A port of {one_line(self.source_name)}, written by `rushlight port`.',
                "",
                "It computes what models of these names and shapes usually do. Check what is marked Assumed, best with",
                "`rushlight record` and `rushlight verify`, which name a module that differs.",
                *(["", TO_WRITE] if self.to_write else []),
                "",
                *USAGE,
                '"""',
                "",
                "from __future__ import annotations",
                "",
                *(["import math"] if any("math." in body for body in self.classes.values()) else []),
                "from dataclasses import dataclass",
                "from typing import ClassVar",
                "",
                *imported("rushlight.models", self.models),
                *imported("rushlight.nn", self.used),
                "",
            ]
        )

    def left_to_write(self, name: str, node: Node) -> None:
        """A class with a slot for every tensor of a module whose layers are unknown."""
        self.taken.add(name)
        body = self.body(node, name)
        arguments = ("x, angles, batch" if self.is_rotary else "x, batch") if name == "Attention" else "x"
        self.classes[name] = body.replace("(self, *inputs):", f"(self, {arguments}):")

    def takes_number(self, node: Node) -> bool:
        path = node.path.split(".")
        return len(path) == 3 and path[2] == self.form_of_model.attention_name

    def block_node(self) -> Node:
        return self.root.children[self.form_of_model.blocks].children["0"]

    def assumed(self, text: str) -> list[str]:
        """A comment that marks an assumption, which the command lists."""
        self.to_check.append(text)
        return comment_lines(f"Assumed: {text}.", MODEL_WIDTH - 8)

    def number(self, key: str) -> float | None:
        """A number of config.json that the file has written out; None if there is none."""
        value = self.values.get(key)
        if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
            return None
        self.fixed[key] = value
        return float(value)

    def factor(self, key: str, *, inverted: bool = False) -> str:
        """The source of a multiplication by a number of config.json; empty if there is none."""
        value = self.number(key)
        return "" if value in {None, 1.0} else f" * {1 / value if inverted and value else value!r}"

    # Layers

    def linear(self, n_in: str, n_out: str, *, bias: bool) -> str:
        self.used.add("Linear")
        return f"Linear({n_in}, {n_out}{'' if bias else ', bias=False'})"

    def norm(self, norm: NormForm, channels: str = C) -> str:
        self.used.add(norm.kind)
        return f"{norm.kind}({channels}, eps=config.{self.eps_key})"

    # Classes

    def attention(self, form: AttentionForm) -> str:
        used = self.used
        used |= {"Module"}
        q_width, kv_width = "heads.n * heads.dim", "heads.n_kv * heads.dim"
        init = ["heads = self.heads = config.heads", "self.layer = layer"]
        if self.has_windows:
            init.append("self.window = config.windows[layer]")
        init += self.scale()
        is_fused = len(form.projections) == 1
        widths = ["(heads.n + 2 * heads.n_kv) * heads.dim"] if is_fused else [q_width, kv_width, kv_width]
        for name, width in zip(form.projections, widths, strict=True):
            init.append(f"self.{name} = {self.linear(C, width, bias=name in form.biases)}")
        for norm, heads in zip(form.norms, ("heads.n", "heads.n_kv"), strict=False):
            is_per_head = norm.n_channels == self.form_of_model.sizes["head_dim"]
            init.append(f"self.{norm.name} = {self.norm(norm, 'heads.dim' if is_per_head else f'{heads} * heads.dim')}")
        init.append(f"self.{form.out} = {self.linear(q_width, C, bias=form.out in form.biases)}")

        call = ["ops, heads = self.ops, self.heads"]
        if len(form.projections) == 3:
            call.append(f"q, k, v = {', '.join(f'self.{name}(x)' for name in form.projections)}")
        elif form.by_head:
            call += self.assumed("the fused projection has q, k and v of each head in turn")
            call.append(f"q, k, v = ops.split(self.{form.projections[0]}(x), 3, groups=heads.n)")
        else:
            call += self.assumed("the fused projection has all of q, then k, then v")
            call.append("sizes = [heads.n * heads.dim, heads.n_kv * heads.dim, heads.n_kv * heads.dim]")
            call.append(f"q, k, v = ops.split(self.{form.projections[0]}(x), sizes)")
        if form.norms:
            call += self.assumed("queries and keys are normalised before they are rotated")
            call.append(f"q, k = {', '.join(f'self.{n.name}({a})' for n, a in zip(form.norms, 'qk', strict=True))}")
        interleaved = next((key for key in INTERLEAVED if self.values.get(key) is True), "")
        if interleaved:
            self.fixed[interleaved] = True
        option = ", interleaved=True" if interleaved else ""
        pairs = "(2i, 2i + 1)" if interleaved else "(i, i + r/2)"
        unrotated = self.unrotated()
        layers = "these layers" if unrotated else "every layer"
        call += self.assumed(f"rotary embedding of {layers}, of channel pairs {pairs}")
        rotation = [f"q = ops.rotary(q, angles, heads.n{option})", f"k = ops.rotary(k, angles, heads.n_kv{option})"]
        if unrotated:
            init.insert(2, f"self.rotates = layer not in {{{', '.join(map(str, unrotated))}}}")
            call += ["if self.rotates:", *indented(rotation)]
        else:
            call += rotation
        options = ["layer=self.layer", "n_head=heads.n", "scale=self.scale"]
        if self.has_windows:
            call += self.assumed("a window of W positions includes the row's own")
            options.append("window=self.window")
        if (cap := self.number("attn_logit_softcapping")) is not None:
            options.append(f"softcap={cap}")
        call += call_lines("ops.attention", ["q, k, v, batch", *options], MODEL_WIDTH - 8, before="x = ")
        call.append(f"return self.{form.out}(x)")
        return _class("Attention", "Causal self-attention. (N, C) -> (N, C)", init, call, layer=True)

    def unrotated(self) -> list[int]:
        """The layers without rotary embedding, which `no_rope_layers` marks with 0."""
        marks = self.values.get("no_rope_layers")
        if not isinstance(marks, list) or len(marks) != self.form_of_model.sizes["num_hidden_layers"]:
            return []
        self.fixed["no_rope_layers"] = marks
        return [i for i, rotates in enumerate(marks) if not rotates]

    def scale(self) -> list[str]:
        """The factor of the scores."""
        if (multiplier := self.number("attention_multiplier")) is not None:
            return [f"self.scale = {multiplier}"]
        if (scalar := self.number("query_pre_attn_scalar")) is not None:
            return [f"self.scale = 1 / math.sqrt({scalar})"]
        return [*self.assumed("scores are scaled by 1/√head_dim"), "self.scale = 1 / math.sqrt(heads.dim)"]

    def mlp(self, form: MLPForm) -> str:
        self.used |= {"Activation", "Module"}
        n = "config.intermediate_size"
        *first, last = form.layers
        width = f"2 * {n}" if form.kind == "fused" else n
        init = [f"self.{name} = {self.linear(C, width, bias=name in form.biases)}" for name in first]
        init.append(f"self.{last} = {self.linear(n, C, bias=last in form.biases)}")
        if self.is_squared:
            self.fixed[self.activation_key] = "relu2"
            init.append('self.act_fn = Activation("relu")')
        else:
            self.models.add("ACTIVATION_NAMES")
            init.append(f"self.act_fn = Activation(ACTIVATION_NAMES[config.{self.activation_key}])")
        if form.kind == "gated":
            gate, up = first
            call = self.assumed(f"the activation is that of {gate}, and {up} is multiplied with it")
            call.append(f"gate, up = self.act_fn(self.{gate}(x)), self.{up}(x)")
        elif form.kind == "fused":
            call = self.assumed(f"the first half of {first[0]} is the gate, which has the activation")
            call += [f"gate, up = self.ops.split(self.{first[0]}(x), 2)", "gate = self.act_fn(gate)"]
        else:
            call = [f"up = self.act_fn(self.{first[0]}(x))"]
        squared = ("up * up" if form.kind == "plain" else "gate * gate * up") if self.is_squared else ""
        product = squared or ("up" if form.kind == "plain" else "gate * up")
        call.append(f"return self.{last}({product})")
        doc = "Two layers with an activation between." if form.kind == "plain" else "Gated linear unit."
        return _class("MLP", f"{doc} (N, C) -> (N, C)", init, call)

    def block(self) -> str:
        form = self.form_of_model
        self.used.add("Module")
        parts = [f"self.{form.attention_name} = Attention(config, layer)", f"self.{form.mlp_name} = MLP(config)"]
        made = iter(f"self.{norm.name} = {self.norm(norm)}" for norm in form.norms)
        init = [next(made) if each == "n" else parts["am".index(each)] for each in STEPS[form.order]]
        angles = "angles, " if self.is_rotary else ""

        def attention(x: str) -> str:
            return f"self.{form.attention_name}({x}, {angles}batch)"

        def mlp(x: str) -> str:
            return f"self.{form.mlp_name}({x})"

        norms = [f"self.{norm.name}" for norm in form.norms]
        times = self.factor("residual_multiplier")
        parallel = next((key for key in PARALLEL if type(self.values.get(key)) is bool), "")
        if parallel:
            self.fixed[parallel] = self.values[parallel]
        if form.order == "shared":
            call = self.assumed("attention and MLP read the same normalised input, and both are added to the stream")
            call += [f"y = {norms[0]}(x)", f"return x + {attention('y')}{times} + {mlp('y')}{times}"]
        elif form.order == "pre" and parallel and self.values[parallel]:
            call = [f"return x + {attention(f'{norms[0]}(x)')}{times} + {mlp(f'{norms[1]}(x)')}{times}"]
        elif form.order == "pre":
            call = self.assumed("each norm comes before its part, whose output is added to the stream")
            call += [f"x = x + {attention(f'{norms[0]}(x)')}{times}", f"return x + {mlp(f'{norms[1]}(x)')}{times}"]
        elif form.order == "post":
            call = self.assumed("each norm comes after its part, and before the sum")
            call += [
                f"x = x + {norms[0]}({attention('x')}){times}",
                f"return x + {norms[1]}({mlp('x')}){times}",
            ]
        else:
            call = self.assumed("norms come before and after each part, and before the sum")
            call += [
                f"x = x + {norms[1]}({attention(f'{norms[0]}(x)')}){times}",
                f"return x + {norms[3]}({mlp(f'{norms[2]}(x)')}){times}",
            ]
        doc = "Transformer block: attention and MLP, each added to the residual stream. (N, C) -> (N, C)"
        body = _class("Block", doc, init, call, layer=True)
        return body.replace("__call__(self, x)", f"__call__(self, x, {angles}batch)")

    def root_class(self) -> str:
        form = self.form_of_model
        self.used |= {"Embedding", "ModuleList"}
        init = [f"self.{form.embedding} = Embedding(config.vocab_size, {C})"]
        init += [
            f"self.{form.blocks} = ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))",
        ]
        if form.norm.kind == "RMSNorm":
            init += self.assumed(
                "norms are x / √(mean of squares) · weight, not · (1 + weight), and do not subtract the mean"
            )
        init.append(f"self.{form.norm.name} = {self.norm(form.norm)}")
        if self.is_rotary:
            self.used.add("Rotary")
            for suffix, kind in self.ropes():
                init.append(f"rope = config.{kind}")
                init.append(f"self.rotary_emb{suffix} = Rotary(rope.frequencies(config.context_length), rope.scale)")
        init.append(f"self.{self.head} = {self.linear(C, 'config.vocab_size', bias=form.head_has_bias)}")
        factor = self.factor("embedding_multiplier")
        call = [] if factor else self.assumed("embeddings are not multiplied by a factor, such as Gemma's √hidden_size")
        call.append(f"x = self.{form.embedding}(batch.ids){factor}  # (N, C)")
        if self.is_rotary:
            for suffix, _ in self.ropes():
                call.append(f"angles{suffix} = self.rotary_emb{suffix}(batch.positions)  # (N, r)")
        angles = "angles, " if self.is_rotary else ""
        if len(self.ropes()) == 2:
            init.append("self.windows = config.windows")
            call += [
                f"for block, window in zip(self.{form.blocks}, self.windows, strict=True):",
                "    x = block(x, angles if window is None else angles_sliding, batch)",
            ]
        else:
            call += [f"for block in self.{form.blocks}:", f"    x = block(x, {angles}batch)"]
        call.append("return self.readout(self.ops.take(x, batch.logit_rows))  # (R, C): only the rows that need logits")
        rules = [f"prefixes={tuple_literal((self.prefix,))}"] if self.prefix else []
        rules += [f"buffers={tuple_literal(self.buffers)}"] if self.buffers else []
        rules.append(f'tied={{"{self.head}.weight": "{form.embedding}.weight"}}')
        rules += ['modules={"lm_head": "embed_out"}'] if self.head == "embed_out" else []
        return "\n".join(
            [
                f"class {self.root_name}(PretrainedModel):",
                '    """Token embeddings, blocks, a norm, and the head. A batch of N rows -> (R, V) logits"""',
                "",
                "    config_type: ClassVar = Config",
                *indented(call_lines("NameRules", rules, MODEL_WIDTH - 4, before="rules: ClassVar = ")),
                "",
                "    def __init__(self, config):",
                *indented(init, 2),
                "",
                "    def __call__(self, batch):",
                *indented(call, 2),
                "",
                "    def readout(self, x):",
                '        """The residual stream -> logits. (R, C) -> (R, V)"""',
                *indented(self.readout(f"self.{self.head}(self.{form.norm.name}(x))"), 2),
                "",
            ]
        )

    def readout(self, logits: str) -> list[str]:
        """The lines from the last block's output to logits."""
        logits += self.factor("logits_scaling", inverted=True) or self.factor("logit_scale")
        if (cap := self.number("final_logit_softcapping")) is None:
            return [f"return {logits}"]
        return [f'return self.ops.activation({logits} * {1 / cap!r}, "tanh") * {cap}']

    # The config

    def config_class(self) -> str:
        sizes = self.form_of_model.sizes
        lines = [f"    tie_word_embeddings: bool = field.flag({not self.form_of_model.head})"]

        def size(name: str, kind: str, default: str = "") -> None:
            key = config_key(name, self.values)
            options = [default] if default else []
            options += [f"older_key={string_literal(key)}"] if key and key != name else []
            lines.append(f"    {name}: int = field.{kind}({', '.join(options)})")

        size("hidden_size", "width")
        size("num_hidden_layers", "layers")
        size("num_attention_heads", "heads")
        n, n_kv, dim = (sizes[key] for key in ("num_attention_heads", "num_key_value_heads", "head_dim"))
        if config_key("num_key_value_heads", self.values) or n_kv != n:
            same = 'default=lambda read: read["num_attention_heads"]'
            size("num_key_value_heads", "kv_heads", same if n_kv == n else f"default={n_kv}")
        usual = 'default=lambda read: read["hidden_size"] // read["num_attention_heads"]'
        size("head_dim", "head_dim", usual if dim * n == sizes["hidden_size"] else f"default={dim}")
        if "intermediate_size" in sizes:
            size("intermediate_size", "size", str(sizes["intermediate_size"]))
        size("max_position_embeddings", "positions")
        known_eps = self.eps_key in self.values
        lines += [] if known_eps else indented(self.assumed("the eps of norms is 1e-5; config.json does not say it"))
        eps = "1e-6" if known_eps else "1e-5"
        lines.append(f"    {self.eps_key}: float = field.positive({eps})")
        if self.form_of_model.mlp is not None and self.is_activation_known and not self.is_squared:
            default = "gelu_new" if self.form_of_model.mlp.kind == "plain" else "silu"
            if self.activation_key not in self.values:
                lines += indented(self.assumed(f"the activation is {default}; config.json does not say it"))
            lines.append(f"    {self.activation_key}: str = field.activation({string_literal(default)})")
        if self.is_rotary:
            lines += self.rope()
        if self.has_windows:
            lines += self.windows()
        unread = self.unread()
        class_variables = []
        if self.fixed:
            class_variables.append("    # Written out below; another value is refused.")
            fixed = {key: f"({value!r},)" for key, value in self.fixed.items()}
            class_variables += indented(dict_lines("unsupported: ClassVar = ", fixed, MODEL_WIDTH - 4))
        if unread:
            class_variables += indented(self.assumed(f"these keys of config.json change nothing: {', '.join(unread)}"))
        benign = [*unread, *(key for key in self.values if key not in unread and self.is_shown(key))]
        if benign:
            class_variables += indented(set_lines("benign_keys: ClassVar = frozenset(", benign, MODEL_WIDTH - 4))
        return "\n".join(
            [
                "@dataclass(frozen=True, kw_only=True)",
                "class Config(TextConfig):",
                '    """The sizes and switches of the checkpoint, each under its key in config.json."""',
                "",
                *class_variables,
                *([""] if class_variables else []),
                *lines,
                "",
            ]
        )

    def ropes(self) -> list[tuple[str, str]]:
        """The suffix of the attributes of each rotary embedding, and its field in the config."""
        if len(self.layer_types) == 2 and self.has_windows:
            return [("", "full_rope"), ("_sliding", "sliding_rope")]
        return [("", "rope_parameters")]

    def rope(self) -> list[str]:
        """The declaration of the rotary embedding."""
        self.models.add("Rope")
        values, settings = self.values, self.values.get("rope_parameters")
        settings = settings if isinstance(settings, dict) else {}
        has_two = len(self.ropes()) == 2
        options = ['theta_key="rotary_emb_base"'] if "rotary_emb_base" in values else []
        options += ['fraction_key="rotary_pct"'] if "rotary_pct" in values else []
        parts = [settings[kind] for kind in self.layer_types] if has_two else [settings]
        keys = {*values, *(key for part in parts for key in part)}
        options += ["fraction=1.0"] if keys & {"partial_rotary_factor", "rotary_pct"} else []
        has_theta = bool(keys & {"rope_theta", "rotary_emb_base"})
        lines = [] if has_theta else indented(self.assumed("theta is 10,000; config.json does not say it"))
        by_layer = [f'layer_type="{kind}"' for kind in self.layer_types] if has_two else [""]
        for (_, field), layer_type in zip(self.ropes(), by_layer, strict=True):
            given = ", ".join(filter(None, [layer_type, *options]))
            lines.append(f"    {field}: Rope = field.rope({given})")
        return lines

    def windows(self) -> list[str]:
        """The declaration of the windows."""
        lines = []
        if not self.values.get("layer_types"):
            lines = indented(self.assumed("every layer has the sliding window"))
        switch = 'switch="use_sliding_window"' if "use_sliding_window" in self.values else ""
        return [*lines, f"    sliding_window: tuple[int | None, ...] = field.windows({switch})"]

    def is_shown(self, key: str) -> bool:
        """Whether the layers of the file show what a key says."""
        is_off = key == "max_window_layers" and not self.values.get("use_sliding_window")
        is_off |= key == "no_rope_layer_interval" and "no_rope_layers" in self.fixed
        return is_off or bool(SHOWN_KEYS.search(key))

    def unread(self) -> list[str]:
        """Keys of config.json that may change the arithmetic and that the file does not use."""
        read = {config_key(setting, self.values) for setting in KEYS} | {self.activation_key, *self.fixed} | READ_KEYS
        read |= ROPE_KEYS if self.is_rotary else frozenset()
        read |= WINDOW_KEYS if self.has_windows else frozenset()
        return [
            key
            for key, value in self.values.items()
            if key not in read | BENIGN_KEYS and not self.is_shown(key) and may_change_arithmetic(key, value)
        ]

    @property
    def source_name(self) -> str:
        from pathlib import Path

        return Path(self.checkpoint.source).name


def _class(name: str, doc: str, init: Iterable[str], call: Iterable[str], *, layer: bool = False) -> str:
    """The source of a module."""
    arguments = "x, angles, batch" if name == "Attention" else "x"
    return "\n".join(
        [
            f"class {name}(Module):",
            f'    """{doc}"""',
            "",
            f"    def __init__(self, config{', layer' if layer else ''}):",
            *indented(init, 2),
            "",
            f"    def __call__(self, {arguments}):",
            *indented(call, 2),
            "",
        ]
    )
