"""Golden files: a round trip through the file, and the errors for invalid ones."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import rushlight
from rushlight.errors import FormatError, GoldenError, RequestError, SourceError
from rushlight.proof import read_golden, verify
from rushlight.proof.compare import oriented
from rushlight.proof.diagnosis.rotary import cosines_then_sines
from rushlight.proof.digest import digest_of_all, tensor_digests, values_digest
from rushlight.proof.golden import KEY
from rushlight.proof.record import write_golden


def about(golden):
    return json.loads(golden.metadata()[KEY])


@pytest.fixture
def rewritten(golden, tmp_path):
    """`rewritten(change)`: the error of reading the recording after `change(about, tensors)`."""

    def rewritten(change):
        tensors, contents = golden.arrays(), about(golden)
        change(contents, tensors)
        path = tmp_path / "golden.safetensors"
        save_file(tensors, path, {KEY: json.dumps(contents)})
        with pytest.raises(GoldenError) as caught:
            read_golden(path)
        assert str(path) in str(caught.value)
        return str(caught.value)

    return rewritten


def test_a_recording_round_trips_through_a_file(golden, tmp_path):
    path, again = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    write_golden(golden, path)
    write_golden(read_golden(path), again)
    assert path.read_bytes() == again.read_bytes(), "a recording contains no date, and its order is stable"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]
    assert read_golden(path).metadata() == golden.metadata()


def test_a_recording_has_versions_config_and_cases(golden):
    assert golden.model == "GPT2LMHeadModel"
    assert golden.dtype == "float32"
    assert set(golden.made_with) >= {"torch", "transformers"}
    assert golden.config["n_embd"] == 18
    assert [len(case.ids) for case in golden.cases] == [12, 3]
    assert [len(case.greedy_ids) for case in golden.cases] == [20, 20]
    call = next(call for call in golden.cases[0].calls if call.path == "transformer.h.0.ln_1")
    assert call.repr.startswith("LayerNorm((18,), eps=1e-05")
    assert call.eps == 1e-5
    # Attention, its projection and its dropout have the same output, which is stored once.
    kept = {call.path: call.output for call in golden.cases[0].calls}
    assert kept["transformer.h.0.attn"] == "0/output/transformer.h.0.attn.c_proj"


def test_equal_arrays_are_stored_once(golden):
    for case in golden.cases:
        assert len({array.tobytes() for array in case.tensors.values()}) == len(case.tensors)


def test_a_checkpoint_is_not_a_golden_file(gpt2):
    with pytest.raises(GoldenError, match="not a golden file but a checkpoint") as caught:
        verify(gpt2, gpt2.folder / "model.safetensors")
    assert "rushlight record" in str(caught.value)


def test_a_missing_file_is_an_error(gpt2, tmp_path):
    with pytest.raises(SourceError):
        verify(gpt2, tmp_path / "none.safetensors")


def test_a_file_that_is_not_safetensors_is_an_error(gpt2, tmp_path):
    path = tmp_path / "golden.safetensors"
    path.write_text("<!doctype html><html></html>")
    with pytest.raises(FormatError, match="HTML"):
        verify(gpt2, path)


def test_an_unsupported_format_version_is_an_error(rewritten):
    message = rewritten(lambda contents, _: contents.update(version=2))
    assert "unsupported version of the golden file format (expected 1, found 2)" in message


def test_all_problems_are_reported_at_once(rewritten):
    def change(contents, tensors):
        del contents["dtype"], tensors["1/ids"]
        contents["weights"] = {"wte.weight": 3}
        contents["cases"][0]["modules"][0]["input"] = 7
        contents["cases"][0]["modules"][1]["eps"] = "small"
        tensors["0/greedy_ids"] = tensors["0/greedy_ids"][:3]
        tensors["0/output/transformer.wpe"] = tensors["0/output/transformer.wpe"].astype(np.float64)

    message = rewritten(change)
    for problem in (
        "dtype is missing or of the wrong type",
        "the tensor 1/ids is missing",
        "1/ids is empty",
        "weights must hold only strings",
        "cases[0].modules[0]: input and output must be tensor names",
        "cases[0].modules[1].eps must be a number",
        "0/greedy_ids and 0/greedy_margins differ in length",
        "the tensor 0/output/transformer.wpe is F64, not F32 or I64",
    ):
        assert problem in message


@pytest.mark.parametrize("text", ["{", "[1]", '{"version": NaN}', '{"version": 1, "version": 1}'])
def test_metadata_that_is_not_strict_json_is_an_error(gpt2, tmp_path, text):
    path = tmp_path / "golden.safetensors"
    save_file({"x": np.zeros(1, np.float32)}, path, {KEY: text})
    with pytest.raises(GoldenError):
        verify(gpt2, path)


def test_a_recording_of_another_model_is_an_error(gpt2, golden):
    for case in golden.cases:
        case.calls = [call.__class__(f"encoder.{i}", "", None, None, call.output) for i, call in enumerate(case.calls)]
    with pytest.raises(GoldenError, match="no module in common with the port"):
        verify(gpt2, golden)


def test_a_prompt_outside_the_vocabulary_is_an_error(gpt2, golden):
    golden.cases[0].ids[0] = 61
    with pytest.raises(RequestError, match="no such token: 61"):
        verify(gpt2, golden)


@pytest.mark.parametrize("tolerance", [0, -1, float("nan"), float("inf")])
def test_an_invalid_tolerance_is_an_error(gpt2, golden, tolerance):
    with pytest.raises(RequestError, match="invalid tolerance"):
        verify(gpt2, golden, tolerance=tolerance)


def test_the_digests_equal_those_of_the_checkpoint(golden):
    folder = Path(__file__).parents[1] / "fixtures" / "gpt2" / "gelu_new"
    with rushlight.open_checkpoint(folder) as checkpoint:
        digests = tensor_digests(checkpoint)
    assert digests == golden.weights
    tensors = load_file(folder / "model.safetensors")
    assert {name: values_digest(tensor) for name, tensor in tensors.items()} == digests
    assert digest_of_all(digests) == digest_of_all(dict(reversed(digests.items())))
    assert values_digest(np.zeros((2, 3), np.float32)) != values_digest(np.zeros((3, 2), np.float32))


def test_a_tuple_round_trips_through_a_file(golden, tmp_path):
    """The cosines and sines that a rotary module returns."""
    case = golden.cases[0]
    case.calls[0] = dataclasses.replace(case.calls[0], more=("0/output/rotary_emb/1",))
    case.tensors["0/output/rotary_emb/1"] = np.ones((12, 4), np.float32)
    write_golden(golden, tmp_path / "a.safetensors")
    again = read_golden(tmp_path / "a.safetensors").cases[0]
    assert again.calls == case.calls
    assert np.array_equal(again.outputs(again.calls[0])[1], np.ones((12, 4)))


def test_a_tuple_that_is_not_a_list_of_names_is_an_error(rewritten):
    message = rewritten(lambda contents, _: contents["cases"][0]["modules"][0].update(more="x"))
    assert "cases[0].modules[0].more must list tensor names" in message


@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 0, 2)], ids=["rows first", "heads first"])
def test_heads_are_flattened(axes):
    """A norm of every head is recorded as (N, H, D), or as (H, N, D) after a transpose."""
    values = np.arange(60.0).reshape(5, 3, 4)
    assert np.array_equal(oriented(values.transpose(axes), values.reshape(5, 12)), values.reshape(5, 12))


def test_of_two_orientations_the_closer_is_taken():
    values = np.arange(36.0).reshape(3, 3, 4)
    assert np.array_equal(oriented(values.swapaxes(0, 1), values.reshape(3, 12) + 0.1), values.reshape(3, 12))


@pytest.mark.parametrize("layout", ["halves", "neighbours", "once", "sines first"])
def test_cosines_and_sines_of_any_layout(layout):
    angles = np.arange(6)[:, None] * np.array([1.0, 0.1, 0.01])
    parts = [np.cos(angles), np.sin(angles)]
    expected = np.concatenate(parts, axis=1)
    given = {
        "halves": [np.tile(part, 2) for part in parts],
        "neighbours": [np.repeat(part, 2, axis=1) for part in parts],
        "once": parts,
        "sines first": parts[::-1],
    }[layout]
    assert np.array_equal(cosines_then_sines(given), expected)
    assert cosines_then_sines([given[0], given[1] + 1]) is None
    assert cosines_then_sines(given[:1]) is None
