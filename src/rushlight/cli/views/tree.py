"""Prints a module tree on a terminal or into a pipe.

    name                  dtype  shape             parameters       size  share
    ├── wte.weight        F32    (50257, 768)      38,597,376  147.2 MiB  ━━━━━━━╸
    ├── h.0 … h.11 ×12           12 × 7,087,872    85,054,464  324.5 MiB  ━━━━━━━━━━━━━━━━╸
    │   ├── ln_1                                        1,536    6.0 KiB

Below a run of equal blocks the numbers are those of one block. The bar is the share of all parameters, with all blocks
of the run. With statistics every block is shown, and columns that do not fit are left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style

from rushlight.checkpoint.tree import Fold, ModuleNode, TensorNode, fold
from rushlight.cli.views.symbols import ASCII, UNICODE, Symbols
from rushlight.errors import printable_line, printable_name
from rushlight.host.memory import human_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from rich.console import Console, ConsoleOptions, RenderResult

    from rushlight.checkpoint.stats import TensorStats
    from rushlight.checkpoint.tree import ModuleTree

MIN_BAR, MAX_BAR = 8, 24
MAX_ALIGNED = 72
"""A name wider than this shifts only its own row."""
MAX_METADATA = 200
GAP = 2
HEADS = ("dtype", "shape", "parameters", "size")
STAT_HEADS = ("min", "max", "mean", "std", "NaN", "Inf")
NUMBERS = ("parameters", "size", *STAT_HEADS)
LEFT_OUT = ("size",)
LEFT_OUT_FOR_STATS = ("size", "parameters", "shape", "dtype")
"""Columns that a narrow terminal leaves out, in this order."""

BOLD, DIM, PLAIN = Style(bold=True), Style(dim=True), Style()
ACCENT, DTYPE, MARK = Style(color="yellow"), Style(color="cyan"), Style(dim=True, italic=True)
BAD = Style(color="red", bold=True)


class Row(NamedTuple):
    """A row of the table: the name, a cell per column, and the share of all parameters."""

    name: list[Segment]
    cells: tuple[Segment, ...]
    share: float


class TreeView:
    """A Rich renderable of a tree, cut at `depth` levels; with `full` or `stats`, equal blocks are not folded."""

    def __init__(
        self,
        tree: ModuleTree,
        *,
        depth: int | None = None,
        full: bool = False,
        stats: Mapping[str, TensorStats] | None = None,
    ) -> None:
        self.tree = tree
        self.depth = depth
        # Equal blocks have equal shapes, not equal values.
        self.full = full or stats is not None
        self.stats = stats

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        symbols = ASCII if options.ascii_only else UNICODE
        yield Segment(printable_name(self.tree.source), BOLD)
        yield Segment.line()
        width = options.max_width if console.is_terminal else None
        yield from _wrapped(self._facts(), f" {symbols.dot} ", width)
        rows = list(self._rows(self.tree.root, "", self.depth, 1, symbols))
        if rows:
            yield Segment.line()
            heads = HEADS if self.stats is None else HEADS + STAT_HEADS
            yield from _table(rows, heads, symbols, width)

    def _facts(self) -> Iterator[str]:
        tree = self.tree
        if tree.architecture:
            yield tree.architecture
        yield f"{tree.n_parameters:,} parameters"
        yield _counted(len(tree.tensors), "tensor")
        yield human_bytes(tree.nbytes)
        sizes = tree.dtypes
        yield from sizes if len(sizes) == 1 else (f"{dtype} {human_bytes(nbytes)}" for dtype, nbytes in sizes.items())
        yield _counted(len(tree.files), "file")
        metadata = printable_line(", ".join(f"{key}: {value}" for key, value in tree.shown_metadata.items()))
        if metadata:
            yield metadata if len(metadata) <= MAX_METADATA else metadata[:MAX_METADATA] + "..."

    def _rows(self, module: ModuleNode, guides: str, depth: int | None, copies: int, symbols: Symbols) -> Iterator[Row]:
        """The rows of the children of a module that occurs `copies` times."""
        if depth == 0:
            return
        entries = [Fold(label, label, node, 1) for label, node in module.entries] if self.full else fold(module.entries)
        for entry in entries:
            last = entry is entries[-1]
            yield self._row(guides + (symbols.last if last else symbols.branch), entry, copies, symbols)
            if isinstance(entry.node, ModuleNode):
                below = guides + ("    " if last else symbols.down)
                deeper = None if depth is None else depth - 1
                yield from self._rows(entry.node, below, deeper, copies * entry.copies, symbols)

    def _row(self, guides: str, entry: Fold, copies: int, symbols: Symbols) -> Row:
        first, last, node, times = entry
        n_parameters = times * node.n_parameters
        repeated = f"{times} {symbols.times} " if times > 1 else ""
        if isinstance(node, ModuleNode):
            style, dtype, mark = BOLD, "", None
            shape = Segment(repeated and f"{repeated}{node.n_parameters:,}", DIM)
        else:
            style, dtype, mark = PLAIN, node.dtype, node.mark
            shape = Segment(f"{repeated}{node.shape}")
        name = [Segment(guides, DIM), Segment(_label(first), style)]
        if repeated:
            name += [Segment(f" {symbols.to} ", DIM), Segment(_label(last), style)]
            name += [Segment(f" {symbols.times}{times}", ACCENT)]
        parameters = Segment(mark, MARK) if mark else Segment(f"{n_parameters:,}")
        size = Segment(human_bytes(times * node.nbytes), DIM)
        share = copies * n_parameters / max(1, self.tree.n_parameters)
        cells: tuple[Segment, ...] = (Segment(dtype, DTYPE), shape, parameters, size)
        if self.stats is not None:
            cells += _stat_cells(self.stats, node)
        return Row(name, cells, share)


def _stat_cells(of_tensors: Mapping[str, TensorStats], node: ModuleNode | TensorNode) -> tuple[Segment, ...]:
    if isinstance(node, ModuleNode):
        return (Segment(""),) * len(STAT_HEADS)
    stats = of_tensors.get(node.name)
    if stats is None:
        return (Segment("not read", MARK), *(Segment(""),) * (len(STAT_HEADS) - 1))
    values = (
        Segment("" if value is None else f"{value:.4g}") for value in (stats.min, stats.max, stats.mean, stats.std)
    )
    return (*values, *(Segment(f"{n:,}", BAD if n else DIM) for n in (stats.n_nan, stats.n_inf)))


def _table(rows: list[Row], heads: tuple[str, ...], symbols: Symbols, width: int | None) -> Iterator[Segment]:
    """The rows in columns. Within a `width`, columns that do not fit are left out, and bars fill the rest."""
    top = Row([Segment("name", DIM)], tuple(Segment(head, DIM) for head in heads), 0.0)
    rows = [top, *rows]
    name_widths = [sum(cell_len(segment.text) for segment in row.name) for row in rows]
    name_width = max(n for n in name_widths if n <= MAX_ALIGNED)
    columns = {head: max(len(row.cells[i].text) for row in rows) for i, head in enumerate(heads)}
    room = 0 if width is None else width - name_width - sum(columns.values()) - GAP * (len(heads) + 1)
    missing = 0 if width is None else -(room + GAP)
    for head in LEFT_OUT if heads == HEADS else LEFT_OUT_FOR_STATS:
        if missing > 0:
            missing -= columns.pop(head) + GAP
    bar = min(room, MAX_BAR) if room >= MIN_BAR else 0
    gap = " " * GAP
    for row, n in zip(rows, name_widths, strict=True):
        line = [*row.name, Segment(" " * (name_width - n))]
        for head, cell in zip(heads, row.cells, strict=True):
            if head not in columns:
                continue
            pad = " " * (columns[head] - len(cell.text))
            line += [Segment(gap + pad), cell] if head in NUMBERS else [Segment(gap), cell, Segment(pad)]
        if bar:
            share = Segment("share", DIM) if row is top else Segment(_bar(row.share, bar, symbols), ACCENT)
            line += [Segment(gap), share]
        while not line[-1].text.strip():
            line.pop()
        yield from line
        yield Segment.line()


def _wrapped(facts: Iterable[str], separator: str, width: int | None) -> Iterator[Segment]:
    """The facts in lines of at most `width` columns, if they fit."""
    line = ""
    for fact in facts:
        if line and width is not None and cell_len(line + separator + fact) > width:
            yield Segment(line + "\n")
            line = fact
        else:
            line += separator + fact if line else fact
    yield Segment(line + "\n")


def _bar(share: float, width: int, symbols: Symbols) -> str:
    """A bar of `share` of the `width`, rounded to half a column."""
    whole, half = divmod(round(share * width * 2), 2)
    return symbols.bar * whole + symbols.half * half


def _label(label: str) -> str:
    return printable_name(label) or '""'


def _counted(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"
