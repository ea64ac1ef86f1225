"""Whether other programs took part in the figures of a measurement."""

from __future__ import annotations

import statistics
from contextlib import contextmanager
from time import perf_counter, thread_time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from rushlight.bench.sample import Sample

MOST_HELD_UP = 0.1
"""The share of the time that the measuring thread may be without a core: what the kernel itself takes is far less."""

MOST_SWITCHES = 30
"""Involuntary context switches a second that an idle machine stays below."""

MOST_SPREAD = 1.5
"""The fastest over the slowest of times that should be alike."""


def involuntary_switches() -> int:
    """How often the kernel took a core from a thread of this process, since it began; 0 where it does not say."""
    try:
        import resource
    except ImportError:  # not on Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


class Watch:
    """Adds up what the blocks that it measures got of the machine.

    Args:
        clock, cpu_clock: seconds, of the wall and of this thread on a core.
        switches: involuntary context switches so far.

    Attributes:
        wall_s: seconds in the blocks.
        cpu_s: seconds of these in which this thread was on a core.
        switched: involuntary switches in the blocks, of the whole process.
    """

    def __init__(
        self,
        clock: Callable[[], float] = perf_counter,
        cpu_clock: Callable[[], float] = thread_time,
        switches: Callable[[], int] = involuntary_switches,
    ) -> None:
        self._clock, self._cpu_clock, self._switches = clock, cpu_clock, switches
        self.wall_s = self.cpu_s = 0.0
        self.switched = 0

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Counts the block."""
        wall, cpu, switched = self._clock(), self._cpu_clock(), self._switches()
        yield
        self.wall_s += self._clock() - wall
        self.cpu_s += self._cpu_clock() - cpu
        self.switched += self._switches() - switched


def disturbances(watch: Watch, samples: Mapping[str, Sample], *, computes: bool) -> tuple[str, ...]:
    """What says that the figures are disturbed, each a sentence without its full stop; nothing if they are not.

    Args:
        watch: what measured the blocks behind the samples.
        samples: by name, times or rates that should be alike.
        computes: whether the watched thread computes itself, rather than wait for a GPU or other threads.
    """
    found = []
    if computes and watch.wall_s and watch.cpu_s < (1 - MOST_HELD_UP) * watch.wall_s:
        found.append(f"the computing thread was without a core for {1 - watch.cpu_s / watch.wall_s:.0%} of the time")
    if watch.switched > MOST_SWITCHES * watch.wall_s:
        found.append(f"other programs took a core {watch.switched / watch.wall_s:.0f} times a second")
    for name, sample in samples.items():
        if sample.most > MOST_SPREAD * sample.least:
            found.append(f"{name} differs by a factor of {sample.most / sample.least:.1f} between repeats")
    return tuple(found)


def share_of_reading(read: Sample, beside: Sample) -> float | None:
    """What steps read, as a share of what only reading beside each of them reached: the median of the pairs.

    None if it is above 1: nothing reads faster than reading alone, so that was held up.
    """
    share = statistics.median(a / b for a, b in zip(read.values, beside.values, strict=True))
    return share if share <= 1 else None
