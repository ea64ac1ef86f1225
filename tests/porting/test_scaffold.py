"""Scaffolds: a port has a slot for every tensor, is formatted, and computes what a built-in architecture computes."""

import ast
import difflib
import inspect
import keyword
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

import rushlight
from rushlight import demo
from rushlight.checkpoint import open_headers
from rushlight.errors import PortError
from rushlight.models import ARCHITECTURES, gpt2
from rushlight.porting.scaffold.infer import SQUARE, Layer, conv1d_by_majority, infer_layer
from rushlight.porting.scaffold.port import scaffold
from rushlight.porting.scaffold.tree import RESERVED

RMS_NORM = "an RMSNorm; a LayerNorm with bias=False has the same tensors"
GOLDEN = Path(__file__).parent / "golden"
PROMPT = "Once upon a time"


@pytest.fixture
def ported(tmp_path):
    """Writes the port of a checkpoint, and returns its path and the scaffold."""

    def ported(source):
        with open_headers(source) as checkpoint:
            path = tmp_path / "my_model.py"
            written = scaffold(checkpoint, path)
        path.write_text(written.module, encoding="utf-8")
        path.with_name("test_my_model.py").write_text(written.test, encoding="utf-8")
        return path, written

    return ported


# Built-in architectures


def changed_lines(written, model_file=gpt2):
    """Returns the diff between the file of an architecture and a port, without docstrings."""
    ours = inspect.getsource(model_file).partition('"""\n\nfrom')[2].splitlines()
    theirs = written.module.partition('"""\n\nfrom')[2].splitlines()
    return [line for line in difflib.ndiff(ours, theirs) if line[:2] in {"+ ", "- "}]


def test_the_port_of_a_built_in_architecture_is_its_own_file(ported):
    _, written = ported(demo.folder())
    assert changed_lines(written) == []
    assert written.to_write == ()


def test_a_port_generates_the_same_output_as_the_built_in_model(ported):
    path, _ = ported(demo.folder())
    for dtype in ("bf16", "int8"):
        ours = rushlight.load(dtype=dtype)
        theirs = rushlight.load(port=path, dtype=dtype)
        assert theirs.generate(PROMPT, max_tokens=30).ids == ours.generate(PROMPT, max_tokens=30).ids
        assert np.array_equal(theirs.logits(PROMPT), ours.logits(PROMPT))


def test_the_test_of_a_port_passes(ported, monkeypatch):
    path, _ = ported(demo.folder())
    monkeypatch.setenv("CHECKPOINT", str(demo.folder()))
    tests = {name: f for name, f in runpy.run_path(path.with_name("test_my_model.py")).items() if name[:5] == "test_"}
    assert len(tests) == 2
    for test in tests.values():
        test()


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module._orig_mod.", "my.net."])
def test_a_port_of_linear_weights_and_wrapped_names_generates_the_same_output(nanogpt, ported, tale, prefix):
    path, written = ported(nanogpt.prefix(prefix).write())
    assert "Conv1D(" not in written.module
    assert written.to_write == ()
    assert rushlight.load(nanogpt.folder, port=path).generate(PROMPT, max_tokens=20).text == tale
    assert rushlight.check(nanogpt.folder, port=path).fits


def test_only_differences_of_the_checkpoint_are_edited(nanogpt, ported):
    _, written = ported(nanogpt.prefix("net.").write())
    changes = [" ".join(line.split()) for line in changed_lines(written)]
    for old, new in [
        ("self.c_attn = Conv1D(config.n_embd, 3 * config.n_embd)", "Linear"),
        ("self.c_proj = Conv1D(config.n_embd, config.n_embd)", "Linear"),
        ("self.c_fc = Conv1D(config.n_embd, config.n_inner)", "Linear"),
        ("self.c_proj = Conv1D(config.n_inner, config.n_embd)", "Linear"),
        ('prefixes=("transformer.",),', '"net.transformer.", "net.", "transformer."'),
    ]:
        changes.remove(f"- {old}")
        changes.remove(f"+ {old.replace('Conv1D', new).replace(chr(34) + 'transformer.' + chr(34) + ',', new)}")
    assert f"+ # Inferred: {SQUARE}." in changes
    assert len([line for line in changes if "import" not in line and line[2:]]) == 1  # the comment


def test_an_untied_head(tales, ported):
    tales.config["tie_word_embeddings"] = False
    tales.tensors["lm_head.weight"] = tales.tensors["wte.weight"] * 2
    path, _ = ported(tales.write())
    expected = rushlight.load(tales.folder).logits(PROMPT)
    assert np.array_equal(rushlight.load(tales.folder, port=path).logits(PROMPT), expected)


def test_masks_and_no_config(nanogpt, ported, tale):
    """llm.c writes checkpoints like this."""
    for i in range(6):
        nanogpt.tensors[f"transformer.h.{i}.attn.bias"] = np.tri(512, dtype=np.float32)[None, None]
    nanogpt.config = None
    path, written = ported(nanogpt.write())
    assert "Uncertain: no tensor shows which GELU" in written.module
    assert rushlight.load(nanogpt.folder, port=path).generate(PROMPT, max_tokens=20).text == tale


def test_a_checkpoint_without_biases(nanogpt, ported):
    biases = {name: tensor for name, tensor in nanogpt.tensors.items() if name.endswith(".bias")}
    nanogpt.tensors = {name: tensor for name, tensor in nanogpt.tensors.items() if name not in biases}
    path, written = ported(nanogpt.write())
    assert written.to_write == ()
    logits = rushlight.load(nanogpt.folder, port=path).logits(PROMPT)
    nanogpt.tensors |= {name: np.zeros_like(tensor) for name, tensor in biases.items()}
    path, _ = ported(nanogpt.write())
    np.testing.assert_array_equal(logits, rushlight.load(nanogpt.folder, port=path).logits(PROMPT))


@pytest.mark.parametrize(
    "changes",
    [
        {"scale_attn_by_inverse_layer_idx": True},
        {"scale_attn_weights": False},
        {"activation_function": "relu"},
        {"layer_norm_epsilon": 1e-3},
    ],
)
def test_a_port_honours_the_config(tales, ported, changes):
    path, _ = ported(tales.write())
    plain = rushlight.load(tales.folder, port=path).logits(PROMPT)
    tales.config |= changes
    expected = rushlight.load(tales.write()).logits(PROMPT)
    assert np.array_equal(rushlight.load(tales.folder, port=path).logits(PROMPT), expected)
    assert not np.array_equal(plain, expected)


def test_a_smaller_model_of_its_kind(tales, ported):
    path, _ = ported(tales.write())
    tales.config["n_layer"] = 2
    tales.tensors = {n: t for n, t in tales.tensors.items() if not n.startswith(("h.2.", "h.3.", "h.4.", "h.5."))}
    assert rushlight.load(tales.write(), port=path).config.n_layer == 2


def test_a_tied_table_may_be_stored_under_the_name_of_the_head(nanogpt, ported, tale):
    del nanogpt.tensors["transformer.wte.weight"]
    path, _ = ported(nanogpt.write())
    assert rushlight.load(nanogpt.folder, port=path).generate(PROMPT, max_tokens=20).text == tale


def test_a_config_that_does_not_match_the_tensors_is_referred_to_check(tales, ported):
    tales.config["n_positions"] = 1024
    with pytest.raises(PortError, match=r"wpe.weight: .*expected \(1024, 192\), found \(512, 192\).*rushlight check"):
        ported(tales.write())


def test_only_the_differing_modules_of_a_variant_are_left_to_write(tales, ported):
    tales.tensors["h.0.attn.gate.weight"] = np.ones((192, 192), np.float32)
    path, written = ported(tales.write())
    assert written.to_write == ("Attention",)
    assert "self.h = ModuleList(" in written.module
    with pytest.raises(PortError, match=r"my_model.py: Attention.__call__ is still to be written"):
        rushlight.load(tales.folder, port=path).logits([1])


def test_a_variant_with_linear_weights(nanogpt, ported):
    """The square weights are transposed like the others."""
    nanogpt.tensors["transformer.h.0.attn.gate.weight"] = np.ones((192, 192), np.float32)
    _, written = ported(nanogpt.write())
    assert written.to_write == ("Attention",)
    assert "Conv1D(" not in written.module
    assert written.module.count(SQUARE) == 2


def test_a_variant_with_renamed_modules(tales, ported):
    tales.tensors = {name.replace("mlp", "ffn"): tensor for name, tensor in tales.tensors.items()}
    path, written = ported(tales.write())
    assert written.to_write == ("FeedForward", "Block")
    assert not list(rushlight.load_module(tales.folder, port=path).named_slots())


def test_a_variant_with_other_layers_in_one_block_is_complete(tales, ported, tale):
    tales.tensors["h.0.mlp.c_fc.weight"] = tales.tensors["h.0.mlp.c_fc.weight"].T
    path, written = ported(tales.write())
    assert written.to_write == ()
    assert rushlight.load(tales.folder, port=path).generate(PROMPT, max_tokens=20).text == tale


def test_model_type_takes_precedence_over_names(tales, ported):
    """ImageGPT has the tensor names of GPT-2, but computes something else."""
    tales.config["model_type"] = "imagegpt"
    _, written = ported(tales.write())
    assert "Imagegpt" in written.to_write


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_ports_import_only_from_nn_and_models(name, tmp_path):
    source = inspect.getsource(sys.modules[ARCHITECTURES[name].__module__])
    imported = [node.module for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    ours = {module for module in imported if module.startswith("rushlight")}
    assert all(module.startswith(("rushlight.nn", "rushlight.models")) for module in ours), ours


# Other models


def encoder():
    """An unknown architecture: a convolution, gated blocks, a norm without bias, a bare parameter."""
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


def test_the_port_of_an_encoder_equals_the_reviewed_one(own, ported, tmp_path):
    path, written = ported(own.write())
    assert written.module == (GOLDEN / "encoder_port.py").read_text(encoding="utf-8")
    assert written.to_write == ("Layer", "Mine")
    for device in ("cpu", "reference"):
        module = rushlight.load_module(own.folder, port=path, device=device)
        assert not list(module.named_slots())
        with pytest.raises(PortError, match=r"my_model.py: Mine.__call__ is still to be written"):
            module(None)
    with pytest.raises(PortError, match="not a language model"):
        rushlight.load(own.folder, port=path)
    assert rushlight.check(own.folder, port=path).fits


def test_check_finds_a_prefix_before_the_names_of_a_port(own, ported):
    path, _ = ported(own.write())
    own.prefix("net.")
    report = own.check(port=path)
    assert [finding.cause for finding in report.findings if finding.is_problem] == ["prefix"]


def test_sizes_are_named_after_config_json_if_it_is_valid(own, ported):
    _, written = ported(own.write())
    assert "num_hidden_layers: int = 3" in written.module
    (own.folder / "config.json").write_text("{")
    _, written = ported(own.folder)
    assert "width: int = 32" in written.module


def test_integers_are_buffers(own, ported):
    own.tensors |= {f"bn.{i}.num_batches_tracked": np.array(3) for i in range(2)}
    path, written = ported(own.write())
    assert r'buffers=(r"bn\.\d+\.num_batches_tracked",)' in written.module
    rushlight.load_module(own.folder, port=path)


def test_only_equal_blocks_share_a_class(own, ported):
    own.tensors = {
        f"{part}.{i}.up.weight": np.ones((4 + (part == "b" and i), 2), np.float32) for part in "ab" for i in range(2)
    }
    path, written = ported(own.write())
    assert "self.a = ModuleList(A(config) for _ in range(2))" in written.module
    assert written.to_write == ("A", "B", "B2", "Mine")
    rushlight.load_module(own.folder, port=path)


# Layers


@pytest.mark.parametrize(
    ("name", "tensors", "layer"),
    [
        ("up", {"weight": (8, 4), "bias": (8,)}, Layer("Linear", (4, 8))),
        ("up", {"weight": (4, 8), "bias": (8,)}, Layer("Conv1D", (4, 8))),
        ("up", {"weight": (8, 4)}, Layer("Linear", (4, 8), (("bias", "False"),))),
        ("wte", {"weight": (8, 4)}, Layer("Embedding", (8, 4))),
        ("embed_tokens", {"weight": (8, 4)}, Layer("Embedding", (8, 4))),
        ("embed_out", {"weight": (8, 4)}, Layer("Embedding", (8, 4))),
        ("norm", {"weight": (4,), "bias": (4,)}, Layer("LayerNorm", (4,), (("eps", "1e-5"),))),
        ("up", {"weight": (4, 8), "bias": (5,)}, None),
        ("final_norm", {"weight": (4,)}, Layer("RMSNorm", (4,), (("eps", "1e-5"),), RMS_NORM)),
        ("scale", {"weight": (4,)}, None),
        ("bn", {"weight": (4,), "bias": (4,), "running_mean": (4,)}, None),
        ("conv", {"weight": (4, 8, 3, 3), "bias": (4,)}, None),
        ("up", {"weight": (0, 4)}, None),
        ("up", {"bias": (4,)}, None),
    ],
)
def test_layers_by_name_and_shape(name, tensors, layer):
    assert infer_layer(name, tensors, conv1d=False) == layer


def test_a_square_weight_has_the_orientation_of_the_others():
    square = {"weight": (4, 4), "bias": (4,)}
    assert infer_layer("c_proj", square, conv1d=True).kind == "Conv1D"
    assert infer_layer("c_proj", square, conv1d=False).kind == "Linear"
    assert "square" in infer_layer("c_proj", square, conv1d=False).doubt
    assert conv1d_by_majority([("a.weight", (4, 8)), ("a.bias", (8,)), ("b.weight", (4, 4)), ("b.bias", (4,))])
    assert not conv1d_by_majority([("a.weight", (8, 4)), ("a.bias", (8,))])
    assert not conv1d_by_majority([("b.weight", (4, 4)), ("b.bias", (4,))])


def test_a_second_matrix_of_a_tables_shape_is_the_head(own, ported):
    """GPT-NeoX's head is embed_out."""
    own.tensors = {f"{name}.weight": np.ones((50, 32), np.float32) for name in ("embed_in", "embed_out")}
    path, written = ported(own.write())
    assert "self.embed_in = Embedding(config.vocab_size, config.hidden_size)" in written.module
    assert "self.embed_out = Linear(config.hidden_size, config.vocab_size, bias=False)" in written.module
    rushlight.load_module(own.folder, port=path)


def test_a_convolution_may_be_causal():
    layer = infer_layer("conv", {"weight": (8, 4, 5), "bias": (8,)}, conv1d=False)
    assert (layer.kind, layer.sizes, layer.options) == ("Convolution", (4, 8, 5), (("before", "2"),))
    assert "causal" in layer.doubt


# Untrusted names


def test_all_names_that_cannot_be_attributes_are_reported(own, ported):
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
def test_any_names_get_a_slot_for_every_tensor(tmp_path_factory, shapes):
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


def test_many_blocks_make_a_short_file(tmp_path):
    """10,000 blocks, and a list with gaps of a million."""
    shapes = {f"h.{i}.weight": (1, 2) for i in range(10_000)} | {f"g.{i * 10**6}.weight": (1,) for i in range(1_000)}
    save_file({name: np.ones(shape, np.float32) for name, shape in shapes.items()}, tmp_path / "model.safetensors")
    with open_headers(tmp_path) as checkpoint:
        written = scaffold(checkpoint)
    assert "range(10000)" in written.module
    assert len(written.module) < 100_000
    ast.parse(written.module)


def test_python_keywords_are_set_with_setattr(own, ported):
    own.tensors = {f"{word}.weight": np.ones((2, 3), np.float32) for word in keyword.kwlist}
    path, _ = ported(own.write())
    assert len(list(rushlight.load_module(own.folder, port=path).children())) == len(keyword.kwlist)
