"""Checkpoints saved by PyTorch: check identifies the program, and the port computes the same as the module."""

import json

import numpy as np
import pytest

import rushlight
from rushlight.checkpoint import open_headers
from rushlight.porting.scaffold.port import scaffold

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning"),  # torch.compile's own
]

IDS = [3, 1, 4, 1, 5, 9, 2, 6]
V, T, C, H, L = 40, 32, 128, 2, 3
TOLERANCE = 4e-6
"""Relative to the largest logit, as in the other float32 comparisons with PyTorch."""


@pytest.fixture(params=["tanh"])
def nanogpt(torch, request):
    """nanoGPT's module, with either GELU: tanh in its first versions and in llm.c, erf in later ones."""

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.ln_1 = torch.nn.LayerNorm(C)
            self.attn = torch.nn.ModuleDict({"c_attn": torch.nn.Linear(C, 3 * C), "c_proj": torch.nn.Linear(C, C)})
            self.ln_2 = torch.nn.LayerNorm(C)
            self.mlp = torch.nn.ModuleDict({"c_fc": torch.nn.Linear(C, 4 * C), "c_proj": torch.nn.Linear(4 * C, C)})

        def forward(self, x):
            q, k, v = (
                part.view(1, -1, H, C // H).transpose(1, 2)
                for part in self.attn["c_attn"](self.ln_1(x)).split(C, dim=2)
            )
            heads = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.attn["c_proj"](heads.transpose(1, 2).reshape(1, -1, C))
            inner = torch.nn.functional.gelu(self.mlp["c_fc"](self.ln_2(x)), approximate=request.param)
            return x + self.mlp["c_proj"](inner)

    class NanoGPT(torch.nn.Module):
        """GPT-2 with the names and layers of nanoGPT's model.py."""

        def __init__(self):
            super().__init__()
            self.transformer = torch.nn.ModuleDict(
                {
                    "wte": torch.nn.Embedding(V, C),
                    "wpe": torch.nn.Embedding(T, C),
                    "h": torch.nn.ModuleList(Block() for _ in range(L)),
                    "ln_f": torch.nn.LayerNorm(C),
                }
            )
            self.lm_head = torch.nn.Linear(C, V, bias=False)
            self.transformer.wte.weight = self.lm_head.weight
            for parameter in self.parameters():
                torch.nn.init.normal_(parameter, std=0.2)

        def forward(self, ids):
            x = self.transformer.wte(ids) + self.transformer.wpe(torch.arange(ids.shape[1]))
            for block in self.transformer.h:
                x = block(x)
            return self.lm_head(self.transformer.ln_f(x))

    torch.manual_seed(0)
    return NanoGPT().eval()


@pytest.fixture
def expected(torch, nanogpt):
    """PyTorch's logits, (T, V)."""
    return nanogpt(torch.tensor([IDS]))[0].numpy()


def error(model, expected):
    return np.abs(model.logits(IDS) - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("compiled", [False, True])
def test_nanogpt_saved_by_save_model(torch, nanogpt, expected, tmp_path, monkeypatch, compiled):
    """save_model keeps only the head of the tied table and head."""
    from safetensors.torch import save_model

    path = tmp_path / "model.safetensors"
    save_model(torch.compile(nanogpt) if compiled else nanogpt, path)
    report = rushlight.check(path)
    causes = [finding.cause for finding in report.findings if finding.is_problem]
    assert causes == ["prefix"] * compiled + ["transposed"]
    assert report.saved_by == "nanoGPT"
    monkeypatch.chdir(tmp_path)
    exec(report.script, {})
    assert error(rushlight.load("fixed.safetensors"), expected) < TOLERANCE


@pytest.mark.parametrize(("nanogpt", "compiled"), [("tanh", True), ("none", False)], indirect=["nanogpt"])
def test_a_port_of_nanogpts_state_dict(torch, nanogpt, expected, tmp_path, compiled):
    from safetensors.torch import save_file

    state = (torch.compile(nanogpt) if compiled else nanogpt).state_dict()
    save_file({name: tensor.clone() for name, tensor in state.items()}, tmp_path / "model.safetensors")
    if not compiled:
        sizes = {"vocab_size": V, "n_positions": T, "n_embd": C, "n_layer": L, "n_head": H}
        config = {"model_type": "gpt2", "activation_function": "gelu", **sizes}
        (tmp_path / "config.json").write_text(json.dumps(config))
    with open_headers(tmp_path) as checkpoint:
        (tmp_path / "my_model.py").write_text(scaffold(checkpoint).module)
    assert error(rushlight.load(tmp_path, port=tmp_path / "my_model.py"), expected) < TOLERANCE


@pytest.mark.parametrize("kind", ["GPT2LMHeadModel", "GPT2Model"])
def test_transformers(transformers, tmp_path, kind):
    config = transformers.GPT2Config(vocab_size=V, n_positions=T, n_embd=C, n_layer=L, n_head=H)
    getattr(transformers, kind)(config).save_pretrained(tmp_path)
    report = rushlight.check(tmp_path)
    assert report.fits
    assert kind in report.saved_by
