"""What a verification found, as data."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rushlight.proof.compare import Distance

__all__ = ["DRIFT", "TOLERANCES", "LogitsResult", "ModuleResult", "Report", "Status", "WeightDifference", "run_limit"]

TOLERANCES = {"f64": 1e-5, "f32": 1e-5, "f16": 2e-3, "bf16": 1e-2, "int8": 5e-2, "int4": 4e-1}
"""How far a module that is given the recorded input may be off: max |difference| / max |recorded|.

Three times and more of what was seen of right ports, up to the sizes of GPT-2 124M, and below what the mildest of the
sabotage tests does. What a backend computes in decides, or a recording in a rounder dtype: f32 holds the weights of a
BF16 checkpoint exactly; in bf16 keys and values at least are rounded, whatever the weights were.
"""
DRIFT = 100
"""How many times the tolerance a module may be off in the run, where rounding adds up and deep models enlarge it.

A port whose modules are right alone computes the same function, so this only guards against what escaped that. Where
weights are rounded there is no such limit: what rounding costs is what KL and top-1 agreement tell.
"""

Status = Literal["equal", "diverges", "carries", "not called", "other shape"]
"""equal; wrong by itself; right by itself and wrong because of what it is given; never called; not to be compared."""


@dataclass(slots=True)
class ModuleResult:
    """One module, over all prompts: the largest errors.

    Attributes:
        path: the module; empty for the whole model.
        kind: what it is here, in a few words: `Conv1D(768, 3072)`.
        recorded: what PyTorch says of its own.
        shape: of its output for the first prompt.
        run: how far its output is from the recorded one, as the port runs.
        alone: the relative error of what it does by itself, given the recorded inputs; NaN for what is not finite. None
            if there was nothing to compare.
        status: what to think of it.
        cause: why it diverges, as far as that could be found by trying; or an empty text.
    """

    path: str
    kind: str
    recorded: str
    shape: tuple[int, ...]
    run: Distance | None
    alone: float | None
    status: Status
    cause: str = ""

    @property
    def name(self) -> str:
        """The path; words for the whole model, whose path is empty."""
        return self.path or "(model)"

    def to_json(self) -> dict[str, Any]:
        run = self.run
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
            "relative_error_alone": _number(self.alone),
            "cause": self.cause or None,
        }


@dataclass(slots=True)
class LogitsResult:
    """The logits of a language model, over all prompts and positions.

    Attributes:
        distance: of the logits as `Model.logits` computes them, without any hook.
        kl: the mean of KL(recorded || port) over positions, in nats.
        top1: the share of positions with the same most likely token.
        greedy: how many tokens of greedy text were compared and how many were equal before the first other one.
        near_tie: the first other token came where the two best were as near to each other as rounding is.
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
    """A tensor of the checkpoint that is not the recorded one, and how it differs, as far as that can be told."""

    name: str
    how: str


@dataclass(slots=True)
class Report:
    """A verification.

    Attributes:
        source, golden: the two sides, named without the paths to them: a report is passed on.
        device, dtype, arithmetic: what the port computed with; see `rushlight.Model`.
        recorded_dtype, made_with: what PyTorch computed in, and which versions.
        weights_sha256: the digest of all the recorded weights, as `digest.py` defines it.
        prompts: tokens in each.
        tolerance: of a module alone.
        modules: in the order in which the port runs them.
        first: the first module that diverges by itself; None if none does.
        logits: of a language model.
        weights: tensors that are not the recorded ones; None if they were not compared.
        notes: what was recorded and not compared, and the like.
        failures: why it is not proven, a sentence each; empty for a proven port.
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
        """How far a module may be off in the run; infinity where weights are rounded."""
        return run_limit(self.tolerance)

    def to_json(self) -> dict[str, Any]:
        """One JSON object; numbers that are not finite are null."""
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
            "tolerance_of_the_run": _number(self.limit),
            "first_divergent": {"path": first.path, "cause": first.cause or None} if first else None,
            "failures": self.failures,
            "logits": self.logits.to_json() if self.logits else None,
            "weights_that_differ": None if self.weights is None else [asdict(each) for each in self.weights],
            "notes": self.notes,
            "modules": [module.to_json() for module in self.modules],
        }


def run_limit(tolerance: float) -> float:
    """How far a module may be off in the run, where it may be off by `tolerance` alone."""
    return DRIFT * tolerance if tolerance <= TOLERANCES["f32"] else math.inf


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
