"""Detects whether other programs disturbed a measurement."""

from __future__ import annotations

import statistics
from contextlib import contextmanager
from time import perf_counter, thread_time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from rushlight.bench.repeats import Repeats

MAX_OFF_CORE = 0.1
"""Largest share of the time that the measuring thread may be off its core; the kernel itself takes far less."""

MAX_SWITCHES = 30
"""Largest number of involuntary context switches per second; an idle machine has fewer."""

MAX_SPREAD = 1.5
"""Largest ratio of two times that should be equal."""


def involuntary_switches() -> int:
    """Involuntary context switches of this process since its start; 0 where the platform has no count."""
    try:
        import resource
    except ImportError:  # not on Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


class Watch:
    """Accumulates the wall time, CPU time and context switches of measured blocks.

    Args:
        clock, cpu_clock: the wall clock, and the CPU time of this thread, in seconds.
        switches: the count of involuntary context switches.

    Attributes:
        wall_s: wall time in the blocks.
        cpu_s: CPU time of this thread in the blocks.
        switched: involuntary context switches of the process in the blocks.
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
        """Measures the block."""
        wall, cpu, switched = self._clock(), self._cpu_clock(), self._switches()
        yield
        self.wall_s += self._clock() - wall
        self.cpu_s += self._cpu_clock() - cpu
        self.switched += self._switches() - switched


def disturbances(watch: Watch, repeats: Mapping[str, Repeats], *, computes: bool) -> tuple[str, ...]:
    """The reasons to distrust a measurement, as sentences without a full stop; empty if there are none.

    Args:
        watch: measured the blocks behind the repeats.
        repeats: by name, times or rates that should be equal.
        computes: whether the watched thread computes, rather than waits for a GPU or other threads.
    """
    found = []
    if computes and watch.wall_s and watch.cpu_s < (1 - MAX_OFF_CORE) * watch.wall_s:
        found.append(f"the computing thread was without a core for {1 - watch.cpu_s / watch.wall_s:.0%} of the time")
    if watch.switched > MAX_SWITCHES * watch.wall_s:
        found.append(f"other programs took a core {watch.switched / watch.wall_s:.0f} times a second")
    for name, each in repeats.items():
        if each.max > MAX_SPREAD * each.min:
            found.append(f"{name} differs by a factor of {each.max / each.min:.1f} between repeats")
    return tuple(found)


def bandwidth_share(steps: Repeats, reading: Repeats) -> float | None:
    """The bandwidth of decode steps, as a share of the bandwidth of only reading: the median over the repeats.

    None if it is above 1: a step cannot be faster than only reading, so the reading was disturbed.
    """
    share = statistics.median(a / b for a, b in zip(steps.values, reading.values, strict=True))
    return share if share <= 1 else None
