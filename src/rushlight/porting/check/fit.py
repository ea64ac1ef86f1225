"""Compares the tensors with the model's slots, and sorts what `bind` would refuse by cause."""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from itertools import product
from typing import TYPE_CHECKING

from rushlight.backends.protocol import Role
from rushlight.models.tied import has_tied_heads
from rushlight.nn import diagnose
from rushlight.nn.bind import PACKED_DTYPES
from rushlight.porting.check.report import with_n

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from rushlight.backends.protocol import Tensor
    from rushlight.models import Architecture, Config
    from rushlight.nn import Problem, Slot
    from rushlight.porting.check.checker import Checker, TensorView

__all__ = ["Fit", "is_buffer"]

MIN_SIMILARITY = 0.6
"""The similarity from which two names may mean the same tensor: difflib's own cutoff for a close match."""
MAX_KINDS = 100
"""With more distinct names than this, names are not paired: it would take long and prove little."""

_BLOCK = re.compile(r"(.*?)\.(\d{1,9})\.")
_BUFFER = re.compile(
    r"(^|\.)(num_batches_tracked|position_ids|inv_freq|masked_bias|causal_mask|attn_mask|mask|tril|freqs_cis)$"
)
"""Names that PyTorch modules give to buffers, which are computed and not trained."""

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


FUSED = {
    ("q_proj", "k_proj", "v_proj"): ("qkv_proj", "query_key_value", "Wqkv", "c_attn"),
    ("gate_proj", "up_proj"): ("gate_up_proj",),
}
"""Projections -> names of one tensor with the rows of all of them."""


class Fit:
    """A comparison of the checkpoint's tensors with a model whose slots are empty.

    Attributes:
        title: the model's class.
        all_transposed: whether every weight of a role is transposed, so that the square ones must be too.
        without_biases: whether the file lacks every bias that the model has.
        names_match: whether every weight has the model's name and there are no others, apart from biases and tied
            heads.
    """

    def __init__(self, checker: Checker, architecture: Architecture, config: Config) -> None:
        self.checker = checker
        self.rules = architecture.rules
        tie = has_tied_heads(architecture, config)
        module = architecture(config)
        self.title = module.describe()
        self._diagnosis = diagnose(module, checker.tensors, rules=self.rules, tie=tie)
        self._left = list(self._diagnosis.problems)
        self.all_transposed = False
        self.without_biases = False
        self.names_match = True
        self._check_orientation()
        self._check_biases()
        self._check_blocks()
        self._check_buffers()
        self._check_ties(tie=tie)
        self._check_other_heads()
        self._check_the_rest()
        self._check_dtypes()

    def _take(self, kind: str, selects: Callable[[str], bool] = lambda _: True) -> list[Problem]:
        """Removes the problems of a kind whose path is selected from those left to report, and returns them."""
        taken = [each for each in self._left if each.kind == kind and selects(self.rules.canonical(each.name))]
        gone = set(taken)
        self._left = [each for each in self._left if each not in gone]
        return taken

    def _details(self, problems: Iterable[Problem]) -> list[tuple[TensorView, str]]:
        return [(self.checker.tensors[each.name], each.detail) for each in problems]

    def _check_orientation(self) -> None:
        slots, found = self._diagnosis.slots, self._diagnosis.found
        undetermined = []
        for role, (title, convention) in _ORIENTATIONS.items():
            # A tied head is loaded as the table it is tied to.
            paths = {p for p, s in slots.items() if s.role is role and p in found and p not in self._diagnosis.ties}
            square = {p for p in paths if found[p].shape == slots[p].shape and len({*slots[p].shape}) == 1}
            across = {p for p in paths - square if found[p].shape == slots[p].shape[::-1]}
            wrong = self._take("wrong shape", across.__contains__)
            if not wrong:
                undetermined += sorted(square)
                continue
            tensors, why, fix = self._details(wrong), convention, "transpose them, as the script does"
            all_transposed = across | square == paths
            if square and all_transposed:
                why += (
                    f" {len(square)} more are square, which have the same shape either way: since all others are "
                    "transposed, these are assumed to be too."
                )
                tensors += [(self.checker.tensors[found[p].name], f"{slots[p].shape}, square") for p in sorted(square)]
            elif square:
                why += (
                    f" But others are the right way round, and {len(square)} are square: their shape does not show "
                    "whether they are transposed."
                )
                fix = "transpose those listed here, then compare the outputs with PyTorch's to test the square ones"
            transposed = across | square if all_transposed else across
            self.all_transposed |= all_transposed
            fix += "; or write a model file for these layouts with `rushlight port SOURCE -o my_model.py`"
            self.checker.problem("transposed", title, why, fix, tensors, in_script=True)
            self.checker.fix_script.transpose([found[p].name for p in sorted(transposed)], self.checker.tensors)
        if undetermined:
            self.checker.note(
                "unknown",
                "shapes do not show whether square weights are transposed",
                "All others are the right way round, so these should be too. Only a comparison of outputs with "
                "PyTorch's can prove it.",
                "",
                [(self.checker.tensors[found[p].name], str(found[p].shape)) for p in undetermined],
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
            f"The model adds a bias in {len(missing)} places, and the file has none, as in models that nanoGPT trained "
            "with bias=False.",
            "add biases of zeros, which change nothing, as the script does",
            in_script=True,
        )
        self.checker.fix_script.add_zero_biases(names, self.checker.tensors)

    def _may_be_bias(self, problem: Problem) -> bool:
        """Whether an unexpected tensor may be a bias under another name: exactly one of its axes is longer than 1."""
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
                "check that the download is complete and that the index lists all shards",
            )
        if beyond:
            extra = self._take("unexpected", lambda path: _block(path) in beyond)
            self.checker.fix_script.drop([each.name for each in extra], self.checker.tensors)
            self.checker.problem(
                "blocks",
                f"unexpected blocks: {_numbered(beyond)}",
                "The blocks before them are missing, so the model ends earlier.",
                "remove them, as the script does, if they are left over from another model",
                self._details(extra),
                in_script=True,
            )

    def _check_buffers(self) -> None:
        extra = self._take("unexpected", lambda path: is_buffer(self._diagnosis.found[path]))
        if extra:
            self.checker.problem(
                "buffers",
                "buffers among the weights",
                "PyTorch saves constants such as masks and counters together with the weights; this model does not "
                "have these.",
                "remove them, as the script does; in a port, list them in rules.buffers",
                self._details(extra),
                in_script=True,
            )
            self.checker.fix_script.drop([each.name for each in extra], self.checker.tensors)
        ignored = [view for name, view in self.checker.tensors.items() if self.rules.is_buffer(name)]
        if ignored:
            self.checker.note(
                "buffers",
                "ignored buffers",
                "They are constants, such as masks, which the model computes itself.",
                "",
                [(view, f"{view.dtype} {view.shape}") for view in ignored],
            )

    def _check_ties(self, *, tie: bool) -> None:
        checker, found = self.checker, self._diagnosis.found
        for each in self._take("not tied"):
            head = self.rules.canonical(each.name)
            checker.problem(
                "tie",
                f"{head} differs from {self.rules.tied[head]}",
                "The config ties the head to the embedding table, but in the file their values differ.",
                "if the model was trained with an untied head, set tie_word_embeddings to false in config.json; "
                "otherwise remove the head",
                self._details([each]),
            )
        for each in self._take("missing", lambda path: path in self.rules.tied):
            checker.problem(
                "tie",
                f"{each.name} is missing",
                f"The config does not tie the head to {self.rules.tied[each.name]}.",
                "set tie_word_embeddings to true in config.json if the model ties them",
            )
        for head, table in self.rules.tied.items():
            if head not in found or table not in found:
                continue
            if found[head] is found[table]:
                why = "The two are tied, and safetensors' save_model keeps only the first of tied tensors by name."
                checker.note("tie", f"{table} is stored only as {head}", why)
            elif tie and found[head].shape == found[table].shape and not checker.readable:
                checker.note("unknown", f"whether {head} equals {table} was not checked", "Both are in the file.")
            elif tie and found[head].same_data(found[table]):
                checker.note(
                    "tie", f"{head} is tied to {table}", "Both are in the file and equal: memory holds one copy."
                )
            elif not tie and checker.readable and found[head].same_data(found[table]):
                checker.note(
                    "tie",
                    f"{head} equals {table}",
                    "The config does not tie them, so memory holds both.",
                    "set tie_word_embeddings to true in config.json to hold one copy",
                )

    def _check_the_rest(self) -> None:
        checker = self.checker
        self.names_match = not any(each.kind in {"missing", "unexpected"} for each in self._left)
        if twice := self._take("twice"):
            checker.problem(
                "duplicate",
                "tensors stored twice",
                "With and without a prefix, these names belong to the same weight.",
                "keep one of each",
                [(checker.tensors[each.name], each.fix.partition(":")[0]) for each in twice],
            )
        self._check_fused()
        self._check_other_names()
        if missing := self._take("missing"):
            lines = [f"{each.name} {each.detail}" for each in missing]
            checker.problem(
                "missing",
                f"{len(missing):,} tensor{'s are' if len(missing) > 1 else ' is'} missing",
                "\n".join(_cut(lines)),
                "check that the file is complete and belongs to this model",
            )
        if extra := self._take("unexpected"):
            checker.problem(
                "unexpected",
                "tensors that the model does not have",
                "The model would ignore them.",
                "if they matter, this is another model: start its file with `rushlight port SOURCE -o my_model.py`",
                self._details(extra),
            )
        if wrong := self._take("wrong shape"):
            checker.problem(
                "shape",
                "tensors of the wrong shape",
                "Neither a transpose nor another size in the config explains them.",
                "check that the file belongs to this model",
                self._details(wrong),
            )

    def _check_fused(self) -> None:
        """Reports projections that the file has as one tensor and the model as several, or the other way round."""
        slots, found = self._diagnosis.slots, self._diagnosis.found
        missing = {self.rules.canonical(each.name) for each in self._left if each.kind == "missing"}
        extra = {self.rules.canonical(each.name) for each in self._left if each.kind == "unexpected"}
        for parts, fused_names in FUSED.items():
            for fused in fused_names:
                for in_file, in_model in (((fused,), parts), (parts, (fused,))):
                    stems = {path.removesuffix(f"{in_model[0]}.weight") for path in missing}
                    stems = {
                        stem
                        for stem in stems
                        if all(f"{stem}{name}.weight" in missing for name in in_model)
                        and all(f"{stem}{name}.weight" in extra for name in in_file)
                        and sum(found[f"{stem}{name}.weight"].shape[0] for name in in_file)
                        == sum(slots[f"{stem}{name}.weight"].shape[0] for name in in_model)
                    }
                    if stems:
                        self._report_fused(stems, in_file, in_model)

    def _report_fused(self, stems: set[str], in_file: tuple[str, ...], in_model: tuple[str, ...]) -> None:
        def among(names: tuple[str, ...]) -> set[str]:
            return {f"{stem}{name}.{kind}" for stem in stems for name in names for kind in ("weight", "bias")}

        self._take("missing", among(in_model).__contains__)
        extra = self._take("unexpected", among(in_file).__contains__)
        rows = [self._diagnosis.slots[f"{min(stems)}{name}.weight"].shape[0] for name in in_model]
        one, several = " and ".join(in_file), ", ".join(in_model)
        if len(in_file) == 1:
            title = f"{one} where the model has {several}"
            fix = f"if its rows are {several} in turn, split them into {', '.join(map(str, rows))}"
        else:
            title, fix = f"{', '.join(in_file)} where the model has {several}", f"concatenate their rows as {several}"
        self.checker.problem(
            "renamed",
            title,
            "The file and the model have the same projections, one of them as a single fused tensor.",
            f"{fix}; or write a port under these names with `rushlight port`",
            self._details(extra),
        )

    def _check_other_heads(self) -> None:
        if others := self._diagnosis.other_heads:
            views = [self.checker.tensors[name] for name in others]
            self.checker.note(
                "unexpected",
                "ignored parts for other tasks",
                "The model is complete without them.",
                "",
                [(each, f"{each.dtype} {each.shape}") for each in views],
            )

    def _check_other_names(self) -> None:
        """Pairs missing with unexpected tensors: equally many, of the same shape, and the most similar in name.

        A matrix may be transposed: otherwise a Linear's `mlp.fc.weight` would be paired with a Conv1D's
        `mlp.c_proj.weight`, which has the same shape, rather than with `mlp.c_fc.weight`.
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
        for negated, theirs, ours in candidates:
            if -negated >= MIN_SIMILARITY and theirs not in pairs and ours not in pairs.values():
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
        any_transposed = any(found[old].shape != slots[new].shape for old, new in new_names.items())

        def detail(old: str) -> str:
            new = new_names[old]
            if found[old].shape != slots[new].shape:
                return f"→ {new}, transposed"
            is_square = with_n(new) in matrices and len({*slots[new].shape}) == 1
            return f"→ {new}" + (", perhaps transposed" if any_transposed and is_square else "")

        self.checker.problem(
            "renamed",
            "tensors under other names",
            "Their names and shapes are similar to those of missing tensors"
            + (", with matrices transposed" if any_transposed else "")
            + ", which suggests that they are the same but does not prove it.",
            f"if they are the same, rename{' and transpose' if any_transposed else ''} them in the checkpoint"
            + (", and compare the outputs with the original's" if any_transposed else "")
            + "; or write a port under these names with `rushlight port`",
            [(self.checker.tensors[each.name], detail(self.rules.canonical(each.name))) for each in renamed],
        )

    def _kinds(
        self, kind: str, shaped: Mapping[str, Slot] | Mapping[str, Tensor]
    ) -> dict[tuple[str, tuple[int, ...]], list[str]]:
        """The paths with a kind of problem, grouped by path pattern (N for the block number) and shape."""
        kinds: dict[tuple[str, tuple[int, ...]], list[str]] = {}
        for problem in self._left:
            if problem.kind == kind:
                path = self.rules.canonical(problem.name)
                kinds.setdefault((with_n(path), shaped[path].shape), []).append(path)
        return kinds if len(kinds) <= MAX_KINDS else {}

    def _check_dtypes(self) -> None:
        checker = self.checker
        if wrong := self._take("wrong dtype"):
            checker.problem(
                "dtype",
                "weights of a quantised dtype",
                "Integers and 8-bit floats are quantised weights, which mean nothing without their scales.",
                "use the checkpoint they were quantised from",
                self._details(wrong),
            )
        dtypes = {view.dtype for path, view in self._diagnosis.found.items() if path in self._diagnosis.slots}
        if "F64" in dtypes:
            checker.note("dtype", "F64 weights", "They are rounded to float32 unless dtype is f64.")
        if len(dtypes) > 1 and not wrong and not dtypes & set(PACKED_DTYPES):
            checker.note("dtype", f"several dtypes: {', '.join(sorted(dtypes))}", "Each is read in its own dtype.")


def _block(path: str) -> tuple[str, int] | None:
    match = _BLOCK.match(path)
    return (match[1], int(match[2])) if match else None


def _by_block(paths: Iterable[str]) -> set[tuple[str, int]]:
    return {block for path in paths if (block := _block(path))}


def _numbered(blocks: Iterable[tuple[str, int]]) -> str:
    return ", ".join(_cut([f"{stem}.{number}" for stem, number in sorted(blocks)]))


def _cut(lines: list[str], at: int = 10) -> list[str]:
    return lines if len(lines) <= at else [*lines[:at], f"and {len(lines) - at:,} more"]


def is_buffer(tensor: Tensor) -> bool:
    """Whether a tensor looks like a buffer, by name, dtype or shape: a mask is (1, 1, T, T)."""
    name, dtype, shape = tensor.name, tensor.dtype, tensor.shape
    is_mask = len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3]
    return bool(_BUFFER.search(name)) or is_mask or dtype == "BOOL"
