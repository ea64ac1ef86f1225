"""Checks: each cause by itself, several at once, and the fixed copy that the script writes."""

import functools
import json
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from safetensors.numpy import load_file

import rushlight
from rushlight import demo
from rushlight.checkpoint import Tensor
from rushlight.errors import BindError, PortError, RequestError, SourceError


def causes(report):
    return [finding.cause for finding in report.findings if finding.is_problem]


def notes(report):
    return [finding.cause for finding in report.findings if not finding.is_problem]


def only_problem(report):
    (problem,) = [finding for finding in report.findings if finding.is_problem]
    assert not report.fits
    return problem


def assert_load_raises(copy):
    with pytest.raises(rushlight.RushlightError):
        rushlight.load(copy.folder)


@pytest.fixture
def fixed(tale, monkeypatch):
    """Runs a report's script and returns whether the fixed checkpoint, which must fit, generates the expected text."""

    def fixed(copy, report):
        monkeypatch.chdir(copy.folder)
        exec(report.script, {})
        (copy.folder / "model.safetensors").unlink()
        (copy.folder / "fixed.safetensors").rename(copy.folder / "model.safetensors")
        again = rushlight.check(copy.folder)
        assert again.fits, again
        assert again.script is None
        return rushlight.load(copy.folder).generate("Once upon a time", max_tokens=20).text == tale

    return fixed


# Checkpoints that fit


def test_the_embedded_model_fits():
    report = rushlight.check(demo.folder())
    assert report.fits
    assert notes(report) == ["unknown"]
    assert report.findings[0].tensors == tuple(f"h.{i}.attn.c_proj.weight" for i in range(6))
    assert report.model == "gpt2 (n_layer 6, n_embd 192, n_head 3)"
    assert (report.data, report.script, report.n_tensors) == ("read", None, 76)


@pytest.mark.parametrize(("prefix", "writer"), [("", "GPT2Model"), ("transformer.", "GPT2LMHeadModel")])
def test_a_checkpoint_of_transformers_is_identified(tales, prefix, writer):
    report = tales.prefix(prefix).check()
    assert report.fits
    assert writer in report.saved_by


def test_mask_buffers_are_a_note(tales):
    for i in range(6):
        tales.tensors[f"h.{i}.attn.bias"] = np.tri(4, dtype=bool)[None, None]
    report = tales.check()
    assert report.fits
    assert notes(report) == ["unknown", "buffers"]


def test_a_stored_tied_head_is_a_note(tales):
    tales.tensors["lm_head.weight"] = tales.tensors["wte.weight"]
    report = tales.check()
    assert report.fits
    assert "tie" in notes(report)
    tales.config["tie_word_embeddings"] = False
    report = tales.check()
    assert report.fits
    assert any("hold one copy" in finding.fix for finding in report.findings)


# Single causes


@pytest.mark.parametrize(
    ("prefix", "word"),
    [
        ("_orig_mod.", "torch.compile"),
        ("module.", "DistributedDataParallel"),
        ("model.", "LightningModule"),
        ("_fsdp_wrapped_module.", "FullyShardedDataParallel"),
        ("my.own.", "another module"),
        ("_orig_mod.transformer.", "torch.compile"),
        ("net.transformer.", "another module"),
    ],
)
def test_a_name_prefix_is_one_problem(tales, fixed, prefix, word):
    report = tales.prefix(prefix).check()
    problem = only_problem(report)
    assert (problem.cause, len(problem.tensors)) == ("prefix", 76)
    assert word in problem.why
    assert_load_raises(tales)
    assert fixed(tales, report)


def test_prefixes_of_compiled_submodules_are_one_problem(tales, fixed):
    tales.tensors = {name.replace(".attn.", "._orig_mod.attn."): tensor for name, tensor in tales.tensors.items()}
    report = tales.check()
    problem = only_problem(report)
    assert (problem.cause, len(problem.tensors)) == ("prefix", 24)
    assert fixed(tales, report)


def test_a_nanogpt_checkpoint_is_fixed_by_transposing(nanogpt, fixed):
    report = nanogpt.check()
    problem = only_problem(report)
    assert problem.cause == "transposed"
    assert "Linear" in problem.title
    assert sorted(problem.tensors) == sorted(f"transformer.h.{i}.{name}" for i in range(6) for name in nanogpt.LINEAR)
    assert [each.n_tensors for each in problem.evidence] == [6, 6, 6, 6]
    assert "6 more are square" in problem.why
    assert report.saved_by == "nanoGPT"
    assert not any("GELU" in finding.title for finding in report.findings)
    assert fixed(nanogpt, report)


def test_the_gelu_of_nanogpt_is_unknown_without_a_config(nanogpt):
    nanogpt.config = None
    (note,) = [finding for finding in nanogpt.check().findings if "GELU" in finding.title]
    assert not note.is_problem
    assert 'activation_function to "gelu"' in note.fix


def test_square_weights_are_undetermined_if_only_some_others_are_transposed(tales):
    tales.tensors["h.0.mlp.c_fc.weight"] = tales.tensors["h.0.mlp.c_fc.weight"].T
    report = tales.check()
    problem = only_problem(report)
    assert problem.tensors == ("h.0.mlp.c_fc.weight",)
    assert "does not show whether they are transposed" in problem.why
    assert "outputs" in problem.fix
    assert report.saved_by.startswith("transformers")
    assert "attn.c_proj" not in report.script


def test_an_llmc_checkpoint_is_fixed(nanogpt, fixed):
    for i in range(6):
        nanogpt.tensors[f"transformer.h.{i}.attn.bias"] = np.tri(512, dtype=np.float32)[None, None]
    table = nanogpt.tensors["transformer.wte.weight"]
    padded = np.concatenate([table, np.zeros((32, 192), np.float32)])
    nanogpt.tensors |= {"transformer.wte.weight": padded, "lm_head.weight": padded}
    nanogpt.config["vocab_size"] = 4128
    report = nanogpt.check()
    assert causes(report) == ["transposed"]
    assert "llm.c" in report.saved_by
    (padding,) = [finding for finding in report.findings if finding.cause == "tokenizer"]
    assert padding.title == "32 unused token ids"
    assert fixed(nanogpt, report)


def test_a_padded_gpt2_vocabulary_without_a_tokenizer_fits(tales):
    tales.tensors["wte.weight"] = np.ones((50304, 192), np.float32)
    tales.config["vocab_size"] = 50304
    (tales.folder / "tokenizer.json").unlink()
    report = tales.check()
    assert report.fits
    (note,) = [finding for finding in report.findings if finding.cause == "tokenizer"]
    assert "50,304" in note.why
    assert "50,257" in note.why


def test_a_nanogpt_checkpoint_without_biases_is_identified(nanogpt, monkeypatch):
    nanogpt.tensors = {name: tensor for name, tensor in nanogpt.tensors.items() if not name.endswith(".bias")}
    report = nanogpt.check()
    assert causes(report) == ["transposed", "biases"]
    assert report.saved_by == "nanoGPT, with bias=False"
    monkeypatch.chdir(nanogpt.folder)
    exec(report.script, {})
    made = load_file("fixed.safetensors")
    assert made["transformer.h.3.mlp.c_fc.bias"].shape == (768,)
    assert not made["transformer.ln_f.bias"].any()
    assert rushlight.check("fixed.safetensors").fits


def test_a_tied_table_may_be_stored_under_the_name_of_the_head(nanogpt, fixed):
    del nanogpt.tensors["transformer.wte.weight"]
    report = nanogpt.check()
    assert causes(report) == ["transposed"]
    assert "tie" in notes(report)
    assert fixed(nanogpt, report)


def test_a_missing_block_is_one_problem(tales):
    tales.tensors = {name: tensor for name, tensor in tales.tensors.items() if not name.startswith("h.3.")}
    problem = only_problem(tales.check())
    assert (problem.cause, problem.title) == ("blocks", "blocks are missing: h.3")


def test_unexpected_blocks_are_one_problem(tales, fixed):
    tales.tensors |= {
        name.replace("h.0.", "h.40."): tensor for name, tensor in tales.tensors.items() if name.startswith("h.0.")
    }
    report = tales.check()
    problem = only_problem(report)
    assert (problem.cause, problem.title, len(problem.tensors)) == ("blocks", "unexpected blocks: h.40", 12)
    assert fixed(tales, report)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"n_layer": 5}, ["n_layer is 5 in config.json, 6 in the tensors"]),
        ({"n_layer": 12}, ["n_layer is 12 in config.json, 6 in the tensors"]),
        ({"vocab_size": 50257}, ["vocab_size is 50,257 in config.json, 4,096 in the tensors"]),
        ({"n_positions": 1024}, ["n_positions is 1,024 in config.json, 512 in the tensors"]),
        ({"n_inner": 700}, ["n_inner is 700 in config.json, 768 in the tensors"]),
        (
            {"n_embd": 768, "n_head": 12},
            ["n_embd is 768 in config.json, 192 in the tensors", "n_inner is 3,072 in config.json, 768 in the tensors"],
        ),
        ({"n_head": 5}, ["n_head is 5, which does not divide n_embd 192"]),
        ({"n_head": 0}, ["n_head"]),
        ({"activation_function": "mish"}, ["activation_function"]),
    ],
)
def test_a_config_of_another_model_is_one_problem(tales, changes, expected):
    tales.config |= changes
    report = tales.check()
    problem = only_problem(report)
    assert problem.cause == "config"
    assert all(words in problem.why for words in expected)
    assert_load_raises(tales)


def test_a_config_that_is_not_json_is_one_problem(tales):
    tales.write()
    (tales.folder / "config.json").write_text("{")
    assert only_problem(rushlight.check(tales.folder)).cause == "config"


def test_without_a_config_the_width_must_be_a_multiple_of_64(tales):
    tales.config = None
    tales.tensors["wte.weight"] = np.zeros((10, 100), np.float32)
    tales.tensors["h.0.attn.c_attn.weight"] = np.zeros((100, 300), np.float32)
    problem = only_problem(tales.check())
    assert problem.cause == "config"
    assert "100 is not a multiple of 64" in problem.why


def test_an_invalid_generation_config_is_one_problem(tales):
    tales.write()
    (tales.folder / "generation_config.json").write_text('{"eos_token_id": "end"}')
    assert only_problem(rushlight.check(tales.folder)).cause == "config"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_inf_are_reported_with_their_count(tales, value):
    tales.tensors["h.2.mlp.c_fc.bias"] = np.where(np.arange(768) < 3, value, 0).astype(np.float32)
    problem = only_problem(tales.check())
    assert (problem.cause, problem.tensors) == ("values", ("h.2.mlp.c_fc.bias",))
    assert "3" in problem.evidence[0].detail


def test_data_false_reads_no_values(tales, monkeypatch):
    monkeypatch.setattr(Tensor, "read_into", lambda *args: pytest.fail("read"))
    tales.tensors["lm_head.weight"] = tales.tensors["wte.weight"]
    report = tales.check(data=False)
    assert report.fits
    assert report.data == "skipped"
    assert [finding.title for finding in report.findings if finding.cause == "unknown"][1:] == [
        "whether lm_head.weight equals wte.weight was not checked",
        "the values were not checked",
    ]


def test_a_tied_head_that_differs_from_the_table_is_a_problem(tales):
    tales.tensors["lm_head.weight"] = tales.tensors["wte.weight"] * 2
    problem = only_problem(tales.check())
    assert (problem.cause, problem.tensors) == ("tie", ("lm_head.weight",))
    assert "tie_word_embeddings" in problem.fix


def test_a_missing_untied_head_is_a_problem(tales):
    tales.config["tie_word_embeddings"] = False
    problem = only_problem(tales.check())
    assert problem.cause == "tie"
    assert "lm_head.weight is missing" in problem.title


def test_a_quantised_dtype_is_a_problem(tales):
    tales.tensors["h.0.mlp.c_fc.weight"] = tales.tensors["h.0.mlp.c_fc.weight"].astype(np.int8)
    problem = only_problem(tales.check())
    assert (problem.cause, problem.tensors) == ("dtype", ("h.0.mlp.c_fc.weight",))


def test_other_float_dtypes_are_notes(tales):
    tales.tensors["ln_f.weight"] = tales.tensors["ln_f.weight"].astype(np.float64)
    report = tales.check()
    assert report.fits
    assert notes(report).count("dtype") == 2


def test_missing_unexpected_and_misshapen_tensors_are_reported(tales):
    del tales.tensors["ln_f.bias"]
    tales.tensors["pooler.weight"] = np.ones((3, 3), np.float32)
    tales.tensors["h.1.ln_1.weight"] = np.ones(7, np.float32)
    report = tales.check()
    assert causes(report) == ["missing", "unexpected", "shape"]
    assert report.script is None
    assert "ln_f.bias (192,)" in report.findings[0].why


@pytest.mark.parametrize("name", ["h.0.attn.rotary.inv_freq", "embeddings.position_ids", "bn.num_batches_tracked"])
def test_buffers_of_other_models_are_removed_by_the_script(tales, fixed, name):
    tales.tensors[name] = np.zeros(4, np.float32)
    report = tales.check()
    assert only_problem(report).cause == "buffers"
    assert fixed(tales, report)


def test_a_tensor_with_and_without_the_prefix_is_a_duplicate(tales):
    tales.tensors["transformer.ln_f.bias"] = tales.tensors["ln_f.bias"]
    problem = only_problem(tales.check())
    assert (problem.cause, problem.tensors) == ("duplicate", ("transformer.ln_f.bias",))
    assert "ln_f.bias" in problem.evidence[0].detail


def test_tensors_with_the_same_name_after_a_fix_are_duplicates(tales):
    tales.tensors = {f"module.{name}": tensor for name, tensor in tales.tensors.items()}
    tales.tensors["ln_f.bias"] = tales.tensors["module.ln_f.bias"]
    assert sorted(causes(tales.check())) == ["duplicate", "prefix"]


def test_an_oversized_or_invalid_tokenizer_is_a_problem(tales):
    tales.tensors["wte.weight"] = tales.tensors["wte.weight"][:4000]
    tales.config["vocab_size"] = 4000
    problem = only_problem(tales.check())
    assert problem.cause == "tokenizer"
    assert "ids up to 4095" in problem.why
    (tales.folder / "tokenizer.json").write_text("{}")
    assert only_problem(rushlight.check(tales.folder)).cause == "tokenizer"


def test_renamed_tensors_are_paired_with_missing_ones(tales):
    tales.tensors = {
        name.replace("ln_1", "norm1").replace("ln_2", "norm2").replace("mlp.c_fc", "mlp.fc"): tensor
        for name, tensor in tales.tensors.items()
    }
    problem = only_problem(tales.check())
    assert problem.cause == "renamed"
    assert len(problem.tensors) == 6 * 6
    assert {(each.name, each.detail) for each in problem.evidence} == {
        (f"h.N.{theirs}.{part}", f"→ h.N.{ours}.{part}")
        for theirs, ours in (("norm1", "ln_1"), ("norm2", "ln_2"), ("mlp.fc", "mlp.c_fc"))
        for part in ("weight", "bias")
    }


def test_dissimilar_names_are_not_paired(tales):
    tales.tensors["zzz"] = tales.tensors.pop("ln_f.bias")
    assert causes(tales.check()) == ["missing", "unexpected"]


# Several causes


def test_all_causes_are_reported_at_once(nanogpt):
    """A cause that is hidden by another one is found as well."""
    nanogpt.prefix("module._orig_mod.")
    tensors = nanogpt.tensors
    del tensors["module._orig_mod.transformer.h.1.ln_1.bias"]
    tensors["module._orig_mod.transformer.h.0.attn.rope.inv_freq"] = np.zeros(3, np.float32)
    tensors["module._orig_mod.transformer.ln_f.weight"] = np.full(192, np.nan, np.float32)
    nanogpt.config |= {"n_layer": 3}
    report = nanogpt.check()
    assert causes(report) == ["prefix", "prefix", "config", "transposed", "buffers", "missing", "values"]
    assert "h.1.ln_1.bias (192,)" in next(f.why for f in report.findings if f.cause == "missing")
    assert [finding.in_script for finding in report.findings if finding.is_problem] == [
        *(True, True, False, True, True, False, False)
    ]


def test_the_script_merges_shards(nanogpt, tale, monkeypatch):
    names = sorted(nanogpt.tensors)
    folder, tensors = nanogpt.folder, nanogpt.tensors
    shards = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for file, held in shards.items():
        nanogpt.tensors = {name: tensors[name] for name in held}
        nanogpt.write(file)
    weight_map = {name: file for file, held in shards.items() for name in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    report = rushlight.check(folder)
    assert causes(report) == ["transposed"]
    monkeypatch.chdir(folder)
    exec(report.script, {})
    (folder / "fixed.safetensors").rename(folder / "model.safetensors")
    assert rushlight.load(folder).generate("Once upon a time", max_tokens=20).text == tale


def test_only_the_header_of_a_remote_checkpoint_is_read(nanogpt, monkeypatch):
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    folder = nanogpt.prefix("_orig_mod.").write()
    handler = functools.partial(SimpleHTTPRequestHandler, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            report = rushlight.check(f"http://127.0.0.1:{server.server_port}/model.safetensors")
        finally:
            server.shutdown()
    assert causes(report) == ["prefix", "transposed"]
    assert report.data == "elsewhere"
    assert report.findings[-1].why == "Only the headers of remote files are read, so NaN and Inf would not be found."
    assert 'load_file("model.safetensors")' in report.script


# Other models


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.layers.0.self_attn.q_proj.weight", "Llama"),
        ("base_model.model.h.0.attn.c_attn.lora_A.weight", "LoRA"),
        ("bert.encoder.layer.0.attention.self.query.weight", "BERT"),
        ("model.layers.0.mlp.up_proj.qweight", "GPTQ"),
    ],
)
def test_a_known_family_is_named(tales, name, expected):
    tales.tensors, tales.config = {name: np.ones((4, 4), np.float32)}, None
    report = tales.check()
    problem = only_problem(report)
    assert problem.cause == "architecture"
    assert expected in problem.why
    assert report.model is None


def test_an_unknown_family_with_and_without_a_flag(tales):
    tales.tensors, tales.config = {"conv.weight": np.ones((4, 4, 3), np.float32)}, None
    report = tales.check()
    assert "rushlight port" in only_problem(report).fix
    report = tales.check(architecture="gpt2")
    assert causes(report) == ["architecture", "config"]
    assert "No tensor is named h.0.attn.c_attn.weight or wpe.weight" in report.findings[0].why


@pytest.mark.parametrize(
    ("model_type", "why"),
    [
        ("imagegpt", "rushlight has no architecture 'imagegpt'"),
        ("openai-gpt", "openai-gpt is a decoder that is not built in; the most similar built-in type is gpt2"),
        (7, "rushlight has no architecture 7"),
    ],
)
def test_model_type_takes_precedence_over_names(tales, model_type, why):
    """The first GPT has every tensor name of GPT-2's blocks, but computes something else."""
    tales.config["model_type"] = model_type
    report = tales.check()
    problem = only_problem(report)
    assert problem.cause == "architecture"
    assert problem.why.startswith(why)
    assert "those of gpt2" in problem.why
    assert "correct model_type" in problem.fix
    assert (report.model, report.script) == (None, None)
    assert_load_raises(tales)


def test_matching_names_are_not_enough_without_a_config(tales):
    """GPT-BigCode with one head of keys and values: c_attn is narrower than GPT-2's."""
    tales.config = None
    for i in range(6):
        tales.tensors[f"h.{i}.attn.c_attn.weight"] = np.ones((320, 192), np.float32)
        tales.tensors[f"h.{i}.attn.c_attn.bias"] = np.ones(320, np.float32)
    report = tales.check()
    assert only_problem(report).cause == "architecture"
    assert report.model is None


def test_bad_requests(tales, tmp_path):
    folder = tales.write()
    with pytest.raises(RequestError, match="no architecture 'gpt3'"):
        rushlight.check(folder, architecture="gpt3")
    with pytest.raises(RequestError, match="both"):
        rushlight.check(folder, architecture="gpt2", port="x.py")
    with pytest.raises(PortError, match="no such file"):
        rushlight.check(folder, port=tmp_path / "x.py")
    with pytest.raises(SourceError):
        rushlight.check(tmp_path / "nothing")


def test_loading_refers_to_check(nanogpt):
    with pytest.raises(BindError, match="rushlight check"):
        rushlight.load(nanogpt.write())
