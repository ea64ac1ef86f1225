"""Reports about a checkpoint are accurate, and every setting of its author or the caller is applied or named."""

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import rushlight
from rushlight.chat import find_template
from rushlight.checkpoint import open_checkpoint
from rushlight.checkpoint.float8 import FLOAT8_DTYPES, float8_to_float32
from rushlight.checkpoint.stats import measure
from rushlight.cli import main
from rushlight.errors import ConfigError, GoldenError, RequestError
from rushlight.generation import SamplingParams
from rushlight.jobs.requests import FIELDS
from rushlight.porting.scaffold.port import scaffold
from rushlight.proof.golden import Call, Case, read_golden
from rushlight.proof.record import write_golden
from rushlight.proof.verify import verify

GPT2_CONFIG = {"model_type": "gpt2", "vocab_size": 257, "n_positions": 64, "n_embd": 64, "n_head": 2, "n_layer": 2}
MATRICES = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


@pytest.fixture
def weights(make_gpt2):
    """The weights of a random GPT-2, under the names of GPT2LMHeadModel."""
    return load_file(make_gpt2("base") / "model.safetensors")


@pytest.fixture
def write(tmp_path):
    """Writes weights, and a GPT-2's config.json unless it is None, into a folder."""

    def write(weights, metadata=None, config=GPT2_CONFIG):
        save_file(
            {name: np.ascontiguousarray(w) for name, w in weights.items()}, tmp_path / "model.safetensors", metadata
        )
        if config is not None:
            (tmp_path / "config.json").write_text(json.dumps(config))
        return tmp_path

    return write


@pytest.fixture
def write_raw(tmp_path):
    """Writes a file of one-dimensional tensors, given as (dtype, bytes)."""
    width = {"BF16": 2, "C64": 8}

    def write(**tensors):
        header, data = {}, b""
        for name, (dtype, raw) in tensors.items():
            shape = [len(raw) // width.get(dtype, 1)]
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
            data += bytes(raw)
        head = json.dumps(header).encode()
        path = tmp_path / "raw.safetensors"
        path.write_bytes(len(head).to_bytes(8, "little") + head + data)
        return path

    return write


@pytest.fixture
def run(capsys, monkeypatch):
    """Runs `rushlight ARGUMENTS` in this process."""

    def run(*arguments, stdin=b""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        try:
            main([str(argument) for argument in arguments])
            code = 0
        except SystemExit as end:
            code = end.code or 0
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return run


# Flax and TensorFlow


def as_flax(name, weight):
    """The name and orientation of a GPT-2 tensor in FlaxPreTrainedModel."""
    if name.endswith(MATRICES):
        return name.removesuffix("weight") + "kernel", weight.T
    if ".ln_" in name and name.endswith("weight"):
        return name.removesuffix("weight") + "scale", weight
    return name.replace("wte.weight", "wte.embedding").replace("wpe.weight", "wpe.embedding"), weight


def as_tensorflow(name, weight):
    """The name and shape of a GPT-2 tensor in TFPreTrainedModel."""
    name = name.replace(".h.0.", "/h_._0/").replace(".h.1.", "/h_._1/").replace(".", "/").replace("h_/_", "h_._")
    if "/ln_" in name:
        name = name.replace("weight", "gamma").replace("bias", "beta")
    elif name.endswith("bias"):
        weight = weight[None]
    return f"{name}:0", weight


FRAMEWORKS = [(as_flax, "flax", "Flax"), (as_tensorflow, "tf", "TensorFlow")]


@pytest.mark.parametrize("config", [GPT2_CONFIG, None])
@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize(("convert", "word", "name"), FRAMEWORKS)
def test_another_frameworks_weights_are_named_and_nothing_is_suggested_by_shape(
    write, weights, convert, word, name, declared, config
):
    weights = dict(convert(*item) for item in weights.items())
    report = rushlight.check(write(weights, {"format": word} if declared else None, config))
    (problem,) = [finding for finding in report.findings if finding.is_problem]
    assert problem.cause == "framework"
    assert problem.title.startswith(name)
    assert (f"format: {word}" in problem.why) == declared
    assert "transformers 4" in problem.fix
    assert set(problem.tensors) == set(weights)
    assert (report.saved_by, report.script) == (None, None)


def test_a_port_may_have_the_names_of_flax(write, tmp_path):
    folder = write({"dense.kernel": np.ones((4, 3)), "norm.scale": np.ones(3)}, {"format": "flax"}, None)
    port = tmp_path / "port.py"
    with open_checkpoint(folder) as checkpoint:
        port.write_text(scaffold(checkpoint).module)
    assert rushlight.check(folder, port=port).fits


@pytest.mark.parametrize("metadata", [{"format": "flax"}, {"format": "tf"}, {"format": "pt"}, None])
def test_names_decide_instead_of_the_metadata(write, weights, metadata):
    report = rushlight.check(write(weights, metadata))
    assert report.fits
    assert (report.saved_by is None) == (metadata not in ({"format": "pt"}, None))


def test_a_rename_does_not_swap_matrices_of_opposite_orientation(write, weights):
    new = {"attn.c_attn": "attn.c_qkv", "attn.c_proj": "attn.proj", "mlp.c_fc": "mlp.fc", "mlp.c_proj": "mlp.proj"}
    renamed = {}
    for name, weight in weights.items():
        stem = next((stem for stem in new if name.endswith(f"{stem}.weight")), None)
        renamed[name.replace(stem, new[stem]) if stem else name] = weight.T if stem else weight
    (problem,) = [f for f in rushlight.check(write(renamed)).findings if f.is_problem]
    details = {each.name.removeprefix("transformer.h.N."): each.detail for each in problem.evidence}
    assert details == {
        "attn.c_qkv.weight": "→ h.N.attn.c_attn.weight, transposed",
        "attn.proj.weight": "→ h.N.attn.c_proj.weight, perhaps transposed",
        "mlp.fc.weight": "→ h.N.mlp.c_fc.weight, transposed",
        "mlp.proj.weight": "→ h.N.mlp.c_proj.weight, transposed",
    }
    assert "transpose them" in problem.fix


def test_renamed_biases_are_not_reported_as_missing(write, weights):
    weights = {name.replace(".bias", ".offset"): weight for name, weight in weights.items()}
    report = rushlight.check(write(weights))
    assert report.saved_by is None
    assert report.script is None
    assert not any("bias=False" in finding.why for finding in report.findings)


def test_advice_names_only_flags_that_were_passed(write, tmp_path):
    folder = write({"a.weight": np.ones((3, 4), np.float32)})
    (by_config,) = [f for f in rushlight.check(folder).findings if f.title == "another model"]
    assert "--architecture" not in by_config.fix
    assert "config.json" in by_config.fix
    (by_flag,) = [f for f in rushlight.check(folder, architecture="gpt2").findings if f.title == "another model"]
    assert "leave out --architecture" in by_flag.fix
    assert rushlight.check(folder).saved_by is None


# 8-bit floats

FLOAT8_VALUES = {  # ml_dtypes 0.5 and torch 2.13: bits to value
    "F8_E4M3": {0x00: 0.0, 0x01: 2**-9, 0x08: 2**-6, 0x38: 1.0, 0x7E: 448.0, 0xFE: -448.0, 0x7F: np.nan, 0xFF: np.nan},
    "F8_E4M3FNUZ": {0x01: 2**-10, 0x40: 1.0, 0x7F: 240.0, 0xFF: -240.0, 0x80: np.nan},
    "F8_E5M2": {0x01: 2**-16, 0x3C: 1.0, 0x7B: 57344.0, 0x7C: np.inf, 0xFC: -np.inf, 0x7D: np.nan, 0xFF: np.nan},
    "F8_E5M2FNUZ": {0x01: 2**-17, 0x40: 1.0, 0x7F: 57344.0, 0xFF: -57344.0, 0x80: np.nan},
    "F8_E8M0": {0x00: 2**-127, 0x7F: 1.0, 0x80: 2.0, 0xFE: 2.0**127, 0xFF: np.nan},
}  # fmt: skip
N_FINITE = {"F8_E4M3": 254, "F8_E4M3FNUZ": 255, "F8_E5M2": 248, "F8_E5M2FNUZ": 255, "F8_E8M0": 255}


@pytest.mark.parametrize("dtype", FLOAT8_DTYPES)
def test_float8_values(dtype):
    bits = np.array([*FLOAT8_VALUES[dtype]], np.uint8)
    np.testing.assert_array_equal(float8_to_float32(bits, dtype), np.float32([*FLOAT8_VALUES[dtype].values()]))
    assert np.isfinite(float8_to_float32(np.arange(256, dtype=np.uint8), dtype)).sum() == N_FINITE[dtype]


@pytest.fixture
def float8s(write_raw):
    return write_raw(
        **{
            "a.w": ("F8_E4M3", [0x7F, 0x38, 0x38, 0x38]),
            "b.w": ("F8_E5M2", [0x7C, 0x3C, 0x00, 0x00]),
            "c.w": ("F8_E8M0", [0x7F, 0x80]),
            "d.w": ("BF16", b"\x80\x7f\xc0\x7f"),
            "e.w": ("C64", np.array([np.nan, 1], np.complex64).tobytes()),
        }
    )


def test_statistics_of_float8(float8s):
    with open_checkpoint(float8s) as checkpoint:
        stats = measure(checkpoint.values())
    found = {name: (s.min, s.max, s.mean, s.n_nan, s.n_inf) for name, s in stats.items()}
    assert found == {
        "a.w": (1, 1, 1, 1, 0),
        "b.w": (0, 1, 1 / 3, 0, 1),
        "c.w": (1, 2, 1.5, 0, 0),
        "d.w": (None, None, None, 1, 1),
    }


def test_tensors_that_are_not_read_are_listed_as_unread(float8s, run):
    report = json.loads(run("inspect", float8s, "--stats", "--json").out)
    assert report["unread"] == ["e.w"]
    assert [tensor["stats"] is None for tensor in report["tensors"]] == [False] * 4 + [True]
    page = float8s.with_suffix(".html")
    lines = run("inspect", float8s, "--stats", "--html", page).out
    assert not lines
    lines = run("inspect", float8s, "--stats").out.splitlines()
    assert ["not read" in line for line in lines if ".w" in line] == [False] * 4 + [True]
    assert "not read" in page.read_text()


def test_nan_in_float8_is_found_and_unread_tensors_are_noted(float8s):
    findings = rushlight.check(float8s).findings
    (broken,) = [finding for finding in findings if finding.cause == "values"]
    assert [(each.name, each.detail) for each in broken.evidence] == [
        ("a.w", "1 NaN, 0 Inf"),
        ("b.w", "0 NaN, 1 Inf"),
        ("d.w", "1 NaN, 1 Inf"),
    ]
    (unread,) = [finding for finding in findings if finding.title == "values of an unsupported dtype"]
    assert (unread.is_problem, unread.tensors) == (False, ("e.w",))


# generation_config.json. Ids are those of transformers 5.24 on the same weights, greedy and with 3 beams.


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
@pytest.mark.parametrize(
    ("author", "greedy", "beams"),
    [
        ({}, [83, 212, 197, 118, 48, 83, 148, 180], [83, 212, 197, 118, 48, 180, 148, 180]),
        (
            {"begin_suppress_tokens": [83, 212]},
            [180, 203, 84, 188, 180, 180, 180, 180],
            [180, 203, 84, 188, 180, 212, 180, 188],
        ),
        (
            {"bad_words_ids": [[212], [256]]},
            [83, 83, 180, 180, 148, 180, 148, 180],
            [83, 83, 180, 180, 148, 180, 148, 180],
        ),
        (
            {"suppress_tokens": [83], "begin_suppress_tokens": [212], "bad_words_ids": [[180]]},
            [12, 112, 122, 93, 93, 212, 172, 212],
            [70, 212, 212, 172, 212, 212, 172, 212],
        ),
    ],
)
def test_tokens_that_the_author_forbids_are_not_generated(make_gpt2, caplog, file, author, greedy, beams):
    own = {"files": {file: author}} if file != "config.json" else author
    model = rushlight.load(make_gpt2(**own))
    assert model.generate("Hello", max_tokens=8).ids == greedy
    assert model.generate("Hello", max_tokens=8, speculate=True).ids == greedy
    assert model.beam_search("Hello", n_beams=3, max_tokens=8)[0].ids == beams
    assert not caplog.records


def test_a_forbidden_token_is_not_sampled(make_gpt2):
    model = rushlight.load(make_gpt2(files={"generation_config.json": {"suppress_tokens": [*range(1, 256)]}}))
    assert set(model.generate("Hello", max_tokens=40, temperature=5.0, seed=1).ids) <= {0}
    assert model.generate("Hello", max_tokens=3, logit_bias={83: 1000}).ids != [83, 83, 83]


SAMPLED = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 0, "typical_p": 1.0}


@pytest.mark.parametrize(
    ("author", "note"),
    [
        ({"max_new_tokens": 50}, "max_new_tokens is applied only by flags: -n 50"),
        (SAMPLED, "temperature, top_p are applied only by flags: --temperature 0.7 --top-p 0.9"),
        ({"do_sample": True}, "do_sample is applied only by flags: --temperature 1"),
        ({"stop_strings": ["a b", "c"]}, "stop_strings is applied only by flags: --stop 'a b' --stop c"),
        ({"bad_words_ids": [[1, 2]]}, "bad_words_ids of several tokens is not applied: rushlight has no equivalent"),
        (
            {"repetition_penalty": 1.2, "no_repeat_ngram_size": 3, "min_new_tokens": None},
            "repetition_penalty is applied only by flags: --repetition-penalty 1.2; "
            "no_repeat_ngram_size is not applied: rushlight has no equivalent",
        ),
        (
            {"num_beams": 4, "length_penalty": 2},
            "num_beams is applied only by flags: --beams 4; length_penalty is not applied: rushlight has no",
        ),
    ],
)
def test_settings_that_are_not_applied_are_named_once(make_gpt2, caplog, run, author, note):
    folder = make_gpt2(files={"generation_config.json": author})
    model = rushlight.load(folder)
    assert model.generate("Hello", max_tokens=3).ids == model.generate("Hello", max_tokens=3).ids == [83, 212, 197]
    (record,) = caplog.records
    assert record.getMessage().startswith(f"generation_config.json: {note}")
    done = run("generate", folder, "-p", "Hello", "-n", "3")
    assert (done.code, done.err.count("generation_config.json")) == (0, 1)
    (finding,) = [f for f in rushlight.check(folder).findings if f.cause == "config"]
    assert (finding.is_problem, note in finding.why) == (False, True)


@pytest.mark.parametrize(
    ("author", "sampling"),
    [
        (SAMPLED, {"temperature": 0.7, "top_p": 0.9}),
        ({"do_sample": True, "top_k": 20}, {"temperature": 1.0, "top_k": 20}),
        (
            {"do_sample": False, "temperature": 0.7, "repetition_penalty": 1.1},
            {"temperature": 0, "repetition_penalty": 1.1},
        ),
        ({"temperature": 0.7, "top_k": 20}, {}),
        ({"do_sample": True, "temperature": -1, "top_p": "0.9", "min_p": None, "top_k": 2.5}, {}),
        ({"repetition_penalty": 1.0}, {}),
    ],
)
def test_the_author_s_sampling_settings_are_at_hand(make_gpt2, author, sampling):
    model = rushlight.load(make_gpt2(files={"generation_config.json": author}))
    assert model.author.sampling == sampling
    assert model.generate("Hello", max_tokens=3).ids == [83, 212, 197] or "repetition_penalty" in author


def test_a_note_lists_many_settings_in_full(make_gpt2, run):
    settings = ("min_length", "max_time", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "guidance_scale")
    author = dict.fromkeys((*settings, "exponential_decay_length_penalty", "penalty_alpha", "forced_bos_token_id"), 3)
    author |= {"stop_strings": [f"a string that ends a text, {i}" for i in range(8)]}
    folder = make_gpt2(files={"generation_config.json": author})
    [note] = run("generate", folder, "-p", "Hello", "-n", "3").err.splitlines()
    assert len(note) > 500
    assert note.count("--stop 'a string that ends a text, ") == 8


NEUTRAL = {
    "repetition_penalty": 1.0,
    "num_beams": 1,
    "max_length": 20,
    "do_sample": False,
    "temperature": 0.7,
    "top_k": 50,
}


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_settings_without_effect_are_not_named(make_gpt2, caplog, file):
    own = {"files": {file: NEUTRAL}} if file != "config.json" else NEUTRAL
    rushlight.load(make_gpt2(**own))
    assert not caplog.records


@pytest.mark.parametrize(
    ("author", "problem"),
    [
        ({"suppress_tokens": "a"}, "suppress_tokens is 'a', expected a token id, or a list of them"),
        ({"bad_words_ids": [1]}, "bad_words_ids is [1], expected a list of lists of token ids"),
        ({"suppress_tokens": [*range(257)]}, "suppress every token"),
    ],
)
def test_malformed_suppressed_tokens_are_an_error(make_gpt2, author, problem):
    folder = make_gpt2(files={"generation_config.json": author})
    with pytest.raises(ConfigError, match="generation_config") as caught:
        rushlight.load(folder)
    assert problem in str(caught.value)


def test_an_end_of_text_id_of_minus_one_is_none(make_gpt2):
    assert rushlight.load(make_gpt2(eos_token_id=-1)).eos_ids == ()
    assert rushlight.load(make_gpt2("n", files={"generation_config.json": {"eos_token_id": None}})).eos_ids == (256,)


# null and None


def test_null_in_a_request_line_counts_as_absent(make_gpt2, tmp_path, run):
    folder, lines, results = make_gpt2(), tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    settings = dict.fromkeys(name for name in FIELDS if name != "prompt")
    integral_settings = {"max_tokens": 2.0, "top_k": 0.0, "seed": 7.0, "stop_ids": [5.0], "n": 1.0, "logprobs": 0.0}
    lines.write_text(
        "".join(
            json.dumps(line) + "\n"
            for line in (
                {"prompt": "Hello"},
                {"prompt": "Hello", **settings},
                {"prompt": [72.0, 101.0, 108, 108, 111], **integral_settings},
                {"prompt": "Hello", "max_tokens": 2.5},
            )
        )
    )
    done = run("batch", lines, "-m", folder, "-n", "4", "--stop", "zzz", "-o", results, "--ordered")
    assert done.code == 1, done.err
    plain, null, integral, fraction = map(json.loads, results.read_text().splitlines())
    assert plain["ids"] == null["ids"] == [83, 212, 197, 118]
    assert integral["ids"] == [83, 212]
    assert "max_tokens is 2.5" in fraction["error"]["message"]


def test_none_in_python_counts_as_absent(make_gpt2):
    model = rushlight.load(make_gpt2())
    nothing = dict.fromkeys(name for name in FIELDS if name not in ("prompt", "id"))
    expected = model.generate("Hello").ids
    assert len(expected) == 59
    assert model.generate("Hello", **nothing).ids == expected
    assert "".join(model.stream("Hello", **nothing)) == model.generate("Hello").text
    assert model.generate("Hello", temperature=None, max_tokens=2).ids == expected[:2]
    beams = ("n_beams", "length_penalty", "early_stopping", "n", "stop", "stop_ids", "ignore_eos", "logit_bias")
    given = {"max_tokens": 5, **dict.fromkeys(beams)}
    assert model.beam_search("Hello", **given) == model.beam_search("Hello", max_tokens=5)


def test_none_in_a_chat_counts_as_absent():
    settings = {"max_tokens": None, "temperature": None, "stop_ids": None, "stop": None}
    with rushlight.Chat(rushlight.load(), **settings) as chat, rushlight.Chat(rushlight.load()) as plain:
        assert SamplingParams(**chat.settings) == SamplingParams(**plain.settings)
        assert chat.send("Hi", max_tokens=3, top_k=None).ids == plain.send("Hi", max_tokens=3).ids


@pytest.mark.filterwarnings("error")
def test_a_float32_is_a_number(make_gpt2):
    model = rushlight.load(make_gpt2())
    settings = {"max_tokens": 5, "seed": 1}
    text = model.generate("Hello", temperature=np.float32(0.5), top_p=np.float32(0.5), **settings)
    assert text.ids == model.generate("Hello", temperature=0.5, top_p=0.5, **settings).ids


# Chat templates under names


@pytest.fixture
def templates(make_gpt2):
    """A model with named templates in separate files and in tokenizer_config.json."""
    files = {
        "additional_chat_templates/tool_use.jinja": "tools{{ messages[0].content }}",
        "additional_chat_templates/rag.jinja": "documents{{ messages[0].content }}",
        "tokenizer_config.json": {
            "chat_template": [{"name": name, "template": name} for name in ("default", "rag", "short")]
        },
    }
    return make_gpt2(files=files)


@pytest.mark.parametrize(
    ("name", "text"), [("tool_use", "toolsx"), ("rag", "documentsx"), ("short", "short"), (None, "default")]
)
def test_a_template_is_found_by_its_name(templates, name, text):
    template = find_template(rushlight.load(templates), name)
    assert template.render([{"role": "user", "content": "x"}]).text == text
    template.close()


def test_an_unknown_template_is_an_error_with_the_names(templates, run):
    done = run("chat", templates, "--chat-template", "tools", stdin=b"Hi\n")
    assert done.code == 2
    assert "one of the model's: default, rag, short, tool_use" in done.err
    done = run("chat", templates, "--chat-template", "tool_use", "-n", "2", stdin=b"Hi\n")
    assert (done.code, done.err) == (0, "")


# Ports


@pytest.mark.parametrize(
    "name",
    [
        "h.0.x.weight", "h.0.attn.x.weight", "h.1.mlp.x.weight", "h.x.weight", "h.x.attn.c_attn.weight", "x.weight",
        "h.0.attn.0.weight", "h.7.x.weight", "x.attn.c_attn.weight",
        "h.².ln_1.weight", "x.²", "h.٣.ln_1.weight", f"h.{'7' * 5000}.ln_1.weight", "h.00.ln_1.weight",
    ],
)  # fmt: skip
def test_the_port_of_a_gpt2_with_an_unknown_module_has_every_tensor(write, weights, tmp_path, run, name):
    extra = {f"transformer.{name}": np.zeros(3, np.float32)}
    if "c_attn" in name:
        extra[f"transformer.{name.replace('c_attn', 'c_proj')}"] = np.zeros(3, np.float32)
    folder, port = write(weights | extra), tmp_path / "p.py"
    done = run("port", folder, "-o", port)
    assert done.code == 0, done.err
    assert rushlight.check(folder, port=port).fits
    done = run("generate", folder, "--port", port, "-p", "a", "-n", "1")
    assert done.code in (0, 2)
    assert not done.code or "no tokenizer" in done.err or "TO WRITE" in done.err or "to be written" in done.err, (
        done.err
    )


def test_blocks_with_an_unknown_module_keep_their_numbers(write, weights):
    folder = write(weights | {"transformer.h.0.x.weight": np.zeros(3, np.float32)})
    with open_checkpoint(folder) as checkpoint:
        text = scaffold(checkpoint).module
    assert "Block(config, 0)" in text
    assert "Block2(config, 1)" in text
    assert "self.wpe = Embedding(config.n_positions, config.n_embd)" in text


def test_a_vocabulary_of_four_times_the_width_is_not_written_as_a_multiple(write):
    norm = {"norm.weight": np.ones(64), "norm.bias": np.ones(64)}
    folder = write({"embed.weight": np.ones((256, 64)), "out.weight": np.ones((256, 64)), **norm}, None, None)
    with open_checkpoint(folder) as checkpoint:
        text = scaffold(checkpoint).module
    assert "self.embed = Embedding(256, config.width)" in text
    assert "Linear(config.width, 4 * config.width, bias=False)" in text


def test_an_unknown_architecture_names_the_next_step(make_gpt2, run):
    done = run("generate", make_gpt2(model_type="lalma"), "-p", "a")
    assert done.code == 2
    assert "rushlight port" in done.err


# Recordings

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture
def golden():
    return read_golden(FIXTURES / "proof" / "gpt2.golden.safetensors")


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (-1, "expected ids from 0 to 60, found -1"),
        (61, "expected ids from 0 to 60, found 61"),
        (2**40, f"expected ids from 0 to 60, found {2**40}"),
        (-(2**40), f"expected ids from 0 to 60, found {-(2**40)}"),
        (np.inf, "expected integers, found float32"),
        (np.nan, "expected integers, found float32"),
    ],
)
def test_invalid_recorded_ids_are_an_error(golden, value, problem):
    case = golden.cases[0]
    name = next(call.input for call in case.calls if call.path.endswith("wte"))
    case.tensors[name] = case.tensors[name].astype(np.float32 if isinstance(value, float) else np.int64)
    case.tensors[name].flat[0] = value
    with pytest.raises(GoldenError, match="the recorded input of wte is invalid") as caught:
        verify(rushlight.load(FIXTURES / "gpt2" / "gelu_new"), golden)
    assert problem in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize("value", [-1, 2**31, 2**40])
def test_a_recorded_prompt_consists_of_token_ids(golden, tmp_path, value):
    golden.cases[0].ids[0] = value
    write_golden(golden, tmp_path / "golden.safetensors")
    with pytest.raises(GoldenError, match="0/ids holds values that are not token ids"):
        read_golden(tmp_path / "golden.safetensors")


def test_a_recorded_prompt_beyond_a_modules_table_is_an_error(golden, write, tmp_path):
    port = tmp_path / "port.py"
    port.write_text(PORT_OF_A_TABLE)
    module = rushlight.load_module(write({"wte.weight": np.ones((5, 4), np.float32)}, None, None), port=port)
    golden.cases = [Case([1, 5], None, [Call("wte", "", None, None, None)])]
    with pytest.raises(RequestError, match=r"wte has no rows .*expected ids from 0 to 4, found 5"):
        verify(module, golden)


PORT_OF_A_TABLE = """
from rushlight.models import PretrainedModel
from rushlight.nn import Embedding, NameRules

class Config:
    @classmethod
    def from_json(cls, values, *, file=None):
        return cls()
    from_tensors = from_json

class ARCHITECTURE(PretrainedModel):
    config_type = Config
    rules = NameRules()
    def __init__(self, config):
        self.wte = Embedding(5, 4)
    def __call__(self, batch):
        return self.wte(batch.ids)
"""


# Other cases
