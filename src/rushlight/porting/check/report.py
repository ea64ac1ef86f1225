"""The report of a check: findings by cause, each with evidence and a suggested fix."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Cause", "CheckReport", "Evidence", "Finding", "folded", "with_n"]

Cause = Literal[
    "architecture",
    "framework",
    "prefix",
    "duplicate",
    "transposed",
    "blocks",
    "biases",
    "missing",
    "renamed",
    "unexpected",
    "buffers",
    "shape",
    "dtype",
    "tie",
    "config",
    "tokenizer",
    "values",
    "unknown",
]
"""Why a checkpoint does not fit; `unknown` marks what cannot be determined."""

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


class Evidence(NamedTuple):
    """A tensor that shows a cause, or `n_tensors` of them that differ only in their block number, written `N`."""

    name: str
    detail: str = ""
    n_tensors: int = 1


@dataclass(frozen=True)
class Finding:
    """One cause, with its evidence and a suggested fix.

    Attributes:
        cause: a keyword for programs.
        is_problem: whether it keeps the checkpoint from fitting; otherwise it is a note.
        title: the cause in a few words.
        why: what it means, in sentences.
        fix: the suggested fix; empty if nothing needs to be done.
        evidence: the tensors or fields that show it; equal blocks are one entry.
        tensors: the names of all tensors concerned, as the file has them.
        in_script: whether the report's script fixes it.
    """

    cause: Cause
    is_problem: bool
    title: str
    why: str = ""
    fix: str = ""
    evidence: tuple[Evidence, ...] = ()
    tensors: tuple[str, ...] = ()
    in_script: bool = False


@dataclass(frozen=True)
class CheckReport:
    """Whether a checkpoint fits a model, and every reason why it does not.

    Attributes:
        source: the checkpoint as the user named it.
        saved_by: the program that wrote the checkpoint, inferred from names and shapes; None if they do not show it.
        model: the model it was compared with: `gpt2 (n_layer 12, n_embd 768, n_head 12)`; None if unknown.
        n_tensors: the number of tensors in the checkpoint.
        data: whether the tensors' values were checked: "read", or why not: "skipped", "elsewhere".
        findings: problems first, then notes.
        script: Python that writes a fixed copy, as far as fixes need no decision; None if there are none.
    """

    source: str
    saved_by: str | None
    model: str | None
    n_tensors: int
    data: Literal["read", "skipped", "elsewhere"]
    findings: tuple[Finding, ...]
    script: str | None

    @property
    def fits(self) -> bool:
        """Whether the checkpoint can be loaded."""
        return not any(finding.is_problem for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """The report as plain data, as `rushlight check --json` prints it: its attributes, and `fits`."""
        return {"fits": self.fits, **asdict(self)} | {
            "findings": [
                asdict(finding) | {"evidence": [each._asdict() for each in finding.evidence]}
                for finding in self.findings
            ]
        }


def with_n(name: str) -> str:
    """A tensor's name with N in place of block numbers."""
    return _NUMBER.sub("N", name)


def folded(items: Iterable[tuple[str, str]]) -> tuple[Evidence, ...]:
    """(name, detail) pairs as evidence; pairs that differ only in their block number become one entry."""
    groups: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for name, detail in items:
        groups.setdefault((with_n(name), with_n(detail)), []).append((name, detail))
    return tuple(
        Evidence(*group[0]) if len(group) == 1 else Evidence(*pattern, len(group)) for pattern, group in groups.items()
    )
