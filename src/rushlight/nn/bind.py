"""Binding: loads the tensors of a checkpoint into a model's slots by name, or reports every mismatch at once."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from rushlight.backends.protocol import Role
from rushlight.errors import BindError, printable_name
from rushlight.nn.module import Version

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from rushlight.backends.protocol import Backend, Tensor
    from rushlight.nn.module import Constant, Module, Slot

FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")
PACKED_DTYPES = ("INT8", "INT6", "INT4")
"""Of the tensors in converted files, besides the above."""
MAX_LINES = 100
"""The most problems in a message; `BindError.problems` has all of them."""


@dataclass(frozen=True)
class NameRules:
    """How an architecture's tensor names vary between files.

    Attributes:
        prefixes: prefixes that some files put before the names of the model's body, such as `transformer.`.
        buffers: patterns that match entire names of tensors that are not weights, such as causal masks.
        heads: patterns that match entire names of tensors of other heads on the same body, such as a value head or a
            classifier, and of other parts, such as a vision tower.
        tied: head -> table. If a config ties them, a file may hold either or both.
        modules: PyTorch's name of a module -> its attribute path, where the files have another name than PyTorch's
            module tree. GPT-NeoX's files have `embed_out`, and the module is `lm_head`.
    """

    prefixes: tuple[str, ...] = ()
    buffers: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    tied: Mapping[str, str] = field(default_factory=dict)
    modules: Mapping[str, str] = field(default_factory=dict)

    def module_path(self, name: str) -> str:
        """The attribute path of a PyTorch module, or of one of its tensors."""
        path = self.canonical(name)
        for theirs, ours in self.modules.items():
            if path == theirs or path.startswith((f"{theirs}.", f"{theirs}#")):
                return ours + path.removeprefix(theirs)
        return path

    def canonical(self, name: str) -> str:
        """The attribute path of a tensor: its name without the prefix."""
        for prefix in self.prefixes:
            if name.startswith(prefix):
                return name.removeprefix(prefix)
        return name

    def is_buffer(self, name: str) -> bool:
        """Whether a tensor is a buffer, which the model does not load."""
        return any(re.fullmatch(pattern, self.canonical(name)) for pattern in self.buffers)

    def is_other_head(self, name: str) -> bool:
        """Whether a tensor belongs to another head on the same body, which the model does not need."""
        return any(re.fullmatch(pattern, name) for pattern in self.heads)


class Problem(NamedTuple):
    """A mismatch between a tensor and a slot.

    Attributes:
        kind: missing, unexpected, wrong shape, wrong dtype, twice, not tied.
        name: the tensor's name: in the file, or in the model if the file lacks it.
        detail: expected and found, or the shape.
        fix: the likely cause and what to do, or "".
    """

    kind: str
    name: str
    detail: str
    fix: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """A checkpoint's tensors compared with a model's slots.

    Attributes:
        slots: the model's slots, by path.
        found: the weights of the checkpoint, by attribute path, including those without a slot.
        ties: head -> table, for heads that are tied.
        problems: every mismatch; the model can be bound if there are none.
        other_heads: names of tensors that are skipped because they belong to heads that the model does not have.
    """

    slots: Mapping[str, Slot]
    found: Mapping[str, Tensor]
    ties: Mapping[str, str]
    problems: Sequence[Problem]
    other_heads: Sequence[str]


def diagnose(model: Module, tensors: Mapping[str, Tensor], *, rules: NameRules, tie: bool) -> Diagnosis:
    """Compares the slots of a model with tensors by name, shape and dtype. Reads data only to compare a tied head.

    The arguments are as for `bind`.
    """
    slots = dict(model.named_slots())
    ties = {head: table for head, table in rules.tied.items() if tie and head in slots}
    found, problems = _by_path(tensors, rules)
    for head, table in ties.items():
        if table not in found and head in found:
            found[table] = found[head]  # a file may hold either of two tied tensors
    problems += _check_slots(slots, found, ties, rules)
    other_heads = _other_heads(slots, found, rules)
    problems += _check_unexpected(slots, {path: t for path, t in found.items() if path not in other_heads})
    problems += _check_ties(found, ties)
    return Diagnosis(slots, found, ties, problems, list(other_heads.values()))


def fit(
    model: Module, tensors: Mapping[str, Tensor], *, rules: NameRules, tie: bool, title: str, file: str | None = None
) -> Diagnosis:
    """As `diagnose`, without problems. The arguments are as for `bind`.

    Raises:
        BindError: the checkpoint does not fit, as for `bind`.
    """
    diagnosis = diagnose(model, tensors, rules=rules, tie=tie)
    if diagnosis.problems:
        raise _error(diagnosis.problems, title, file)
    return diagnosis


def bind(
    model: Module,
    tensors: Mapping[str, Tensor],
    ops: Backend,
    *,
    rules: NameRules,
    tie: bool,
    title: str,
    file: str | None = None,
    finish: bool = True,
) -> Sequence[str]:
    """Loads tensors into the slots of a model, loads its constants, and sets the backend of every module.

    All names, shapes and dtypes are checked before any data is read.

    Args:
        model: a model with empty slots.
        tensors: the checkpoint, by tensor name.
        ops: the backend that loads the weights.
        rules: how names may vary.
        tie: whether the heads of `rules.tied` share the weights of their tables.
        title: the model, for error messages: `GPT2 (n_layer 12, n_embd 768)`.
        file: the checkpoint, for error messages.
        finish: whether to wait until the weights are read; if not, the caller calls `bind_constants` and
            `ops.finish_loading`, in any order.

    Returns:
        The names of tensors that were skipped, `Diagnosis.other_heads`.

    Raises:
        BindError: the checkpoint does not fit. The message lists the problems; `problems` has them as data.
    """
    diagnosis = fit(model, tensors, rules=rules, tie=tie, title=title, file=file)
    for _, module in model.named_modules():
        module.ops = ops
    model.track(Version())
    loaded: dict[str, Any] = {}
    for path, slot in diagnosis.slots.items():
        if path not in diagnosis.ties:
            loaded[path] = ops.load_weight(diagnosis.found[path], slot.role)
    for head, table in diagnosis.ties.items():
        loaded[head] = ops.tie(loaded[table])
    _fill(model, loaded)
    if finish:
        bind_constants(model, ops)
        ops.finish_loading()
    return diagnosis.other_heads


def bind_constants(model: Module, ops: Backend) -> None:
    """Loads the constants of a model, which are in no checkpoint.

    Args:
        model: a model whose weights are bound.
        ops: the backend that loads them, maybe while it reads the weights on another thread.
    """
    constants = model.named_constants()
    _fill(model, {path: ops.load_weight(_ConstantTensor(path, each), Role.CONSTANT) for path, each in constants})


def _fill(model: Module, loaded: Mapping[str, Any]) -> None:
    """Sets attributes of a model and its descendants by their paths."""
    modules = dict(model.named_modules())
    for path, weight in loaded.items():
        parent, _, name = path.rpartition(".")
        setattr(modules[parent], name, weight)


class _ConstantTensor:
    """A constant as a `Tensor` to load."""

    dtype = "F32"

    def __init__(self, name: str, constant: Constant) -> None:
        import numpy as np

        self.name = name
        self._values = np.array(constant.values, np.float32)
        self.shape: tuple[int, ...] = self._values.shape

    def float32(self) -> NDArray[np.float32]:
        return self._values.copy()

    def read_into(self, raw: NDArray[np.uint8], start: int) -> None:
        data = self._values.tobytes()[start : start + len(raw)]
        raw[:] = bytearray(data)

    def same_data(self, other: Any) -> bool:
        return bool(self._values.tobytes() == other.float32().tobytes())


def _by_path(tensors: Mapping[str, Tensor], rules: NameRules) -> tuple[dict[str, Tensor], list[Problem]]:
    """The weights by attribute path, and a problem for every tensor with the same path as an earlier one."""
    found: dict[str, Tensor] = {}
    problems = []
    for name, tensor in tensors.items():
        if rules.is_buffer(name):
            continue
        path = rules.canonical(name)
        if path in found:
            fix = f"the file also has it as {printable_name(found[path].name)}: keep one of them"
            problems.append(Problem("twice", name, str(tensor.shape), fix))
        else:
            found[path] = tensor
    return found, problems


def _check_slots(
    slots: Mapping[str, Slot], found: Mapping[str, Tensor], ties: Mapping[str, str], rules: NameRules
) -> Iterable[Problem]:
    shifted = _shifted(slots, found)
    in_model, in_file = _count_blocks(slots), _count_blocks(found)
    for path, slot in slots.items():
        tensor = found.get(path)
        if tensor is None:
            if path in shifted:
                yield Problem(
                    "missing", path, str(slot.shape), f"the file has {shifted[path]}: its names have a prefix"
                )
            elif path in rules.tied and path not in ties:
                fix = f"if the head is {rules.tied[path]}, set tie_word_embeddings to true in config.json"
                yield Problem("missing", path, str(slot.shape), fix)
            elif path not in ties:
                yield Problem("missing", path, str(slot.shape), _blocks_hint(path, in_model, in_file))
            continue
        if tensor.shape != slot.shape:
            sides = f"code {slot.shape}, file {tensor.shape}"
            yield Problem("wrong shape", tensor.name, sides, _shape_hint(slot, tensor.shape))
        if tensor.dtype not in FLOAT_DTYPES + PACKED_DTYPES:
            yield Problem("wrong dtype", tensor.name, f"code {' or '.join(FLOAT_DTYPES)}, file {tensor.dtype}")


def _other_heads(slots: Mapping[str, Slot], found: Mapping[str, Tensor], rules: NameRules) -> dict[str, str]:
    """The tensors of other heads, path -> name, except those that may be a renamed tensor of the model."""
    own = {path.partition(".")[0] for path in slots}
    absent = {slot.shape for path, slot in slots.items() if path not in found}
    return {
        path: tensor.name
        for path, tensor in found.items()
        if rules.is_other_head(tensor.name) and path.partition(".")[0] not in own and tensor.shape not in absent
    }


def _check_unexpected(slots: Mapping[str, Slot], found: Mapping[str, Tensor]) -> Iterable[Problem]:
    in_model, in_file = _count_blocks(slots), _count_blocks(found)
    for path, tensor in found.items():
        if path not in slots:
            yield Problem("unexpected", tensor.name, str(tensor.shape), _blocks_hint(path, in_model, in_file))


def _check_ties(found: Mapping[str, Tensor], ties: Mapping[str, str]) -> Iterable[Problem]:
    for head, table in ties.items():
        if head not in found or table not in found or found[head].shape != found[table].shape:
            continue
        if not found[head].same_data(found[table]):
            fix = f"it differs from {table}: if the head is separate, set tie_word_embeddings to false in config.json"
            yield Problem("not tied", found[head].name, str(found[head].shape), fix)


def _shifted(slots: Mapping[str, Slot], found: Mapping[str, Tensor]) -> dict[str, str]:
    """Slots whose tensor the file has with a prefix of up to three parts: path -> name."""
    shifted = {}
    for path, tensor in found.items():
        rest = path
        for _ in range(3):
            rest = rest.partition(".")[2]
            if rest in slots and rest not in found:
                shifted[rest] = tensor.name
    return shifted


def _shape_hint(slot: Slot, shape: tuple[int, ...]) -> str:
    if len(shape) == 2 and shape == slot.shape[::-1]:
        if slot.role is Role.CONV1D:
            return "looks like Linear where the model has Conv1D: transpose it"
        if slot.role is Role.LINEAR:
            return "looks like Conv1D where the model has Linear: transpose it"
    return ""


_BLOCK = re.compile(r"(.*?\.)(\d+)\.")


def _count_blocks(paths: Iterable[str]) -> dict[str, int]:
    """The number of blocks by the part of their names before the number: `h.` -> 12."""
    blocks: dict[str, set[str]] = {}
    for path in paths:
        if match := _BLOCK.match(path):
            blocks.setdefault(match[1], set()).add(match[2].lstrip("0"))
    return {stem: len(numbers) for stem, numbers in blocks.items()}


def _blocks_hint(path: str, in_model: Mapping[str, int], in_file: Mapping[str, int]) -> str:
    """A hint for a tensor in a numbered block, if file and model have different numbers of blocks."""
    match = _BLOCK.match(path)
    if not match:
        return ""
    if match[2] != "0" and match[2].startswith("0"):
        return f"a block number without leading zeros is expected: {match[1]}{match[2].lstrip('0') or '0'}"
    model, file = in_model.get(match[1], 0), in_file.get(match[1], 0)
    return f"the file has {file} blocks {match[1]}N, the model {model}" if model != file and model and file else ""


def _error(problems: Sequence[Problem], title: str, file: str | None) -> BindError:
    n = len(problems)
    shown = problems[:MAX_LINES]
    widths = [max(len(printable_name(problem[i])) for problem in shown) for i in range(3)]
    lines = [
        "  ".join(printable_name(cell).ljust(width) for cell, width in zip(problem, [*widths, 0], strict=True)).rstrip()
        for problem in shown
    ]
    if n > MAX_LINES:
        lines.append(f"and {n - MAX_LINES} more")
    subject = f"{file} does" if file else "the checkpoint does"
    message = f"{subject} not fit {title}: {n} problem{'s' if n > 1 else ''}\n  " + "\n  ".join(lines)
    remedy = "`rushlight check` groups them by cause, with a fix for each" if n > 1 else None
    return BindError(message, problems=problems, remedy=remedy)
