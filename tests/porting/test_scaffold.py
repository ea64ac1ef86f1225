"""Ports written from headers: they take every tensor as they are, are laid out, and do what is known."""

import ast
import keyword
import runpy
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

import rushlight
from rushlight import demo
from rushlight.checkpoint import open_headers
from rushlight.errors import ConfigError, PortError
from rushlight.porting.scaffold.infer import Layer, conv1d_by_majority, infer_layer
from rushlight.porting.scaffold.port import scaffold
from rushlight.porting.scaffold.tree import RESERVED

GOLDEN = Path(__file__).parent / "golden"
PROMPT = "Once upon a time"


@pytest.fixture
def ported(tmp_path):
    """Writes the port of a checkpoint beside it and returns its path."""

    def ported(source):
        with open_headers(source) as checkpoint:
            path = tmp_path / "my_model.py"
            written = scaffold(checkpoint, path)
        path.write_text(written.module, encoding="utf-8")
        path.with_name("test_my_model.py").write_text(written.test, encoding="utf-8")
        return path, written

    return ported


def longest_line(text):
    return max(map(len, text.splitlines()))


# GPT-2


def test_the_embedded_models_port_is_as_it_was_when_somebody_read_it():
    """The files in golden/ are linted and formatted with the rest of the repository."""
    with open_headers(demo.folder()) as checkpoint:
        written = scaffold(checkpoint, "gpt2_port.py")
    assert written.module == (GOLDEN / "gpt2_port.py").read_text(encoding="utf-8")
    assert written.to_write == ()
    assert longest_line(written.module) <= 88


def test_it_generates_what_the_model_does(ported):
    path, _ = ported(demo.folder())
    for dtype in ("bf16", "int8"):
        ours = rushlight.load(dtype=dtype)
        theirs = rushlight.load(port=path, dtype=dtype)
        assert theirs.generate(PROMPT, max_tokens=30).ids == ours.generate(PROMPT, max_tokens=30).ids
        assert np.array_equal(theirs.logits(PROMPT), ours.logits(PROMPT))


def test_its_own_test_passes(ported, monkeypatch):
    path, _ = ported(demo.folder())
    monkeypatch.setenv("CHECKPOINT", str(demo.folder()))
    tests = {name: f for name, f in runpy.run_path(path.with_name("test_my_model.py")).items() if name[:5] == "test_"}
    assert len(tests) == 2
    for test in tests.values():
        test()


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module._orig_mod.", "my.net."])
def test_nanogpts_weights_as_they_are(nanogpt, ported, tale, prefix):
    path, written = ported(nanogpt.prefix(prefix).write())
    assert "Conv1D" not in written.module
    assert written.to_write == ()
    assert rushlight.load(nanogpt.folder, port=path).generate(PROMPT, max_tokens=20).text == tale
    assert rushlight.check(nanogpt.folder, port=path).fits


def test_llmc_with_masks_and_without_a_config(nanogpt, ported, tale):
    for i in range(6):
        nanogpt.tensors[f"transformer.h.{i}.attn.bias"] = np.tri(512, dtype=np.float32)[None, None]
    nanogpt.config = None
    path, written = ported(nanogpt.write())
    assert "# Inferred: GPT-2 and llm.c have gelu_tanh" in written.module
    assert rushlight.load(nanogpt.folder, port=path).generate(PROMPT, max_tokens=20).text == tale


def test_a_gpt2_without_biases_leaves_its_norm_to_be_written(nanogpt, ported):
    nanogpt.tensors = {name: tensor for name, tensor in nanogpt.tensors.items() if not name.endswith(".bias")}
    path, written = ported(nanogpt.write())
    assert written.to_write == ("Norm",)
    model = rushlight.load(nanogpt.folder, port=path)
    with pytest.raises(PortError, match=r"my_model.py: what Norm computes is still to be written"):
        model.logits([1])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scale_attn_by_inverse_layer_idx": True}, "/ (layer + 1)"),
        ({"scale_attn_weights": False}, "self.scale = 1.0\n"),
        ({"activation_function": "relu"}, 'Activation("relu")'),
        ({"layer_norm_epsilon": 1e-3}, "layer_norm_epsilon: float = 0.001"),
    ],
)
def test_the_arithmetic_of_its_config_is_written(tales, ported, changes, said):
    tales.config |= changes
    path, written = ported(tales.write())
    assert said in written.module
    expected = rushlight.load(tales.folder).logits(PROMPT)
    assert np.array_equal(rushlight.load(tales.folder, port=path).logits(PROMPT), expected)


def test_a_config_of_other_arithmetic_is_refused_by_the_port(tales, ported):
    path, _ = ported(tales.write())
    tales.config["activation_function"] = "relu"
    with pytest.raises(ConfigError, match="activation_function"):
        rushlight.load(tales.write(), port=path)


def test_a_smaller_model_of_its_kind(tales, ported):
    path, _ = ported(tales.write())
    tales.config["n_layer"] = 2
    tales.tensors = {n: t for n, t in tales.tensors.items() if not n.startswith(("h.2.", "h.3.", "h.4.", "h.5."))}
    assert rushlight.load(tales.write(), port=path).config.n_layer == 2


def test_a_table_under_the_heads_name_is_sent_to_the_doctor(nanogpt, ported):
    del nanogpt.tensors["transformer.wte.weight"]
    with pytest.raises(PortError, match="rushlight check"):
        ported(nanogpt.write())


# Other models


def encoder():
    """A model of no known kind: a convolution, blocks with a gate, a norm without bias, a parameter of its own."""
    shapes = {"embed.weight": (50, 32), "position": (64, 32), "conv.weight": (32, 32, 3), "conv.bias": (32,)}
    for i in range(3):
        block = f"layers.{i}."
        shapes |= {f"{block}norm.weight": (32,), f"{block}norm.bias": (32,)}
        shapes |= {f"{block}gate.0.weight": (128, 32), f"{block}gate.0.bias": (128,), f"{block}gate.2.weight": (32, 64)}
    shapes |= {"final_norm.weight": (32,), "scale": (), "head.weight": (10, 32), "head.bias": (10,)}
    return {name: np.ones(shape, np.float32) for name, shape in shapes.items()}


@pytest.fixture
def own(tales):
    tales.tensors = encoder()
    tales.config = {"model_type": "mine", "hidden_size": 32, "num_hidden_layers": 3, "vocab_size": 50}
    (tales.folder / "tokenizer.json").unlink()
    return tales


def test_an_encoders_port_is_as_it_was_when_somebody_read_it(own, ported, tmp_path):
    path, written = ported(own.write())
    assert written.module == (GOLDEN / "encoder_port.py").read_text(encoding="utf-8")
    assert written.to_write == ("Norm", "Layer", "Mine")
    for device in ("cpu", "reference"):
        module = rushlight.load_module(own.folder, port=path, device=device)
        assert not list(module.named_slots())
        with pytest.raises(PortError, match=r"my_model.py: what Mine computes is still to be written"):
            module(None)
    with pytest.raises(PortError, match="no language model"):
        rushlight.load(own.folder, port=path)
    assert rushlight.check(own.folder, port=path).fits


def test_the_doctor_finds_a_prefix_before_a_ports_names(own, ported):
    path, _ = ported(own.write())
    own.prefix("net.")
    report = own.check(port=path)
    assert [finding.cause for finding in report.findings if finding.is_problem] == ["prefix"]


def test_config_json_gives_the_sizes_their_names_and_a_broken_one_none(own, ported):
    _, written = ported(own.write())
    assert "num_hidden_layers: int = 3" in written.module
    (own.folder / "config.json").write_text("{")
    _, written = ported(own.folder)
    assert "width: int = 32" in written.module


def test_whole_numbers_are_buffers(own, ported):
    own.tensors |= {f"bn.{i}.num_batches_tracked": np.array(3) for i in range(2)}
    path, written = ported(own.write())
    assert r'buffers=(r"bn\.\d+\.num_batches_tracked",)' in written.module
    rushlight.load_module(own.folder, port=path)


def test_equal_blocks_are_one_class_and_others_are_not(own, ported):
    own.tensors = {
        f"{part}.{i}.up.weight": np.ones((4 + (part == "b" and i), 2), np.float32) for part in "ab" for i in range(2)
    }
    path, written = ported(own.write())
    assert "self.a = ModuleList(A(config) for _ in range(2))" in written.module
    assert written.to_write == ("A", "B", "B2", "Mine")
    rushlight.load_module(own.folder, port=path)


# Guesses


@pytest.mark.parametrize(
    ("name", "tensors", "layer"),
    [
        ("up", {"weight": (8, 4), "bias": (8,)}, Layer("Linear", (4, 8))),
        ("up", {"weight": (4, 8), "bias": (8,)}, Layer("Conv1D", (4, 8))),
        ("up", {"weight": (8, 4)}, Layer("Linear", (4, 8), (("bias", "False"),))),
        ("wte", {"weight": (8, 4)}, Layer("Embedding", (8, 4))),
        ("embed_tokens", {"weight": (8, 4)}, Layer("Embedding", (8, 4))),
        ("norm", {"weight": (4,), "bias": (4,)}, Layer("LayerNorm", (4,), (("eps", "1e-5"),))),
        ("up", {"weight": (4, 8), "bias": (5,)}, None),
        ("norm", {"weight": (4,)}, None),
        ("bn", {"weight": (4,), "bias": (4,), "running_mean": (4,)}, None),
        ("conv", {"weight": (4, 8, 3, 3), "bias": (4,)}, None),
        ("up", {"weight": (0, 4)}, None),
        ("up", {"bias": (4,)}, None),
    ],
)
def test_layers_by_name_and_shape(name, tensors, layer):
    assert infer_layer(name, tensors, conv1d=False) == layer


def test_a_square_weight_is_what_its_neighbours_are():
    square = {"weight": (4, 4), "bias": (4,)}
    assert infer_layer("c_proj", square, conv1d=True).kind == "Conv1D"
    assert infer_layer("c_proj", square, conv1d=False).kind == "Linear"
    assert "square" in infer_layer("c_proj", square, conv1d=False).doubt
    assert conv1d_by_majority([("a.weight", (4, 8)), ("a.bias", (8,)), ("b.weight", (4, 4)), ("b.bias", (4,))])
    assert not conv1d_by_majority([("a.weight", (8, 4)), ("a.bias", (8,))])
    assert not conv1d_by_majority([("b.weight", (4, 4)), ("b.bias", (4,))])


def test_a_convolution_says_what_it_cannot_know():
    layer = infer_layer("conv", {"weight": (8, 4, 5), "bias": (8,)}, conv1d=False)
    assert (layer.kind, layer.sizes, layer.options) == ("Convolution", (4, 8, 5), (("before", "2"),))
    assert "causal" in layer.doubt


# Names from strangers


def test_names_that_no_module_can_have_are_named_at_once(own, ported):
    own.tensors = {
        name: np.ones(2, np.float32)
        for name in ("a", "a.weight", "b..weight", "", "ops.weight", "x.children", ".".join("a" * 50), "fine.weight")
    }
    with pytest.raises(PortError) as caught:
        ported(own.write())
    lines = str(caught.value).splitlines()
    assert len(lines) == 8
    assert all("fine" not in line for line in lines)


def test_no_tensors(own, ported):
    own.tensors = {}
    with pytest.raises(PortError, match="no tensors"):
        ported(own.write())


PARTS = st.one_of(
    st.sampled_from(
        ["weight", "bias", "h", "0", "1", "2", "10", "007", "class", "lambda", "None", "__x", "__init_x__"]
    ),
    st.sampled_from(
        ["self", "config", "layer", "Module", "Linear", "print", "Config", "é", "ﬁ", "a b", '"', "\\", "#", "'''"]
    ),
    st.text(st.characters(codec="utf-8", exclude_characters="."), min_size=1, max_size=6),
)
SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.lists(PARTS, min_size=1, max_size=4).map(".".join), SHAPES, min_size=1, max_size=12))
def test_whatever_the_names_every_tensor_has_its_place(tmp_path_factory, shapes):
    modules = {name[:i] for name in shapes for i in range(len(name)) if name[i] == "."}
    shapes = {
        name: shape
        for name, shape in shapes.items()
        if name not in modules and not RESERVED.intersection(name.split("."))
    }
    if not shapes:
        return
    folder = tmp_path_factory.mktemp("any")
    save_file({name: np.ones(shape, np.float32) for name, shape in shapes.items()}, folder / "model.safetensors")
    with open_headers(folder) as checkpoint:
        written = scaffold(checkpoint)
    (folder / "my_model.py").write_text(written.module, encoding="utf-8")
    compile(written.test, "test", "exec")
    module = rushlight.load_module(folder, port=folder / "my_model.py", device="reference")
    assert not list(module.named_slots())


def test_many_tensors_take_time_that_grows_with_them(tmp_path):
    """10,000 blocks, and numbers that leave gaps of millions."""
    shapes = {f"h.{i}.weight": (1, 2) for i in range(10_000)} | {f"g.{i * 10**6}.weight": (1,) for i in range(1_000)}
    save_file({name: np.ones(shape, np.float32) for name, shape in shapes.items()}, tmp_path / "model.safetensors")
    with open_headers(tmp_path) as checkpoint:
        written = scaffold(checkpoint)
    assert "range(10000)" in written.module
    assert len(written.module) < 100_000
    ast.parse(written.module)


def test_keywords_are_set_and_not_written(own, ported):
    own.tensors = {f"{word}.weight": np.ones((2, 3), np.float32) for word in keyword.kwlist}
    path, _ = ported(own.write())
    assert len(list(rushlight.load_module(own.folder, port=path).children())) == len(keyword.kwlist)
