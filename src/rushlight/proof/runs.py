"""The two passes of a port over a recorded prompt: free-running and teacher-forced."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from rushlight.backends.batch import BLOCK_SIZE, Batch, Chunk
from rushlight.errors import GoldenError, RequestError
from rushlight.nn import Embedding, NameRules, Rotary, tapped
from rushlight.proof.compare import Distance, distance, oriented
from rushlight.proof.diagnosis.causes import why_input, why_output
from rushlight.proof.diagnosis.operations import Noted, NotedOperations
from rushlight.proof.diagnosis.rotary import cosines_then_sines
from rushlight.proof.diagnosis.trial import ITS_INPUT, Source, Trial

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rushlight.backends.batch import KVShape
    from rushlight.nn import Module
    from rushlight.proof.golden import Call, Case

__all__ = ["FreeRunning", "TeacherForced", "View"]


class View:
    """One prompt of the recording, with the port's names for its modules."""

    def __init__(self, module: Module, case: Case, rules: NameRules, tolerance: float, golden: str) -> None:
        self.module = module
        self.golden = golden
        """The name of the recording, for errors."""
        self.ops = module.ops
        self.modules = dict(module.named_modules())
        self.case = case
        self.tolerance = tolerance
        self.calls = {rules.module_path(call.path): call for call in case.calls}
        """By path; a module's second and later calls have "#2", "#3", ... appended."""
        found = ((call, cosines_then_sines(case.outputs(call))) for call in case.calls if call.more)
        self.angles = [(call, angles) for call, angles in found if angles is not None]
        """The recorded rotary angles, in the port's layout, whatever the names of their modules."""
        rotary = [path for path, part in self.modules.items() if isinstance(part, Rotary)]
        self.not_comparable = [] if self.angles else rotary
        """Modules that are not compared, because the recording has no angles."""

    def recorded(self, running: ModuleCall, found: NDArray[Any] | None) -> tuple[Call | None, NDArray[Any] | None]:
        """The recorded call of the port's, and its output in the shape of the port's; None where there is none."""
        if isinstance(self.modules[running.path], Rotary):
            return self._angles(running, found)
        call = self.calls.get(running.call)
        return call, None if call is None or found is None else oriented(self.case.output(call), found)

    def _angles(self, running: ModuleCall, found: NDArray[Any] | None) -> tuple[Call | None, NDArray[Any] | None]:
        """The angles of a rotary module: those of its name, or the closest, because models with two have one module."""
        if found is None or not self.angles:
            return None, None
        same = [(call, angles) for call, angles in self.angles if angles.shape == found.shape] or self.angles
        own = self.calls.get(running.call)
        if running.path + "#2" not in self.calls and any(call is own for call, _ in same):
            return next((call, angles) for call, angles in same if call is own)
        if same is self.angles:
            return same[0]
        return min(same, key=lambda pair: distance(found, pair[1]).absolute)

    def description(self, path: str) -> str:
        """PyTorch's description of a module; empty if it was not recorded."""
        if path in self.calls:
            return self.calls[path].repr
        is_rotary = isinstance(self.modules[path], Rotary) and bool(self.angles)
        return self.angles[0][0].repr if is_rotary else ""

    def check_prompt(self, path: str, ids: Any) -> None:
        """Check that an embedding called with the prompt has a row for each of its ids.

        Raises:
            RequestError: it lacks some.
        """
        module = self.modules[path]
        if not isinstance(module, Embedding) or not _is_ids(ids) or ids.tolist() != self.case.ids:
            return
        if outside := [i for i in self.case.ids if not 0 <= i < module.n_ids]:
            raise RequestError(
                f"{path} has no rows for some tokens of the recorded prompt",
                file=self.golden,
                expected=f"ids from 0 to {module.n_ids - 1}",
                found=", ".join(map(str, outside[:5])),
            )

    def check_ids(self, call: Call, recorded: NDArray[Any], path: str, dtype: np.dtype[Any]) -> None:
        """Check that a recorded input consists of valid ids for the module.

        Raises:
            GoldenError: it holds other numbers, or ids beyond the module's table.
        """
        module = self.modules[path]
        last = (module.n_ids if isinstance(module, Embedding) else np.iinfo(dtype).max + 1) - 1
        if recorded.dtype.kind not in "iu":
            expected, wrong = "integers", recorded.dtype.name
        elif outside := [int(i) for i in recorded.reshape(-1) if not 0 <= i <= last]:
            expected, wrong = f"ids from 0 to {last}", ", ".join(map(str, outside[:5]))
        else:
            return
        raise GoldenError(
            f"the recorded input of {path} is invalid",
            file=self.golden,
            tensor=call.input,
            expected=expected,
            found=wrong,
            remedy="record the same model again",
        )

    def elsewhere(self, like: NDArray[Any], call: str) -> list[Source]:
        """The outputs of other modules that have this shape."""
        sources: dict[str, Source] = {}
        for name, other in self.calls.items():
            values = oriented(self.case.output(other), like) if name != call else None
            if values is not None and other.output is not None:
                sources.setdefault(other.output, Source(f"the output of {name or 'the model'}", values))
        return list(sources.values())


@dataclass(slots=True)
class ModuleCall:
    """A call in progress: its input, and the inner calls that have finished."""

    call: str
    path: str
    given: NDArray[Any] | None = None
    ended: list[str] = field(default_factory=list)
    noted: Noted = field(default_factory=Noted)


class PromptRun(ABC):
    """A pass of the port over one prompt. Calls are numbered as in the recording."""

    def __init__(self, view: View, kv_shape: KVShape | None) -> None:
        self.view = view
        self._n_calls: Counter[str] = Counter()
        self._stack: list[ModuleCall] = []
        ids = view.case.ids
        blocks = range(-(-len(ids) // BLOCK_SIZE))
        cache = None if kv_shape is None else view.ops.kv_cache(kv_shape, len(blocks))
        tree: Any = tapped(view.module, self._end, pre_hook=self._begin)
        self._ops = NotedOperations(view.ops)
        for _, part in tree.named_modules():
            part.ops = self._ops
        with np.errstate(all="ignore"):  # overflow shows in the outputs
            tree(Batch.of([Chunk(ids, 0, blocks, all_logits=True)], cache))

    def _begin(self, path: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        self._n_calls[path] += 1
        n = self._n_calls[path]
        running = ModuleCall(path if n == 1 else f"{path}#{n}", path)
        self._stack.append(running)
        self._ops.noted = running.noted
        if args:
            self.view.check_prompt(path, args[0])
        return self.begin(running, args)

    def _end(self, _path: str, output: Any) -> Any:
        running = self._stack.pop()
        output = self.end(running, output)
        if self._stack:
            self._stack[-1].ended.append(running.call)
            self._ops.noted = self._stack[-1].noted
        return output

    @abstractmethod
    def begin(self, running: ModuleCall, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Called before a module computes, with its arguments; returns the arguments to use."""

    @abstractmethod
    def end(self, running: ModuleCall, output: Any) -> Any:
        """Called with a module's output; returns the output to hand to the caller."""

    def array(self, x: Any) -> NDArray[Any] | None:
        """A copy of an activation or of ids in host memory; None for anything else."""
        if isinstance(x, Batch) or not hasattr(x, "shape"):
            return None
        # A copy, because a backend's arrays may be views of memory that it reuses.
        return np.array(x if _is_ids(x) else self.view.ops.to_numpy(x))


class FreeRunning(PromptRun):
    """Computes every module from the port's own values; records the distance of each output, in order."""

    def __init__(self, view: View, kv_shape: KVShape | None) -> None:
        self.distances: list[tuple[str, tuple[int, ...], Distance | None]] = []
        super().__init__(view, kv_shape)

    def begin(self, _running: ModuleCall, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return args

    def end(self, running: ModuleCall, output: Any) -> Any:
        found = self.array(output)
        call, recorded = self.view.recorded(running, found)
        if call is not None and found is not None:
            same = recorded is not None and recorded.shape == found.shape
            apart = distance(found, recorded) if recorded is not None and same else None
            self.distances.append((running.path, found.shape, apart))
        return output


@dataclass(frozen=True, slots=True)
class Divergence:
    """A difference from the recording that a module makes with recorded inputs."""

    time: float
    path: str
    cause: str


class TeacherForced(PromptRun):
    """Feeds every module with its recorded input, so that each is judged independently."""

    def __init__(self, view: View, kv_shape: KVShape | None) -> None:
        self.errors: dict[str, float] = {}
        self.divergences: list[Divergence] = []
        self._time = 0
        self._ended_at: dict[str, int] = {}
        self._input_causes: dict[str, str] = {}
        super().__init__(view, kv_shape)
        self._not_called()

    def begin(self, running: ModuleCall, args: tuple[Any, ...]) -> tuple[Any, ...]:
        self._time += 1
        call, given = self.view.calls.get(running.call), self.array(args[0]) if args else None
        if given is None:
            return args
        running.given = given
        recorded = None if call is None else oriented(self.view.case.input(call), given)
        if call is None or recorded is None:
            return args
        if _is_ids(args[0]):
            self.view.check_ids(call, recorded, running.path, args[0].dtype)
        running.given = recorded
        if len(self._stack) > 1:
            caller = self._stack[-2]
            if not self._judge(caller.path, distance(given, recorded)):
                module, inner_module = self.view.modules[caller.path], self.view.modules[running.path]
                cause = why_input(module, inner_module, self._trial(caller, given, recorded, running.call))
                self._input_causes[running.call] = cause
                inner = _inside(running.call, caller.path)
                self._diverge(caller.path, f"before {inner}" if cause else f"it passes another input to {inner}", cause)
        if _is_ids(args[0]):
            return (recorded.astype(args[0].dtype), *args[1:])
        return (self.view.ops.from_numpy(np.ascontiguousarray(recorded, np.float32)), *args[1:])

    def end(self, running: ModuleCall, output: Any) -> Any:
        self._time += 1
        self._ended_at[running.call] = self._time
        found = self.array(output)
        call, recorded = self.view.recorded(running, found)
        if call is None or found is None or recorded is None:
            return output
        module = self.view.modules[running.path]
        if recorded.shape != found.shape:  # angles of another width
            self.errors[running.path] = math.nan
            self._diverge(
                running.path, "", why_output(module, running.given, self._trial(running, found, recorded, ""))
            )
            return output
        right = self._judge(running.path, distance(found, recorded))
        eps = getattr(module, "eps", None)
        if call.eps is not None and isinstance(eps, float) and not math.isclose(eps, call.eps, rel_tol=1e-6):
            self._diverge(running.path, "", f"eps is {eps:g}, but {call.eps:g} in the recording")
        elif not right:
            trial = self._trial(running, found, recorded, running.call)
            self._diverge(running.path, "", why_output(module, running.given, trial))
        return self.view.ops.from_numpy(np.ascontiguousarray(recorded, np.float32))

    def _judge(self, path: str, apart: Distance) -> bool:
        """Keep the largest error of a module; return whether this one is within the tolerance."""
        # NaN is larger than any error.
        self.errors[path] = max(apart.relative, self.errors.get(path, 0.0), key=lambda e: (math.isnan(e), e))
        return apart.within(self.view.tolerance)

    def _diverge(self, path: str, where: str, cause: str) -> None:
        self.divergences.append(Divergence(self._time, path, ": ".join(part for part in (where, cause) if part)))

    def _trial(self, running: ModuleCall, found: NDArray[Any], recorded: NDArray[Any], call: str) -> Trial:
        """The arrays to explain, and those that were available to the module `running`."""
        sources = {}
        if running.given is not None:
            sources[ITS_INPUT] = Source(ITS_INPUT, running.given)
        for ended in running.ended:
            inner = self.view.calls.get(ended)
            values = None if inner is None else self.view.case.output(inner)
            if inner is not None and inner.output is not None and values is not None:
                # A convolution has (C, N): transpose it, even if its C differs from that of the array to explain.
                turned = values.ndim == 2 and len(values) != len(found) and values.shape[1] == len(found)
                like = values.T if turned else oriented(values, found)
                name = _inside(ended, running.path)
                sources.setdefault(inner.output, Source(name, values if like is None else like))
        return Trial(
            found,
            recorded,
            list(sources.values()),
            self.view.elsewhere(found, call),
            self.view.tolerance,
            self._later(running, found, call),
            running.noted,
            [angles for _, angles in self.view.angles],
        )

    def _later(self, running: ModuleCall, found: NDArray[Any], call: str) -> list[Source]:
        """The recorded outputs of the submodules that the port has not called yet."""
        later = []
        for name, inner in self.view.calls.items():
            rest = _inside(name, running.path)
            is_child = rest != name or not running.path
            if not is_child or not rest or rest.count(".") or name == call or name in running.ended:
                continue
            values = oriented(self.view.case.output(inner), found)
            if values is not None and values.dtype.kind == "f":
                later.append(Source(rest, values))
        return later

    def _not_called(self) -> None:
        """Add the modules that PyTorch called and the port has but does not call, at their place in the order."""
        before = 0.0
        for name, call in self.view.calls.items():
            path = name.partition("#")[0]
            if name in self._ended_at:
                before = self._ended_at[name]
            elif path in self.view.modules and call.output is not None:
                self.errors[path] = math.nan
                self.divergences.append(Divergence(before + 0.5, path, self._left_out(name, call)))

    def _left_out(self, name: str, call: Call) -> str:
        """That the port never calls a module, and where the recording uses its output."""
        cause = "the port never calls it"
        consumers = [path for path, other in self.view.calls.items() if other.input == call.output != call.input]
        consumers = [path for path in consumers if not path.startswith(f"{name}.")]
        if not consumers:
            return cause
        consumer = min(consumers, key=lambda path: path.count("."))  # not a submodule of it with the same input
        instead = self._input_causes.get(consumer, "").partition(" where the recording has ")[0]
        used = f"{cause}; its output goes to {consumer} in the recording"
        if not instead.startswith("it computes "):
            return used
        parent = f"the input of {consumer.rpartition('.')[0] or 'the model'}"
        return f"{used}, where the port has {instead.removeprefix('it computes ').replace(ITS_INPUT, parent)}"


def _is_ids(x: Any) -> bool:
    return isinstance(x, np.ndarray) and x.dtype.kind in "iu"


def _inside(call: str, path: str) -> str:
    return call.removeprefix(f"{path}.") if path else call
