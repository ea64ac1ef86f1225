"""State shared by the checks of one checkpoint: its tensors with every fix so far applied, and the findings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from rushlight.checkpoint import read_config
from rushlight.errors import ConfigError, printable_name
from rushlight.loading.families import for_source
from rushlight.porting.check.fixes import FixScript
from rushlight.porting.check.report import Finding, folded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from rushlight.checkpoint import Checkpoint, Tensor
    from rushlight.porting.check.report import Cause

__all__ = ["Checker", "TensorView", "config_values"]


@dataclass(frozen=True)
class TensorView:
    """A tensor of the checkpoint under the name it has once the fixes so far are applied: a `protocol.Tensor`.

    Attributes:
        tensor: the tensor in the file.
        name: its name after the fixes.
        comparable: whether its data may be read.
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
        """Whether both hold the same bytes; assumed where the data may not be read."""
        return not self.comparable or self.tensor.same_data(other.tensor)

    def float32(self) -> NDArray[np.float32]:
        return self.tensor.float32()

    def read_into(self, raw: NDArray[np.uint8], start: int) -> None:
        self.tensor.read_into(raw, start)


class Checker:
    """The state that each check reads, and adds its findings to.

    Attributes:
        checkpoint: the checkpoint that is checked.
        readable: whether its data may be read.
        tensors: views of its tensors, by their names after the fixes so far.
        findings: problems and notes, in the order they were found.
        fix_script: the script that applies the fixes.
    """

    def __init__(self, checkpoint: Checkpoint, *, readable: bool) -> None:
        self.checkpoint = checkpoint
        self.readable = readable
        self.tensors = {name: TensorView(tensor, name, readable) for name, tensor in checkpoint.items()}
        self.findings: list[Finding] = []
        self.fix_script = FixScript(checkpoint)

    @cached_property
    def config_values(self) -> Mapping[str, Any]:
        """The contents of config.json; empty if it is absent or invalid, which `check_config` reports."""
        return config_values(self.checkpoint)

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
        """Adds a reason why the checkpoint does not fit, with the tensors that show it and a detail for each."""
        self._add(tensors, cause=cause, is_problem=True, title=title, why=why, fix=fix, in_script=in_script)

    def note(
        self, cause: Cause, title: str, why: str = "", fix: str = "", tensors: Iterable[tuple[TensorView, str]] = ()
    ) -> None:
        """Adds something worth knowing that does not keep the checkpoint from fitting."""
        self._add(tensors, cause=cause, is_problem=False, title=title, why=why, fix=fix)

    def rename(self, rename: Callable[[str], str]) -> list[tuple[TensorView, str]]:
        """Renames every tensor, and returns those whose name changed, with the new name as the detail.

        Two tensors that would share a name are a problem; the first of them keeps it.
        """
        changed = []
        tensors: dict[str, TensorView] = {}
        for name, view in self.tensors.items():
            new = rename(name)
            if new in tensors:
                title = f"two tensors would both be named {printable_name(new)}"
                self.problem("duplicate", title, fix="keep one of them", tensors=[(view, "")])
                continue
            tensors[new] = view if new == name else replace(view, name=new)
            if new != name:
                changed.append((view, f"→ {new}"))
        self.tensors = tensors
        return changed

    def _add(self, tensors: Iterable[tuple[TensorView, str]], **finding: Any) -> None:
        shown = [(view.tensor.name, detail) for view, detail in tensors]
        names = tuple(name for name, _ in shown)
        finding["fix"] = for_source(finding["fix"], self.checkpoint.source)
        self.findings.append(Finding(**finding, evidence=folded(shown), tensors=names))


def config_values(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """The contents of a checkpoint's config.json; empty if it is absent or invalid."""
    path = checkpoint.sidecar("config.json")
    try:
        return read_config(path) if path else {}
    except ConfigError:
        return {}
