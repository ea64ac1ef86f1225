"""Threads adapt to the machine: more threads than cores, other busy programs, and benchmarks that they disturb."""

import dataclasses
import json
import logging

import numpy as np
import pytest

import rushlight
from rushlight.backends import open_backend
from rushlight.bench import Measurement, Repeats
from rushlight.bench.disturbance import Watch, bandwidth_share, disturbances
from rushlight.bench.measure import Decode
from rushlight.cli import main
from rushlight.host.threads import Threads, threads_for


@pytest.fixture(autouse=True)
def _two_cores(monkeypatch):
    monkeypatch.setattr("rushlight.host.threads.usable_cores", lambda: 2)
    monkeypatch.delenv("RUSHLIGHT_NUM_THREADS", raising=False)


@pytest.fixture
def run(capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        return end.value.code or 0, *capsys.readouterr()

    return run


# Number of threads


def test_more_threads_than_cores_are_reduced_with_a_note(run):
    """`-t 1024` on two cores once took 51 s for 8 tokens."""
    code, out, err = run("generate", "-p", "Once", "-n", 2, "-t", 1024)
    assert (code, bool(out)) == (0, True)
    note = "note: using 2 threads instead of 1024: this process may use no more cores"
    assert note in err.splitlines()
    assert err.count("instead of") == 1


def test_as_many_threads_as_cores_need_no_note(run):
    code, _, err = run("generate", "-p", "Once", "-n", 2, "-t", 2)
    assert (code, "instead of" in err) == (0, False)


def test_in_python_it_is_not_a_warning(caplog):
    assert open_backend("cpu", threads=1024)._native.threads == 2
    assert not caplog.records
    with caplog.at_level(logging.INFO, "rushlight"):
        open_backend("cpu", threads=1024)
    assert [record.levelname for record in caplog.records] == ["INFO"]


def test_only_the_default_adapts(monkeypatch):
    assert threads_for() == Threads(2, adapts=True)
    assert threads_for(2) == Threads(2, adapts=False)
    assert threads_for(3) == Threads(2, adapts=False)
    monkeypatch.setenv("RUSHLIGHT_NUM_THREADS", "64")
    assert threads_for() == Threads(2, adapts=False)


def test_the_bits_do_not_depend_on_the_threads(make_gpt2):
    """Not even while the default tries numbers of threads, for the operations of a prompt and for recorded steps."""
    folder = make_gpt2(n_positions=128)
    expected = rushlight.load(folder, threads=1).logits(range(100))
    for model in (rushlight.load(folder), rushlight.load(folder, threads=2)):
        for _ in range(20):
            assert np.array_equal(model.logits(range(100)), expected)
    texts = [
        rushlight.load(folder, threads=threads).generate([1, 2, 3], max_tokens=100, ignore_eos=True).ids
        for threads in (None, 1, 2)
    ]
    assert texts[0] == texts[1] == texts[2]


# `rushlight bench`


def measurement(shares, disturbed=()):
    rate = Repeats.of([100.0, 110.0])
    return Measurement(
        model="m",
        n_parameters=1,
        device="cpu",
        dtype="f32",
        arithmetic="exact",
        step_bytes=10**6,
        prefill_tokens=4,
        prefill_tok_s=rate,
        decode=tuple(Decode(batch_size=1, tok_s=rate, read_gb_s=rate, bandwidth_share=share) for share in shares),
        reader="weights",
        bandwidth_gb_s=Repeats.of([0.5, 0.5]),
        first_token_s=None,
        peak_bytes=None,
        disturbed=disturbed,
    )


def test_no_bandwidth_share_if_reading_is_slower_than_the_steps():
    """It once printed "1562 % of what can be read"."""
    assert bandwidth_share(Repeats.of([7.8, 7.9, 7.7]), Repeats.of([0.5, 0.5, 9.0])) is None
    assert bandwidth_share(Repeats.of([8.0, 4.0, 9.0]), Repeats.of([10.0, 5.0, 9.0])) == pytest.approx(0.8)


def test_a_bandwidth_share_is_relative_to_the_adjacent_reading():
    """A machine at half its speed also reads half as fast."""
    assert bandwidth_share(Repeats.of([9.0, 4.5]), Repeats.of([10.0, 5.0])) == pytest.approx(0.9)


def test_the_table_never_has_an_impossible_share(run, monkeypatch):
    monkeypatch.setattr("rushlight.bench.measure", lambda *_: measurement([None, 0.5], ("reading is slow",)))
    code, out, err = run("bench")
    assert code == 0
    assert "unknown" in out
    assert "50%" in out
    assert "100%" not in out
    assert err == "note: the f32 figures are unreliable: reading is slow\n"


def test_json_has_the_disturbances(run, monkeypatch):
    monkeypatch.setattr("rushlight.bench.measure", lambda *_: measurement([None], ("reading is slow",)))
    _, out, _ = run("bench", "--json")
    (measured,) = json.loads(out)["measurements"]
    assert measured["disturbed"] == ["reading is slow"]
    assert measured["decode"][0]["bandwidth_share"] is None


def test_an_undisturbed_measurement_has_no_note(run, monkeypatch):
    monkeypatch.setattr("rushlight.bench.measure", lambda *_: measurement([1.0]))
    code, out, err = run("bench")
    assert (code, err) == (0, "")
    assert "100%" in out
    assert dataclasses.asdict(measurement([1.0]))["disturbed"] == ()


class Fake:
    """A clock that returns given values in order."""

    def __init__(self, *values):
        self.values = list(values)

    def __call__(self):
        return self.values.pop(0)


def watched(*, wall_s, cpu_s, switches):
    watch = Watch(Fake(10.0, 10.0 + wall_s), Fake(1.0, 1.0 + cpu_s), Fake(7, 7 + switches))
    with watch.measuring():
        pass
    return watch


ALIKE = {"prefill": Repeats.of([1.0, 1.1]), "reading": Repeats.of([2.0, 2.2])}


def test_an_idle_machine_disturbs_nothing():
    assert disturbances(watched(wall_s=2.0, cpu_s=1.95, switches=6), ALIKE, computes=True) == ()


@pytest.mark.parametrize(
    ("watch", "samples", "words"),
    [
        ({"wall_s": 2.0, "cpu_s": 1.0, "switches": 6}, ALIKE, "without a core for 50% of the time"),
        ({"wall_s": 2.0, "cpu_s": 2.0, "switches": 400}, ALIKE, "took a core 200 times a second"),
        (
            {"wall_s": 2.0, "cpu_s": 2.0, "switches": 0},
            {**ALIKE, "reading": Repeats.of([1.0, 4.0, 1.0])},
            "reading differs by a factor of 4.0",
        ),
    ],
)
def test_each_sign_of_other_programs_is_reported(watch, samples, words):
    (sign,) = disturbances(watched(**watch), samples, computes=True)
    assert words in sign


def test_a_thread_that_waits_for_a_gpu_is_not_disturbed():
    assert disturbances(watched(wall_s=2.0, cpu_s=0.1, switches=0), ALIKE, computes=False) == ()
