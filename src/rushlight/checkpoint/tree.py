"""The module tree of a checkpoint: names, dtypes, shapes and sizes, with equal numbered blocks folded into one.

It is built from the headers and reads no weights. Names are split at every dot: empty parts, a name
that is both a tensor and a module, and ten thousand dots are valid. A module with a single entry is merged with it
(`wte.weight`), and one with only numbered entries is replaced by them (`h.0`, `h.1`, ...), so that the tree has fewer
than twice as many nodes as tensors.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from rushlight.checkpoint.packed import TENSORS_KEY

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rushlight.checkpoint.stats import TensorStats

__all__ = ["Entry", "Fold", "Mark", "ModuleNode", "ModuleTree", "TensorNode", "fold"]

Mark = Literal["tied", "buffer"]
"""Why a tensor does not count as parameters: it is a copy of another one, or a constant that is not learned."""

MAX_DEPTH = 64
"""The depth below which names are not split, which bounds the recursion. Real models need a dozen levels."""

NUMBER = re.compile(r"(?:(?<=\.)|^)(0|[1-9][0-9]{0,17})(?=\.|$)")


class TensorNode(NamedTuple):
    """A tensor: its full name, its dtype as in the file ("BF16"), its shape, its bytes in the file, its mark."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    mark: Mark | None = None

    @property
    def n_parameters(self) -> int:
        """Number of elements; 0 if marked."""
        return 0 if self.mark else math.prod(self.shape)

    @property
    def form(self) -> object:
        """Equal for tensors that differ only in name."""
        return self.dtype, self.shape, self.mark


@dataclass(frozen=True, slots=True)
class ModuleNode:
    """A module: the entries below its name.

    Attributes:
        entries: in the order of the file, except that numbered entries are sorted by number.
        n_parameters, nbytes: sums over all tensors below it.
        form: equal for modules of a tree that have the same names, dtypes, shapes and marks below them.
    """

    entries: tuple[Entry, ...]
    n_parameters: int
    nbytes: int
    form: object


class Entry(NamedTuple):
    """A tensor or module with its label: the part of its name, dots included, below the module that contains it."""

    label: str
    node: TensorNode | ModuleNode


class Fold(NamedTuple):
    """One or more equal entries with consecutive numbers, labelled from `first` to `last`; `node` is the first."""

    first: str
    last: str
    node: TensorNode | ModuleNode
    copies: int


def fold(entries: Iterable[Entry]) -> list[Fold]:
    """`entries` with each run of equal, consecutively numbered ones folded into one."""
    folds: list[Fold] = []
    for label, node in entries:
        if folds:
            first, last, like, copies = folds[-1]
            if node.form == like.form and _follows(last, label):
                folds[-1] = Fold(first, label, like, copies + 1)
                continue
        folds.append(Fold(label, label, node, 1))
    return folds


@dataclass(frozen=True, slots=True, repr=False)
class ModuleTree:
    """The contents of a checkpoint.

    Attributes:
        source: the path, URL or hub id that the user named.
        files: the names of the files of the weights.
        metadata: the `__metadata__` of the header.
        architecture: the name of the architecture; None if rushlight does not support it.
        root: the root module.
        tensors: all tensors in the order of the file.
    """

    source: str
    files: tuple[str, ...]
    metadata: Mapping[str, str]
    architecture: str | None
    root: ModuleNode
    tensors: tuple[TensorNode, ...]

    @classmethod
    def build(
        cls,
        tensors: Iterable[tuple[str, str, tuple[int, ...], int]],
        *,
        source: str = "",
        files: Iterable[str] = (),
        metadata: Mapping[str, str] | None = None,
        architecture: str | None = None,
        marks: Mapping[str, Mark] | None = None,
    ) -> ModuleTree:
        """The tree of some tensors, in time and memory linear in the length of all names.

        Args:
            tensors: (name, dtype, shape, nbytes) of each, in the order of the file, every name once.
            source, files, metadata, architecture: the attributes.
            marks: why tensors do not count as parameters, by name.
        """
        marks = marks or {}
        nodes = tuple(TensorNode(*tensor, marks.get(tensor[0])) for tensor in tensors)
        forms: dict[object, int] = {}
        return cls(
            source=source,
            files=tuple(files),
            metadata=dict(metadata or {}),
            architecture=architecture,
            root=_module(_entries(nodes, 0, 0, forms), forms),
            tensors=nodes,
        )

    @property
    def n_parameters(self) -> int:
        """Number of learned values: a tied tensor counts once, a buffer not at all."""
        return self.root.n_parameters

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors in the files, marked ones included."""
        return self.root.nbytes

    @property
    def shown_metadata(self) -> dict[str, str]:
        """The metadata for display: without the list of tensors in that of a converted file."""
        return {key: value for key, value in self.metadata.items() if key != TENSORS_KEY}

    @property
    def dtypes(self) -> dict[str, int]:
        """The bytes of each dtype, the largest first."""
        sizes: dict[str, int] = {}
        for tensor in self.tensors:
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.nbytes
        return dict(sorted(sizes.items(), key=lambda item: -item[1]))

    def to_json(self, stats: Mapping[str, TensorStats] | None = None) -> dict[str, Any]:
        """The checkpoint as JSON data, as `rushlight inspect --json` prints it. Keys may be added; these stay:

        source          str
        architecture    str or null
        files           [str]
        metadata        {str: str}
        n_tensors       int
        n_parameters    int, without marked tensors
        nbytes          int, with them
        dtypes          {str: int}, bytes of each
        tensors         [{name: str, dtype: str, shape: [int], nbytes: int, mark: null | "tied" | "buffer"}],
                        in the order of the file

        With `stats`, the statistics by name, also
        unread          [str], the names of the tensors whose dtype has no statistics
        and for each tensor
        stats           null if unread | {min, max, mean, std: null | float, n_nan, n_inf: int}
        """
        unread = {} if stats is None else {"unread": [t.name for t in self.tensors if t.name not in stats]}
        return {
            "source": self.source,
            "architecture": self.architecture,
            "files": list(self.files),
            "metadata": dict(self.metadata),
            "n_tensors": len(self.tensors),
            "n_parameters": self.n_parameters,
            "nbytes": self.nbytes,
            "dtypes": self.dtypes,
            **unread,
            "tensors": [
                {"name": t.name, "dtype": t.dtype, "shape": list(t.shape), "nbytes": t.nbytes, "mark": t.mark}
                | ({} if stats is None else {"stats": stats[t.name].to_json() if t.name in stats else None})
                for t in self.tensors
            ],
        }

    def __repr__(self) -> str:
        return f"<ModuleTree of {self.source!r}: {len(self.tensors):,} tensors, {self.n_parameters:,} parameters>"


def _entries(tensors: Sequence[TensorNode], start: int, depth: int, forms: dict[object, int]) -> list[Entry]:
    """The entries of the module that contains `tensors`, whose labels begin at index `start` of their names."""
    groups: dict[str, list[TensorNode]] = {}
    for tensor in tensors:
        dot = tensor.name.find(".", start) if depth < MAX_DEPTH else -1
        # A key keeps its dot, which separates the module `a` from a tensor `a`.
        groups.setdefault(tensor.name[start : dot + 1 or None], []).append(tensor)

    entries: list[Entry] = []
    for members in groups.values():
        if len(members) == 1:
            entries.append(Entry(members[0].name[start:], members[0]))
            continue
        end = _common_prefix([tensor.name for tensor in members], start)
        label, below = members[0].name[start : end - 1], _entries(members, end, depth + 1, forms)
        if not NUMBER.search(label) and all(NUMBER.match(entry.label) for entry in below):
            entries += [Entry(f"{label}.{entry.label}", entry.node) for entry in below]
        else:
            entries.append(Entry(label, _module(below, forms)))
    return _in_order_of_numbers(entries)


def _common_prefix(names: list[str], start: int) -> int:
    """The index after the last dot of the common prefix of `names`, which are equal up to `start`."""
    low, high = min(names), max(names)
    while (end := low.find(".", start) + 1) and low[start:end] == high[start:end]:
        start = end
    return start


def _in_order_of_numbers(entries: list[Entry]) -> list[Entry]:
    """`entries` with the numbered ones sorted by number, in the places of the numbered ones."""
    numbers = [NUMBER.match(label) for label, _ in entries]
    order = iter(sorted((int(number[1]), i) for i, number in enumerate(numbers) if number))
    return [entries[next(order)[1]] if number else entry for entry, number in zip(entries, numbers, strict=True)]


def _module(entries: list[Entry], forms: dict[object, int]) -> ModuleNode:
    """The module of `entries`. `forms` numbers the forms seen so far, so that modules compare as integers."""
    form = frozenset((label, node.form) for label, node in entries)
    return ModuleNode(
        entries=tuple(entries),
        n_parameters=sum(node.n_parameters for _, node in entries),
        nbytes=sum(node.nbytes for _, node in entries),
        form=forms.setdefault(form, len(forms)),
    )


def _follows(label: str, successor: str) -> bool:
    """Whether `successor` is `label` with the first number in it incremented by one."""
    old, new = NUMBER.search(label), NUMBER.search(successor)
    if old is None or new is None or int(old[1]) + 1 != int(new[1]):
        return False
    return label[: old.start()] == successor[: new.start()] and label[old.end() :] == successor[new.end() :]
