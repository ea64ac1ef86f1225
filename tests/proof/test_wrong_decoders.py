"""Wrong ports of decoders: `verify` names the module, and says in one sentence what it computes otherwise.

A port that `rushlight port` writes is recorded, then spoiled by an edit of its source.
"""

import numpy as np
import pytest
from architecture_fixtures import Fixture, weight

import rushlight
from rushlight.checkpoint import open_headers
from rushlight.porting.scaffold.port import scaffold
from rushlight.proof import verify

IDS = Fixture("llama").prompt[:30]


class Port:
    """A checkpoint of an unknown type, its port, and the recording of that port."""

    def __init__(self, folder, record_port):
        self.folder, self.record_port = folder, record_port
        self.fixture = Fixture("llama")
        self.fixture.config |= {"model_type": "newcomer", "sliding_window": 8, "attention_multiplier": 0.3}
        for i in range(2):
            for name in ("q_norm", "k_norm"):
                path = f"model.layers.{i}.self_attn.{name}.weight"
                self.fixture.tensors[path] = weight(path, (10,))

    def record(self, old="", new=""):
        """The recording of the port, whose source may be edited before."""
        with open_headers(self.fixture.write(self.folder)) as checkpoint:
            self.source = scaffold(checkpoint).module
        assert not old or self.source.count(old) == 1
        self.source = self.source.replace(old, new) if old else self.source
        return self.record_port(self.load(self.source), IDS)

    def load(self, source, device="reference"):
        path = self.folder / "port.py"
        path.write_text(source, encoding="utf-8")
        return rushlight.load(self.folder, port=path, device=device)

    def first(self, old, new, device="reference"):
        """The first module that diverges in a port whose source is edited, and the cause."""
        golden = self.record()
        assert self.source.count(old) == 1, self.source
        report = verify(self.load(self.source.replace(old, new), device), golden)
        assert not report.passed
        return report.first.path, report.first.cause


@pytest.fixture
def port(tmp_path, record_port):
    return Port(tmp_path, record_port)


@pytest.mark.parametrize("device", ["reference", "cpu"])
def test_a_right_port_has_no_cause(port, device):
    report = verify(port.load(port.record() and port.source, device), port.record())
    assert report.failures == []
    assert {result.status for result in report.modules} == {"equal"}
    assert [result.cause for result in report.modules if result.cause] == []
    paths = [result.path for result in report.modules]
    assert {"rotary_emb", "layers.0.self_attn.q_norm", "layers.1.mlp.act_fn", "lm_head"} <= {*paths}


ATTENTION = "layers.0.self_attn"
ATTENDED = "x = x + self.self_attn(self.input_layernorm(x), angles, batch)\n        "
Q = "q = ops.rotary(q, angles, heads.n)"
CASES = {
    "pairing": (
        Q + "\n        k = ops.rotary(k, angles, heads.n_kv)",
        "q = ops.rotary(q, angles, heads.n, interleaved=True)\n"
        "        k = ops.rotary(k, angles, heads.n_kv, interleaved=True)",
        ATTENTION,
        "before o_proj: attention with rotary interleaved pairs (2i, 2i + 1) where the recording has pairs (i, i +"
        " r/2)",
    ),
    "no rotation": (
        Q + "\n        k = ops.rotary(k, angles, heads.n_kv)",
        "pass",
        ATTENTION,
        "before o_proj: attention with no rotary embedding where the recording has rotary embedding of q and k",
    ),
    "rotation of q only": (
        "k = ops.rotary(k, angles, heads.n_kv)",
        "pass",
        ATTENTION,
        "before o_proj: attention with rotary embedding of q only where the recording has rotary embedding of q and k",
    ),
    "theta": (
        "rope = config.rope_parameters",
        "rope = Rope(1e6, 10)",
        "rotary_emb",
        "theta is 1e+06, and 5000 in the recording",
    ),
    "fraction": (
        "rope = config.rope_parameters",
        "rope = Rope(5000.0, 4)",
        "rotary_emb",
        "it turns 4 channels of each head, and the recording 10",
    ),
    "linear scaling that is not recorded": (
        "rope = config.rope_parameters",
        'rope = Rope(5000.0, 10, "linear", {"factor": 4.0})',
        "rotary_emb",
        "frequencies are 0.25 times the recorded ones: the recording does not scale them",
    ),
    "scale of the angles": (
        "rope.scale)",
        "1.5)",
        "rotary_emb",
        "cosines and sines are multiplied by 1.5, and by 1 in the recording, as by the attention factor of YaRN and"
        " LongRoPE",
    ),
    "positions": (
        "self.rotary_emb(batch.positions)",
        "self.rotary_emb(batch.positions + 1)",
        "rotary_emb",
        "the positions are shifted",
    ),
    "rotation before the norm": (
        "q, k = self.q_norm(q), self.k_norm(k)",
        "q, k = ops.rotary(q, angles, heads.n), ops.rotary(k, angles, heads.n_kv)\n"
        "        q, k = self.q_norm(q), self.k_norm(k)\n        return self.rest(q, k, v, batch)\n\n"
        "    def rest(self, q, k, v, batch):\n        ops, heads, angles = self.ops, self.heads, None\n"
        "        ops = type('Ops', (), {'rotary': lambda self, x, *_: x, 'attention': ops.attention})()",
        ATTENTION,
        "before q_norm: rotary embedding comes before the norm, and after it in the recording",
    ),
    "scale": (
        "self.scale = 0.3",
        "self.scale = heads.dim**-0.5",
        ATTENTION,
        "before o_proj: attention with 1/√head_dim where the recording has a scale of 0.3",
    ),
    "softcap": (
        "window=self.window",
        "window=self.window, softcap=30.0",
        ATTENTION,
        "before o_proj: attention with a softcap of 30 where the recording has no softcap",
    ),
    "k and v swapped": (
        "q_proj(x), self.k_proj(x), self.v_proj(x)",
        "q_proj(x), self.v_proj(x), self.k_proj(x)",
        ATTENTION,
        "before k_norm: it computes v_proj where the recording has k_proj",
    ),
    "1 + weight": (
        "self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)",
        "self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps, offset=1.0)",
        "layers.0.input_layernorm",
        "it multiplies by 1 + weight, and the recording by weight: offset is to be 0",
    ),
    "mean subtracted": (
        "self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)",
        "self.input_layernorm = __import__('rushlight').nn.LayerNorm(24, eps=config.rms_norm_eps, bias=False)",
        "layers.0.input_layernorm",
        "the recording does not subtract the mean: an RMS norm",
    ),
    "eps": (
        "self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)",
        "self.input_layernorm = RMSNorm(config.hidden_size, eps=1e-2)",
        "layers.0.input_layernorm",
        "eps is 0.01, but 1e-06 in the recording",
    ),
    "gate and up exchanged": (
        "self.act_fn(self.gate_proj(x)), self.up_proj(x)",
        "self.gate_proj(x), self.act_fn(self.up_proj(x))",
        "layers.0.mlp",
        "before act_fn: it computes up_proj where the recording has gate_proj: gate and up are exchanged",
    ),
    "norm after": (
        "self.self_attn(self.input_layernorm(x), angles, batch)",
        "self.input_layernorm(self.self_attn(x, angles, batch))",
        "layers.0",
        "before self_attn: it computes its input where the recording has input_layernorm: that norm comes first in the"
        " recording",
    ),
    "parallel block": (
        ATTENDED + "return x + self.mlp(self.post_attention_layernorm(x))",
        ATTENDED.replace("x = x", "y = x") + "return y + self.mlp(self.post_attention_layernorm(x))",
        "layers.0",
        "before post_attention_layernorm: it computes its input where the recording has its input + self_attn: the"
        " block is parallel, and serial in the recording",
    ),
    "norm left out": (
        ATTENDED + "return x + self.mlp(self.post_attention_layernorm(x))",
        ATTENDED + "return x + self.mlp(self.input_layernorm(x))",
        "layers.0.post_attention_layernorm",
        "the port never calls it; its output goes to layers.0.mlp in the recording",
    ),
    "residual scale": (
        "return x + self.mlp(self.post_attention_layernorm(x))",
        "return x + self.mlp(self.post_attention_layernorm(x)) * 0.22",
        "layers.0",
        "it computes its input + self_attn + 0.22 × mlp where the recording has its input + self_attn + mlp: the factor"
        " of 0.22 is not in the recording",
    ),
    "embedding scale": (
        "x = self.embed_tokens(batch.ids)",
        "x = self.embed_tokens(batch.ids) * 12",
        "",
        "before layers.0: it computes 12 × embed_tokens where the recording has embed_tokens: the factor of 12 is not"
        " in the recording",
    ),
    "embedding scale inside": (
        "Embedding(config.vocab_size, config.hidden_size)",
        "Embedding(config.vocab_size, config.hidden_size, scale=0.5)",
        "embed_tokens",
        "the recording is 2 times what it computes: its scale is 0.5, not 1",
    ),
    "logit scale": (
        "return self.lm_head(self.norm(x))",
        "return self.lm_head(self.norm(x)) * 0.125",
        "",
        "it computes 0.125 × lm_head where the recording has lm_head: the factor of 0.125 is not in the recording",
    ),
    "logit softcap": (
        "return self.lm_head(self.norm(x))",
        'return self.ops.activation(self.lm_head(self.norm(x)) * (1 / 30), "tanh") * 30',
        "",
        "it computes a softcap of 30 of lm_head where the recording has lm_head",
    ),
}


@pytest.mark.parametrize(("old", "new", "path", "cause"), CASES.values(), ids=CASES)
def test_an_edit_is_named(port, old, new, path, cause):
    assert port.first(old, new) == (path, cause)


def test_a_shared_norm_of_a_parallel_block_is_named(port):
    """The recorded block is parallel, with a norm for each part."""
    golden = port.record(
        ATTENDED + "return x + self.mlp(self.post_attention_layernorm(x))",
        "y = self.input_layernorm(x)\n"
        "        return x + self.self_attn(y, angles, batch) + self.mlp(self.post_attention_layernorm(x))",
    )
    model = port.load(port.source.replace("self.mlp(self.post_attention_layernorm(x))", "self.mlp(y)"))
    report = verify(model, golden)
    assert (report.first.path, report.first.cause) == (
        "layers.0.post_attention_layernorm",
        "the port never calls it; its output goes to layers.0.mlp in the recording, where the port has input_layernorm",
    )


@pytest.mark.parametrize(("window", "found"), [(9, "a window of 9"), (7, "a window of 7"), (None, "no window")])
def test_a_wrong_window_is_named(port, window, found):
    golden = port.record()
    port.fixture.config["sliding_window"] = window
    port.fixture.write(port.folder)
    report = verify(port.load(port.source), golden)
    assert (report.first.path, report.first.cause) == (
        ATTENTION,
        f"before o_proj: attention with {found} where the recording has a window of 8",
    )


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"rope_type": "linear", "factor": 4.0},
            "frequencies are 4 times the recorded ones: linear scaling by 4 is missing",
        ),
        (
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
            "4 of 5 frequencies are lower in the recording: llama3, yarn or longrope scaling is missing",
        ),
    ],
)
def test_missing_rope_scaling_is_named(port, settings, expected):
    port.fixture.config["rope_parameters"] |= settings
    golden = port.record()
    model = port.load(port.source.replace("rope = config.rope_parameters", "rope = Rope(5000.0, 10)"))
    report = verify(model, golden)
    assert (report.first.path, report.first.cause) == ("rotary_emb", expected)


def test_the_same_causes_without_a_module_for_angles(port):
    """A port may compute its angles itself: they are then compared through attention."""
    port.fixture.config["rope_parameters"] = {"rope_type": "default", "rope_theta": 500000.0}
    golden = port.record()
    source = port.source.replace("self.rotary_emb = Rotary(", "self.frequencies = Constant(").replace(
        ", rope.scale)", ")"
    )
    source = source.replace("self.rotary_emb(batch.positions)", "self.ops.angles(batch.positions, self.frequencies)")
    source = source.replace("import Activation,", "import Activation, Constant,")
    assert verify(port.load(source), golden).failures == []
    wrong = source.replace("rope = config.rope_parameters", "rope = Rope(10000.0, 10)")
    report = verify(port.load(wrong), golden)
    assert (report.first.path, report.first.cause) == (
        ATTENTION,
        "before o_proj: attention with rotary embedding by other angles where the recording has the recorded angles",
    )


@pytest.mark.parametrize(("right", "wrong"), [("repeat", "tile"), ("tile", "repeat")])
def test_tiled_heads_are_named(port, right, wrong):
    """A port that gives every query head its own copy of the keys, in the wrong order."""
    port.fixture.config["num_key_value_heads"] = 4
    for i in range(2):
        for name in ("k_proj", "v_proj"):
            path = f"model.layers.{i}.self_attn.{name}.weight"
            port.fixture.tensors[path] = np.concatenate([port.fixture.tensors[path]] * 2)
    expand = {
        "repeat": "np.repeat(x[:, :2], 2, axis=1)",
        "tile": "np.tile(x[:, :2], (1, 2, 1))",
    }
    old = "q, k = self.q_norm(q), self.k_norm(k)"

    def new(how):
        return (
            f"import numpy as np\n        expand = lambda x: ({expand[how]}).reshape(len(x), -1)\n"
            "        q, k, v = self.q_norm(q), *(expand(y.reshape(len(x), 4, 10)) for y in (self.k_norm(k), v))"
        )

    golden = port.record(old, new(right))
    report = verify(port.load(port.source.replace(new(right), new(wrong))), golden)
    words = {
        "repeat": "query head h reading key head h·K // H",
        "tile": "query head h reading key head h % K",
    }
    assert report.first.path == ATTENTION
    assert report.first.cause.endswith(f"attention with {words[wrong]} where the recording has {words[right]}")
