"""The tensors against the model's slots: what `bind` would refuse, sorted by cause."""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from itertools import product
from typing import TYPE_CHECKING

from rushlight.backends.protocol import Role
from rushlight.nn import diagnose
from rushlight.porting.check.report import with_n

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from rushlight.backends.protocol import Tensor
    from rushlight.models import Architecture, Config
    from rushlight.nn import Problem, Slot
    from rushlight.porting.check.checker import Checker, TensorView

__all__ = ["Fit"]

ALIKE = 0.6
"""From here on, two names are taken to mean the same: difflib's own measure of a close match."""
MOST_KINDS = 100
"""More names than this are not compared with one another: that takes time, and tells nothing."""

_BLOCK = re.compile(r"(.*?)\.(\d{1,9})\.")
_BUFFER = re.compile(
    r"(^|\.)(num_batches_tracked|position_ids|inv_freq|masked_bias|causal_mask|attn_mask|mask|tril|freqs_cis)$"
)
"""Names that modules of PyTorch give to buffers, which nothing learned."""

_ORIENTATIONS = {
    Role.CONV1D: (
        "Linear weights where the model has Conv1D",
        "PyTorch's nn.Linear keeps a weight as (out, in); this model has GPT-2's Conv1D, which keeps it as (in, out).",
    ),
    Role.LINEAR: (
        "Conv1D weights where the model has Linear",
        "GPT-2's Conv1D keeps a weight as (in, out); this model has PyTorch's nn.Linear, which keeps it as (out, in).",
    ),
}


class Fit:
    """The tensors of an examination compared with a model with empty slots.

    Attributes:
        title: the model in a word.
        all_turned: whether every weight of a role is, so that the square ones are too.
        without_biases: whether the file has no bias where the model has them.
        is_named_alike: whether every weight has the model's name for it and no other is there, biases and tied heads
            aside.
    """

    def __init__(self, checker: Checker, architecture: Architecture, config: Config) -> None:
        self.checker = checker
        self.rules = architecture.rules
        tie = bool(self.rules.tied) and config.tie_word_embeddings
        module = architecture(config)
        self.title = module.describe()
        self._diagnosis = diagnose(module, checker.tensors, rules=self.rules, tie=tie)
        self._left = list(self._diagnosis.problems)
        self.all_turned = False
        self.without_biases = False
        self.is_named_alike = True
        self._check_orientation()
        self._check_biases()
        self._check_blocks()
        self._check_buffers()
        self._check_ties(tie=tie)
        self._check_other_heads()
        self._check_the_rest()
        self._check_dtypes()

    def _take(self, kind: str, chosen: Callable[[str], bool] = lambda _: True) -> list[Problem]:
        """The problems of a kind whose path is chosen; they are no longer left."""
        taken = [each for each in self._left if each.kind == kind and chosen(self.rules.canonical(each.name))]
        gone = set(taken)
        self._left = [each for each in self._left if each not in gone]
        return taken

    def _details(self, problems: Iterable[Problem]) -> list[tuple[TensorView, str]]:
        return [(self.checker.tensors[each.name], each.detail) for each in problems]

    def _check_orientation(self) -> None:
        slots, found = self._diagnosis.slots, self._diagnosis.found
        cannot_tell = []
        for role, (title, convention) in _ORIENTATIONS.items():
            # A tied head is placed as the table that it is tied to.
            paths = {p for p, s in slots.items() if s.role is role and p in found and p not in self._diagnosis.ties}
            square = {p for p in paths if found[p].shape == slots[p].shape and len({*slots[p].shape}) == 1}
            across = {p for p in paths - square if found[p].shape == slots[p].shape[::-1]}
            wrong = self._take("wrong shape", across.__contains__)
            if not wrong:
                cannot_tell += sorted(square)
                continue
            tensors, why, fix = self._details(wrong), convention, "transpose them, as below"
            all_turned = across | square == paths
            if square and all_turned:
                why += (
                    f" {len(square)} more are square, so that their shape is the same either way: as all others are "
                    "turned, they are taken to be too."
                )
                tensors += [(self.checker.tensors[found[p].name], f"{slots[p].shape}, square") for p in sorted(square)]
            elif square:
                why += (
                    f" But others are as the model has them, and {len(square)} are square, of which nothing "
                    "here tells which way round they are."
                )
                fix = "transpose those named here; then compare the outputs with PyTorch's, for the square ones"
            turned = across | square if all_turned else across
            self.all_turned |= all_turned
            fix += "; or let `rushlight port SOURCE -o my_model.py` write a model that takes them as they are"
            self.checker.problem("transposed", title, why, fix, tensors, in_script=True)
            self.checker.fix_script.transpose([found[p].name for p in sorted(turned)], self.checker.tensors)
        if cannot_tell:
            self.checker.note(
                "unknown",
                "no shape tells whether a square weight is transposed",
                "All others are the right way round, so these should be: only a comparison of outputs with PyTorch's "
                "can show it.",
                "",
                [(self.checker.tensors[found[p].name], str(found[p].shape)) for p in cannot_tell],
            )

    def _check_biases(self) -> None:
        if any(path.endswith(".bias") for path in self._diagnosis.found if path in self._diagnosis.slots):
            return
        if any(each.kind == "unexpected" and self._may_be_bias(each) for each in self._left):
            return
        found = self._diagnosis.found

        def weight_of(path: str) -> str:
            return path.removesuffix("bias") + "weight"

        missing = self._take("missing", lambda path: path.endswith(".bias") and weight_of(path) in found)
        names = [found[weight_of(each.name)].name for each in missing]
        if not missing:
            return
        self.without_biases = True
        self.checker.problem(
            "biases",
            "no biases",
            f"The model adds a bias in {len(missing)} places, and the file has none: so nanoGPT saves a model that it "
            "trained with bias=False.",
            "add biases of zeros, which change nothing, as below",
            in_script=True,
        )
        self.checker.fix_script.add_zero_biases(names, self.checker.tensors)

    def _may_be_bias(self, problem: Problem) -> bool:
        """Whether an unexpected tensor may be a bias under another name: one axis that is longer than 1."""
        shape = self._diagnosis.found[self.rules.canonical(problem.name)].shape
        return sum(size > 1 for size in shape) == 1

    def _check_blocks(self) -> None:
        in_model, in_file = _by_block(self._diagnosis.slots), _by_block(self._diagnosis.found)
        stems = {stem for stem, _ in in_model}
        absent = in_model - in_file
        beyond = {block for block in in_file - in_model if block[0] in stems}
        if absent:
            self._take("missing", lambda path: _block(path) in absent)
            self.checker.problem(
                "blocks",
                f"blocks are missing: {_numbered(absent)}",
                f"The model has {len(in_model)} numbered blocks, the file {len(in_model) - len(absent)} of them.",
                "look whether the file is whole, and all of its shards are named in the index",
            )
        if beyond:
            extra = self._take("unexpected", lambda path: _block(path) in beyond)
            self.checker.fix_script.drop([each.name for each in extra], self.checker.tensors)
            self.checker.problem(
                "blocks",
                f"blocks too many: {_numbered(beyond)}",
                "No block stands before them, so that the model would end earlier.",
                "leave them out, as below, if they are left over from another model",
                self._details(extra),
                in_script=True,
            )

    def _check_buffers(self) -> None:
        extra = self._take("unexpected", lambda path: _is_buffer(self._diagnosis.found[path]))
        if extra:
            self.checker.problem(
                "buffers",
                "buffers that are no weights",
                "PyTorch saves constants such as masks and counters beside the weights; this model has no place for "
                "these.",
                "leave them out, as below; in a port, name them in rules.buffers",
                self._details(extra),
                in_script=True,
            )
            self.checker.fix_script.drop([each.name for each in extra], self.checker.tensors)
        ignored = [seen for name, seen in self.checker.tensors.items() if self.rules.ignored(name)]
        if ignored:
            self.checker.note(
                "buffers",
                "buffers that are left alone",
                "They are constants, such as masks, which the model computes by itself.",
                "",
                [(seen, f"{seen.dtype} {seen.shape}") for seen in ignored],
            )

    def _check_ties(self, *, tie: bool) -> None:
        checker, found = self.checker, self._diagnosis.found
        for each in self._take("not tied"):
            head = self.rules.canonical(each.name)
            checker.problem(
                "tie",
                f"{head} should be {self.rules.tied[head]}, and differs",
                "By the config the head is the table of embeddings; in the file it is a tensor of other values.",
                "if the model was trained with a head of its own, set tie_word_embeddings to false in config.json; if "
                "not, leave the head out",
                self._details([each]),
            )
        for each in self._take("missing", lambda path: path in self.rules.tied):
            checker.problem(
                "tie",
                f"{each.name} is missing",
                f"The config says that the head is its own, and not {self.rules.tied[each.name]}.",
                "set tie_word_embeddings to true in config.json if it is the table after all",
            )
        for head, table in self.rules.tied.items():
            if head not in found or table not in found:
                continue
            if tie and found[head].shape == found[table].shape and not checker.readable:
                checker.note("unknown", f"whether {head} equals {table} was not looked at", "Both are in the file.")
            elif tie and found[head].same_data(found[table]):
                checker.note("tie", f"{head} is {table}", "Both are in the file, and equal: one is kept in memory.")
            elif not tie and checker.readable and found[head].same_data(found[table]):
                checker.note(
                    "tie",
                    f"{head} equals {table}",
                    "The config says that the head is its own, so that both are kept in memory.",
                    "set tie_word_embeddings to true in config.json to keep one",
                )

    def _check_the_rest(self) -> None:
        checker = self.checker
        self.is_named_alike = not any(each.kind in {"missing", "unexpected"} for each in self._left)
        if twice := self._take("twice"):
            checker.problem(
                "duplicate",
                "tensors that are there twice",
                "With and without a prefix, they are for the same place.",
                "keep one of each",
                [(checker.tensors[each.name], each.mend.partition(":")[0]) for each in twice],
            )
        self._check_other_names()
        if missing := self._take("missing"):
            lines = [f"{each.name} {each.detail}" for each in missing]
            checker.problem(
                "missing",
                f"{len(missing):,} tensor{'s are' if len(missing) > 1 else ' is'} missing",
                "\n".join(_cut(lines)),
                "look whether the file is whole, and of this model",
            )
        if extra := self._take("unexpected"):
            checker.problem(
                "unexpected",
                "tensors that the model has no place for",
                "The model would compute without them.",
                "if they do something, this is another model: `rushlight port SOURCE -o my_model.py` begins its file",
                self._details(extra),
            )
        if wrong := self._take("wrong shape"):
            checker.problem(
                "shape",
                "tensors of another shape",
                "Neither a transpose nor another size in the config explains them.",
                "look whether they are of this model",
                self._details(wrong),
            )

    def _check_other_heads(self) -> None:
        if others := self._diagnosis.other_heads:
            seen = [self.checker.tensors[name] for name in others]
            self.checker.note(
                "unexpected",
                "other heads, which are left out",
                "They stand beside the model, whose own tensors are what they should be without them.",
                "",
                [(each, f"{each.dtype} {each.shape}") for each in seen],
            )

    def _check_other_names(self) -> None:
        """Pairs what is missing with what is unexpected: as many, and the most alike in name.

        The shape is the same, or that of a matrix the other way round: else `mlp.fc.weight` of a Linear would be taken
        for `mlp.c_proj.weight` of a Conv1D, which has the same shape, and not for `mlp.c_fc.weight`.
        """
        slots, found = self._diagnosis.slots, self._diagnosis.found
        missing, extra = self._kinds("missing", slots), self._kinds("unexpected", found)
        matrices = {with_n(path) for path, slot in slots.items() if slot.role in _ORIENTATIONS}
        candidates = sorted(
            (
                (-SequenceMatcher(None, theirs[0], ours[0]).ratio(), theirs, ours)
                for ours, theirs in product(missing, extra)
                if theirs[1] in {ours[1], ours[1][:: -1 if ours[0] in matrices else 1]}
                and len(missing[ours]) == len(extra[theirs])
            ),
        )
        pairs: dict[tuple[str, tuple[int, ...]], tuple[str, tuple[int, ...]]] = {}
        for unlike, theirs, ours in candidates:
            if -unlike >= ALIKE and theirs not in pairs and ours not in pairs.values():
                pairs[theirs] = ours
        if not pairs:
            return
        new_names = {
            old: new
            for theirs, ours in pairs.items()
            for old, new in zip(sorted(extra[theirs]), sorted(missing[ours]), strict=True)
        }
        self._take("missing", set(new_names.values()).__contains__)
        renamed = self._take("unexpected", new_names.__contains__)
        any_turned = any(found[old].shape != slots[new].shape for old, new in new_names.items())

        def detail(old: str) -> str:
            new = new_names[old]
            if found[old].shape != slots[new].shape:
                return f"→ {new}, transposed"
            is_square = with_n(new) in matrices and len({*slots[new].shape}) == 1
            return f"→ {new}" + (", perhaps transposed" if any_turned and is_square else "")

        self.checker.problem(
            "renamed",
            "tensors that seem to have other names",
            "Their names and shapes are like those of tensors that are missing"
            + (", matrices the other way round" if any_turned else "")
            + ". Names and shapes do not prove it.",
            f"if they are the same, rename{' and transpose' if any_turned else ''} them in the checkpoint"
            + (", and compare the outputs with the original's" if any_turned else "")
            + "; or write a port under these names with `rushlight port`",
            [(self.checker.tensors[each.name], detail(self.rules.canonical(each.name))) for each in renamed],
        )

    def _kinds(
        self, kind: str, shaped: Mapping[str, Slot] | Mapping[str, Tensor]
    ) -> dict[tuple[str, tuple[int, ...]], list[str]]:
        """The paths with a kind of problem, by their form, with N for a block's number, and by their shape."""
        kinds: dict[tuple[str, tuple[int, ...]], list[str]] = {}
        for problem in self._left:
            if problem.kind == kind:
                path = self.rules.canonical(problem.name)
                kinds.setdefault((with_n(path), shaped[path].shape), []).append(path)
        return kinds if len(kinds) <= MOST_KINDS else {}

    def _check_dtypes(self) -> None:
        checker = self.checker
        if wrong := self._take("wrong dtype"):
            checker.problem(
                "dtype",
                "weights that are not floating-point numbers",
                "Whole numbers and 8-bit floats are quantised weights, which need their scales.",
                "take the checkpoint that they were made from",
                self._details(wrong),
            )
        found = [seen for path, seen in self._diagnosis.found.items() if path in self._diagnosis.slots]
        dtypes = {seen.dtype for seen in found}
        if "F64" in dtypes:
            checker.note("dtype", "F64 weights", "They are rounded to float32, unless dtype is f64.")
        if len(dtypes) > 1 and not wrong:
            checker.note("dtype", f"several dtypes: {', '.join(sorted(dtypes))}", "Each is read as it is.")


def _block(path: str) -> tuple[str, int] | None:
    match = _BLOCK.match(path)
    return (match[1], int(match[2])) if match else None


def _by_block(paths: Iterable[str]) -> set[tuple[str, int]]:
    return {block for path in paths if (block := _block(path))}


def _numbered(blocks: Iterable[tuple[str, int]]) -> str:
    return ", ".join(_cut([f"{stem}.{number}" for stem, number in sorted(blocks)]))


def _cut(lines: list[str], at: int = 10) -> list[str]:
    return lines if len(lines) <= at else [*lines[:at], f"and {len(lines) - at:,} more"]


def _is_buffer(tensor: Tensor) -> bool:
    """Whether a tensor's name or form is that of a buffer: a mask is square after leading ones."""
    name, dtype, shape = tensor.name, tensor.dtype, tensor.shape
    is_mask = len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3]
    return bool(_BUFFER.search(name)) or is_mask or dtype == "BOOL"
