"""Writing the port of a checkpoint of which nothing but names, shapes and config.json is known."""

from __future__ import annotations

import builtins
import keyword
import os
import re
import textwrap
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rushlight.checkpoint import display_name, read_config
from rushlight.checkpoint.dtypes import FLOAT_DTYPES
from rushlight.errors import ConfigError
from rushlight.porting.scaffold.infer import Layer, conv1d_by_majority, infer_layer
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
    from collections.abc import Iterable, Iterator, Mapping

    from rushlight.checkpoint import Checkpoint
    from rushlight.porting.scaffold.known import Known

__all__ = ["Scaffold", "Writer"]


CHECKPOINT_VARIABLE = "CHECKPOINT"
"""Where a port's test looks for a checkpoint that does not lie near it."""
LAYERS = ("Activation", "Conv1D", "Convolution", "Embedding", "LayerNorm", "Linear")
CLASS_NAMES = {"attn": "Attention", "self_attn": "SelfAttention", "mlp": "MLP", "ffn": "FeedForward", "h": "Block"}
NO_SIZE = re.compile(r"(_ids?|head\w*|layers?|blocks?|depth|version|seed|max_length|type|n_inner)$")
"""Keys of config.json whose numbers are no sizes of tensors, or of blocks."""


@dataclass(frozen=True)
class Scaffold:
    """What `scaffold` writes.

    Attributes:
        module: the text of the model's file.
        test: the text of its test.
        to_write: the classes whose forward is not known.
    """

    module: str
    test: str
    to_write: tuple[str, ...]


class Writer:
    """Writes the port of a checkpoint of which nothing but names, shapes and config.json is known."""

    doc = "A port, to be completed."

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.values = _config_values(checkpoint)
        self.prefixes: tuple[str, ...] = ()
        self.buffers = _patterns(t.name for t in checkpoint.values() if t.dtype not in FLOAT_DTYPES)
        self.heads: tuple[str, ...] = ()
        self.tied: dict[str, str] = {}
        weights = [(t.name, t.shape) for t in checkpoint.values() if t.dtype in FLOAT_DTYPES]
        self.root = tree_of(self.paths(weights), checkpoint.source)
        self.conv1d = conv1d_by_majority(weights)
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

    # What the kinds of writers differ in

    def root_stem(self) -> str:
        """What the whole model's class is called: after the model_type of config.json, if it has one."""
        word = self.values.get("model_type")
        return _camel(word) if isinstance(word, str) and word[:1].isascii() and word[:1].isalpha() else "Model"

    def paths(self, weights: list[tuple[str, tuple[int, ...]]]) -> list[tuple[str, tuple[int, ...]]]:
        """The weights by their attribute paths."""
        return weights

    def known(self, _node: Node) -> Known | None:
        """What is known of a module's forward."""
        return None

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
        """Read a config.json; its other keys are left alone."""
        fields = Fields(values, file)
        config = {body}
        fields.finish(benign=values)
        return config

    @classmethod
    def from_tensors(cls, tensors, *, file=None):
        """The sizes that this file was written with."""
        return cls()
'''

    # Sizes

    def epsilon(self) -> str:
        found = [v for k, v in self.values.items() if re.search(r"norm\w*_eps(ilon)?$", k) and isinstance(v, float)]
        return repr(found[0]) if found and found[0] > 0 else "1e-5"

    def name_sizes(self) -> dict[int, str]:
        """Names for the sizes that are worth one: the keys of config.json; the width of the model."""
        dims = Counter(dim for layer in self.all_layers(self.root) for dim in layer.sizes if dim > 1)
        named: dict[int, str] = {}
        for key, value in self.values.items():
            if type(value) is int and dims[value] and value not in named and _is_field(key) and not NO_SIZE.search(key):
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
        return None if node.children else infer_layer(node.name, node.tensors, conv1d=self.conv1d, eps=self.eps)

    def size(self, dim: int) -> str:
        """A size in Python: a field of the config where it has a name, or three or four times the width."""
        if dim in self.sizes:
            return f"config.{self.sizes[dim]}"
        for base, name in self.sizes.items():
            if base > 16 and dim in {3 * base, 4 * base}:
                return f"{dim // base} * config.{name}"
        return str(dim)

    def n_rows(self, _node: Node, rows: int) -> str:
        """How many rows a table has, in Python: how many tokens there are does not follow from the width."""
        name = self.sizes.get(rows)
        return str(rows) if name in {None, "width"} else f"config.{name}"

    # Classes

    def form(self, node: Node) -> int:
        """A number that is equal for modules that are the same but for their place."""
        children = tuple((name, self.form(child)) for name, child in node.children.items())
        is_layer = self.layer(node)
        key = is_layer or (tuple(node.tensors.items()), children, self.class_stem(node))
        self.form_of[node.path] = self.forms.setdefault(key, len(self.forms))
        return self.form_of[node.path]

    def class_stem(self, node: Node) -> str:
        """What the class of a module is called if nothing else is called so."""
        if not node.path:
            return self.root_name
        if not node.children and list(node.tensors) == ["weight"] and re.search(r"norm|^ln", node.name):
            return "Norm"
        *_, parent, name = ("", *node.path.split("."))
        if number(name) is not None and parent:
            name = parent if parent in CLASS_NAMES else re.sub(r"(?<=[^s])s$", "", parent)
        stem = CLASS_NAMES.get(name) or _camel(name)
        return stem if stem and not stem[0].isdigit() else f"Part{stem}"

    def class_of(self, node: Node) -> str:
        """The name of a module's class, which is written if it is not there yet."""
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
        """`stem`, or with the first number after it that makes it a name of its own."""
        name = stem
        while name in self.taken:
            self.last_number[stem] += 1
            name = f"{stem}{self.last_number[stem]}"
        self.taken.add(name)
        return name

    def body(self, node: Node, name: str) -> str:
        known = self.known(node)
        init = known.before.splitlines() if known else []
        given = "layer" if self.takes_number(node) else "0"
        doubts = set()
        for child_name, child in node.children.items():
            layer = self.layer(child)
            if layer and layer.doubt and layer.doubt not in doubts:
                doubts.add(layer.doubt)
                init.append(f"# Inferred: {layer.doubt}.")
            init += assignment(child_name, self.made(child, room_for(child_name), self.layer_number(child, given)))
        for tensor, shape in node.tensors.items():
            init += self.slot(tensor, shape)
        init += known.after.splitlines() if known else []
        arguments = "self, config, layer" if given == "layer" else "self, config"
        base = "Module" if node.path else "PretrainedModel"
        if node.path:
            self.used.add("Module")
        lines = [f"class {name}({base}):", f'    """{known.doc if known else self.described(node)}"""', ""]
        if not node.path:
            lines += [*self.class_variables(), ""]
        lines.append(f"    def __init__({arguments}):")
        lines += [f"        {line}" if line else "" for line in init]
        if known:
            return "\n".join(lines) + "\n" + textwrap.indent(known.call.rstrip(), "    ") + "\n"
        self.used.add("to_write")
        self.to_write.append(name)
        call = ["", "    def __call__(self, *inputs):", "        # TO WRITE: what it computes, in place of this line."]
        return "\n".join([*lines, *call, "        raise to_write(self)"]) + "\n"

    def described(self, node: Node) -> str:
        if not node.path:
            return self.doc
        path = re.sub(r"(?<=\.)\d+(?=\.|$)", "N", node.path)
        return one_line(f"{path}: to be completed.")

    def class_variables(self) -> list[str]:
        rules = []
        if self.prefixes:
            rules.append(f"prefixes={tuple_literal(self.prefixes)}")
        if self.buffers:
            rules.append(f"buffers={tuple_literal(self.buffers)}")
        if self.heads:
            rules.append(f"heads={tuple_literal(self.heads)}")
        if self.tied:
            rules.append(
                "tied={" + ", ".join(f"{string_literal(k)}: {string_literal(v)}" for k, v in self.tied.items()) + "}"
            )
        return [
            "    config_type: ClassVar = Config",
            *indented(call_lines("NameRules", rules, WIDTH - 4, before="rules: ClassVar = ")),
        ]

    def is_container(self, node: Node) -> bool:
        return not node.tensors and bool(node.children) and all(number(name) is not None for name in node.children)

    def takes_number(self, node: Node) -> bool:
        """Whether a module's __init__ takes its block's number: it, or a module inside it, has a use for it."""
        if not node.path or self.is_container(node) or self.layer(node):
            return False
        known = self.known(node)
        if known:
            return known.by_layer
        return any(self.takes_number(child) and number(child.name) is None for child in node.children.values())

    def layer_number(self, node: Node, given: str) -> str:
        """The number of a module's block in Python: its own if it is called by one, or that of the module around it."""
        own = number(node.name)
        return given if own is None else str(own)

    def made(self, node: Node, room: int, layer_number: str) -> list[str]:
        """The expression that makes a module, in lines of at most `room` columns where that is possible."""
        if self.is_container(node):
            return self.container(node, room)
        layer = self.layer(node)
        if layer:
            self.used.add(layer.kind)
            sizes = [*map(self.size, layer.sizes)]
            if layer.kind == "Embedding":
                sizes[0] = self.n_rows(node, layer.sizes[0])
            return call_lines(layer.kind, [*sizes, *(f"{key}={value}" for key, value in layer.options)], room)
        return [f"{self.class_of(node)}(config{f', {layer_number}' if self.takes_number(node) else ''})"]

    def container(self, node: Node, room: int) -> list[str]:
        """A ModuleList or a ModuleDict."""
        children = [*node.children.values()]
        if not node.is_list:
            self.used.add("ModuleDict")
            items = [(f"{string_literal(name)}: ", child) for name, child in node.children.items()]
            return ["ModuleDict(", "    {", *self.items(items, room - 8), "    }", ")"]
        self.used.add("ModuleList")
        if len(children) > 1 and len({self.form_of[child.path] for child in children}) == 1:
            made = self.made(children[0], room - 4, "layer")
            variable = "layer" if made[-1].endswith(", layer)") else "_"
            loop = f"for {variable} in range({self.count(node)})"
            one = f"ModuleList({made[0]} {loop})"
            if len(made) == 1 and len(one) <= room:
                return [one]
            return ["ModuleList(", *indented(made), f"    {loop}", ")"]
        return ["ModuleList(", "    [", *self.items([("", child) for child in children], room - 8), "    ]", ")"]

    def items(self, items: list[tuple[str, Node]], room: int) -> list[str]:
        """The items of a list or dict, each with what stands before it."""
        lines = []
        for before, child in items:
            first, *more = self.made(child, room - len(before) - 1, self.layer_number(child, "0"))
            lines += indented([f"{before}{first}", *more], 2)
            lines[-1] += ","
        return lines

    def count(self, node: Node) -> str:
        """How many modules a list has, as a key of config.json if one says so."""
        n = len(node.children)
        key = self.block_keys.get(n)
        if key is None:
            return str(n)
        self.counts[key] = n
        return f"config.{key}"

    def slot(self, name: str, shape: tuple[int, ...]) -> list[str]:
        self.used.add("Slot")
        role = "TABLE" if len(shape) == 2 else "VECTOR"  # as they are, neither transposed nor packed for a product
        sizes = ", ".join(map(self.size, shape)) + ("," if len(shape) == 1 else "")
        return assignment(name, call_lines("Slot", [f"({sizes})", f"Role.{role}"], room_for(name)))

    # Files

    def scaffold(self, file: Path) -> Scaffold:
        root = self.class_of(self.root)
        parts = [self.header(), self.config_class(), *self.classes.values(), f"ARCHITECTURE = {root}\n"]
        return Scaffold("\n\n".join(parts), self.test(file), tuple(self.to_write))

    def header(self) -> str:
        task = "complete it where it says TO WRITE" if self.to_write else "nothing is left to write"
        return "\n".join(
            [
                f'"""A port of {one_line(Path(self.checkpoint.source).name)}, written by `rushlight port`.',
                "",
                f"As it is, it takes every tensor; {task}.",
                "",
                "    rushlight check SOURCE --port FILE",
                "    rushlight generate SOURCE --port FILE -p TEXT",
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
        roles = ["from rushlight.backends.protocol import Role"] if "Slot" in self.used else []
        return [
            "from dataclasses import dataclass",
            "from typing import ClassVar",
            "",
            *roles,
            "from rushlight.models import Fields, PretrainedModel",
        ]

    def test(self, file: Path) -> str:
        source = _source_in_test(self.checkpoint.source, file.parent)
        asks = CHECKPOINT_VARIABLE in source
        how = f"\n\n    {CHECKPOINT_VARIABLE}=PATH pytest {one_line(f'test_{file.name}')}\n" if asks else ""
        imports = "import os\n" if asks else ""
        return f'''"""The port in {one_line(file.name)} takes every tensor of its checkpoint.{how}"""

{imports}from pathlib import Path

import rushlight

PORT = Path(__file__).with_name({string_literal(file.name)})
SOURCE = {source}


def test_every_tensor_has_its_place():
    module = rushlight.load_module(SOURCE, port=PORT, device="reference")
    assert not list(module.named_slots())
{self.more_tests()}'''

    def more_tests(self) -> str:
        return ""


def _source_in_test(source: str, folder: Path) -> str:
    """How a test in `folder` names a checkpoint: from its own folder if it lies near, else by the environment.

    Never by an absolute path, which is of no use to others and says who wrote it.
    """
    path = Path(source)
    if not path.exists():
        return string_literal(source)  # of the hub
    with suppress(ValueError):  # on another drive
        way = Path(os.path.relpath(path, folder)).as_posix()
        if not way.startswith("../.."):
            return f"Path(__file__).parent / {string_literal(way)}"
    name = one_line(display_name(source))
    return f'os.environ["{CHECKPOINT_VARIABLE}"]  # the path of {name}, wherever it is'


def _config_values(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """What stands in config.json; nothing if there is none, or none that can be read."""
    path = checkpoint.sidecar("config.json")
    try:
        return read_config(path) if path else {}
    except ConfigError:
        return {}


def _patterns(names: Iterable[str]) -> tuple[str, ...]:
    """Patterns of the names, with one for those that differ in their numbers."""
    return tuple(dict.fromkeys(re.sub(r"(?<=\\\.)\d+(?=\\\.)", r"\\d+", re.escape(name)) for name in names))


def _camel(name: str) -> str:
    """`self_attn` as `SelfAttn`; without what no class may be called."""
    return "".join(word[0].upper() + word[1:] for word in re.findall(r"[A-Za-z0-9]+", name))


def _is_field(key: str) -> bool:
    """Whether a key of config.json can be a field of the config's class."""
    taken = {"cls", "self", "from_json", "from_tensors"}
    return key.isidentifier() and not keyword.iskeyword(key) and not key.startswith("_") and key not in taken


def _import_order(name: str) -> tuple[bool, str]:
    """isort's: classes before functions."""
    return name.islower(), name
