"""Writes a port of a checkpoint from its tensor names and shapes and its config.json."""

from __future__ import annotations

import builtins
import keyword
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from rushlight.checkpoint.dtypes import WEIGHT_DTYPES
from rushlight.porting.check.checker import config_values
from rushlight.porting.scaffold.files import TO_WRITE, USAGE, Scaffold, port_test
from rushlight.porting.scaffold.infer import Layer, conv1d_by_majority, infer_layer, is_head_name
from rushlight.porting.scaffold.source_text import (
    WIDTH,
    assignment,
    call_lines,
    indented,
    one_line,
    room_for,
    string_literal,
    tuple_literal,
)
from rushlight.porting.scaffold.tree import Node, number, tree_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rushlight.checkpoint import Checkpoint

__all__ = ["Writer", "name_patterns"]

LAYERS = ("Activation", "Conv1D", "Convolution", "Embedding", "LayerNorm", "Linear", "RMSNorm")
CLASS_NAMES = {"attn": "Attention", "self_attn": "SelfAttention", "mlp": "MLP", "ffn": "FeedForward", "h": "Block"}
NOT_A_SIZE = re.compile(r"(_ids?|head\w*|layers?|blocks?|depth|version|seed|max_length|type|n_inner)$")
"""Keys of config.json whose numbers are not sizes of a tensor's axis."""


class Writer:
    """Writes a module for every module of a checkpoint; the forward of each is left to write."""

    def __init__(self, checkpoint: Checkpoint, weights: list[tuple[str, tuple[int, ...]]] | None = None) -> None:
        """Takes the checkpoint, and its weights as (attribute path, shape) pairs where paths differ from names."""
        self.checkpoint = checkpoint
        self.values = config_values(checkpoint)
        self.buffers = name_patterns(t.name for t in checkpoint.values() if t.dtype not in WEIGHT_DTYPES)
        weights = weights or [(t.name, t.shape) for t in checkpoint.values() if t.dtype in WEIGHT_DTYPES]
        self.root = tree_of(weights, checkpoint.source)
        self.conv1d = conv1d_by_majority(weights)
        self.n_matrices: Counter[tuple[int, ...]] = Counter(shape for _, shape in weights if len(shape) == 2)
        self.eps = self.epsilon()
        self.used: set[str] = {"NameRules"}
        self.to_write: list[str] = []
        self.classes: dict[str, str] = {}
        self.block_keys = {
            value: key
            for key, value in reversed([*self.values.items()])
            if type(value) is int and _is_field(key) and re.search(r"layers?|blocks?|depth", key)
        }
        self.names: dict[object, str] = {}
        self.taken = {*dir(builtins), *keyword.kwlist, *LAYERS, "Config", "Module", "ModuleDict", "PretrainedModel"}
        self.taken |= {"ModuleList", "NameRules", "Role", "Slot", "Fields", "KVShape", "ClassVar", "ARCHITECTURE"}
        self.last_number: dict[str, int] = defaultdict(lambda: 1)
        self.root_name = self.free_name(self.root_stem())
        self.forms: dict[object, int] = {}
        self.form_of: dict[str, int] = {}
        self.form(self.root)
        self.sizes = self.name_sizes()
        self.counts: dict[str, int] = {}

    # The config

    def root_stem(self) -> str:
        """The name of the whole model's class: config.json's model_type, if it has one."""
        word = self.values.get("model_type")
        return _camel(word) if isinstance(word, str) and word[:1].isascii() and word[:1].isalpha() else "Model"

    def config_class(self) -> str:
        values = {name: value for value, name in self.sizes.items()} | self.counts
        fields = "".join(f"    {name}: int = {value}\n" for name, value in values.items())
        keys = [name for name in values if name in self.values]
        read = "".join(f'            {key}=fields.size("{key}", cls.{key}),\n' for key in keys)
        body = f"cls(\n{read}        )" if read else "cls()"
        fields = f"\n{fields}" if fields else ""
        return f'''@dataclass(frozen=True, kw_only=True)
class Config:
    """The sizes of the checkpoint{", under their keys in config.json where it has one" if keys else ""}."""
{fields}
    @classmethod
    def from_json(cls, values, *, file=None):
        """Reads a config.json and ignores its other keys."""
        fields = Fields(values, file)
        config = {body}
        fields.finish(benign=values)
        return config

    @classmethod
    def from_tensors(cls, tensors, *, file=None):
        """The sizes of the checkpoint that this file was written for."""
        return cls()
'''

    # Sizes

    def epsilon(self) -> str:
        found = [v for k, v in self.values.items() if re.search(r"norm\w*_eps(ilon)?$", k) and isinstance(v, float)]
        return repr(found[0]) if found and found[0] > 0 else "1e-5"

    def name_sizes(self) -> dict[int, str]:
        """Field names for sizes: config.json's keys, and `width` for the model's width if it has no key."""
        dims = Counter(dim for layer in self.all_layers(self.root) for dim in layer.sizes if dim > 1)
        named: dict[int, str] = {}
        for key, value in self.values.items():
            if (
                type(value) is int
                and dims[value]
                and value not in named
                and _is_field(key)
                and not NOT_A_SIZE.search(key)
            ):
                named[value] = key
        if dims and not any(dims[value] == max(dims.values()) for value in named):
            named.setdefault(dims.most_common(1)[0][0], "width")
        return named

    def all_layers(self, node: Node) -> Iterator[Layer]:
        layer = self.layer(node)
        if layer:
            yield layer
        for child in node.children.values():
            yield from self.all_layers(child)

    def layer(self, node: Node) -> Layer | None:
        if node.children:
            return None
        # A second matrix of a table's shape: the head.
        is_head = self.n_matrices[node.tensors.get("weight", ())] > 1 and is_head_name(node.name)
        return infer_layer(node.name, node.tensors, conv1d=self.conv1d, eps=self.eps, is_head=is_head)

    def size(self, dim: int) -> str:
        """A size as Python source: a config field, three or four times one, or a number."""
        if dim in self.sizes:
            return f"config.{self.sizes[dim]}"
        for base, name in self.sizes.items():
            if base > 16 and dim in {3 * base, 4 * base}:
                return f"{dim // base} * config.{name}"
        return str(dim)

    def n_rows(self, rows: int) -> str:
        """The rows of a table as Python source: never a multiple of the width, on which they do not depend."""
        name = self.sizes.get(rows)
        return str(rows) if name in {None, "width"} else f"config.{name}"

    # Classes

    def form(self, node: Node) -> int:
        """A number that is equal for modules with equal layers, wherever they are."""
        children = tuple((name, self.form(child)) for name, child in node.children.items())
        is_layer = self.layer(node)
        key = is_layer or (tuple(node.tensors.items()), children, self.class_stem(node))
        self.form_of[node.path] = self.forms.setdefault(key, len(self.forms))
        return self.form_of[node.path]

    def class_stem(self, node: Node) -> str:
        """The preferred name of a module's class."""
        if not node.path:
            return self.root_name
        *_, parent, name = ("", *node.path.split("."))
        if number(name) is not None and parent:
            name = parent if parent in CLASS_NAMES else re.sub(r"(?<=[^s])s$", "", parent)
        stem = CLASS_NAMES.get(name) or _camel(name)
        return stem if stem and not stem[0].isdigit() else f"Part{stem}"

    def class_of(self, node: Node) -> str:
        """The name of a module's class; writes the class on first use."""
        form = self.form_of[node.path]
        if form not in self.names:
            stem = self.class_stem(node)
            if node.path:
                stem = self.free_name(stem)
            body = self.body(node, stem)
            self.names[form] = stem
            self.classes[stem] = body
        return self.names[form]

    def free_name(self, stem: str) -> str:
        """`stem`, followed by a number if it is taken."""
        name = stem
        while name in self.taken:
            self.last_number[stem] += 1
            name = f"{stem}{self.last_number[stem]}"
        self.taken.add(name)
        return name

    def body(self, node: Node, name: str) -> str:
        init = []
        doubts = set()
        for child_name, child in node.children.items():
            layer = self.layer(child)
            if layer and layer.doubt and layer.doubt not in doubts:
                doubts.add(layer.doubt)
                init.append(f"# Inferred: {layer.doubt}.")
            init += assignment(child_name, self.made(child, room_for(child_name)))
        for tensor, shape in node.tensors.items():
            init += self.slot(tensor, shape)
        self.used |= {"Module", "to_write"} if node.path else {"to_write"}
        self.to_write.append(name)
        path = re.sub(r"(?<=\.)\d+(?=\.|$)", "N", node.path)
        doc = one_line(f"{path}: to be completed.") if path else "A port, to be completed."
        variables = [] if path else [*self.class_variables(), ""]
        return "\n".join(
            [
                f"class {name}({'Module' if node.path else 'PretrainedModel'}):",
                f'    """{doc}"""',
                "",
                *variables,
                f"    def __init__(self, {'config, layer' if self.takes_number(node) else 'config'}):",
                *indented(init, 2),
                "",
                "    def __call__(self, *inputs):",
                "        # TO WRITE: replace this line with what the module computes.",
                "        raise to_write(self)",
                "",
            ]
        )

    def class_variables(self) -> list[str]:
        rules = [f"buffers={tuple_literal(self.buffers)}"] if self.buffers else []
        return [
            "    config_type: ClassVar = Config",
            *indented(call_lines("NameRules", rules, WIDTH - 4, before="rules: ClassVar = ")),
        ]

    def takes_number(self, _node: Node) -> bool:
        """Whether a module's class takes the number of its block."""
        return False

    def is_container(self, node: Node) -> bool:
        return not node.tensors and bool(node.children) and all(number(name) is not None for name in node.children)

    def made(self, node: Node, room: int) -> list[str]:
        """The expression that creates a module, in lines of at most `room` columns where possible."""
        if self.is_container(node):
            return self.container(node, room)
        layer = self.layer(node)
        if layer:
            self.used.add(layer.kind)
            sizes = [*map(self.size, layer.sizes)]
            if layer.kind == "Embedding":
                sizes[0] = self.n_rows(layer.sizes[0])
            return call_lines(layer.kind, [*sizes, *(f"{key}={value}" for key, value in layer.options)], room)
        if not self.takes_number(node):
            return [f"{self.class_of(node)}(config)"]
        index = number(node.name)
        given = "layer" if "." in node.path else 0
        return [f"{self.class_of(node)}(config, {given if index is None else index})"]

    def container(self, node: Node, room: int) -> list[str]:
        """A ModuleList or a ModuleDict."""
        children = [*node.children.values()]
        if not node.is_list:
            self.used.add("ModuleDict")
            items = [(f"{string_literal(name)}: ", child) for name, child in node.children.items()]
            return ["ModuleDict(", "    {", *self.items(items, room - 8), "    }", ")"]
        self.used.add("ModuleList")
        if len(children) > 1 and len({self.form_of[child.path] for child in children}) == 1:
            made = self.made(children[0], room - 4)
            variable = "layer" if self.takes_number(children[0]) else "_"
            if variable == "layer":
                made = [made[0].replace("(config, 0)", "(config, layer)")]
            loop = f"for {variable} in range({self.count(node)})"
            one = f"ModuleList({made[0]} {loop})"
            if len(made) == 1 and len(one) <= room:
                return [one]
            return ["ModuleList(", *indented(made), f"    {loop}", ")"]
        return ["ModuleList(", "    [", *self.items([("", child) for child in children], room - 8), "    ]", ")"]

    def items(self, items: list[tuple[str, Node]], room: int) -> list[str]:
        """The items of a list or dict, each after its key if it has one."""
        lines = []
        for key, child in items:
            first, *more = self.made(child, room - len(key) - 1)
            lines += indented([f"{key}{first}", *more], 2)
            lines[-1] += ","
        return lines

    def count(self, node: Node) -> str:
        """The length of a list as Python source: a config field if a key of config.json has this value."""
        n = len(node.children)
        key = self.block_keys.get(n)
        if key is None:
            return str(n)
        self.counts[key] = n
        return f"config.{key}"

    def slot(self, name: str, shape: tuple[int, ...]) -> list[str]:
        self.used |= {"Role", "Slot"}
        role = "TABLE" if len(shape) == 2 else "VECTOR"  # stored as given: neither transposed nor packed for a product
        sizes = ", ".join(map(self.size, shape)) + ("," if len(shape) == 1 else "")
        return assignment(name, call_lines("Slot", [f"({sizes})", f"Role.{role}"], room_for(name)))

    # Files

    def scaffold(self, file: Path) -> Scaffold:
        root = self.class_of(self.root)
        parts = [self.header(), self.config_class(), *self.classes.values(), f"ARCHITECTURE = {root}\n"]
        test = port_test(self.checkpoint.source, file, computes_logits=False)
        return Scaffold("\n\n".join(parts), test, tuple(self.to_write))

    def header(self) -> str:
        return "\n".join(
            [
                f'"""A port of {one_line(Path(self.checkpoint.source).name)}, written by `rushlight port`.',
                "",
                TO_WRITE,
                "",
                *USAGE,
                '"""',
                "",
                "from __future__ import annotations",
                "",
                *self.imports(),
                *call_lines("", sorted(self.used, key=_import_order), WIDTH, before="from rushlight.nn import "),
                "",
            ]
        )

    def imports(self) -> list[str]:
        return [
            "from dataclasses import dataclass",
            "from typing import ClassVar",
            "",
            "from rushlight.models import Fields, PretrainedModel",
        ]


def name_patterns(names: Iterable[str]) -> tuple[str, ...]:
    """Patterns that match the names; names that differ only in their numbers share one."""
    return tuple(dict.fromkeys(re.sub(r"(?<=\\\.)\d+(?=\\\.)", r"\\d+", re.escape(name)) for name in names))


def _camel(name: str) -> str:
    """`self_attn` as `SelfAttn`, without characters that a class name may not have."""
    return "".join(word[0].upper() + word[1:] for word in re.findall(r"[A-Za-z0-9]+", name))


def _is_field(key: str) -> bool:
    """Whether a key of config.json is a valid field name for the config class."""
    taken = {"cls", "self", "from_json", "from_tensors"}
    return key.isidentifier() and not keyword.iskeyword(key) and not key.startswith("_") and key not in taken


def _import_order(name: str) -> tuple[bool, str]:
    """The order of isort: classes before functions."""
    return name.islower(), name
