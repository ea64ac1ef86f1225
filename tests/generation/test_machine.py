"""Arrivals, steps, reads, cancellations and evictions in random order: outputs are correct, no block leaks."""

import gc
import random
import tracemalloc

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from toy import V, WindowToy, draft_of, drafted, expected, poison, sequence, toy_draft, toy_engine

from rushlight.backends.batch import BLOCK_SIZE

N_BLOCKS = 7
PROMPTS = [
    [seed] + [(seed * i) % V for i in range(n)]
    for seed, n in enumerate((0, 3, BLOCK_SIZE - 2, BLOCK_SIZE - 1, BLOCK_SIZE, 2 * BLOCK_SIZE + 5, 3 * BLOCK_SIZE))
]
"""Each prompt is extended in several ways, so that prefixes are shared."""


def held(one):
    """The blocks of a sequence, each with its group."""
    return [(group, block) for group, table in enumerate(one.blocks.tables) for block in table.held]


class EngineMachine(RuleBasedStateMachine):
    """Checks each token against the model's definition; draft tokens come from a draft model or prompt lookup."""

    def __init__(self):
        super().__init__()
        draft, _ = toy_draft(context_length=2 * BLOCK_SIZE)
        # N_BLOCKS for the model, and the same number for the draft model.
        self.use(n_blocks=2 * N_BLOCKS, draft=draft)

    expected = staticmethod(expected)

    def use(self, **options):
        self.engine, _ = toy_engine(max_sequences=3, max_waiting=1000, **options)
        self.live = []
        self.read = {}

    @rule(which=st.integers(0, len(PROMPTS) - 1), tail=st.integers(0, 2), max_tokens=st.integers(0, 2 * BLOCK_SIZE))
    def arrive(self, which, tail, max_tokens):
        prompt = [*PROMPTS[which], *[tail] * tail]
        one = sequence(prompt, max_tokens=max_tokens, speculate=tail > 0)
        self.engine.submit(one)
        self.live.append(one)
        self.read[one] = []

    @rule(n=st.integers(1, 80))
    def step(self, n):
        for _ in range(n):
            if not self.engine.step():
                assert not any(one.runnable and not one.done for one in self.live)

    @precondition(lambda self: self.live)
    @rule(i=st.integers(0, 100), n=st.integers(1, 100))
    def take(self, i, n):
        one = self.live[i % len(self.live)]
        self.engine.run_until(one.is_ready)
        while n and (token := one.read()) is not None:
            self.read[one].append(token.id)
            n -= 1

    @precondition(lambda self: self.live)
    @rule(i=st.integers(0, 100))
    def cancel(self, i):
        self.engine.cancel(self.live.pop(i % len(self.live)))

    @invariant()
    def outputs_are_right(self):
        for one, ids in self.read.items():
            output = ids + [token.id for token in one.unread]
            assert output == self.expected(one.ids[: one.n_prompt], len(output))

    @invariant()
    def no_block_leaks(self):
        holders = [block for one in self.live if not one.done for block in held(one)]
        assert self.engine.pool.n_held == len(set(holders))
        assert self.engine.pool.n_held + self.engine.pool.n_available == self.engine.pool.n_blocks
        self.no_block_of_the_draft_leaks()

    def no_block_of_the_draft_leaks(self):
        states = draft_of(self.engine)._states
        assert states.keys() <= self.engine._live
        assert draft_of(self.engine).pool.n_held == len({block for state in states.values() for block in held(state)})

    def teardown(self):
        for one in self.live:
            self.engine.run_until(one.is_ready)
            while not one.done:
                one.unread.clear()
                self.engine.run_until(one.is_ready)
        assert self.engine.pool.n_held == 0
        self.no_block_of_the_draft_leaks()


class LookupMachine(EngineMachine):
    """The same without a draft model: draft tokens come from prompt lookup only."""

    def __init__(self):
        super().__init__()
        self.use(n_blocks=N_BLOCKS)

    def no_block_of_the_draft_leaks(self):
        assert draft_of(self.engine)._lookups.keys() <= self.engine._live


class WindowMachine(EngineMachine):
    """The same for models whose layers have windows; blocks hold NaN until they are written."""

    expected = staticmethod(WindowToy.expected)

    def __init__(self):
        super().__init__()
        draft, _ = toy_draft(context_length=2 * BLOCK_SIZE, kind=WindowToy)
        self.use(n_blocks=50, draft=draft, kind=WindowToy, max_prefill_rows=BLOCK_SIZE + 9)
        poison(self.engine)


MACHINES = [EngineMachine, LookupMachine, WindowMachine]


@pytest.mark.parametrize("machine", MACHINES)
def test_some_orders(machine):
    run_state_machine_as_test(machine, settings=settings(max_examples=10, stateful_step_count=25))


@pytest.mark.slow
@pytest.mark.parametrize("machine", MACHINES)
def test_many_orders(machine):
    run_state_machine_as_test(machine, settings=settings(max_examples=50, stateful_step_count=25))


def cancel_at_random(n, seed):
    """Runs n sequences, each cancelled after some steps or never."""
    rng = random.Random(seed)
    draft, _ = toy_draft(context_length=2 * BLOCK_SIZE)
    engine, _ = toy_engine(n_blocks=2 * N_BLOCKS, max_sequences=8, draft=draft)
    live = []
    for i in range(n):
        prompt = [*rng.choice(PROMPTS), rng.randrange(V)]
        max_tokens = rng.randrange(1, 60)
        one = drafted(prompt, max_tokens=max_tokens) if i % 2 else sequence(prompt, max_tokens=max_tokens)
        engine.submit(one, wait=True)
        live.append(one)
        for _ in range(rng.randrange(3)):
            engine.step()
        while len(live) > 12 or (live and rng.random() < 0.4):
            engine.cancel(live.pop(rng.randrange(len(live))))
        if i % 1000 == 999:
            yield engine, live
    for one in live:
        engine.cancel(one)
    assert engine.pool.n_held == draft_of(engine).pool.n_held == 0
    assert not engine.step()


def test_a_thousand_cancellations_do_not_leak_blocks():
    for _ in cancel_at_random(1000, 1):
        pass


@pytest.mark.slow
def test_ten_thousand_cancellations_do_not_leak_memory():
    sizes = []
    tracemalloc.start()
    for engine, _ in cancel_at_random(10_000, 2):
        engine._steps._runner._forward.batches.clear()
        draft_of(engine)._runner._forward.batches.clear()
        gc.collect()
        sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert max(sizes[2:]) < sizes[1] * 1.2
