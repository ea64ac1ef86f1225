"""Every built-in architecture, and every port in examples/, decodes from a recorded plan on the CPU."""

import logging
from collections import Counter
from pathlib import Path

import pytest
from architecture_fixtures import NAMES, Fixture

import rushlight
from rushlight.models import ARCHITECTURES

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"


def checkpoints(folder):
    """The checkpoints in a folder of fixtures, or the folder itself."""
    return sorted(path.parent for path in folder.rglob("config.json"))


def ports():
    """The example files that define an architecture; the fixture of examples/NAME is tests/examples/NAME."""
    return sorted(path for path in (ROOT / "examples").rglob("*.py") if "\nARCHITECTURE = " in path.read_text())


BUILT_IN = [(None, folder) for folder in checkpoints(TESTS / "fixtures" / "gpt2")]
EXAMPLES = [(port, folder) for port in ports() for folder in checkpoints(TESTS / "examples" / port.parent.name)]


def test_every_architecture_and_every_example_has_a_checkpoint():
    gpt2 = {rushlight.load(folder).module.model_type for _, folder in BUILT_IN}
    assert gpt2 | {Fixture(name).config["model_type"] for name in NAMES} == {*ARCHITECTURES}
    assert [*dict.fromkeys(port for port, _ in EXAMPLES)] == ports() != []


class Shapes:
    """Counts the calls of a forward by the shape of the step; a replayed step does not call it."""

    def __init__(self, model, monkeypatch, look=lambda batch: None):
        self.counts, forward = Counter(), type(model.module).__call__

        def call(module, batch):
            self.counts[len(batch.ids), len(batch.logit_rows)] += 1
            look(batch)
            return forward(module, batch)

        monkeypatch.setattr(type(model.module), "__call__", call)


@pytest.mark.parametrize(
    ("port", "folder"), BUILT_IN + EXAMPLES, ids=[folder.name for _, folder in BUILT_IN + EXAMPLES]
)
@pytest.mark.parametrize("dtype", ["f32", "int8"])
def test_decode_steps_are_recorded(port, folder, dtype, monkeypatch, caplog):
    records_decode_steps(folder, port, dtype, monkeypatch, caplog)


@pytest.mark.parametrize("name", NAMES)
def test_decode_steps_of_fixtures_are_recorded(name, tmp_path, monkeypatch, caplog):
    records_decode_steps(Fixture(name).write(tmp_path), None, "int8", monkeypatch, caplog)


def records_decode_steps(folder, port, dtype, monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="rushlight")
    model = rushlight.load(folder, port=port, device="cpu", dtype=dtype)
    shapes = Shapes(model, monkeypatch)
    assert len(model.generate([5, 6, 7, 8], max_tokens=40, ignore_eos=True).ids) == 40
    assert max(shapes.counts.values()) <= 2  # an eager step of each shape, and the one that is recorded
    assert [record for record in caplog.records if "recorded" in record.getMessage()] == []


def test_a_step_that_cannot_be_recorded_is_noticed_here(monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="rushlight")
    port, folder = EXAMPLES[0]
    model = rushlight.load(folder, port=port, device="cpu")
    shapes = Shapes(model, monkeypatch, look=lambda batch: int(batch.positions[0]))
    model.generate([5, 6, 7, 8], max_tokens=40, ignore_eos=True)
    assert shapes.counts[1, 1] > 2
    assert "cannot be recorded" in caplog.text
