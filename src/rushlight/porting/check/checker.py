"""A checkpoint under examination: what was found so far, and how its tensors look once that is fixed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rushlight.errors import printable_name
from rushlight.porting.check.fixes import FixScript
from rushlight.porting.check.report import Finding, folded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy as np
    from numpy.typing import NDArray

    from rushlight.checkpoint import Checkpoint, Tensor
    from rushlight.porting.check.report import Cause

__all__ = ["Checker", "TensorView"]


@dataclass(frozen=True)
class TensorView:
    """A tensor as it is once what was found so far is fixed: a `backends.protocol.Tensor` of another name.

    Attributes:
        tensor: as the file has it.
        name: its fixed name.
        comparable: whether its data may be looked at.
    """

    tensor: Tensor
    name: str
    comparable: bool

    @property
    def dtype(self) -> str:
        return self.tensor.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    def same_data(self, other: Any) -> bool:
        """Whether both hold the same bytes; taken for granted where the data may not be looked at."""
        return not self.comparable or self.tensor.same_data(other.tensor)

    def float32(self) -> NDArray[np.float32]:
        return self.tensor.float32()

    def read_into(self, raw: NDArray[np.uint8], start: int) -> None:
        self.tensor.read_into(raw, start)


class Checker:
    """What is passed from one look to the next.

    Attributes:
        checkpoint: what is examined.
        readable: whether its data may be looked at.
        tensors: how its tensors look by now, by fixed name.
        findings: what was found.
        fixes: the script that fixes it.
    """

    def __init__(self, checkpoint: Checkpoint, *, readable: bool) -> None:
        self.checkpoint = checkpoint
        self.readable = readable
        self.tensors = {name: TensorView(tensor, name, readable) for name, tensor in checkpoint.items()}
        self.findings: list[Finding] = []
        self.fix_script = FixScript(checkpoint)

    def problem(
        self,
        cause: Cause,
        title: str,
        why: str = "",
        fix: str = "",
        tensors: Iterable[tuple[TensorView, str]] = (),
        *,
        in_script: bool = False,
    ) -> None:
        """Adds a cause for which the checkpoint does not fit; `tensors` are those it shows in, each with a detail."""
        self._add(tensors, cause=cause, is_problem=True, title=title, why=why, fix=fix, in_script=in_script)

    def note(
        self, cause: Cause, title: str, why: str = "", fix: str = "", tensors: Iterable[tuple[TensorView, str]] = ()
    ) -> None:
        """Adds something to know that keeps nothing from fitting."""
        self._add(tensors, cause=cause, is_problem=False, title=title, why=why, fix=fix)

    def rename(self, rename: Callable[[str], str]) -> list[tuple[TensorView, str]]:
        """Gives every tensor its new name, and returns those that changed, with the new name as the detail.

        Where two tensors would have one name, that is a problem of its own, and the first stands.
        """
        changed = []
        tensors: dict[str, TensorView] = {}
        for name, seen in self.tensors.items():
            new = rename(name)
            if new in tensors:
                self.problem(
                    "duplicate", f"two tensors would be {printable_name(new)}", fix="keep one", tensors=[(seen, "")]
                )
                continue
            tensors[new] = seen if new == name else replace(seen, name=new)
            if new != name:
                changed.append((seen, f"→ {new}"))
        self.tensors = tensors
        return changed

    def _add(self, tensors: Iterable[tuple[TensorView, str]], **finding: Any) -> None:
        shown = [(seen.tensor.name, detail) for seen, detail in tensors]
        names = tuple(name for name, _ in shown)
        self.findings.append(Finding(**finding, evidence=folded(shown), tensors=names))
