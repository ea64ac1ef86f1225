"""Ten defects in checkpoints and ports that no check of names and shapes finds: verify names the module and the cause.

The digests of the weights would reveal many of them at once. Here the weights are not compared, so that the outputs
have to show the defect; test_verify.py tests the digests.
"""

import math
from pathlib import Path

import numpy as np
import pytest

import rushlight
from rushlight.errors import NonFiniteError
from rushlight.nn import Activation
from rushlight.proof import verify

GPT2 = Path(__file__).parents[1] / "fixtures" / "gpt2" / "gelu_new"


def named(report):
    """Returns the first divergent module and the cause; a report that names one never passes."""
    assert not report.passed
    assert report.failures
    assert report.first is not None
    return report.first.path, report.first.cause


def spoil_bias(tensors, path):
    tensors[path] = np.zeros_like(tensors[path])


def swap_q_and_k(tensors):
    for path in ("h.0.attn.c_attn.weight", "h.0.attn.c_attn.bias"):
        q, k, v = np.split(tensors[path], 3, axis=-1)
        tensors[path] = np.concatenate([k, q, v], axis=-1)


def to_bfloat16(tensors):
    for name, tensor in tensors.items():
        bits = np.ascontiguousarray(tensor).view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)  # to nearest, ties to even
        tensors[name] = rounded.view(np.float32)


def transpose(tensors):
    tensors["h.1.attn.c_proj.weight"] = tensors["h.1.attn.c_proj.weight"].T


def shift_positions(tensors):
    tensors["wpe.weight"] = np.roll(tensors["wpe.weight"], -1, axis=0)


CONFIGS = {
    "erf GELU": (
        {"activation_function": "gelu"},
        ("h.0.mlp.act", "it computes gelu_erf where the recording has gelu_tanh"),
    ),
    "wrong eps": ({"layer_norm_epsilon": 1e-6}, ("h.0.ln_1", "eps is 1e-06, but 1e-05 in the recording")),
    "no scale": (
        {"scale_attn_weights": False},
        ("h.0.attn", "before c_proj: attention with no scale where the recording has 1/√head_dim"),
    ),
}

CHECKPOINTS = {
    "transposed square weight": (transpose, ("h.1.attn.c_proj", "the weight is transposed")),
    "positions off by one": (
        shift_positions,
        ("wpe", "its rows are shifted: row i - 1 is the recorded row i; positions off by one"),
    ),
    "swapped q and k": (
        swap_q_and_k,
        ("h.0.attn.c_attn", "q and k are swapped (two of the thirds of its output)"),
    ),
    "bf16 where f32 was recorded": (
        to_bfloat16,
        ("wte", "its weights are rounded to bfloat16, unlike the recorded ones"),
    ),
    "dropped bias": (
        lambda tensors: spoil_bias(tensors, "h.1.mlp.c_fc.bias"),
        ("h.1.mlp.c_fc", "the bias is missing: the recording has one, non-zero in 72 of 72 channels"),
    ),
    "dropped bias of a norm": (
        lambda tensors: spoil_bias(tensors, "h.1.ln_2.bias"),
        ("h.1.ln_2", "the bias is missing: the recording has one, non-zero in 18 of 18 channels"),
    ),
}


@pytest.mark.parametrize("device", ["cpu", "reference"])
@pytest.mark.parametrize(("config", "expected"), CONFIGS.values(), ids=CONFIGS)
def test_a_config_that_is_not_honoured_is_identified(spoiled, config, expected, device):
    spoiled.config |= config
    assert named(spoiled.report(weights=False, device=device)) == expected


@pytest.mark.parametrize("device", ["cpu", "reference"])
@pytest.mark.parametrize(("spoil", "expected"), CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_a_corrupted_checkpoint_is_identified(spoiled, spoil, expected, device):
    spoil(spoiled.tensors)
    assert named(spoiled.report(weights=False, device=device)) == expected


def test_a_single_nan_is_refused_on_load(spoiled):
    spoiled.tensors["h.1.mlp.c_fc.weight"][3, 5] = np.nan
    with pytest.raises(NonFiniteError, match=r"h\.1\.mlp\.c_fc\.weight: a weight is not a finite f32 number"):
        spoiled.report(device="cpu")


def test_a_single_nan_in_a_loaded_model_is_located(spoiled):
    spoiled.tensors["h.1.mlp.c_fc.weight"][3, 5] = np.nan
    path, cause = named(spoiled.report(weights=False, device="reference"))
    assert path == "h.1.mlp.c_fc"
    assert cause.startswith("its weights hold NaN: ")
    assert "in channel 5 of 72" in cause


def test_a_nan_in_a_row_that_no_prompt_uses_is_found_by_the_digests(spoiled):
    spoiled.tensors["wpe.weight"][200, 3] = np.nan
    report = spoiled.report(device="reference")
    assert report.first is None
    assert report.failures == [
        "the weights differ from the recorded ones: wpe.weight (1 of 4,626 values are NaN or infinite)"
    ]


# The same in ports: the checkpoint is correct, and the code is wrong.


def with_attention(model, attention):
    """The model whose attention is computed by another function of (q, k, v, n_head, scale)."""

    class Ops(type(model.module.ops)):
        def attention(self, q, k, v, batch, *, layer, n_head, scale):
            return attention(q, k, v, n_head, scale)

    ops = Ops(model.dtype)
    for _, module in model.module.named_modules():
        module.ops = ops
    return model


def textbook(q, k, v, n_head, scale, visible):
    n, c = q.shape
    q, k, v = (x.reshape(n, n_head, c // n_head).swapaxes(0, 1) for x in (q, k, v))
    scores = np.where(visible(np.arange(n)[:, None], np.arange(n)[None, :]), q @ k.swapaxes(1, 2) * scale, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return (weights / weights.sum(axis=-1, keepdims=True) @ v).swapaxes(0, 1).reshape(n, c).astype(np.float32)


def causal(i, j):
    return j <= i


ATTENTIONS = {
    "none": (lambda q, k, v, h, s: textbook(q, k, v, h, s, causal), None),
    "no mask": (
        lambda q, k, v, h, s: textbook(q, k, v, h, s, lambda i, j: j >= 0 * i),
        "no mask where the recording has a causal mask",
    ),
    "mask off by one": (
        lambda q, k, v, h, s: textbook(q, k, v, h, s, lambda i, j: j <= i + 1),
        "a causal mask that also shows the next token where the recording has a causal mask",
    ),
    "no scale": (
        lambda q, k, v, h, s: textbook(q, k, v, h, 1.0, causal),
        "no scale where the recording has 1/√head_dim",
    ),
    "q and k swapped": (lambda q, k, v, h, s: textbook(k, q, v, h, s, causal), "q and k swapped"),
    "heads": (lambda q, k, v, h, s: textbook(q, k, v, 2, s, causal), "2 heads where the recording has 3"),
}


@pytest.mark.parametrize(("attention", "cause"), ATTENTIONS.values(), ids=ATTENTIONS)
def test_wrong_attention_in_a_port_is_identified(golden, attention, cause):
    for case in golden.cases:
        case.greedy_ids = []  # textbook attention does not fill the KV cache
    model = rushlight.load(GPT2, device="reference")
    report = verify(with_attention(model, attention), golden)
    if cause is None:
        assert report.passed
    else:
        assert named(report) == ("h.0.attn", f"before c_proj: attention with {cause}")


def rewrite(model, path, call):
    """Makes one module of the model compute something else."""
    module = dict(model.module.named_modules())[path]
    module.__class__ = type(type(module).__name__, (type(module),), {"__call__": call})


def root(change):
    def call(self, batch):
        x = change(self, batch)
        for block in self.h:
            x = block(x, batch)
        return self.lm_head(self.ln_f(self.ops.take(x, batch.logit_rows)))

    return call


def without_norm(self, batch):
    x = self.wte(batch.ids) + self.wpe(batch.positions)
    for block in self.h:
        x = block(x, batch)
    return self.lm_head(self.ops.take(x, batch.logit_rows))


PORTS = {
    "positions off by one": (
        "",
        root(lambda self, batch: self.wte(batch.ids) + self.wpe(batch.positions + 1)),
        ("", "before wpe: off by +1 everywhere: shifted positions or ids"),
    ),
    "no positions": (
        "",
        root(lambda self, batch: self.wte(batch.ids)),
        ("wpe", "the port never calls it"),
    ),
    "final norm left out": (
        "",
        without_norm,
        (
            "ln_f",
            "the port never calls it; its output goes to lm_head in the recording, where the port has h.1",
        ),
    ),
    "residual left out": (
        "h.1",
        lambda self, x, batch: (y := self.attn(self.ln_1(x), batch)) + self.mlp(self.ln_2(y)),
        (
            "h.1",
            "before ln_2: it computes attn where the recording has its input + attn: the residual is added before the"
            " norm in the recording",
        ),
    ),
    "norm behind the residual": (
        "h.0",
        lambda self, x, batch: (y := x + self.attn(x, batch)) + self.mlp(self.ln_2(y)),
        (
            "h.0.ln_1",
            "the port never calls it; its output goes to h.0.attn in the recording, where the port has the input of"
            " h.0",
        ),
    ),
    "activation left out": (
        "h.0.mlp",
        lambda self, x: self.c_proj(self.c_fc(x)),
        (
            "h.0.mlp.act",
            "the port never calls it; its output goes to h.0.mlp.c_proj in the recording, where the port has c_fc",
        ),
    ),
    "bias left out": (
        "h.0.mlp.c_proj",
        lambda self, x: self.ops.linear(x, self.weight, None),
        ("h.0.mlp.c_proj", "the bias is missing: the recording has one, non-zero in 18 of 18 channels"),
    ),
    "eps": (
        "h.1.ln_2",
        lambda self, x: self.ops.layer_norm(x, self.weight, self.bias, 1e-2),
        ("h.1.ln_2", "eps is 0.01, and the recording fits 1e-05"),
    ),
}


@pytest.mark.parametrize(("path", "call", "expected"), PORTS.values(), ids=PORTS)
def test_wrong_arithmetic_in_a_port_is_identified(golden, path, call, expected):
    model = rushlight.load(GPT2, device="reference")
    rewrite(model, path, call)
    assert named(verify(model, golden)) == expected


def test_each_activation_is_identified(golden):
    for name in ("gelu_erf", "relu", "silu", "quick_gelu", "sigmoid", "tanh"):
        model = rushlight.load(GPT2)
        model.module.h[0].mlp.act = wrong = Activation(name)
        wrong.ops = model.module.ops
        expected = ("h.0.mlp.act", f"it computes {name} where the recording has gelu_tanh")
        assert named(verify(model, golden)) == expected


def test_an_eps_that_was_not_recorded_is_fitted(golden):
    for case in golden.cases:
        case.calls = [call.__class__(call.path, call.repr, None, call.input, call.output) for call in case.calls]
    model = rushlight.load(GPT2)
    model.module.h[1].ln_2.eps = 1e-2
    path, cause = named(verify(model, golden))
    assert path == "h.1.ln_2"
    assert cause == "eps is 0.01, and the recording fits 1e-05"


def test_every_zeroed_tensor_is_found(spoiled, golden):
    """With any tensor zeroed, verification fails and names the module that the tensor belongs to."""
    golden.cases = golden.cases[1:]
    golden.cases[0].greedy_ids = []
    wrong = []
    for name in list(spoiled.tensors):
        kept = spoiled.tensors[name]
        spoiled.tensors[name] = np.zeros_like(kept)
        path, _ = named(verify(spoiled.load(), golden))
        if path != name.rpartition(".")[0]:
            wrong.append((name, path))
        spoiled.tensors[name] = kept
    assert wrong == []


def test_divergence_and_propagation_are_distinguished(spoiled):
    transpose(spoiled.tensors)
    statuses = {result.path: result.status for result in spoiled.report(weights=False).modules}
    assert [path for path, status in statuses.items() if status == "diverges"] == ["h.1.attn.c_proj"]
    paths = list(statuses)
    behind = paths[paths.index("h.1.attn.c_proj") + 1 :]
    assert {statuses[path] for path in behind} == {"propagated"}
    assert {statuses[path] for path in paths[: paths.index("h.1.attn.c_proj")]} == {"equal"}


def test_nan_is_larger_than_any_error(spoiled):
    spoiled.tensors["wpe.weight"][1] = np.nan
    report = spoiled.report(weights=False, device="reference")
    wpe = next(result for result in report.modules if result.path == "wpe")
    assert math.isnan(wpe.teacher_forced)
    assert wpe.status == "diverges"
    assert report.logits is not None
    assert report.logits.distance.non_finite > 0
    assert report.to_json()["logits"]["relative_error"] is None
