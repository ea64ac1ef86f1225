"""Verifies a port against a recording of the PyTorch model: which module is the first to diverge, and why?

Each prompt goes through the port twice. The free-running pass computes every module from the port's own values, and
measures the distance of each output from the recorded one. The teacher-forced pass calls every module with its recorded
input, and hands the recorded output to the caller, so that each module is judged independently of errors before it:

    it returns another output for the recorded input        the module diverges
    it passes another input than recorded to a submodule    its own code between submodules diverges
    both are right, but the free-running output is wrong    the error is propagated from an earlier module

A transposed weight shows in its own layer, a missing scale in the attention around the layers, and an embedding that is
off by one row in the module that computed the positions.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rushlight.checkpoint import PackedTensor
from rushlight.errors import GoldenError, RequestError, first_ten
from rushlight.generation.sampling.logprobs import log_softmax
from rushlight.nn import Activation, NameRules, Rotary
from rushlight.proof.compare import Distance, distance, oriented
from rushlight.proof.digest import digest_of_all
from rushlight.proof.golden import Golden, read_golden
from rushlight.proof.report import TOLERANCES, LogitsResult, ModuleResult, VerifyReport, free_running_limit
from rushlight.proof.runs import FreeRunning, TeacherForced, View
from rushlight.proof.weights import weight_differences
from rushlight.runtime.model import Model

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping
    from collections.abc import Set as AbstractSet

    from numpy.typing import NDArray

    from rushlight.checkpoint import Tensor
    from rushlight.nn import Module
    from rushlight.proof.report import Status

__all__ = ["verify"]

_RECORDED_IN = {"float32": "f32", "float64": "f32", "bfloat16": "bf16", "float16": "f16"}
"""PyTorch's compute dtype -> the dtype that decides the tolerance."""


def verify(
    model: Model | Module,
    golden: Golden | str | os.PathLike[str],
    *,
    checkpoint: Mapping[str, Tensor] | None = None,
    tolerance: float | None = None,
    source: str | None = None,
) -> VerifyReport:
    """Run a port on the recorded prompts, and compare every module with PyTorch's module of the same path.

    Args:
        model: a loaded model, or a bound module that takes a batch.
        golden: the recording, or the path of its file.
        checkpoint: the tensors that the model was loaded from, to compare with the recorded weights; None skips this.
        tolerance: of a teacher-forced module, relative to the largest recorded value; None takes it from TOLERANCES.
        source: the name of the model in the report.

    Raises:
        SourceError, FormatError, TruncatedError: the golden file cannot be read.
        GoldenError: the file is not a recording, has no module in common with the port, or holds invalid numbers.
        RequestError: the port cannot compute a recorded prompt, or the tolerance is not positive.
    """
    if not isinstance(golden, Golden):
        golden = read_golden(golden)
    module = model.module if isinstance(model, Model) else model
    rules = getattr(module, "rules", NameRules())
    # A converted checkpoint may have other numbers than the recorded one: within the tolerance of its format.
    packed = [each for each in (checkpoint or {}).values() if isinstance(each, PackedTensor)]
    rounded = {each.packing.format for each in packed if each.is_rounded}
    compared = None if rounded else checkpoint
    if tolerance is None:
        tolerance = _tolerance(rounded or module.ops.weight_dtypes, golden.dtype)
    elif not 0 < tolerance < math.inf:
        raise RequestError("invalid tolerance", expected="a positive number", found=tolerance)

    logits = _logits(model, golden, tolerance) if isinstance(model, Model) else None
    kv_shape = model.config.kv_shape if isinstance(model, Model) else None
    views = [View(module, case, rules, tolerance, golden.name) for case in golden.cases]
    if not any(view.calls.keys() & view.modules.keys() - {""} for view in views):
        paths = ", ".join([call.path for call in golden.cases[0].calls if call.path][:5])
        raise GoldenError(
            "the recording is of another model: it has no module in common with the port",
            file=golden.name,
            found=paths or "no modules",
        )
    runs = [FreeRunning(view, kv_shape) for view in views]
    forced = [TeacherForced(view, kv_shape) for view in views]
    modules = _results(runs, forced, tolerance)
    divergences = [divergence for run in forced for divergence in run.divergences]
    first = min(divergences, key=lambda divergence: divergence.time).path if divergences else None
    report = VerifyReport(
        source=source or (model.name if isinstance(model, Model) else module.describe()),
        golden=Path(golden.name).name,
        device=module.ops.device,
        dtype=module.ops.dtype_label,
        arithmetic=module.ops.arithmetic,
        recorded_dtype=golden.dtype,
        made_with=golden.made_with,
        weights_sha256=digest_of_all(golden.weights),
        prompts=[len(case.ids) for case in golden.cases],
        tolerance=tolerance,
        modules=modules,
        first=next((result for result in modules if result.path == first), None),
        logits=logits,
        weights=None if compared is None else weight_differences(compared, golden, rules),
        notes=_notes(views[0], compared, rules, golden.weights),
    )
    report.failures = _failures(report, model, golden)
    return report


def _tolerance(weight_dtypes: AbstractSet[str], recorded_in: str) -> float:
    """The tolerance for the dtypes of the port's weights and the dtype of the recording."""
    # A checkpoint's own dtypes are kept without rounding; if one of them is f32, so are keys and values.
    ours = TOLERANCES["f32"] if "f32" in weight_dtypes else max(TOLERANCES[dtype] for dtype in weight_dtypes)
    return max(ours, TOLERANCES[_RECORDED_IN.get(recorded_in, "f32")])


def _results(runs: list[FreeRunning], forced: list[TeacherForced], tolerance: float) -> list[ModuleResult]:
    """The modules in the order of the run, each with its largest errors."""
    view = runs[0].view
    results: dict[str, ModuleResult] = {}
    for run in runs:
        for path, shape, apart in run.distances:
            if path not in results:
                kind, recorded = view.modules[path].describe(), run.view.description(path)
                results[path] = ModuleResult(path, kind, recorded, shape, apart, None, "other shape")
            elif apart is not None and not _worse(results[path].free_running, apart):
                results[path].free_running = apart
    for each in forced:
        for divergence in each.divergences:
            if divergence.path not in results:
                recorded = each.view.description(divergence.path)
                kind = view.modules[divergence.path].describe()
                results[divergence.path] = ModuleResult(divergence.path, kind, recorded, (), None, None, "diverges")
    causes: dict[str, str] = {}
    for each in forced:
        for divergence in sorted(each.divergences, key=lambda divergence: divergence.time):
            causes.setdefault(divergence.path, divergence.cause)
    for path, result in results.items():
        errors = [each.errors[path] for each in forced if path in each.errors]
        result.teacher_forced = max(errors, key=lambda e: (math.isnan(e), e), default=None)
        result.cause = causes.get(path, "")
    diverged = False
    for path, result in results.items():
        diverged = diverged or path in causes
        result.status = _status(result, path in causes, tolerance if diverged else free_running_limit(tolerance))
    return list(results.values())


def _worse(one: Distance | None, other: Distance) -> bool:
    """Whether `one` is the larger distance."""
    return one is not None and (math.isnan(one.relative) or one.relative >= other.relative)


def _status(result: ModuleResult, diverges: bool, limit: float) -> Status:
    if diverges:
        return "not called" if result.free_running is None and not result.shape else "diverges"
    if result.free_running is None:
        return "other shape"
    return "equal" if result.free_running.within(limit) else "propagated"


def _logits(model: Model, golden: Golden, tolerance: float) -> LogitsResult | None:
    """The logits and greedy tokens of the model without hooks; None if logits were not recorded."""
    worst: Distance | None = None
    kl: list[float] = []
    same, greedy, tie = [], (0, 0), False
    for case in golden.cases:
        found = model.logits(case.ids)
        call = next((call for call in case.calls if call.path == ""), None)
        recorded = None if call is None else oriented(case.output(call), found)
        if recorded is None:
            return None
        apart = distance(found, recorded)
        worst = worst if worst is not None and _worse(worst, apart) else apart
        kl += map(_divergence, found, recorded)
        same.append(found.argmax(axis=-1) == recorded.argmax(axis=-1))
        if case.greedy_ids and model.module.causal and math.isfinite(apart.relative):
            ids = model.generate(case.ids, max_tokens=len(case.greedy_ids), ignore_eos=True).ids
            equal = next(
                (i for i, pair in enumerate(zip(ids, case.greedy_ids, strict=False)) if pair[0] != pair[1]), len(ids)
            )
            greedy = (greedy[0] + equal, greedy[1] + len(case.greedy_ids))
            if equal < len(case.greedy_ids):
                rounding = 20 * tolerance * float(np.abs(recorded).max())
                tie = case.greedy_margins[equal] <= rounding
    if worst is None:
        return None
    compared = greedy if greedy[1] else None
    return LogitsResult(worst, float(np.mean(kl)), float(np.concatenate(same).mean()), compared, tie)


def _divergence(found: NDArray[np.floating], recorded: NDArray[np.floating]) -> float:
    """The Kullback-Leibler divergence of one row of logits (V,) from the recorded one, in nats."""
    ours, theirs = log_softmax(found), log_softmax(recorded)
    return float((np.exp(theirs) * (theirs - ours)).sum())


def _notes(
    view: View, checkpoint: Mapping[str, Tensor] | None, rules: NameRules, golden_weights: Iterable[str]
) -> list[str]:
    notes = []
    # Only modules with weights: activations, rotary embeddings and containers may be written in other ways.
    weighted = {rules.module_path(name).rpartition(".")[0] for name in golden_weights}
    missing = [
        name
        for name, call in view.calls.items()
        if name in weighted and name not in view.modules and call.output is not None and call.output != call.input
    ]
    if missing:
        notes.append(f"recorded modules that the port does not have: {', '.join(first_ten(missing))}")
    unrecorded = [
        path
        for path, module in view.modules.items()
        if path not in view.calls
        and not isinstance(module, Activation | Rotary)
        and next(module.children(), None) is None
        and "__call__" in dir(module)
    ]
    if unrecorded:
        notes.append(f"modules of the port that were not recorded: {', '.join(first_ten(unrecorded))}")
    if view.not_comparable:
        names = ", ".join(first_ten(view.not_comparable))
        notes.append(f"rotary angles, which are compared only through the attention that uses them: {names}")
    if checkpoint is None:
        notes.append("the weights were not compared with the recorded ones")
    return notes


def _failures(report: VerifyReport, model: Model | Module, golden: Golden) -> list[str]:
    """The reasons why the port is not proven, the most specific first."""
    failures = []
    if report.first is not None:
        others = sum(result.status in ("diverges", "not called") for result in report.modules) - 1
        cause = f": {report.first.cause}" if report.first.cause else ""
        more = f" ({others} more diverge{'s' if others == 1 else ''} independently)" if others else ""
        failures.append(f"{report.first.name} is the first module that diverges{cause}{more}")
    if report.weights:
        shown = "; ".join(f"{each.name} ({each.how})" for each in report.weights[:3])
        more = f"; and {len(report.weights) - 3} more" if len(report.weights) > 3 else ""
        failures.append(f"the weights differ from the recorded ones: {shown}{more}")
    accumulated = [result for result in report.modules if result.status == "propagated"]
    if accumulated and report.first is None:
        failures.append(
            f"no single module diverges, but errors accumulate: {accumulated[0].name} is the first beyond the limit"
        )
    output = next((result for result in report.modules if not result.path), None)
    if output is None or output.free_running is None:
        failures.append("the output of the model was not compared: the recording has none of this shape")
    logits = report.logits
    if logits is not None and not logits.distance.within(report.limit if report.first is None else report.tolerance):
        failures.append(f"the logits are off by {_percent(logits.distance)}")
    if logits is not None and logits.greedy is not None and report.tolerance <= TOLERANCES["f32"]:
        equal, compared = logits.greedy
        if equal < compared and not logits.near_tie:
            failures.append(f"the greedy tokens differ from the recorded ones after {equal} of {compared}")
    return failures + _misread_texts(model, golden)


def _percent(apart: Distance) -> str:
    if apart.non_finite:
        return f"{apart.non_finite:,} values that are NaN or infinite"
    return f"{apart.relative:.2g} of the largest (absolute {apart.absolute:.2g})"


def _misread_texts(model: Model | Module, golden: Golden) -> list[str]:
    """The recorded texts that the port's tokenizer encodes differently."""
    if not isinstance(model, Model) or model.tokenizer is None:
        return []
    misread = [case for case in golden.cases if case.text and model.prompt_ids(case.text) != case.ids]
    return [f"the tokenizer encodes {case.text[:40]!r} differently" for case in misread if case.text]
