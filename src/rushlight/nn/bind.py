"""Binding: every slot of a model gets the tensor of its name, or everything that keeps it from it is said at once."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from rushlight.backends.protocol import Role
from rushlight.errors import BindError, printable_name
from rushlight.nn.module import Version

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rushlight.backends.protocol import Backend, Tensor
    from rushlight.nn.module import Module, Slot

FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")
MAX_LINES = 100
"""Problems printed in a message; `BindError.problems` has them all."""


@dataclass(frozen=True)
class NameRules:
    """How an architecture's tensor names vary between the files people have.

    Attributes:
        prefixes: what some files write before every name of the model's body, such as `transformer.`.
        buffers: patterns of names that are not weights, matched whole: causal masks that PyTorch once saved.
        heads: patterns of names, matched whole, that other heads on the same body have: a value head, a classifier.
        tied: head -> table: the head may be absent, and is the table then.
    """

    prefixes: tuple[str, ...] = ()
    buffers: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    tied: Mapping[str, str] = field(default_factory=dict)

    def canonical(self, name: str) -> str:
        """The attribute path for a tensor's name: the name without the prefix."""
        for prefix in self.prefixes:
            if name.startswith(prefix):
                return name.removeprefix(prefix)
        return name

    def ignored(self, name: str) -> bool:
        """Whether a tensor is a buffer that the model computes by itself."""
        return any(re.fullmatch(pattern, self.canonical(name)) for pattern in self.buffers)

    def other_head(self, name: str) -> bool:
        """Whether a tensor is of another head: one beside the body, so that nothing the model computes needs it."""
        return any(re.fullmatch(pattern, name) for pattern in self.heads)


class Problem(NamedTuple):
    """One thing that keeps a tensor from its slot.

    Attributes:
        kind: missing, unexpected, wrong shape, wrong dtype, twice, not tied.
        name: the tensor's name; as the file has it where the file has it.
        detail: the two sides of it, or its shape.
        mend: what it probably is and what to do, or nothing.
    """

    kind: str
    name: str
    detail: str
    mend: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """How the tensors of a checkpoint and the slots of a model go together.

    Attributes:
        slots: the model's slots, by path.
        found: the tensors that are weights, by the path that their name is for; those without a slot too.
        ties: head -> table, where the head is the table.
        problems: everything that keeps the model from being filled; empty if nothing does.
        other_heads: names of tensors that are left out: they belong to other heads, and the model is whole without.
    """

    slots: Mapping[str, Slot]
    found: Mapping[str, Tensor]
    ties: Mapping[str, str]
    problems: Sequence[Problem]
    other_heads: Sequence[str]


def diagnose(model: Module, tensors: Mapping[str, Tensor], *, rules: NameRules, tie: bool) -> Diagnosis:
    """Compares every slot of `model` with `tensors` by name, shape and dtype. Reads data only to compare a tied head.

    The arguments are those of `bind`.
    """
    slots = dict(model.named_slots())
    ties = {head: table for head, table in rules.tied.items() if tie and head in slots}
    found, problems = _by_path(tensors, rules)
    problems += _check_slots(slots, found, ties, rules)
    other_heads = _other_heads(slots, found, rules)
    problems += _check_unexpected(slots, {path: t for path, t in found.items() if path not in other_heads})
    problems += _check_ties(found, ties)
    return Diagnosis(slots, found, ties, problems, list(other_heads.values()))


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
    """Fills every slot of `model` from `tensors` and gives every module its backend. Checks all before it reads any.

    Args:
        model: a model whose slots are empty.
        tensors: the checkpoint, by name.
        ops: the backend that places the weights.
        rules: how names may vary.
        tie: whether the heads of `rules.tied` are the tables they name, which lets them be absent.
        title: the model in words, for the message: `GPT2 (n_layer 12, n_embd 768)`.
        file: the checkpoint, for the message.
        finish: whether to wait until the weights are read; otherwise the caller does, with `ops.finish_loading`.

    Returns:
        The names of the tensors that are left out, `Diagnosis.other_heads`.

    Raises:
        BindError: something does not fit. The message lists every problem; `problems` has them as data.
    """
    diagnosis = diagnose(model, tensors, rules=rules, tie=tie)
    if diagnosis.problems:
        raise _error(diagnosis.problems, title, file)

    modules = dict(model.named_modules())
    for module in modules.values():
        module.ops = ops
    model.track(Version())
    placed: dict[str, Any] = {}
    for path, slot in diagnosis.slots.items():
        if path not in diagnosis.ties:
            placed[path] = ops.load_weight(diagnosis.found[path], slot.role)
    for head, table in diagnosis.ties.items():
        placed[head] = ops.tie(placed[table])
    for path, weight in placed.items():
        parent, _, name = path.rpartition(".")
        setattr(modules[parent], name, weight)
    if finish:
        ops.finish_loading()
    return diagnosis.other_heads


def _by_path(tensors: Mapping[str, Tensor], rules: NameRules) -> tuple[dict[str, Tensor], list[Problem]]:
    """The tensors that are weights by attribute path, and those whose path another tensor has already."""
    found: dict[str, Tensor] = {}
    problems = []
    for name, tensor in tensors.items():
        if rules.ignored(name):
            continue
        path = rules.canonical(name)
        if path in found:
            mend = f"the file has it as {printable_name(found[path].name)} too: keep one of them"
            problems.append(Problem("twice", name, str(tensor.shape), mend))
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
                mend = f"if the head is {rules.tied[path]}, set tie_word_embeddings to true in config.json"
                yield Problem("missing", path, str(slot.shape), mend)
            elif path not in ties:
                yield Problem("missing", path, str(slot.shape), _blocks_mend(path, in_model, in_file))
            continue
        if tensor.shape != slot.shape:
            sides = f"code {slot.shape}, file {tensor.shape}"
            yield Problem("wrong shape", tensor.name, sides, _shape_mend(slot, tensor.shape))
        if tensor.dtype not in FLOAT_DTYPES:
            yield Problem("wrong dtype", tensor.name, f"code {' or '.join(FLOAT_DTYPES)}, file {tensor.dtype}")


def _other_heads(slots: Mapping[str, Slot], found: Mapping[str, Tensor], rules: NameRules) -> dict[str, str]:
    """From path to name, the tensors of other heads, but for those that could be one that the model lacks."""
    own = {path.partition(".")[0] for path in slots}
    absent = {slot.shape for path, slot in slots.items() if path not in found}
    return {
        path: tensor.name
        for path, tensor in found.items()
        if rules.other_head(tensor.name) and path.partition(".")[0] not in own and tensor.shape not in absent
    }


def _check_unexpected(slots: Mapping[str, Slot], found: Mapping[str, Tensor]) -> Iterable[Problem]:
    in_model, in_file = _count_blocks(slots), _count_blocks(found)
    for path, tensor in found.items():
        if path not in slots:
            yield Problem("unexpected", tensor.name, str(tensor.shape), _blocks_mend(path, in_model, in_file))


def _check_ties(found: Mapping[str, Tensor], ties: Mapping[str, str]) -> Iterable[Problem]:
    for head, table in ties.items():
        if head not in found or table not in found or found[head].shape != found[table].shape:
            continue
        if not found[head].same_data(found[table]):
            mend = f"it differs from {table}: if the head is its own, set tie_word_embeddings to false in config.json"
            yield Problem("not tied", found[head].name, str(found[head].shape), mend)


def _shifted(slots: Mapping[str, Slot], found: Mapping[str, Tensor]) -> dict[str, str]:
    """Slots whose tensor the file has under a longer name, up to three parts longer."""
    shifted = {}
    for path, tensor in found.items():
        rest = path
        for _ in range(3):
            rest = rest.partition(".")[2]
            if rest in slots and rest not in found:
                shifted[rest] = tensor.name
    return shifted


def _shape_mend(slot: Slot, shape: tuple[int, ...]) -> str:
    if len(shape) == 2 and shape == slot.shape[::-1]:
        if slot.role is Role.CONV1D:
            return "looks like Linear where the model has Conv1D: transpose it"
        if slot.role is Role.LINEAR:
            return "looks like Conv1D where the model has Linear: transpose it"
    return ""


_BLOCK = re.compile(r"(.*?\.)(\d+)\.")


def _count_blocks(paths: Iterable[str]) -> dict[str, int]:
    """How many numbered blocks there are, by what stands before the number: 12 of `h.`."""
    blocks: dict[str, set[str]] = {}
    for path in paths:
        if match := _BLOCK.match(path):
            blocks.setdefault(match[1], set()).add(match[2])
    return {stem: len(numbers) for stem, numbers in blocks.items()}


def _blocks_mend(path: str, in_model: Mapping[str, int], in_file: Mapping[str, int]) -> str:
    """For a tensor of a block: whether model and file have the same number of blocks."""
    match = _BLOCK.match(path)
    if not match:
        return ""
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
    remedy = "`rushlight check` sorts them by cause and says what to do" if n > 1 else None
    return BindError(message, problems=problems, remedy=remedy)
