"""Recordings of transformers' decoders: `verify` compares every module that has weights, and finds all equal."""

import json

import pytest
from architecture_fixtures import Fixture

import rushlight
from rushlight.checkpoint import open_headers
from rushlight.porting.scaffold.port import scaffold
from rushlight.proof import verify
from rushlight.proof.record_source import record_source

pytestmark = pytest.mark.parity

IDS = [(7 * i + 3) % 97 for i in range(30)]


@pytest.fixture
def saved(transformers, tmp_path):
    """Saves the model of a fixture as transformers does; returns its folder, and the paths of modules with weights."""

    def saved(name):
        folder = Fixture(name).write(tmp_path / "fixture")
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        model.save_pretrained(tmp_path / name)
        weighted = [
            path for path, part in model.named_modules() if next(part.parameters(recurse=False), None) is not None
        ]
        return tmp_path / name, weighted

    return saved


def assert_all_equal(model, golden, weighted):
    with rushlight.open_checkpoint(golden.source) as checkpoint:
        report = verify(model, golden.recording, checkpoint=checkpoint)
    assert report.failures == []
    assert report.notes == []
    assert {result.status for result in report.modules} == {"equal"}
    compared = {result.path for result in report.modules}
    assert [path for path in weighted if model.module.rules.module_path(path) not in compared] == []
    assert any(result.kind.startswith("Rotary") for result in report.modules)


class Recorded:
    """The recording of a folder."""

    def __init__(self, source):
        self.source = source
        self.recording = record_source(str(source), ids=[IDS], greedy=5)


@pytest.mark.parametrize("name", ["llama", "llama_llama3", "gemma3_text", "qwen3", "gpt_neox"])
def test_every_module_of_a_built_in_decoder_is_compared(saved, name):
    folder, weighted = saved(name)
    assert_all_equal(rushlight.load(folder, dtype="f32"), Recorded(folder), weighted)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt_neox", "olmo2", "phi3"])
def test_every_module_of_a_port_of_an_unknown_type_is_compared(saved, name):
    folder, weighted = saved(name)
    recorded = Recorded(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "newcomer"}))
    with open_headers(folder) as checkpoint:
        (folder / "port.py").write_text(scaffold(checkpoint).module, encoding="utf-8")
    assert_all_equal(rushlight.load(folder, port=folder / "port.py", dtype="f32"), recorded, weighted)
