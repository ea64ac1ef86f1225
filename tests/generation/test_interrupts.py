"""An interrupt at any line surfaces in the waiting thread, leaks no block, and leaves a working engine."""

import random
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from toy import draft_of, drafted, expected, ids_of, read_all, sequence, toy_draft, toy_engine

import rushlight
from rushlight import Request, generation
from rushlight.backends.batch import BLOCK_SIZE
from rushlight.errors import GenerationError
from rushlight.generation.consumer import Consumer

PROMPTS = [[1, 2], [7] * (BLOCK_SIZE - 3), [5] * (BLOCK_SIZE + 9)]
NAMES = """block_pool consistency consumer controller draft_model engine prompt_lookup sample_step scheduler sequence
step""".split()
CUT_FILES = {str(path) for path in Path(generation.__file__).parent.rglob("*.py") if path.stem in NAMES}
"""The files at whose lines an interrupt is raised."""


def new_engine():
    draft, _ = toy_draft()
    engine, _ = toy_engine(n_blocks=2 * 5, draft=draft)
    return engine


def write(engine):
    """Generates several outputs at once, more than fit in the blocks."""
    consumer = Consumer()
    sequences = [
        drafted(prompt, max_tokens=20 + 5 * i) if i else sequence(prompt, max_tokens=20)
        for i, prompt in enumerate(PROMPTS)
    ]
    for one in sequences:
        engine.submit(one, consumer)
    outputs = [ids_of(read_all(engine, one)) for one in sequences]
    for one in sequences:
        engine.cancel(one)
    return outputs


def test_every_interrupted_file_exists():
    assert len(CUT_FILES) == len(NAMES)


RIGHT = [expected(prompt, 20 + 5 * i) for i, prompt in enumerate(PROMPTS)]


class CutOff:
    """Raises KeyboardInterrupt at the n-th line of the engine's files, in this thread; counts the lines."""

    def __init__(self, n=None):
        self.n = n
        self.count = 0

    def __enter__(self):
        sys.settrace(self.trace)

    def __exit__(self, *args):
        sys.settrace(None)

    def trace(self, frame, event, arg):
        return self.line if frame.f_code.co_filename in CUT_FILES else None

    def line(self, frame, event, arg):
        if event == "line":
            self.count += 1
            if self.count == self.n:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self.line


def cut_off_at(lines):
    for n in lines:
        engine = new_engine()
        bystander = sequence([3, 4], max_tokens=25)
        engine.submit(bystander)
        with pytest.raises(KeyboardInterrupt), CutOff(n):
            write(engine)
        try:
            assert ids_of(read_all(engine, bystander)) == expected([3, 4], 25)
        except GenerationError as error:
            assert "interrupted" in str(error)  # noqa: PT017
        engine.step()
        assert (engine.pool.n_held, draft_of(engine).pool.n_held, engine._live) == (0, 0, set())
        assert write(engine) == RIGHT


def n_lines():
    cut = CutOff()
    engine = new_engine()
    engine.submit(sequence([3, 4], max_tokens=25))
    with cut:
        assert write(engine) == RIGHT
    return cut.count


def test_an_interrupt_at_a_few_lines():
    count = n_lines()
    cut_off_at(random.Random(1).sample(range(1, count), 12))


@pytest.mark.slow
def test_an_interrupt_at_hundreds_of_lines():
    cut_off_at(range(1, n_lines(), 23))


def interrupted(work, seconds):
    """Returns whether a signal sent after that many seconds arrived during the work, and surfaced."""
    came = []

    def interrupt(*_):
        came.append(True)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    surfaced = False
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            work()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        surfaced = True
    finally:
        signal.signal(signal.SIGALRM, before)
    assert surfaced == bool(came)
    return surfaced


def works_of(model):
    prompt, settings = "Once upon a time", {"max_tokens": 12}

    def generate():
        model.generate(prompt, **settings)

    def read_and_leave():
        for n, _ in enumerate(model.stream(prompt, **settings)):
            if n == 5:
                break

    def many():
        for n, _ in enumerate(model.generate_many([Request(prompt, (), settings)] * 3)):
            if n == 1:
                break

    return generate, read_and_leave, many


def interrupt_at_random(n, seed):
    rng = random.Random(seed)
    model = rushlight.load(threads=1)
    right = model.generate("Once upon a time", max_tokens=12).ids
    n_surfaced = 0
    for work in works_of(model):
        work()
        start = time.perf_counter()
        work()
        longest = 1.2 * (time.perf_counter() - start)
        for i in range(n):
            n_surfaced += interrupted(work, 1e-6 + rng.random() * longest)
            engine = model._default.engine
            engine.reclaim()
            assert (engine.pool.n_held, engine._live) == (0, set())
            if i % 20 == 0:
                assert model.generate("Once upon a time", max_tokens=12).ids == right
    return n_surfaced


def test_a_few_signals():
    assert interrupt_at_random(25, 1) > 10


@pytest.mark.slow
def test_thousands_of_signals():
    assert interrupt_at_random(1000, 2) > 1000


def test_other_threads_continue_when_one_is_interrupted():
    model = rushlight.load(threads=1)
    settings = {"max_tokens": 40, "temperature": 1.0, "seed": 4}
    right = model.generate("The king", **settings).text
    found, errors = [], []

    def other():
        for _ in range(10):
            try:
                found.append(model.generate("The king", **settings).text)
            except GenerationError as error:  # its sequence was in the interrupted step
                errors.append(str(error))

    thread = threading.Thread(target=other)
    thread.start()
    rng = random.Random(3)
    while thread.is_alive():
        interrupted(works_of(model)[0], 1e-6 + rng.random() * 0.05)
    thread.join()
    assert set(found) <= {right}
    assert all("interrupted" in error for error in errors)
    assert len(found) + len(errors) == 10
    model._default.engine.reclaim()
    assert model._default.engine.pool.n_held == 0


def test_an_interrupt_while_waiting_for_the_lock():
    engine = rushlight.load(threads=1)._default.engine

    def wait(timeout):
        engine._lock.release()
        raise KeyboardInterrupt  # Condition.wait has not acquired the lock again

    engine._turn.wait, engine._turn_of = wait, -1
    with pytest.raises(KeyboardInterrupt):
        engine._take_turn(lambda: False)
    assert engine._lock.acquire(blocking=False)
