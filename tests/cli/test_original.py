"""The command line of the original program, verbatim."""

import pytest

import rushlight as library

PROMPT = "My name is Teven and I"


@pytest.fixture(scope="module")
def expected(bare_gpt2):
    return library.load(bare_gpt2).generate(PROMPT)


@pytest.mark.parametrize(
    "flags",
    [("--model-path", "--device", "--prompt"), ("-m", "-d", "-p")],
    ids=["long", "short"],
)
def test_a_bare_file_is_enough(rushlight, bare_gpt2, expected, monkeypatch, flags):
    monkeypatch.chdir(bare_gpt2.parent)
    model, device, prompt = flags
    done = rushlight(model, "./model.safetensors", device, "cpu", prompt, PROMPT)
    assert len(expected.ids) == 100
    assert done.out == f"Model loaded successfully!\n{PROMPT}{expected.text}\n"
    assert done.code == 0
    notes = done.err.splitlines()
    assert all(note.startswith("note: no ") for note in notes)
    assert [word in done.err for word in ("config.json", "tokenizer")] == [True, True]


def test_a_missing_file(rushlight, tmp_path):
    done = rushlight("-m", tmp_path / "model.safetensors", "-d", "cpu", "-p", "x")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: {tmp_path / 'model.safetensors'}: no such file")


@pytest.mark.parametrize("device", ["metal", "cuda", "tpu", ""])
def test_a_missing_device_is_never_replaced(rushlight, bare_gpt2, device):
    done = rushlight("-m", bare_gpt2, "-d", device, "-p", "x")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")


@pytest.mark.parametrize("arguments", [["-m", "x"], ["-p", "x"], ["-d", "cpu"]])
def test_an_incomplete_command_line_is_wrong_usage(rushlight, arguments):
    done = rushlight(*arguments)
    assert (done.code, done.out) == (2, "")
    assert "is missing" in done.err


def test_original_flags_are_refused_before_a_command(rushlight):
    done = rushlight("-m", "x", "generate", "-p", "x")
    assert (done.code, done.out) == (2, "")
    assert "--model-path must follow the command" in done.err
