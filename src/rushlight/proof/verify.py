"""Verifying a port against a recording: which module is the first that does not do what PyTorch's did?

Each prompt goes through the port twice. First as it is: how far each module's output is from the recorded one, with all
that came before in it. Then with the recording put in: every module is called with the input that was recorded, and
its caller is handed the output that was recorded. So each module is judged alone, whatever is wrong before it:

    its output, computed from the recorded input, is another    the module diverges
    it hands a module inside it another input than recorded     what it computes in between diverges
    both are right, and its output is wrong in the first run    it only carries on what came before

A transposed weight shows in its own layer, a scale that is missing in the attention around the layers, and an embedding
that is looked up one row too far in the module that counted the positions.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rushlight.errors import GoldenError, RequestError, first_ten
from rushlight.nn import NameRules
from rushlight.proof.compare import Distance, distance, oriented
from rushlight.proof.digest import digest_of_all
from rushlight.proof.golden import Golden, read_golden
from rushlight.proof.report import TOLERANCES, LogitsResult, ModuleResult, Report, run_limit
from rushlight.proof.runs import Alone, Free, View
from rushlight.proof.weights import weight_differences
from rushlight.runtime.model import Model

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping
    from collections.abc import Set as AbstractSet

    from numpy.typing import NDArray

    from rushlight.checkpoint import Tensor
    from rushlight.nn import Module
    from rushlight.proof.report import Status

__all__ = ["verify"]

_RECORDED_IN = {"float32": "f32", "float64": "f32", "bfloat16": "bf16", "float16": "f16"}
"""What PyTorch computed in -> the dtype whose tolerance that asks for."""


def verify(
    model: Model | Module,
    golden: Golden | str | os.PathLike[str],
    *,
    checkpoint: Mapping[str, Tensor] | None = None,
    tolerance: float | None = None,
    source: str | None = None,
) -> Report:
    """Runs a port on the recorded prompts and compares every module with what PyTorch's of the same path did.

    Args:
        model: a loaded model, or a bound module that is called with a batch.
        golden: the recording, or the path of the file that holds it.
        checkpoint: the tensors the model was loaded from, to compare with the recorded weights; None leaves that out.
        tolerance: of a module alone, relative to the largest recorded value; None is that of the dtype in TOLERANCES.
        source: what the user calls the model.

    Raises:
        SourceError, FormatError, TruncatedError: the golden file cannot be read.
        GoldenError: it is not one, it was recorded of something else, since no module of the port is in it, or it holds
            numbers that cannot be what was recorded.
        RequestError: the port cannot take a recorded prompt, or the tolerance is no positive number.
    """
    if not isinstance(golden, Golden):
        golden = read_golden(golden)
    module = model.module if isinstance(model, Model) else model
    rules = getattr(module, "rules", NameRules())
    if tolerance is None:
        tolerance = _tolerance(module.ops.weight_dtypes, golden.dtype)
    elif not 0 < tolerance < math.inf:
        raise RequestError("a tolerance is a positive number", found=tolerance)

    logits = _logits(model, golden, tolerance) if isinstance(model, Model) else None
    kv_shape = model.config.kv_shape if isinstance(model, Model) else None
    views = [View(module, case, rules, tolerance, golden.name) for case in golden.cases]
    if not any(view.calls.keys() & view.modules.keys() - {""} for view in views):
        paths = ", ".join([call.path for call in golden.cases[0].calls if call.path][:5])
        raise GoldenError(
            "it was recorded of something else: no module of the port is in it",
            file=golden.name,
            found=paths or "no modules",
        )
    runs = [Free(view, kv_shape) for view in views]
    alone = [Alone(view, kv_shape) for view in views]
    modules = _results(runs, alone, tolerance)
    slips = [slip for each in alone for slip in each.slips]
    first = min(slips, key=lambda slip: slip.time).path if slips else None
    report = Report(
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
        weights=None if checkpoint is None else weight_differences(checkpoint, golden, rules),
        notes=_notes(views[0], checkpoint, rules),
    )
    report.failures = _failures(report, model, golden)
    return report


def _tolerance(weight_dtypes: AbstractSet[str], recorded_in: str) -> float:
    """The tolerance for the dtypes of the port's weights and the dtype of the recording."""
    # A checkpoint's own dtypes are kept without rounding; if one of them is f32, so are keys and values.
    ours = TOLERANCES["f32"] if "f32" in weight_dtypes else max(TOLERANCES[dtype] for dtype in weight_dtypes)
    return max(ours, TOLERANCES[_RECORDED_IN.get(recorded_in, "f32")])


def _results(runs: list[Free], alone: list[Alone], tolerance: float) -> list[ModuleResult]:
    """The modules in the order in which the port ran them, each with its largest errors."""
    view = runs[0].view
    results: dict[str, ModuleResult] = {}
    for run in runs:
        for path, shape, apart in run.distances:
            if path not in results:
                kind, recorded = view.modules[path].describe(), run.view.calls[path].repr
                results[path] = ModuleResult(path, kind, recorded, shape, apart, None, "other shape")
            elif apart is not None and not _worse(results[path].run, apart):
                results[path].run = apart
    for each in alone:
        for slip in each.slips:
            if slip.path not in results:
                recorded = each.view.calls[slip.path].repr if slip.path in each.view.calls else ""
                kind = view.modules[slip.path].describe()
                results[slip.path] = ModuleResult(slip.path, kind, recorded, (), None, None, "diverges")
    causes: dict[str, str] = {}
    for each in alone:
        for slip in sorted(each.slips, key=lambda slip: slip.time):
            causes.setdefault(slip.path, slip.cause)
    for path, result in results.items():
        errors = [each.errors[path] for each in alone if path in each.errors]
        result.alone = max(errors, key=lambda e: (math.isnan(e), e), default=None)
        result.cause = causes.get(path, "")
    diverged = False
    for path, result in results.items():
        diverged = diverged or path in causes
        result.status = _status(result, path in causes, tolerance if diverged else run_limit(tolerance))
    return list(results.values())


def _worse(one: Distance | None, other: Distance) -> bool:
    """Whether `one` is farther off."""
    return one is not None and (math.isnan(one.relative) or one.relative >= other.relative)


def _status(result: ModuleResult, slipped: bool, limit: float) -> Status:
    if slipped:
        return "not called" if result.run is None and not result.shape else "diverges"
    if result.run is None:
        return "other shape"
    return "equal" if result.run.within(limit) else "carries"


def _logits(model: Model, golden: Golden, tolerance: float) -> LogitsResult | None:
    """What a user of the model gets, without hooks; None if the logits were not recorded."""
    worst: Distance | None = None
    kl, same, greedy, tie = [], [], (0, 0), False
    for case in golden.cases:
        found = model.logits(case.ids)
        call = next((call for call in case.calls if call.path == ""), None)
        recorded = None if call is None else oriented(case.output(call), found)
        if recorded is None:
            return None
        apart = distance(found, recorded)
        worst = worst if worst is not None and _worse(worst, apart) else apart
        ours, theirs = _log_softmax(found), _log_softmax(recorded)
        kl.append((np.exp(theirs) * (theirs - ours)).sum(axis=-1))
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
    return LogitsResult(worst, float(np.concatenate(kl).mean()), float(np.concatenate(same).mean()), compared, tie)


def _log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):
        shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
        result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def _notes(view: View, checkpoint: Mapping[str, Tensor] | None, rules: NameRules) -> list[str]:
    notes = []
    # What stands for a prefix only holds modules that are compared.
    known = {*view.modules, *(prefix.rstrip(".") for prefix in rules.prefixes)}
    missing = [
        name
        for name, call in view.calls.items()
        if name.partition("#")[0] not in known and call.output is not None and call.output != call.input
    ]
    if missing:
        notes.append(f"recorded, and no module of the port: {', '.join(first_ten(missing))}")
    unrecorded = [path for path, module in view.modules.items() if path not in view.calls and "__call__" in dir(module)]
    if unrecorded:
        notes.append(f"in the port, and not recorded: {', '.join(first_ten(unrecorded))}")
    if checkpoint is None:
        notes.append("whether these are the recorded weights was not looked at")
    return notes


def _failures(report: Report, model: Model | Module, golden: Golden) -> list[str]:
    """Why the port is not proven, the most telling reason first."""
    failures = []
    if report.first is not None:
        others = sum(result.status in ("diverges", "not called") for result in report.modules) - 1
        cause = f": {report.first.cause}" if report.first.cause else ""
        more = f" ({others} more diverge{'s by itself' if others == 1 else ' by themselves'})" if others else ""
        failures.append(f"{report.first.name} is the first module that diverges{cause}{more}")
    if report.weights:
        shown = "; ".join(f"{each.name} ({each.how})" for each in report.weights[:3])
        more = f"; and {len(report.weights) - 3} more" if len(report.weights) > 3 else ""
        failures.append(f"these are not the recorded weights: {shown}{more}")
    adrift = [result for result in report.modules if result.status == "carries"]
    if adrift and report.first is None:
        failures.append(
            f"no module diverges by itself, and errors add up: {adrift[0].name} is the first that is too far off"
        )
    whole = next((result for result in report.modules if not result.path), None)
    if whole is None or whole.run is None:
        failures.append("what the whole model puts out was not compared: the recording has none of this shape")
    logits = report.logits
    if logits is not None and not logits.distance.within(report.limit if report.first is None else report.tolerance):
        failures.append(f"the logits are off by {_percent(logits.distance)}")
    if logits is not None and logits.greedy is not None and report.tolerance <= TOLERANCES["f32"]:
        equal, compared = logits.greedy
        if equal < compared and not logits.near_tie:
            failures.append(f"greedy text leaves the recorded one after {equal} of {compared} tokens")
    return failures + _misread_texts(model, golden)


def _percent(apart: Distance) -> str:
    if apart.non_finite:
        return f"{apart.non_finite:,} values that are NaN or infinite"
    return f"{apart.relative:.2g} of the largest (absolute {apart.absolute:.2g})"


def _misread_texts(model: Model | Module, golden: Golden) -> list[str]:
    """The recorded texts that the port's tokenizer reads as other tokens."""
    if not isinstance(model, Model) or model.tokenizer is None:
        return []
    misread = [case for case in golden.cases if case.text and model.tokenizer.encode(case.text) != case.ids]
    return [f"the tokenizer reads other tokens in {case.text[:40]!r}" for case in misread if case.text]
