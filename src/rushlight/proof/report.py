"""The result of a verification: an error and a status per module, the logits, and the reasons for a failure."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rushlight.proof.compare import Distance

__all__ = [
    "DRIFT",
    "TOLERANCES",
    "LogitsResult",
    "ModuleResult",
    "Status",
    "VerifyReport",
    "WeightDifference",
    "free_running_limit",
]

TOLERANCES = {"f64": 1e-5, "f32": 1e-5, "f16": 2e-3, "bf16": 1e-2, "int8": 5e-2, "int6": 2e-1, "int4": 4e-1}
"""The largest relative error of a teacher-forced module: max |difference| / max |recorded|.

At least three times the error seen in correct ports up to the size of GPT-2 124M, and below the error of the mildest
sabotage test. The compute dtype of the backend decides, or the dtype of the recording if that is coarser: f32 holds the
weights of a BF16 checkpoint exactly, while bf16 rounds at least keys and values, whatever the weights.
"""
DRIFT = 100
"""The factor by which the error of a free-running module may exceed the tolerance.

Rounding errors accumulate, and deep models amplify them. A port whose teacher-forced modules are all correct computes
the same function, so this only catches what teacher forcing cannot see. There is no limit for rounded weights: KL and
top-1 agreement measure their effect.
"""

Status = Literal["equal", "diverges", "propagated", "not called", "other shape"]
"""Equal; wrong with the recorded input; right with the recorded input, but fed with a wrong one; never called; of
another shape, and so not compared."""


@dataclass(slots=True)
class ModuleResult:
    """The largest errors of one module over all prompts.

    Attributes:
        path: the module; empty for the model itself.
        kind: the port's layer: `Conv1D(768, 3072)`.
        recorded: PyTorch's description of the recorded module.
        shape: of the output for the first prompt.
        free_running: the distance of the output from the recorded one when the port computes every input itself.
        teacher_forced: the relative error of the output when the module is fed with the recorded inputs; NaN for
            values that are not finite, None if nothing could be compared.
        status: see `Status`.
        cause: why the module diverges, if a tried cause explains it; otherwise empty.
    """

    path: str
    kind: str
    recorded: str
    shape: tuple[int, ...]
    free_running: Distance | None
    teacher_forced: float | None
    status: Status
    cause: str = ""

    @property
    def name(self) -> str:
        """The path, or "(model)" for the model itself."""
        return self.path or "(model)"

    def to_json(self) -> dict[str, Any]:
        run = self.free_running
        return {
            "path": self.path,
            "kind": self.kind,
            "recorded": self.recorded,
            "shape": list(self.shape),
            "status": self.status,
            "max_abs_error": _number(run and run.absolute),
            "relative_error": _number(run and run.relative),
            "cosine": _number(run and run.cosine),
            "non_finite": run.non_finite if run else 0,
            "teacher_forced_error": _number(self.teacher_forced),
            "cause": self.cause or None,
        }


@dataclass(slots=True)
class LogitsResult:
    """The logits of a language model, over all prompts and positions.

    Attributes:
        distance: of the logits that `Model.logits` computes, without hooks.
        kl: the mean of KL(recorded || port) over positions, in nats.
        top1: the fraction of positions with the same most likely token.
        greedy: the number of greedy tokens equal before the first difference, and the number compared.
        near_tie: whether the first difference occurs where the two best logits differ by no more than rounding.
    """

    distance: Distance
    kl: float
    top1: float
    greedy: tuple[int, int] | None = None
    near_tie: bool = False

    def to_json(self) -> dict[str, Any]:
        equal, compared = self.greedy or (None, None)
        return {
            "max_abs_error": _number(self.distance.absolute),
            "relative_error": _number(self.distance.relative),
            "kl_nats": _number(self.kl),
            "top1_agreement": _number(self.top1),
            "greedy_tokens_equal": equal,
            "greedy_tokens": compared,
            "greedy_near_tie": self.near_tie,
        }


@dataclass(frozen=True, slots=True)
class WeightDifference:
    """A tensor of the checkpoint that differs from the recorded one, and how, if that can be determined."""

    name: str
    how: str


@dataclass(slots=True)
class VerifyReport:
    """The result of `rushlight.verify`.

    Attributes:
        source, golden: the two sides, named without their folders, since a report is passed on.
        device, dtype, arithmetic: what the port computed with; see `rushlight.Model`.
        recorded_dtype, made_with: the dtype that PyTorch computed in, and the versions of the libraries.
        weights_sha256: the digest of all recorded weights, as `digest.py` defines it.
        prompts: the number of tokens of each.
        tolerance: of a teacher-forced module.
        modules: in the order in which the port runs them.
        first: the first module that diverges with the recorded inputs; None if none does.
        logits: of a language model.
        weights: tensors that differ from the recorded ones; None if they were not compared.
        notes: what was not compared, and why.
        failures: one sentence for each reason why the port is not proven; empty for a proven port.
    """

    source: str
    golden: str
    device: str
    dtype: str
    arithmetic: str
    recorded_dtype: str
    made_with: dict[str, str]
    weights_sha256: str
    prompts: list[int]
    tolerance: float
    modules: list[ModuleResult]
    first: ModuleResult | None
    logits: LogitsResult | None
    weights: list[WeightDifference] | None
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether the port is proven equal."""
        return not self.failures

    @property
    def limit(self) -> float:
        """The largest relative error of a free-running module; infinity for rounded weights."""
        return free_running_limit(self.tolerance)

    def to_json(self) -> dict[str, Any]:
        """One JSON object; non-finite numbers are null."""
        first = self.first
        return {
            "passed": self.passed,
            "source": self.source,
            "golden": self.golden,
            "device": self.device,
            "dtype": self.dtype,
            "arithmetic": self.arithmetic,
            "recorded_dtype": self.recorded_dtype,
            "made_with": self.made_with,
            "recorded_weights_sha256": self.weights_sha256,
            "prompt_tokens": self.prompts,
            "tolerance": self.tolerance,
            "free_running_tolerance": _number(self.limit),
            "first_divergent": {"path": first.path, "cause": first.cause or None} if first else None,
            "failures": self.failures,
            "logits": self.logits.to_json() if self.logits else None,
            "different_weights": None if self.weights is None else [asdict(each) for each in self.weights],
            "notes": self.notes,
            "modules": [module.to_json() for module in self.modules],
        }


def free_running_limit(tolerance: float) -> float:
    """The largest relative error of a free-running module, for the tolerance of a teacher-forced one."""
    return DRIFT * tolerance if tolerance <= TOLERANCES["f32"] else math.inf


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
