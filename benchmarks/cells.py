"""The cells of a benchmark run: kinds of work that are timed for each runtime and format."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.models import BenchmarkModel

BATCH_SIZE = 16
PROMPTS = (512, 2048)
POSITIONS = (2048, 8192)

SELDOM = 3
"""Cells that take long are measured in every third round, which leaves three samples of nine rounds."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A kind of work.

    Attributes:
        title: what it is called in reports.
        do, arguments: the request to a worker.
        n_tokens: tokens that the rate counts, those of all sequences.
        n_sequences: the batch size.
        position: positions before the last token.
        every: 1 is every round.
        is_long: a decode at a long context, which only a `LongRuntime` has.
        is_long_prompt: a prompt that slow runtimes are not measured at.
    """

    title: str
    do: str
    arguments: dict[str, int] = field(default_factory=dict)
    n_tokens: int
    n_sequences: int = 1
    position: int
    every: int = 1
    is_long: bool = False
    is_long_prompt: bool = False

    def work(self) -> dict[str, object]:
        """What the machine's limits on it depend on."""
        names = ("do", "n_tokens", "n_sequences", "position", "every")
        return {name: getattr(self, name) for name in names}


def cells(model: BenchmarkModel, tokens: int) -> dict[str, Cell]:
    """Names -> the cells that a model's context has room for; a decode is `tokens` long, or half of that."""
    seldom = SELDOM if model.is_large else 1
    tokens = max(1, tokens // 2 if model.is_large else tokens)
    half = max(1, tokens // 2)
    found = {
        "decode": Cell(
            title="decode, one sequence",
            do="decode",
            arguments={"n_sequences": 1, "n_tokens": tokens},
            n_tokens=tokens,
            position=16 + tokens,
        ),
        "batch": Cell(
            title=f"decode, batch size {BATCH_SIZE}",
            do="decode",
            arguments={"n_sequences": BATCH_SIZE, "n_tokens": half},
            n_tokens=BATCH_SIZE * half,
            n_sequences=BATCH_SIZE,
            position=16 + half,
            every=seldom,
        ),
    }
    for n in dict.fromkeys(min(n, model.context) for n in PROMPTS):
        is_long = n > PROMPTS[0]
        found[f"prefill {n}"] = Cell(
            title=f"prefill of {n:,}",
            do="prefill",
            arguments={"n_tokens": n},
            n_tokens=n,
            position=n,
            every=SELDOM if is_long else 1,
            is_long_prompt=is_long,
        )
    for position in POSITIONS[:1] if model.is_large else POSITIONS:
        if position <= model.context:
            found[f"decode at {position}"] = Cell(
                title=f"decode at {position:,} positions",
                do="decode_at",
                arguments={"position": position, "n_tokens": half},
                n_tokens=half,
                position=position,
                every=seldom,
                is_long=True,
            )
    return found
