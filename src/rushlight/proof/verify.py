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
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from rushlight.backends.batch import BLOCK_SIZE, Batch, Chunk
from rushlight.errors import GoldenError, RequestError
from rushlight.model import Model
from rushlight.nn import NameRules, tapped
from rushlight.proof.causes import ITS_INPUT, Source, Trial, why_input, why_output
from rushlight.proof.compare import Distance, distance, oriented
from rushlight.proof.digest import digest_of_all
from rushlight.proof.golden import Golden, read_golden
from rushlight.proof.report import TOLERANCES, LogitsResult, ModuleResult, Report, run_limit
from rushlight.proof.weights import weight_differences

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from rushlight.backends.batch import KVShape
    from rushlight.checkpoint import Tensor
    from rushlight.nn import Module
    from rushlight.proof.golden import Case
    from rushlight.proof.report import Status

__all__ = ["verify"]

_RECORDED_IN = {"float32": "f32", "float64": "f32", "bfloat16": "bf16", "float16": "f16"}
"""What PyTorch computed in -> the dtype whose tolerance that asks for."""
_WIDTH = {"F64": 3, "F32": 2, "BF16": 1, "F16": 1}


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
        GoldenError: it is not one, or it was recorded of something else: no module of the port is in it.
        RequestError: the port cannot take a recorded prompt, or the tolerance is no positive number.
    """
    if not isinstance(golden, Golden):
        golden = read_golden(golden)
    module = model.module if isinstance(model, Model) else model
    rules = getattr(module, "rules", NameRules())
    if tolerance is None:
        tolerance = _tolerance(module.ops.dtype, golden.dtype, checkpoint)
    elif not 0 < tolerance < math.inf:
        raise RequestError("a tolerance is a positive number", found=tolerance)

    logits = _logits(model, golden, tolerance) if isinstance(model, Model) else None
    kv_shape = model.config.kv_shape if isinstance(model, Model) else None
    views = [_View(module, case, rules, tolerance) for case in golden.cases]
    if not any(view.calls.keys() & view.modules.keys() - {""} for view in views):
        paths = ", ".join([call.path for call in golden.cases[0].calls if call.path][:5])
        raise GoldenError(
            "it was recorded of something else: no module of the port is in it",
            file=golden.name,
            found=paths or "no modules",
        )
    runs = [_Free(view, kv_shape) for view in views]
    alone = [_Alone(view, kv_shape) for view in views]
    modules = _results(runs, alone, tolerance)
    slips = [slip for each in alone for slip in each.slips]
    first = min(slips, key=lambda slip: slip.time).path if slips else None
    report = Report(
        source=source or (model.name if isinstance(model, Model) else module.describe()),
        golden=golden.name,
        device=module.ops.device,
        dtype=module.ops.dtype,
        recorded_dtype=golden.dtype,
        made_with=golden.made_with,
        weights_sha256=digest_of_all(golden.weights),
        prompts=[len(case.ids) for case in golden.cases],
        tolerance=tolerance,
        modules=modules,
        first=next((result for result in modules if result.path == first), None),
        logits=logits,
        weights=None if checkpoint is None else weight_differences(checkpoint, golden, rules),
        notes=_notes(views[0], checkpoint),
    )
    report.failures = _failures(report, model, golden)
    return report


class _View:
    """One prompt of the recording under the port's paths."""

    def __init__(self, module: Module, case: Case, rules: NameRules, tolerance: float) -> None:
        self.module = module
        self.ops = module.ops
        self.modules = dict(module.named_modules())
        self.case = case
        self.tolerance = tolerance
        self.calls = {rules.canonical(call.path): call for call in case.calls}
        """By path, from a module's second call on with "#2", "#3", ... behind it."""

    def elsewhere(self, like: NDArray[Any], call: str) -> list[Source]:
        """Every other array of this shape that a module returned."""
        sources: dict[str, Source] = {}
        for name, other in self.calls.items():
            values = oriented(self.case.output(other), like) if name != call else None
            if values is not None and other.output is not None:
                sources.setdefault(other.output, Source(f"the output of {name or 'the model'}", values))
        return list(sources.values())


@dataclass(slots=True)
class _Running:
    """A call that has begun: what it was given, and the calls inside it that have ended."""

    call: str
    path: str
    given: NDArray[Any] | None = None
    ended: list[str] = field(default_factory=list)


class _Run(ABC):
    """A run of the port over one prompt. Calls are numbered as in the recording."""

    def __init__(self, view: _View, kv_shape: KVShape | None) -> None:
        self.view = view
        self._n_calls: Counter[str] = Counter()
        self._running: list[_Running] = []
        ids = view.case.ids
        blocks = range(-(-len(ids) // BLOCK_SIZE))
        cache = None if kv_shape is None else view.ops.kv_cache(kv_shape, len(blocks))
        tree: Any = tapped(view.module, self._end, enter=self._begin)
        with np.errstate(all="ignore"):  # what overflows shows in the outputs
            tree(Batch.of([Chunk(ids, 0, blocks, all_logits=True)], cache))

    def _begin(self, path: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        self._n_calls[path] += 1
        n = self._n_calls[path]
        running = _Running(path if n == 1 else f"{path}#{n}", path)
        self._running.append(running)
        return self.begin(running, args)

    def _end(self, _path: str, output: Any) -> Any:
        running = self._running.pop()
        output = self.end(running, output)
        if self._running:
            self._running[-1].ended.append(running.call)
        return output

    @abstractmethod
    def begin(self, running: _Running, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Called with a module's arguments before it computes; returns those that it gets."""

    @abstractmethod
    def end(self, running: _Running, output: Any) -> Any:
        """Called with what it computed; returns what its caller gets."""

    def array(self, x: Any) -> NDArray[Any] | None:
        """A copy of an activation or of ids in host memory; None for what is neither."""
        if isinstance(x, Batch) or not hasattr(x, "shape"):
            return None
        # A copy: a backend's arrays may be views of memory that it will use again.
        return np.array(x if _is_ids(x) else self.view.ops.to_numpy(x))


class _Free(_Run):
    """The port as it is: how far each output is from the recorded one, in the order in which they come."""

    def __init__(self, view: _View, kv_shape: KVShape | None) -> None:
        self.distances: list[tuple[str, tuple[int, ...], Distance | None]] = []
        super().__init__(view, kv_shape)

    def begin(self, _running: _Running, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return args

    def end(self, running: _Running, output: Any) -> Any:
        call, found = self.view.calls.get(running.call), self.array(output)
        if call is not None and found is not None:
            recorded = oriented(self.view.case.output(call), found)
            apart = None if recorded is None else distance(found, recorded)
            self.distances.append((running.path, found.shape, apart))
        return output


@dataclass(frozen=True, slots=True)
class _Slip:
    """A place where a module does otherwise than was recorded, given what was recorded."""

    time: float
    path: str
    cause: str


class _Alone(_Run):
    """The port with the recording put in: what each module does by itself."""

    def __init__(self, view: _View, kv_shape: KVShape | None) -> None:
        self.errors: dict[str, float] = {}
        self.slips: list[_Slip] = []
        self._time = 0
        self._ended_at: dict[str, int] = {}
        super().__init__(view, kv_shape)
        self._not_called()

    def begin(self, running: _Running, args: tuple[Any, ...]) -> tuple[Any, ...]:
        self._time += 1
        call, given = self.view.calls.get(running.call), self.array(args[0]) if args else None
        if given is None:
            return args
        running.given = given
        recorded = None if call is None else oriented(self.view.case.input(call), given)
        if recorded is None:
            return args
        running.given = recorded
        if len(self._running) > 1:
            caller = self._running[-2]
            if not self._judge(caller.path, distance(given, recorded)):
                cause = why_input(self.view.modules[caller.path], self._trial(caller, given, recorded, running.call))
                self._slip(caller.path, f"before {_inside(running.call, caller.path)}", cause)
        if _is_ids(args[0]):
            return (recorded.astype(args[0].dtype), *args[1:])
        return (self.view.ops.from_numpy(np.ascontiguousarray(recorded, np.float32)), *args[1:])

    def end(self, running: _Running, output: Any) -> Any:
        self._time += 1
        self._ended_at[running.call] = self._time
        call, found = self.view.calls.get(running.call), self.array(output)
        recorded = None if call is None or found is None else oriented(self.view.case.output(call), found)
        if call is None or found is None or recorded is None:
            return output
        module = self.view.modules[running.path]
        right = self._judge(running.path, distance(found, recorded))
        eps = getattr(module, "eps", None)
        if call.eps is not None and isinstance(eps, float) and not math.isclose(eps, call.eps, rel_tol=1e-6):
            self._slip(running.path, "", f"eps is {eps:g}, and the recording has {call.eps:g}")
        elif not right:
            trial = self._trial(running, found, recorded, running.call)
            self._slip(running.path, "", why_output(module, running.given, trial))
        return self.view.ops.from_numpy(np.ascontiguousarray(recorded, np.float32))

    def _judge(self, path: str, apart: Distance) -> bool:
        """Keeps the largest error of a module; whether this one is within the tolerance."""
        # NaN is larger than any error.
        self.errors[path] = max(apart.relative, self.errors.get(path, 0.0), key=lambda e: (math.isnan(e), e))
        return apart.within(self.view.tolerance)

    def _slip(self, path: str, where: str, cause: str) -> None:
        self.slips.append(_Slip(self._time, path, ": ".join(part for part in (where, cause) if part)))

    def _trial(self, running: _Running, found: NDArray[Any], recorded: NDArray[Any], call: str) -> Trial:
        """What is to be explained, with what the module `running` had at hand."""
        sources = {}
        if running.given is not None:
            sources[ITS_INPUT] = Source(ITS_INPUT, running.given)
        for ended in running.ended:
            inner = self.view.calls.get(ended)
            values = None if inner is None else self.view.case.output(inner)
            if inner is not None and inner.output is not None and values is not None:
                # (C, N) of a convolution is turned, also where C is not that of what is to be explained.
                turned = values.ndim == 2 and len(values) != len(found) and values.shape[1] == len(found)
                like = values.T if turned else oriented(values, found)
                name = _inside(ended, running.path)
                sources.setdefault(inner.output, Source(name, values if like is None else like))
        return Trial(found, recorded, list(sources.values()), self.view.elsewhere(found, call), self.view.tolerance)

    def _not_called(self) -> None:
        """Modules that PyTorch called and the port has and does not call, at the time when they should have been."""
        before = 0.0
        for name, call in self.view.calls.items():
            path = name.partition("#")[0]
            if name in self._ended_at:
                before = self._ended_at[name]
            elif path in self.view.modules and call.output is not None:
                self.errors[path] = math.nan
                self.slips.append(_Slip(before + 0.5, path, "the port never calls it"))


def _is_ids(x: Any) -> bool:
    return isinstance(x, np.ndarray) and x.dtype.kind in "iu"


def _inside(call: str, path: str) -> str:
    return call.removeprefix(f"{path}.") if path else call


def _tolerance(dtype: str, recorded_in: str, checkpoint: Mapping[str, Tensor] | None) -> float:
    """The tolerance for what the port computes in and what was recorded in."""
    words = dtype.split("/")
    kept = {"f64": 3, "f32": 2, "bf16": 1, "f16": 1}.get(words[0], 0)
    # Weights that are kept as the checkpoint has them are exact, whatever they are.
    widest = max((_WIDTH.get(tensor.dtype, 0) for tensor in (checkpoint or {}).values()), default=0)
    exact = len(words) > 1 or (kept > 0 and kept >= min(widest, 2))
    return max(TOLERANCES["f32" if exact else words[0]], TOLERANCES[_RECORDED_IN.get(recorded_in, "f32")])


def _results(runs: list[_Free], alone: list[_Alone], tolerance: float) -> list[ModuleResult]:
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


def _notes(view: _View, checkpoint: Mapping[str, Tensor] | None) -> list[str]:
    notes = []
    missing = [
        name
        for name, call in view.calls.items()
        if name.partition("#")[0] not in view.modules and call.output is not None and call.output != call.input
    ]
    if missing:
        notes.append(f"recorded, and no module of the port: {', '.join(missing[:8])}{' …' if missing[8:] else ''}")
    unrecorded = [path for path, module in view.modules.items() if path not in view.calls and "__call__" in dir(module)]
    if unrecorded:
        notes.append(f"in the port, and not recorded: {', '.join(unrecorded[:8])}{' …' if unrecorded[8:] else ''}")
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
