"""Wrong models must fail the comparison with the recordings; a comparison that passes them would prove nothing.

Each mutation is a plausible mistake of a port, and passes every check of names and shapes.
"""

import numpy as np
import pytest

from rushlight.backends.reference import ReferenceBackend


def clearly_wrong(recording, model):
    return recording.error(model) > 20 * recording.tolerance["f32"]


@pytest.mark.parametrize(
    ("recording", "key", "value"),
    [
        ("gelu_new", "activation_function", "gelu"),
        ("gelu_fast_bf16", "activation_function", "gelu"),
        ("gelu_pytorch_tanh_sharded", "activation_function", "gelu"),
        ("gelu_untied", "activation_function", "gelu_new"),
        ("quick_gelu_f16", "activation_function", "gelu_new"),
        ("quick_gelu_f16", "activation_function", "silu"),
        ("silu_unscaled", "activation_function", "quick_gelu"),
        ("relu_four_blocks", "activation_function", "gelu_new"),
        ("relu_four_blocks", "layer_norm_epsilon", 1e-5),
        ("reorder_and_upcast", "layer_norm_epsilon", 1e-5),
        ("gelu_new", "scale_attn_weights", False),
        ("silu_unscaled", "scale_attn_weights", True),
        ("gelu_new", "scale_attn_by_inverse_layer_idx", True),
        ("inverse_layer", "scale_attn_by_inverse_layer_idx", False),
        ("reorder_and_upcast", "scale_attn_by_inverse_layer_idx", False),
        ("gelu_new", "n_head", 2),
    ],
    indirect=["recording"],
)
def test_config_not_honoured(recording, edit, key, value):
    assert edit.config[key] != value
    edit.config[key] = value
    assert clearly_wrong(recording, edit.load())


def transpose_attention_output(edit):
    path = "transformer.h.0.attn.c_proj.weight"
    edit.tensors[path] = edit.tensors[path].T


def swap_queries_and_keys(edit):
    for path in ("transformer.h.0.attn.c_attn.weight", "transformer.h.0.attn.c_attn.bias"):
        q, k, v = np.split(edit.tensors[path], 3, axis=-1)
        edit.tensors[path] = np.concatenate([k, q, v], axis=-1)


def start_positions_at_one(edit):
    path = "transformer.wpe.weight"
    edit.tensors[path] = np.roll(edit.tensors[path], -1, axis=0)


def use_another_head(edit):
    edit.config["tie_word_embeddings"] = False
    edit.tensors["lm_head.weight"] = np.random.default_rng(0).permutation(edit.tensors["transformer.wte.weight"])


def drop_the_last_block(edit):
    edit.config["n_layer"] -= 1
    last = f"transformer.h.{edit.config['n_layer']}."
    for path in [path for path in edit.tensors if path.startswith(last)]:
        del edit.tensors[path]


@pytest.mark.parametrize("recording", ["gelu_new", "relu_four_blocks", "reorder_and_upcast"], indirect=True)
@pytest.mark.parametrize(
    "slip",
    [
        transpose_attention_output,
        swap_queries_and_keys,
        start_positions_at_one,
        use_another_head,
        drop_the_last_block,
    ],
)
def test_weights_misread(recording, edit, slip):
    slip(edit)
    assert clearly_wrong(recording, edit.load())


@pytest.mark.parametrize("recording", ["gelu_new", "gelu_untied"], indirect=True)
def test_a_tensor_of_zeros(recording, edit):
    idle = []
    for path, tensor in list(edit.tensors.items()):
        edit.tensors[path] = np.zeros_like(tensor)
        if not clearly_wrong(recording, edit.load()):
            idle.append(path)
        edit.tensors[path] = tensor
    assert idle == []


def attention_with_mask(sees):
    """Textbook attention of one prompt in which row i attends to position j if `sees(i, j)`."""

    def attention(self, q, k, v, batch, *, layer, n_head, scale):
        n, c = q.shape
        q, k, v = (x.reshape(n, n_head, c // n_head).swapaxes(0, 1) for x in (q, k, v))  # (H, N, D)
        visible = sees(np.arange(n)[:, None], np.arange(n)[None, :])
        scores = np.where(visible, q @ k.swapaxes(1, 2) * q.dtype.type(scale), -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        heads = weights / weights.sum(axis=-1, keepdims=True) @ v
        return heads.swapaxes(0, 1).reshape(n, c)

    return attention


@pytest.mark.parametrize("recording", ["long_prompt"], indirect=True)
@pytest.mark.parametrize(
    "sees",
    [
        pytest.param(lambda i, j: j <= i + 1, id="also the next token"),
        pytest.param(lambda i, j: (j < i) | (i == 0), id="not itself"),
        pytest.param(lambda i, j: j >= 0 * i, id="everything"),
        pytest.param(lambda i, j: (j <= i) & ((j > 0) | (i == 0)), id="not the first token"),
        pytest.param(lambda i, j: (j <= i) & (j // 64 == i // 64), id="its own block of keys only"),
    ],
)
def test_attention_masked_wrongly(recording, edit, sees, monkeypatch):
    monkeypatch.setattr(ReferenceBackend, "attention", attention_with_mask(sees))
    assert clearly_wrong(recording, edit.load(device="reference"))


@pytest.mark.parametrize("recording", ["long_prompt"], indirect=True)
def test_the_unmutated_model_passes(recording, edit, monkeypatch):
    monkeypatch.setattr(ReferenceBackend, "attention", attention_with_mask(lambda i, j: j <= i))
    edit.tensors["transformer.wpe.weight"] = edit.tensors["transformer.wpe.weight"].T.copy().T
    assert recording.error(edit.load(device="reference")) < recording.tolerance["f32"]
