"""Binding checks every name, shape and dtype, and reports all mismatches at once, each with a fix."""

import numpy as np
import pytest

from rushlight.checkpoint import Tensor
from rushlight.errors import BindError

pytestmark = pytest.mark.parametrize("recording", ["gelu_new"], indirect=True)  # an arbitrary one

C = 18  # n_embd
V = 61  # vocab_size


def kinds(error):
    return sorted((problem.kind, problem.name) for problem in error.problems)


# Checkpoints that fit


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_names_load_with_and_without_the_transformer_prefix(recording, edit, prefix):
    renamed = {prefix + name.removeprefix("transformer."): tensor for name, tensor in edit.tensors.items()}
    edit.tensors.clear()
    edit.tensors.update(renamed)
    assert recording.error(edit.load()) < recording.tolerance["f32"]


def test_a_tied_head_may_be_stored_with_the_table(recording, edit):
    without = edit.load()
    edit.tensors["lm_head.weight"] = edit.tensors["transformer.wte.weight"]
    model = edit.load()
    assert np.array_equal(model.logits(recording.ids), without.logits(recording.ids))
    assert model.n_parameters == without.n_parameters


def test_a_tied_head_may_be_stored_without_the_table(recording, edit):
    without = edit.load()
    edit.tensors["lm_head.weight"] = edit.tensors.pop("transformer.wte.weight")
    model = edit.load()
    assert np.array_equal(model.logits(recording.ids), without.logits(recording.ids))
    assert model.n_parameters == without.n_parameters


def test_an_untied_head_may_equal_the_table(recording, edit):
    edit.config["tie_word_embeddings"] = False
    edit.tensors["lm_head.weight"] = edit.tensors["transformer.wte.weight"]
    model = edit.load()
    assert recording.error(model) < recording.tolerance["f32"]
    assert model.n_parameters == edit_parameters(edit)


def edit_parameters(edit):
    return sum(tensor.size for tensor in edit.tensors.values())


@pytest.mark.parametrize("prefix", ["", "transformer."])
@pytest.mark.parametrize("dtype", [np.float32, np.uint8, np.bool_])
def test_mask_buffers_are_not_weights(recording, edit, dtype, prefix):
    n_parameters = edit_parameters(edit)
    for layer in range(2):
        edit.tensors[f"{prefix}h.{layer}.attn.bias"] = np.tri(257, dtype=dtype)[None, None]
        edit.tensors[f"{prefix}h.{layer}.attn.masked_bias"] = np.array(-1e4, np.float32)
    model = edit.load()
    assert recording.error(model) < recording.tolerance["f32"]
    assert model.n_parameters == n_parameters


def test_dtypes_may_be_mixed(recording, edit):
    for name in ("transformer.ln_f.weight", "transformer.h.1.attn.c_attn.bias"):
        edit.tensors[name] = edit.tensors[name].astype(np.float64)
    assert recording.error(edit.load()) < recording.tolerance["f32"]


# Checkpoints that do not fit


def test_a_missing_tensor_is_reported(edit, refused):
    del edit.tensors["transformer.h.0.ln_1.bias"]
    error = refused(edit.write(), BindError)
    assert kinds(error) == [("missing", "h.0.ln_1.bias")]
    assert "(18,)" in str(error)
    assert "1 problem" in str(error)


@pytest.mark.parametrize(
    "name",
    [
        "transformer.h.0.attn.biases",
        "transformer.h.0.attn.q_proj.weight",
        "transformer.h.x.attn.bias",
        "transformer.h.0.mlp.bias",
        "attn.bias",
        "x.h.0.attn.bias",
        "transformer.score.weight",
        "scores.weight",
        "lm_head.bias",
    ],
)
def test_an_unexpected_tensor_is_reported(edit, refused, name):
    edit.tensors[name] = np.zeros(C, np.float32)
    error = refused(edit.write(), BindError)
    assert kinds(error) == [("unexpected", name)]
    assert "(18,)" in str(error)


def test_a_wrong_shape_is_reported(edit, refused):
    edit.tensors["transformer.ln_f.weight"] = np.ones(C + 1, np.float32)
    error = refused(edit.write(), BindError)
    assert kinds(error) == [("wrong shape", "transformer.ln_f.weight")]
    assert "code (18,), file (19,)" in str(error)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64, np.bool_])
def test_a_wrong_dtype_is_reported(edit, refused, dtype):
    edit.tensors["transformer.wpe.weight"] = np.zeros((257, C), dtype)
    error = refused(edit.write(), BindError)
    assert kinds(error) == [("wrong dtype", "transformer.wpe.weight")]
    assert "F32" in str(error)


def test_linear_layers_in_place_of_conv1d_are_reported_as_wrong_shapes(edit, refused):
    names = [name for name in edit.tensors if name.endswith(("c_attn.weight", "c_fc.weight", "mlp.c_proj.weight"))]
    for name in names:
        edit.tensors[name] = edit.tensors[name].T
    error = refused(edit.write(), BindError)
    assert kinds(error) == sorted(("wrong shape", name) for name in names)
    assert all("Linear" in problem.fix for problem in error.problems)
    assert "code (18, 72), file (72, 18)" in str(error)


def test_all_problems_are_reported_at_once(edit, refused):
    del edit.tensors["transformer.h.0.ln_1.bias"]
    edit.tensors["transformer.h.2.ln_1.weight"] = np.zeros(C, np.float32)
    edit.tensors["transformer.h.1.mlp.c_fc.weight"] = edit.tensors["transformer.h.1.mlp.c_fc.weight"].T
    edit.tensors["transformer.ln_f.bias"] = np.zeros(C, np.int32)
    error = refused(edit.write(), BindError)
    assert kinds(error) == [
        ("missing", "h.0.ln_1.bias"),
        ("unexpected", "transformer.h.2.ln_1.weight"),
        ("wrong dtype", "transformer.ln_f.bias"),
        ("wrong shape", "transformer.h.1.mlp.c_fc.weight"),
    ]
    assert "4 problems" in str(error)
    assert "GPT2 (n_layer 2, n_embd 18" in str(error)
    for problem in error.problems:
        assert sum(problem.kind in line and problem.name in line for line in str(error).splitlines()) == 1


def test_a_duplicate_tensor_is_reported(edit, refused):
    edit.tensors["ln_f.bias"] = edit.tensors["transformer.ln_f.bias"]
    (problem,) = refused(edit.write(), BindError).problems
    assert {problem.name, "transformer.ln_f.bias", "ln_f.bias"} == {"transformer.ln_f.bias", "ln_f.bias"}
    assert problem.kind == "twice"


def test_an_unknown_prefix_is_pointed_out(edit, refused):
    renamed = {f"model.{name}": tensor for name, tensor in edit.tensors.items()}
    edit.tensors.clear()
    edit.tensors.update(renamed)
    error = refused(edit.write(), BindError)
    missing = [problem for problem in error.problems if problem.kind == "missing"]
    assert len(missing) == len(renamed)
    assert all("prefix" in problem.fix for problem in missing)


def test_a_tied_head_that_differs_from_the_table_is_reported(edit, refused):
    edit.tensors["lm_head.weight"] = edit.tensors["transformer.wte.weight"] + np.float32(1e-6)
    error = refused(edit.write(), BindError)
    assert kinds(error) == [("not tied", "lm_head.weight")]
    assert "tie_word_embeddings" in error.problems[0].fix


def test_a_missing_untied_head_is_reported(edit, refused):
    edit.config["tie_word_embeddings"] = False
    error = refused(edit.write(), BindError)
    assert kinds(error) == [("missing", "lm_head.weight")]
    assert "tie_word_embeddings" in error.problems[0].fix


def test_a_head_of_the_wrong_size_is_reported(edit, refused):
    edit.tensors["lm_head.weight"] = np.zeros((V + 3, C), np.float32)
    error = refused(edit.write(), BindError)
    assert ("wrong shape", "lm_head.weight") in kinds(error)
    assert "code (61, 18), file (64, 18)" in str(error)


def test_weights_without_elements_are_reported_as_wrong_shapes(edit, refused):
    edit.tensors["transformer.ln_f.weight"] = np.zeros(0, np.float32)
    assert kinds(refused(edit.write(), BindError)) == [("wrong shape", "transformer.ln_f.weight")]


def test_names_are_escaped(edit, refused):
    edit.tensors["h.0.\x1b[2J\n.weight"] = np.zeros(C, np.float32)
    error = refused(edit.write(), BindError)
    assert "\x1b" not in str(error)
    assert len(str(error).splitlines()) == 2


def test_a_long_list_is_truncated_and_counted(edit, refused):
    for i in range(250):
        edit.tensors[f"extra.{i}"] = np.zeros(1, np.float32)
    error = refused(edit.write(), BindError)
    assert len(error.problems) == 250
    assert "250 problems" in str(error)
    assert "150 more" in str(error)


def test_no_tensor_is_read_before_all_are_checked(edit, refused, monkeypatch):
    monkeypatch.setattr(Tensor, "read", lambda self: pytest.fail(f"{self.name} was read"))
    del edit.tensors["transformer.ln_f.bias"]
    refused(edit.write(), BindError)
