"""The bytes of weights that a decode step reads, and how fast this machine can read as many."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from rushlight.bench.machine import usable_cores
from rushlight.nn import Conv1D, Linear

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rushlight.backends.protocol import Weight
    from rushlight.runtime.model import Model


@runtime_checkable
class ReadsWeights(Protocol):
    """A backend that can read a placed matrix the way its products do, and compute nothing with it."""

    def read(self, weight: Weight) -> None:
        """Reads every byte of the weight once, with the backend's threads, layout and prefetch."""
        ...


class Reader:
    """Reads as many bytes as a decode step reads of weights.

    A backend that is `ReadsWeights` reads the model's own; for others NumPy reads a plain array of the same size, in
    one sequential stream a core.

    Attributes:
        name: "weights" or "numpy".
        nbytes: bytes read each time.
    """

    def __init__(self, model: Model) -> None:
        weights = matrices(model)
        self.nbytes = sum(int(weight.nbytes) for weight in weights)
        ops = model.module.ops
        if isinstance(ops, ReadsWeights):
            self.name, self._read = "weights", _weights_reader(ops, weights)
        else:
            self.name, self._read = "numpy", _numpy_reader(self.nbytes)

    def time(self) -> float:
        """Seconds for one reading."""
        start = perf_counter()
        self._read()
        return perf_counter() - start


def matrices(model: Model) -> list[Weight]:
    """The placed weights that a decode step reads whole: of every product, the head's too, but of no table."""
    return [module.weight for _, module in model.module.named_modules() if isinstance(module, Linear | Conv1D)]


def _weights_reader(ops: ReadsWeights, weights: Sequence[Weight]) -> Callable[[], None]:
    def read() -> None:
        for weight in weights:
            ops.read(weight)

    return read


def _numpy_reader(nbytes: int) -> Callable[[], None]:
    cores = usable_cores()
    pool = ThreadPoolExecutor(cores)
    parts = np.array_split(np.ones(nbytes, np.uint8), cores)  # written, so that the pages are there

    def read() -> None:
        # The maximum of bytes is the least arithmetic a byte that NumPy has: the reading is what takes the time.
        list(pool.map(np.max, parts))

    return read
