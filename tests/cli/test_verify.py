"""`rushlight verify` and `rushlight record`."""

import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file, save_file

from rushlight.cli.views import verification as verify_view
from rushlight.cli.views.symbols import ASCII, symbols
from rushlight.proof import known_answers as known
from rushlight.proof.known_answers import known_answers

FIXTURES = Path(__file__).parents[1] / "fixtures"
GPT2 = FIXTURES / "gpt2" / "gelu_new"
GOLDEN = FIXTURES / "proof" / "gpt2.golden.safetensors"
ENCODER = FIXTURES / "proof" / "encoder.safetensors"


@pytest.fixture
def erf_gpt2(tmp_path):
    """The recorded checkpoint with the erf GELU in its config."""
    folder = tmp_path / "erf"
    shutil.copytree(GPT2, folder)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"gelu_new"', '"gelu"'))
    return folder


def test_an_equal_port_exits_with_0(rushlight):
    done = rushlight("verify", GPT2, "--golden", GOLDEN)
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0].split() == ["module", "layer", "abs", "error", "rel", "error", "teacher-forced", "cosine"]
    assert lines[1].split()[:2] == ["✓", "wte"]
    assert "logits     relative error " in done.out
    assert "greedy 40 of 40 tokens" in done.out
    assert lines[-1] == "✓ equal to the recording: 25 modules"
    assert done.err == ""


def test_a_divergent_port_exits_with_1_and_names_the_module(rushlight, erf_gpt2):
    done = rushlight("verify", erf_gpt2, "-g", GOLDEN)
    assert done.code == 1
    assert (
        "✗ h.0.mlp.act is the first module that diverges: it computes gelu_erf where the recording has gelu_tanh"
        " (1 more diverges independently)\n"
    ) in done.out
    marks = {line.split()[1]: line[0] for line in done.out.splitlines()[1:26]}
    assert marks["h.0.mlp.c_fc"] == "✓"
    assert marks["h.0.mlp.act"] == "✗"
    assert marks["h.0.mlp.c_proj"] == "~"


@pytest.fixture
def short_tables(monkeypatch):
    """Tables of more than 10 modules are summarised."""
    monkeypatch.setattr(verify_view, "MAX_ROWS", 10)


def test_a_long_table_has_one_row_for_the_modules_of_all_blocks(rushlight, short_tables):
    done = rushlight("verify", GPT2, "-g", GOLDEN)
    lines = done.out.splitlines()
    assert lines[0].split() == ["modules", "n", "layer", "abs", "error", "rel", "error", "teacher-forced", "cosine"]
    rows = [line.split()[:3] for line in lines[1 : lines.index("25 modules; --all shows each")]]
    assert rows[:4] == [["✓", "wte", "1"], ["✓", "wpe", "1"], ["✓", "h.*.ln_1", "2"], ["✓", "h.*.attn.c_attn", "2"]]
    assert sum(int(n) for _, _, n in rows) == 25
    assert lines[-2:] == ["", "✓ equal to the recording: 25 modules"]
    full = rushlight("verify", GPT2, "-g", GOLDEN, "--all").out.splitlines()
    assert [line.split()[0] for line in full[1:26]] == ["✓"] * 25
    errors = {line.split()[1]: [float(number) for number in line.split()[-4:]] for line in full[1:26]}
    [summary] = [line for line in lines if "h.*.mlp.c_proj" in line]
    pairs = zip(errors["h.0.mlp.c_proj"], errors["h.1.mlp.c_proj"], strict=True)
    *largest, cosine = [(max(pair), min(pair)) for pair in pairs]
    assert [float(number) for number in summary.split()[-4:]] == [most for most, _ in largest] + [cosine[1]]


def test_a_long_table_shows_every_module_that_differs(rushlight, short_tables, erf_gpt2, monkeypatch):
    done = rushlight("verify", erf_gpt2, "-g", GOLDEN)
    assert done.code == 1
    rows = [line.split()[:3] for line in done.out.splitlines()]
    assert [row[1] for row in rows if row and row[0] == "✗" and row[2] == "1"] == ["h.0.mlp.act", "h.1.mlp.act"]
    assert ["✓", "h.0.mlp.c_fc", "1"] in rows
    assert ["~", "h.*.mlp.c_proj", "2"] in rows
    assert "h.0.mlp.act is the first module that diverges" in done.out.splitlines()[-2]
    assert "the logits are off by" in done.out.splitlines()[-1]
    assert len(json.loads(rushlight("verify", erf_gpt2, "-g", GOLDEN, "--json").out)["modules"]) == 25
    monkeypatch.setattr(verify_view, "MAX_DIVERGENT", 1)
    out = rushlight("verify", erf_gpt2, "-g", GOLDEN).out
    assert "1 more module that differs is not shown; 25 modules, --all shows each\n" in out
    assert "h.1.mlp.act" not in out


def test_numbers_that_are_not_finite_are_the_worst():
    nan = float("nan")
    assert str(verify_view._worst([0.5, nan, None, 2.0])) == "nan"
    assert verify_view._worst([None, 0.0, 1.0]) == 1.0
    assert verify_view._worst([None]) is None


def test_the_verdict_comes_after_the_notes_and_the_page(process, erf_gpt2, tmp_path):
    done = process(f"$rushlight verify {erf_gpt2} -g {GOLDEN} --html {tmp_path}/r.html 2>&1")
    assert done.code == 1
    lines = done.out.splitlines()
    assert [line[:2] for line in lines[-2:]] == ["✗ ", "✗ "]
    assert lines[-3] == ""
    assert lines[-4].startswith("wrote ")


def test_quantised_weights_pass_within_their_tolerance(rushlight):
    done = rushlight("verify", GPT2, "-g", GOLDEN, "--dtype", "int8", "--device", "cpu")
    assert done.code == 0
    assert done.out.endswith("✓ equal to the recording, within the error of quantised weights: 25 modules\n")
    assert "0.05 teacher-forced, none free-running" in done.out


def test_json_has_the_first_divergent_module(rushlight, erf_gpt2):
    done = rushlight("verify", erf_gpt2, "-g", GOLDEN, "--json")
    assert done.code == 1
    record = json.loads(done.out)
    assert record["first_divergent"]["path"] == "h.0.mlp.act"
    assert len(record["modules"]) == 25


def test_a_page_is_written(rushlight, erf_gpt2, tmp_path):
    path = tmp_path / "report.html"
    done = rushlight("verify", erf_gpt2, "-g", GOLDEN, "--html", path)
    assert done.code == 1
    assert f"wrote {path}" in done.err
    assert "Embedding" not in done.out
    page = path.read_text()
    assert "it computes gelu_erf where the recording has gelu_tanh" in page
    assert "https://" not in page.replace("http://www.w3.org/2000/svg", "")


def test_a_port_that_is_not_a_language_model_is_verified(rushlight):
    done = rushlight(
        "verify", ENCODER, "--port", ENCODER.with_suffix(".py"), "-g", ENCODER.with_name("encoder.golden.safetensors")
    )
    assert done.code == 0
    assert "logits" not in done.out
    assert done.out.endswith("✓ equal to the recording: 15 modules\n")


@pytest.mark.parametrize(("width", "heads"), [(60, "rel error teacher-forced"), (90, "abs error"), (140, "layer")])
def test_a_narrow_terminal_omits_columns(monkeypatch, width, heads):
    from rushlight import load
    from rushlight.proof import verify

    console = Console(file=io.StringIO(), width=width, color_system=None)
    monkeypatch.setattr(verify_view, "stdout_console", lambda: console)
    model = load(GPT2)
    model.module.h[0].mlp.act.name = "relu"
    report = verify(model, GOLDEN)
    for view in (verify_view.report_view(report), verify_view.verdict_view(report)):
        console.print(view, soft_wrap=True)
    lines = console.file.getvalue().splitlines()
    assert all(word in lines[0] for word in heads.split())
    assert ("layer" in lines[0]) == (width >= 100)
    assert max(map(len, lines[:26])) <= width
    # The summary is never truncated; the terminal wraps it.
    assert any("it computes relu where the recording has gelu_tanh" in line for line in lines)


def test_a_terminal_without_unicode_gets_ascii_symbols(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert symbols() == ASCII


def bad(rushlight, *arguments):
    done = rushlight("verify", *arguments)
    assert done.code == 2
    assert done.out == ""
    return done.err


def test_an_unknown_model_without_a_recording_exits_with_2(rushlight):
    error = bad(rushlight, GPT2)
    assert "nothing to compare" in error
    assert "rushlight record" in error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--against", "keras"], "expected transformers, found 'keras'"),
        (["--against", "transformers", "--golden", GOLDEN], "exclude each other"),
        (["--golden", GOLDEN, "--text", "x"], "a golden file has its own prompts"),
        (["--html", "x.html"], "need a recording"),
        (["--tolerance", "1"], "need a recording"),
        (["--golden", GOLDEN, "--tolerance", "0"], "invalid tolerance"),
        (["--golden", "nowhere.safetensors"], "no such file"),
        (["--golden", GPT2 / "model.safetensors"], "not a golden file but a checkpoint"),
        (["--golden", GOLDEN, "--device", "abacus"], "unknown device 'abacus'"),
    ],
    ids=str,
)
def test_bad_input_exits_with_2(rushlight, arguments, words):
    assert words in " ".join(bad(rushlight, GPT2, *arguments).replace("│", " ").split())


def test_a_recording_of_another_model_exits_with_2(rushlight):
    error = bad(rushlight, GPT2, "--golden", ENCODER.with_name("encoder.golden.safetensors"))
    assert "the recording is of another model" in error


def test_a_nan_is_refused_with_the_tensor(rushlight, tmp_path):
    folder = tmp_path / "nan"
    shutil.copytree(GPT2, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.h.1.mlp.c_fc.weight"][3, 5] = np.nan
    save_file(tensors, folder / "model.safetensors")
    assert "h.1.mlp.c_fc.weight: a weight is not a finite" in bad(rushlight, folder, "-g", GOLDEN, "-d", "cpu")


@pytest.mark.parametrize(
    "command", [["record", GPT2, "-o", "x.safetensors"], ["verify", GPT2, "--against", "transformers"]]
)
def test_without_pytorch_the_error_has_the_install_command(rushlight, monkeypatch, tmp_path, command):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "torch", None)
    done = rushlight(*command)
    assert done.code == 2
    assert "recording requires torch" in done.err
    assert "pip install 'rushlight[proof]'" in done.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ids", ["", "1,two", "-3", "1.5", "9999999999"])
def test_invalid_ids_exit_with_2(rushlight, ids):
    done = rushlight("record", GPT2, "-o", "x.safetensors", "--ids", ids)
    assert done.code == 2
    assert "expected token ids" in " ".join(done.err.replace("│", " ").split())


# The comparison with published results is tested on a small model: the weights of GPT-2 124M are not in the repository.


@pytest.fixture
def small_gpt2(bare_gpt2, monkeypatch, tmp_path):
    """A small model with GPT-2's vocabulary that is identified as GPT-2 124M."""
    monkeypatch.setattr(known, "GPT2_124M", {"vocab_size": 50257, "n_layer": 1})
    tensors = load_file(bare_gpt2)
    tensors["wpe.weight"] = np.tile(tensors["wpe.weight"], (2, 1))  # context for the longest prompt
    save_file(tensors, tmp_path / "small.safetensors")
    return tmp_path / "small.safetensors"


def test_other_weights_of_the_same_size_fail(rushlight, small_gpt2):
    done = rushlight("verify", small_gpt2)
    assert done.code == 1
    assert "✗ greedy ids (transformers): expected [373, 1043, " in done.out
    # The tokenizer is that of GPT-2.
    assert "✓ token ids of a text (lm-evaluation-harness)" in done.out
    assert done.out.endswith(
        "✗ 15 of 16 published results are not reproduced: the port is wrong, or the weights are not OpenAI's,"
        " such as fine-tuned ones\n"
    )
    record = json.loads(rushlight("verify", small_gpt2, "--json").out)
    assert record["passed"] is False
    assert [answer["right"] for answer in record["answers"]].count(True) == 1


def test_correct_answers_pass(small_gpt2, monkeypatch):
    """The published results are replaced by those of the model; changing any of them makes it fail."""
    from rushlight import load

    model = load(small_gpt2)
    text = json.loads(Path(known.__file__).with_name("gpt2_known_answers.json").read_text("utf-8"))
    prompt_ids = text["greedy_ids"]["prompt_ids"]
    text["greedy_ids"]["output_ids"] = prompt_ids + model.generate(prompt_ids, max_tokens=18).ids
    case = text["lm_eval"]["rolling"]
    ids = [case["prefix_token"], *case["ids"]]
    case["logprobs"] = known._log_probs(model, ids[:-1], ids[1:]).tolist()
    losses = [known._log_probs(model, x, y) for x, y in zip(text["llm.c"]["x"], text["llm.c"]["y"], strict=True)]
    text["llm.c"]["loss"] = -float(np.mean(losses))
    monkeypatch.setattr(known.json, "loads", lambda _: text)
    right = {answer.what for answer in known_answers(model) if answer.right}
    assert right >= {"greedy ids", "log-probability of each token", "the loss on 4 × 64 tokens of tiny Shakespeare"}
    text["llm.c"]["loss"] += 2e-4
    case["logprobs"][3] *= 1.002
    wrong = {answer.what for answer in known_answers(model) if not answer.right}
    assert wrong >= {"log-probability of each token", "the loss on 4 × 64 tokens of tiny Shakespeare"}
