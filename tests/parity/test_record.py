"""Recording with PyTorch: GPT-2s of transformers, custom modules, and inputs that cannot be recorded."""

import pytest

import rushlight
from rushlight.errors import RecordError
from rushlight.proof import read_golden, verify
from rushlight.proof.record_source import record_source

pytestmark = pytest.mark.parity

CONFIG = {"n_layer": 2, "n_head": 3, "n_embd": 18, "vocab_size": 61, "n_positions": 40}


@pytest.fixture
def folder(random_gpt2, tmp_path):
    random_gpt2(3, **CONFIG, attn_implementation="eager").save_pretrained(tmp_path / "gpt2")
    return tmp_path / "gpt2"


def test_record_and_verify(folder, tmp_path, torch):
    path = tmp_path / "golden.safetensors"
    from rushlight.proof.record import write_golden

    write_golden(record_source(str(folder), ids=[[1, 2, 3, 4, 5], [60]]), path)
    with rushlight.open_checkpoint(folder) as checkpoint:
        report = verify(rushlight.load(folder), path, checkpoint=checkpoint)
    assert report.failures == []
    assert report.logits is not None
    assert report.logits.greedy == (40, 40)


def test_recording_twice_writes_the_same_file(folder, torch):
    one, other = (record_source(str(folder)) for _ in range(2))
    assert one.metadata() == other.metadata()
    assert {name: array.tobytes() for name, array in one.arrays().items()} == {
        name: array.tobytes() for name, array in other.arrays().items()
    }
    assert len(one.cases[0].ids) == 24, "without a tokenizer, ids stand in for the texts"
    assert len(one.cases[0].greedy_ids) == 16, "the context has 40 positions"


def test_recorded_in_bfloat16(folder, torch):
    golden = record_source(str(folder), ids=[[1, 2, 3, 4, 5]], dtype="bfloat16")
    with rushlight.open_checkpoint(folder) as checkpoint:
        report = verify(rushlight.load(folder), golden, checkpoint=checkpoint)
        assert report.tolerance == 1e-2
        assert report.weights == []
    assert report.failures == []
    strict = verify(rushlight.load(folder), golden, tolerance=1e-5)
    assert not strict.passed


def test_weights_that_transformers_would_initialise_randomly_are_an_error(folder, torch):
    from safetensors.numpy import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["transformer.h.1.ln_1.bias"]
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(RecordError, match=r"finds no tensors for 1 of its weights: transformer\.h\.1\.ln_1\.bias"):
        record_source(str(folder), ids=[[1]])


def test_ids_beyond_the_vocabulary(folder, torch):
    with pytest.raises(RecordError, match="no such token: 61"):
        record_source(str(folder), ids=[[61]])


def test_text_without_a_tokenizer(folder, torch):
    with pytest.raises(RecordError, match="no tokenizer for the text"):
        record_source(str(folder), texts=["hello"])


def test_a_file_without_config(folder, torch):
    (folder / "config.json").unlink()
    with pytest.raises(RecordError, match=r"needs a config\.json"):
        record_source(str(folder), ids=[[1]])


@pytest.fixture
def toy(torch):
    class Toy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding(10, 4)
            self.act = torch.nn.ReLU(inplace=True)
            self.drop = torch.nn.Dropout(0.5)
            self.head = torch.nn.Linear(4, 10)

        def forward(self, ids):
            x = self.act(self.embed(ids) - 0.5)
            return self.head(self.drop(self.act(x - 0.1))), "and something else"

    torch.manual_seed(0)
    return Toy()


def test_a_custom_module(toy, torch, tmp_path):
    path = tmp_path / "golden.safetensors"
    toy.train()
    rushlight.record(toy, [[1, 2, 3], [4]], path, greedy=5)
    assert toy.training
    assert toy.drop.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in toy.modules())
    golden = read_golden(path)
    case = golden.cases[0]
    assert case.ids == [1, 2, 3]
    assert len(case.greedy_ids) == 5
    assert [call.path for call in case.calls] == ["embed", "act", "act#2", "drop", "head", ""]
    calls = {call.path: call for call in case.calls}
    # Modules that work in place are recorded with the values before and after.
    assert case.input(calls["act"]).min() < 0
    assert case.output(calls["act"]).min() == 0
    assert calls["drop"].output == calls["drop"].input == calls["act#2"].output
    assert case.output(calls[""]).shape == (3, 10)


@pytest.mark.parametrize("inputs", [[1, 2, 3], [[1, 2, 3]], "tensor", "batch", "dict"])
def test_the_forms_of_a_prompt(toy, torch, inputs):
    forms = {"tensor": torch.tensor([1, 2, 3]), "batch": torch.tensor([[1, 2, 3]])}
    forms["dict"] = {"ids": forms["batch"]}
    golden = rushlight.record(toy, forms[inputs] if isinstance(inputs, str) else inputs)
    assert [case.ids for case in golden.cases] == [[1, 2, 3]]


@pytest.mark.parametrize("inputs", ["text", 3, [], [[]], [1.5], [["a"]], {"ids": 3}, None])
def test_invalid_prompts_are_an_error(toy, inputs):
    with pytest.raises(RecordError):
        rushlight.record(toy, inputs)


def test_invalid_modules_are_an_error(torch):
    with pytest.raises(RecordError, match=r"torch\.nn\.Module"):
        rushlight.record(lambda ids: ids, [1, 2])


def test_a_module_that_fails_on_the_prompt(toy):
    with pytest.raises(RecordError, match="Toy raises IndexError"):
        rushlight.record(toy, [11])


def test_greedy_tokens_need_logits(torch):
    with pytest.raises(RecordError, match="greedy tokens require logits"):
        rushlight.record(torch.nn.Sequential(torch.nn.Embedding(5, 3), torch.nn.Flatten()), [1, 2], greedy=2)
