"""What a check finds: causes, each with its evidence and its fix."""

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
"""Why a checkpoint does not fit; `unknown` is for what cannot be told."""

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


class Evidence(NamedTuple):
    """What a cause shows in: a tensor, or `n_tensors` of them that differ in their block's number, written `N`."""

    name: str
    detail: str = ""
    n_tensors: int = 1


@dataclass(frozen=True)
class Finding:
    """One cause.

    Attributes:
        cause: its word.
        is_problem: whether it keeps the checkpoint from fitting; else it is a note.
        title: what it is, in a few words.
        why: what that means, in sentences.
        fix: what to do, in sentences; empty if there is nothing to do.
        evidence: the tensors or fields it shows in, equal blocks as one.
        tensors: the names, as the file has them, of all tensors concerned.
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
    """How a checkpoint and a model go together.

    Attributes:
        source: what the user named.
        saved_by: what wrote the checkpoint, as its names and shapes tell; None if they do not.
        model: what it was compared with, in words: `gpt2 (n_layer 12, n_embd 768, n_head 12)`; None if unknown.
        n_tensors: in the checkpoint.
        data: whether the tensors' values were looked at: "read", or why not: "skipped", "elsewhere".
        findings: problems first, then notes.
        script: Python that writes a copy in which what is fixed by rote is fixed; None if nothing is.
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
        """Whether nothing keeps the checkpoint from being loaded."""
        return not any(finding.is_problem for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """The report as plain data, what `rushlight check --json` prints: its attributes, and `fits`."""
        return {"fits": self.fits, **asdict(self)} | {
            "findings": [
                asdict(finding) | {"evidence": [each._asdict() for each in finding.evidence]}
                for finding in self.findings
            ]
        }


def with_n(name: str) -> str:
    """A tensor's name with N in place of its blocks' numbers."""
    return _NUMBER.sub("N", name)


def folded(items: Iterable[tuple[str, str]]) -> tuple[Evidence, ...]:
    """(name, detail) of tensors as evidence, with those that differ in their block's number put into one."""
    groups: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for name, detail in items:
        groups.setdefault((with_n(name), with_n(detail)), []).append((name, detail))
    return tuple(
        Evidence(*group[0]) if len(group) == 1 else Evidence(*pattern, len(group)) for pattern, group in groups.items()
    )
