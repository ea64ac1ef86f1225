"""The two runs of a port over a recorded prompt: as it is, and with the recording put in."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from rushlight.backends.batch import BLOCK_SIZE, Batch, Chunk
from rushlight.errors import GoldenError, RequestError
from rushlight.nn import Embedding, NameRules, tapped
from rushlight.proof.compare import Distance, distance, oriented
from rushlight.proof.diagnosis.causes import why_input, why_output
from rushlight.proof.diagnosis.trial import ITS_INPUT, Source, Trial

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rushlight.backends.batch import KVShape
    from rushlight.nn import Module
    from rushlight.proof.golden import Call, Case

__all__ = ["Alone", "Free", "View"]


class View:
    """One prompt of the recording under the port's paths."""

    def __init__(self, module: Module, case: Case, rules: NameRules, tolerance: float, golden: str) -> None:
        self.module = module
        self.golden = golden
        """Where the recording comes from, for errors."""
        self.ops = module.ops
        self.modules = dict(module.named_modules())
        self.case = case
        self.tolerance = tolerance
        self.calls = {rules.canonical(call.path): call for call in case.calls}
        """By path, from a module's second call on with "#2", "#3", ... after it."""

    def check_prompt(self, path: str, ids: Any) -> None:
        """Checks that a table has a row for each id of the prompt, where it is called with the prompt itself.

        Raises:
            RequestError: it has not.
        """
        module = self.modules[path]
        if not isinstance(module, Embedding) or not _is_ids(ids) or ids.tolist() != self.case.ids:
            return
        if outside := [i for i in self.case.ids if not 0 <= i < module.n_ids]:
            raise RequestError(
                f"{path} has no row for tokens of the recorded prompt",
                file=self.golden,
                expected=f"ids from 0 to {module.n_ids - 1}",
                found=", ".join(map(str, outside[:5])),
            )

    def check_ids(self, call: Call, recorded: NDArray[Any], path: str, dtype: np.dtype[Any]) -> None:
        """Checks that what a module was called with can be the ids that the port calls it with.

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
            f"{path} cannot be called with what was recorded",
            file=self.golden,
            tensor=call.input,
            expected=expected,
            found=wrong,
            remedy="record it again, of the same model",
        )

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

    def __init__(self, view: View, kv_shape: KVShape | None) -> None:
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
        if args:
            self.view.check_prompt(path, args[0])
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


class Free(_Run):
    """The port as it is: how far each output is from the recorded one, in the order in which they come."""

    def __init__(self, view: View, kv_shape: KVShape | None) -> None:
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


class Alone(_Run):
    """The port with the recording put in: what each module does by itself."""

    def __init__(self, view: View, kv_shape: KVShape | None) -> None:
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
        if call is None or recorded is None:
            return args
        if _is_ids(args[0]):
            self.view.check_ids(call, recorded, running.path, args[0].dtype)
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
