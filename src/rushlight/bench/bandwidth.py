"""Times only reading the weights of a decode step: the upper bound on its speed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from rushlight.host.threads import usable_cores
from rushlight.nn import Conv1D, Linear

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rushlight.backends.protocol import Weight
    from rushlight.runtime.model import Model


@runtime_checkable
class ReadsWeights(Protocol):
    """A backend that can read a loaded matrix as its matrix products do, without computing."""

    def read(self, weight: Weight) -> None:
        """Reads every byte of the weight once, with the backend's threads, memory layout and prefetching."""
        ...


class WeightReader:
    """Reads as many bytes as the weights of a decode step have.

    A backend that is `ReadsWeights` reads the model's own weights; for others NumPy reads an array of the same size, in
    one sequential stream per core.

    Attributes:
        name: "weights" or "numpy".
        nbytes: bytes per reading.
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
    """The weights that a decode step reads entirely: those of all linear layers, the head included, no embeddings."""
    return [module.weight for _, module in model.module.named_modules() if isinstance(module, Linear | Conv1D)]


def _weights_reader(ops: ReadsWeights, weights: Sequence[Weight]) -> Callable[[], None]:
    def read() -> None:
        for weight in weights:
            ops.read(weight)

    return read


def _numpy_reader(nbytes: int) -> Callable[[], None]:
    cores = usable_cores()
    pool = ThreadPoolExecutor(cores)
    parts = np.array_split(np.ones(nbytes, np.uint8), cores)  # ones, not zeros: the pages must be backed by memory

    def read() -> None:
        # A maximum over bytes is the cheapest operation in NumPy that reads them all.
        list(pool.map(np.max, parts))

    return read
