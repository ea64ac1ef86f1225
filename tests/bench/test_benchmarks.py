"""The scripts in `benchmarks/`: goals, report and plot of a record, the checkpoint, the workers, and a small run."""

import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from benchmarks.checkpoint import GPT2_SMALL, SMOLLM2_135M, Shape, random_tensors, write_checkpoint, write_decoder
from benchmarks.goals import goals, ratio
from benchmarks.handle import Handle, WorkerError
from benchmarks.models import markdown as models_markdown
from benchmarks.peers import PEERS, installed_version, peer
from benchmarks.peers.gguf_files import gguf_name
from benchmarks.plot import svg
from benchmarks.report import markdown
from benchmarks.run import GAP_TOLERANCE, LOGITS_TOLERANCE, BenchmarkRun, RunConfig
from benchmarks.sizes import installed_bytes

import rushlight

SMALL_LLAMA = {
    **SMOLLM2_135M,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "vocab_size": 300,
}
SMALL = Shape(n_layer=2, n_embd=64, n_head=1, n_positions=96, vocab_size=300)


def row(record, start):
    (found,) = [goal for goal in goals(record) if goal.metric.startswith(start)]
    return found


@pytest.fixture
def checkpoint(tmp_path):
    write_checkpoint(tmp_path / "small", SMALL)
    return tmp_path / "small"


# ratios and goals


def test_ratios_are_taken_within_rounds_so_that_drift_cancels(record):
    record["runtimes"]["rushlight"]["dtypes"]["f32"]["decode_tok_s"]["values"] = [100.0, 20.0, 50.0]
    record["runtimes"]["llama.cpp"]["dtypes"]["f32"]["decode_tok_s"]["values"] = [40.0, 10.0, 20.0]
    assert ratio(record, "decode_tok_s", "f32") == (2.5, "")


def test_a_peer_that_disagrees_is_not_compared(record):
    record["runtimes"]["llama.cpp"]["dtypes"]["bf16"]["agrees"] = False
    value, why = ratio(record, "decode_tok_s", "bf16")
    assert value is None
    assert "llama.cpp computes different results" in why
    assert row(record, "decode, one sequence, bf16, over").met is None
    assert "disagrees" in markdown(record)


def test_a_missing_peer_is_reported(record):
    record["runtimes"]["llama.cpp"] = {"version": None, "dtypes": {}, "problem": "llama-cpp-python is not installed"}
    assert row(record, "prefill of 512, int8").measured == "not measured: llama.cpp: llama-cpp-python is not installed"
    assert "- llama.cpp: llama-cpp-python is not installed" in markdown(record)


def test_every_goal_has_a_row(record):
    rows = goals(record)
    assert len(rows) == 30
    assert [goal.metric for goal in rows if goal.met is False] == []
    assert [goal.metric for goal in rows if goal.met is None] == [
        "repetitive completion, speculative over plain decoding, f32",
        "non-repetitive completion, speculative over plain decoding, f32",
    ]
    assert len({goal.metric for goal in rows}) == len(rows)


def test_a_share_of_the_bandwidth_of_numpy_does_not_count(record):
    record["own"]["reader"] = "numpy"
    goal = row(record, "decode, one sequence, f32, share")
    assert goal.met is None
    assert goal.measured.startswith("91% of the bandwidth of NumPy")


def put(record, path, value):
    *folders, name = path.split("/")
    for folder in folders:
        record = record[folder]
    assert name in record
    record[name] = value


@pytest.mark.parametrize(
    ("start", "path", "value"),
    [
        ("decode, one sequence, f32, over", "runtimes/llama.cpp/dtypes/f32/decode_tok_s/values", [60, 42, 30]),
        ("decode, one sequence, int4, share", "own/step_bytes/int4", 400_000_000),
        ("prefill of 512, bf16", "runtimes/llama.cpp/dtypes/bf16/prefill_tok_s/values", [700, 490, 350]),
        ("decode, batch size 16", "runtimes/llama.cpp/dtypes/f32/batch_decode_tok_s/values", [450, 315, 225]),
        ("process start to first token, f32", "runtimes/rushlight/dtypes/f32/first_token_s/median", 0.26),
        ("process start to first token, f32, compared", "runtimes/llama.cpp/dtypes/f32/first_token_s/median", 0.2),
        ("peak memory minus weights and KV cache, int8", "own/memory/int8/weights", 400_000_000),
        ("import rushlight", "own/import_s/median", 0.08),
        ("rushlight --help", "own/help_s/median", 0.16),
        ("call overhead", "own/calls_s/int4/median", 1e-3),
        ("sampling", "own/sampling_s/median", 1e-3),
        ("installed size", "runtimes/rushlight/installed_bytes", 131_000_000),
        ("perplexity of the embedded model on held-out text, int8", "own/loss/int8", 3.603),
        ("perplexity of the embedded model on held-out text, int4", "own/loss/int4", 3.65),
    ],
)
def test_each_goal_can_be_missed(record, start, path, value):
    def found():
        return [goal.met for goal in goals(record) if goal.metric.startswith(start)]

    assert all(found())
    put(record, path, value)
    assert False in found()
    assert "**missed**" in markdown(record)


# the report and the plot


def test_the_report_is_tables_with_ratios(record):
    text = markdown(record)
    assert "| decode, one sequence, f32, over llama.cpp | ≥ 2.00 × | 2.50 × | met |" in text
    assert "| llama.cpp | 28 (20 – 40), 2.50 × |" in text
    assert "2026-01-02" in text
    assert "A Processor, AVX2, 2 threads" in text
    for block in text.split("\n\n"):
        if block.startswith("|"):
            assert len({line.count("|") for line in block.splitlines()}) == 1


def test_the_plot_is_svg_with_a_bar_for_each_rate(record):
    root = ElementTree.fromstring(svg(record))
    space = "{http://www.w3.org/2000/svg}"
    bars = [rect for rect in root.iter(f"{space}rect") if rect.find(f"{space}title") is not None]
    assert len(bars) == 2 * 4 * 3
    width = float(root.get("width"))
    assert all(float(bar.get("x")) + float(bar.get("width")) <= width for bar in bars)
    by_title = {bar.find(f"{space}title").text: float(bar.get("width")) for bar in bars}
    assert by_title["rushlight f32: 70 tok/s"] == pytest.approx(2.5 * by_title["llama.cpp f32: 28 tok/s"], rel=0.01)


def test_a_record_survives_json(record):
    assert markdown(json.loads(json.dumps(record))) == markdown(record)


# the measurements


def test_the_checkpoint_is_gpt2_small_and_loads(checkpoint):
    assert GPT2_SMALL == (12, 768, 12, 1024, 50257)
    model = rushlight.load(checkpoint)
    assert (model.config.n_layer, model.config.n_embd, model.context_length) == (2, 64, 96)
    again = random_tensors(SMALL)
    assert all(np.isfinite(tensor).all() for tensor in again.values())
    assert np.array_equal(again["transformer.wte.weight"], random_tensors(SMALL)["transformer.wte.weight"])


def test_the_logits_are_not_degenerate(checkpoint):
    logits = rushlight.load(checkpoint).logits(range(90))
    chosen = logits.argmax(-1)
    assert 0.1 < logits.std() < 10
    assert len(set(chosen.tolist())) > 8  # not a single repeated token
    assert (chosen != np.arange(90)).mean() > 0.9  # nor the input token


def test_every_runtime_defines_the_documented_names():
    for name in PEERS:
        module = peer(name)
        assert {"f32"} <= set(module.DTYPES) <= set(RunConfig.dtypes)
        assert all(hasattr(module, part) for part in ("DISTRIBUTION", "NEEDS", "prepare", "Runtime", "first_token"))
    assert LOGITS_TOLERANCE.keys() == GAP_TOLERANCE.keys() == set(RunConfig.dtypes)
    assert installed_version("rushlight") == rushlight.__version__


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("transformer.wte.weight", "token_embd.weight"),
        ("transformer.wpe.weight", "position_embd.weight"),
        ("transformer.ln_f.bias", "output_norm.bias"),
        ("transformer.h.0.attn.c_attn.weight", "blk.0.attn_qkv.weight"),
        ("transformer.h.11.attn.c_proj.bias", "blk.11.attn_output.bias"),
        ("transformer.h.3.ln_2.weight", "blk.3.ffn_norm.weight"),
        ("transformer.h.3.mlp.c_proj.weight", "blk.3.ffn_down.weight"),
    ],
)
def test_names_in_gguf(name, expected):
    assert gguf_name(name) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.norm.weight", "output_norm.weight"),
        ("lm_head.weight", "output.weight"),
        ("model.layers.0.self_attn.k_norm.weight", "blk.0.attn_k_norm.weight"),
        ("model.layers.27.post_attention_layernorm.weight", "blk.27.ffn_norm.weight"),
    ],
)
def test_names_of_qwen3_in_gguf(name, expected):
    assert gguf_name(name, "qwen3") == expected


def test_a_worker_answers_requests_and_reports_errors(checkpoint, tmp_path):
    with Handle("rushlight", 1) as handle:
        path = handle.ask("prepare", checkpoint=str(checkpoint), dtype="f32", folder=str(tmp_path))["path"]
        assert handle.ask("open", path=path, dtype="f32", threads=1, vocab_size=300)["seconds"] > 0
        assert handle.ask("prefill", n_tokens=8)["seconds"] > 0
        decoded = handle.ask("decode", n_sequences=2, n_tokens=3)
        assert decoded["seconds"] > 0
        assert [len(tokens) for tokens in decoded["tokens"]] == [4, 4]
        gaps = handle.ask("gaps", tokens=dict(enumerate(decoded["tokens"])))["gaps"]
        assert gaps == pytest.approx([0.0] * 8, abs=1e-4)
        wrong = [(token + 1) % 300 for token in decoded["tokens"][0]]
        assert max(handle.ask("gaps", tokens={0: wrong})["gaps"]) > GAP_TOLERANCE["f32"]
        handle.ask("logits", n_tokens=8, file=str(tmp_path / "logits.npy"))
        assert np.load(tmp_path / "logits.npy").shape == (8, 300)
        assert handle.ask("peak")["bytes"] > 10_000_000
        assert handle.ask("own", what="bandwidth")["bytes"] > 0
        assert len(handle.ask("own", what="sampling", n=2)["seconds"]) == 2
        with pytest.raises(WorkerError, match="RequestError"):
            handle.ask("logits", n_tokens=0, file="")
        with pytest.raises(WorkerError, match="DtypeError"):
            handle.ask("open", path=path, dtype="f13", threads=1, vocab_size=300)


def test_a_worker_that_fails_to_start_raises():
    with Handle("no such runtime", 1) as handle, pytest.raises(WorkerError, match="exited with code 1"):
        handle.ask("peak")


def test_a_benchmark_run_from_checkpoint_to_plot(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.run.GPT2_SMALL", SMALL)
    held_out = tmp_path / "held_out.txt"
    held_out.write_text("Once upon a time there was a king who had a daughter. " * 60, encoding="utf-8")
    config = RunConfig(
        work=tmp_path,
        runtimes=("rushlight", "llama.cpp"),
        dtypes=("f32",),
        threads=1,
        repeats=1,
        prompt_tokens=8,
        tokens=2,
        batch_size=2,
        held_out=held_out,
    )
    monkeypatch.setattr("benchmarks.run.installed_version", lambda name: "1" if name == "rushlight" else None)
    record = json.loads(json.dumps(BenchmarkRun(config).run()))

    mine = record["runtimes"]["rushlight"]["dtypes"]["f32"]
    assert mine["agrees"]
    assert mine["logits_error"] == 0.0
    for what in ("decode_tok_s", "prefill_tok_s", "batch_decode_tok_s"):
        assert len(mine[what]["values"]) == 1
        assert mine[what]["median"] > 0
    assert min(record["own"][name]["median"] for name in ("import_s", "bare_python_s", "help_s")) > 0
    assert record["own"].keys() >= {"bandwidth_gb_s", "step_bytes", "memory", "sampling_s", "calls_s", "help_s"}
    assert record["own"]["engine"].keys() == {"speculation", "no_hits", "engine_step", "batching"}
    assert 1 < record["own"]["loss"]["f32"] < 9
    # This checkpoint has no tokenizer, so generation fails: the report says so, and the rest is measured.
    assert "first_token_s" not in mine
    text = markdown(record)
    assert "rushlight in a fresh process: ended with 2" in text
    assert "llama-cpp-python is not installed" in text
    ElementTree.fromstring(svg(record))


def test_the_size_of_a_package_includes_its_dependencies():
    assert installed_bytes("pytest") > installed_bytes("pluggy") > 10_000  # pytest requires pluggy
    assert installed_bytes("no-such-package") is None


def test_small_models_are_compared(tmp_path, monkeypatch):
    write_decoder(tmp_path / "llama", SMALL_LLAMA)
    config = RunConfig(
        work=tmp_path,
        runtimes=("rushlight", "llama.cpp"),
        dtypes=("f32", "int8"),
        threads=1,
        repeats=1,
        prompt_tokens=8,
        tokens=2,
        batch_size=2,
    )
    monkeypatch.setattr("benchmarks.run.installed_version", lambda name: "1" if name == "rushlight" else None)
    record = BenchmarkRun(config).compare(tmp_path / "llama", 300)
    for dtype in config.dtypes:
        mine = record["runtimes"]["rushlight"]["dtypes"][dtype]
        assert mine["agrees"]
        assert mine["decode_tok_s"]["median"] > 0
    report = models_markdown(json.loads(json.dumps({"llama": {"weights": "random weights", **record}})))
    assert "decode, one sequence, int8, share of only reading the weights | ≥ 90%" in report
    assert "- llama.cpp: llama-cpp-python is not installed" in report
