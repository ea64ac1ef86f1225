"""The choice of the number of threads, on a simulated machine in simulated time."""

import pytest
from native_helpers import _native

MS = 1_000_000
SLICE = 3 * MS


class Machine:
    """Runs work with the governor's number of threads, in simulated time.

    Args:
        cores: the most threads.
        overhead: nanoseconds that a run costs for each thread beyond the first.
    """

    def __init__(self, cores=2, overhead=5_000):
        self.governor = _native.Governor(cores)
        self.overhead = overhead
        self.now = 0
        self.used = []

    def run(self, alone_ns, what=16, held_up=None):
        """A run of that duration on one thread; a thread beyond the free cores delays the others by a time slice."""
        threads = self.governor.threads(what, alone_ns, self.now)
        began, waited = self.now, 0
        self.now += alone_ns // threads + (threads - 1) * self.overhead
        if threads > 1:
            waited = (threads - 1) * self.overhead // 10
            if held_up is not None:
                # The thread has its core for every other slice.
                slices = self.now // SLICE - began // SLICE
                waited += slices * held_up
                self.now += slices * held_up
        self.governor.ran(what, alone_ns, threads, began, self.now, waited)
        self.used.append((what, threads, alone_ns, self.now - began))

    def run_for(self, ns, alone_ns, **how):
        """Runs for that time, and returns the speed-up over one thread."""
        self.used.clear()
        end = self.now + ns
        while self.now < end:
            self.run(alone_ns, **how)
        return self.speed()

    def speed(self, what=16):
        used = [each for each in self.used if each[0] == what]
        return sum(alone for _, _, alone, _ in used) / sum(time for _, _, _, time in used)

    def share(self, *threads):
        """Returns the share of runs that used these numbers of threads."""
        return sum(n in threads for _, n, _, _ in self.used) / len(self.used)


@pytest.mark.parametrize("alone_ns", [300_000, 4 * MS, 40 * MS])
def test_all_threads_are_used_on_an_idle_machine(alone_ns):
    machine = Machine()
    machine.run_for(50 * MS, alone_ns)
    machine.run_for(2000 * MS, alone_ns)
    assert machine.share(2) == 1


def test_long_runs_that_hardly_wait_are_not_tried_with_fewer():
    machine = Machine()
    machine.run_for(2000 * MS, 40 * MS)
    assert machine.share(2) == 1


def test_small_work_uses_one_thread_within_tens_of_milliseconds():
    machine = Machine(overhead=200_000)
    machine.run_for(30 * MS, 200_000)
    assert machine.run_for(5000 * MS, 200_000) > 0.98


@pytest.mark.parametrize("alone_ns", [300_000, 2 * MS, 20 * MS])
def test_a_busy_neighbour_reduces_two_threads_to_one(alone_ns):
    machine = Machine()
    machine.run_for(500 * MS, alone_ns)
    machine.run_for(500 * MS, alone_ns, held_up=4 * SLICE)
    assert machine.run_for(4000 * MS, alone_ns, held_up=4 * SLICE) > 0.97


@pytest.mark.parametrize("alone_ns", [300_000, 20 * MS])
def test_all_threads_are_used_again_after_the_neighbour_ends(alone_ns):
    machine = Machine()
    machine.run_for(3000 * MS, alone_ns, held_up=4 * SLICE)
    machine.run_for(2000 * MS, alone_ns)
    machine.run_for(500 * MS, alone_ns)
    assert machine.share(2) == 1


def test_a_light_neighbour_does_not_reduce_threads():
    """A neighbour at nice 10 takes a tenth of the time: two threads are still faster."""
    machine = Machine()
    machine.run_for(500 * MS, 300_000, held_up=SLICE // 10)
    assert machine.run_for(2000 * MS, 300_000, held_up=SLICE // 10) > 1.7


def test_each_kind_of_work_has_its_own_number():
    """Steps of a large model use all threads, and the small operations between them one."""
    machine = Machine(overhead=100_000)
    for i in range(3000):
        if i == 1000:
            machine.used.clear()
        machine.run(4 * MS, what=16)
        machine.run(50_000, what=32)
    assert machine.speed(16) > 1.85
    assert machine.speed(32) > 0.96


def test_many_cores_lose_about_as_many_as_the_neighbour_takes():
    """A neighbour takes one of eight cores: about seven threads remain in use."""

    class Taken(Machine):
        def run(self, alone_ns, what=16, held_up=None):
            held_up = 4 * SLICE if self.governor.threads(what, alone_ns, self.now) == 8 else None
            super().run(alone_ns, what, held_up)

    machine = Taken(cores=8)
    machine.run_for(3000 * MS, 8 * MS)
    assert machine.run_for(3000 * MS, 8 * MS) > 5.5


def test_one_core_is_one_thread():
    machine = Machine(cores=1)
    machine.run_for(50 * MS, 300_000)
    assert machine.share(1) == 1


def test_the_caller_finishes_a_run_by_itself_only_if_it_mostly_waits():
    gives_up = _native.Governor.gives_up
    assert not gives_up(2, 100 * MS, 40 * MS)
    assert not gives_up(2, 4 * MS, 3 * MS)  # one slice may pass
    assert gives_up(2, 10 * MS, 7 * MS)
    assert not gives_up(8, 10 * MS, 7 * MS)  # seven others
