"""The scripts in `benchmarks/`: goals, report and plot of records, the checkpoints, the workers, and small runs."""

import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from benchmarks import results
from benchmarks.cells import cells
from benchmarks.checkpoint import GPT2_SMALL, SMOLLM2_135M, Shape, random_tensors, write_checkpoint, write_decoder
from benchmarks.compare import Build, Work, compare, line
from benchmarks.goals import goals
from benchmarks.handle import Handle, WorkerError
from benchmarks.limits import Limits, is_wide
from benchmarks.models import BenchmarkModel, benchmark_model
from benchmarks.peers import PEERS, SLOW, installed_version, peer
from benchmarks.peers.gguf_files import gguf_name
from benchmarks.plot import svg
from benchmarks.processor import processor_kind
from benchmarks.rates import attention_share, least_ratio, limit_share, ratio, reading_share, rivals
from benchmarks.report import markdown, missed, shares, summary, with_block
from benchmarks.run import DTYPES, GAP_TOLERANCE, LOGITS_TOLERANCE, BenchmarkRun, RunConfig
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


def row(models, start):
    (found,) = [goal for goal in goals(models) if goal.metric.startswith(start)]
    return found


def column(record, runtime, form, cell="decode"):
    return record["runtimes"][runtime]["formats"][form]["cells"][cell]


@pytest.fixture
def checkpoint(tmp_path):
    write_checkpoint(tmp_path / "small", SMALL)
    return tmp_path / "small"


def small_model(folder, name="small", vocab_size=300, context=96):
    return BenchmarkModel(name, folder, "random weights", vocab_size, context, 1000)


# ratios, shares and goals


def test_ratios_are_taken_within_rounds_so_that_drift_cancels(record):
    column(record, "rushlight", "f32")["tok_s"] = [100.0, 20.0, 50.0]
    column(record, "llama.cpp", "F32")["tok_s"] = [40.0, 10.0, 20.0]
    assert ratio(record, "decode", "f32", "llama.cpp", "F32") == (2.5, "llama.cpp", "F32")
    column(record, "llama.cpp", "F32").update(rounds=[1, 2, 3], tok_s=[10.0, 25.0, 1.0])
    assert ratio(record, "decode", "f32", "llama.cpp", "F32").value == 2.0  # of rounds 1 and 2 alone


def test_the_fastest_format_of_equal_quality_is_compared_with(record):
    assert set(rivals(record, "int4", "llama.cpp")) == {"F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K_M"}
    assert set(rivals(record, "bf16", "llama.cpp")) == {"F32", "BF16"}  # F16 is farther from the reference
    column(record, "llama.cpp", "Q4_K_M")["tok_s"] = [80.0, 56.0, 40.0]
    assert least_ratio(record, "decode", "int4", ["llama.cpp"]) == (1.25, "llama.cpp", "Q4_K_M")
    record["runtimes"]["llama.cpp"]["formats"]["Q4_K_M"]["agrees"] = False
    assert least_ratio(record, "decode", "int4", ["llama.cpp"]).value == 2.5


def test_formats_of_other_rounds_are_not_compared(record):
    record["rounds"] = {"int8,int4": 3, "f16,bf16": 3, "f32": 3}
    assert ratio(record, "decode", "int4", "llama.cpp", "Q8_0").value == 2.5
    assert ratio(record, "decode", "int4", "llama.cpp", "F32") is None


def test_the_share_of_reading_is_that_of_the_reading_beside_it(record):
    assert reading_share(record, "f32") == pytest.approx(100.0 * 1.0 / 102.0)
    column(record, "rushlight", "f32")["read_gb_s"] = [200.0, 140.0, 100.0]
    assert reading_share(record, "f32") == pytest.approx(0.5)


def test_the_limit_is_the_bandwidth_of_a_decode_and_the_peak_of_a_prefill(record):
    assert limit_share(record, "decode", "f32").bound == "bandwidth"
    share = limit_share(record, "prefill 512", "f32")
    operations = 2 * (85e6 * 512 + 39e6) + 2 * 18_000 * 512 * 513 / 2
    assert share.bound == "peak"
    assert share.value == pytest.approx(operations / 210e9 / (512 / 1000.0))
    column(record, "rushlight", "f32", "prefill 512")["peak_f32_gops"] = [21.0, 14.7, 10.5]  # attention's
    assert limit_share(record, "prefill 512", "f32").value > share.value
    column(record, "rushlight", "f32", "prefill 512")["peak_f32_gops"] = [210.0, 147.0, 105.0]
    assert f"{share.value:.0%} of peak" in shares(record)
    del record["own"]["sizes"]["f32"]["weights"]  # as in records of earlier versions
    assert limit_share(record, "decode", "f32") is None


def test_the_share_of_attention_follows_from_two_lengths(record):
    a, b = 1e-3, 1e-7  # seconds a token, and a pair of tokens
    for n in (512, 2048):
        column(record, "rushlight", "f32", f"prefill {n}")["tok_s"] = [n / (a * n + b * n * n)] * 3
    assert attention_share(record, "f32") == pytest.approx(b * 2048 / (a + b * 2048))


def test_a_format_that_disagrees_is_not_compared(models):
    for form in ("BF16", "F32"):
        models["gpt2"]["runtimes"]["llama.cpp"]["formats"][form]["agrees"] = False
    assert row(models, "GPT-2, decode, batch size 16, bf16, over llama.cpp").met is None
    assert "disagrees" in markdown("zen4", models)


def test_a_missing_runtime_is_reported(models):
    why = "llama-cpp-python is not installed"
    models["gpt2"]["runtimes"]["llama.cpp"] = {"version": None, "formats": {}, "problem": why}
    assert row(models, "GPT-2, decode, batch size 16, int8, over llama.cpp").measured == "not measured"
    assert f"- llama.cpp: {why}" in markdown("zen4", models)


BUSY = {"date": "2026-01-02", "default_over_best": 0.95}


def test_every_goal_has_a_row_and_can_be_met(models):
    rows = goals(models, BUSY)
    assert [goal.metric for goal in rows if goal.met is False] == []
    # The two dtypes that other runtimes than llama.cpp do not have.
    unmeasured = [goal.metric for goal in rows if goal.met is None]
    assert unmeasured == [
        f"GPT-2, decode, batch size 16, {dtype}, over the best of the rest" for dtype in ("f16", "int4")
    ]
    assert len({goal.metric for goal in rows}) == len(rows)


def test_in_the_narrow_regime_the_ratio_does_not_count(models):
    for columns in models["gpt2"]["runtimes"]["rushlight"]["formats"]["int8"]["cells"].values():
        columns["read_gb_s"] = [35.0, 36.0, 37.0]
    goal = row(models, "GPT-2, decode, int8, over llama.cpp")
    assert goal.met is None
    assert "2.50 × (llama.cpp" in goal.measured
    assert "the share counts" in goal.measured
    assert is_wide(56.0, 28.0)
    assert not is_wide(35.0, 31.0)


def test_a_share_of_the_bandwidth_of_numpy_does_not_count(models):
    models["gpt2"]["own"]["reader"] = "numpy"
    goal = row(models, "GPT-2, decode, f32, share")
    assert goal.met is None
    assert "without the native kernels" in goal.measured


def put(record, path, value):
    *folders, name = path.split("/")
    for folder in folders:
        record = record[folder]
    assert name in record
    record[name] = value


@pytest.mark.parametrize(
    ("start", "path", "value"),
    [
        ("GPT-2, decode, int4, share", "gpt2/own/sizes/int4/step_bytes", 800_000_000),
        ("GPT-2, only reading weights in int4", "gpt2/CELL:rushlight/int4/decode/weights_gb_s", [90.0, 60.0, 50.0]),
        ("GPT-2, decode, int8, over", "gpt2/CELL:llama.cpp/Q8_0/decode/tok_s", [90.0, 63.0, 45.0]),
        ("GPT-2, prefill of 2,048, f32, over", "gpt2/CELL:OpenVINO/f32/prefill 2048/tok_s", [900.0, 630.0, 450.0]),
        ("GPT-2, prefill of 512, f32, share", "gpt2/CELL:rushlight/f32/prefill 512/peak_gops", [300.0] * 3),
        ("GPT-2, decode, batch size 16", "gpt2/CELL:llama.cpp/F32/batch/tok_s", [450.0, 315.0, 225.0]),
        ("GPT-2, decode, batch size 16", "gpt2/CELL:OpenVINO/f32/batch/tok_s", [650.0, 455.0, 325.0]),
        ("smollm2, decode, int4, over llama.cpp", "smollm2/CELL:llama.cpp/Q4_K_M/decode/tok_s", [90.0, 63.0, 45.0]),
        ("qwen3-shape, prefill of 512, bf16", "qwen3-shape/CELL:llama.cpp/BF16/prefill 512/tok_s", [600, 420, 300]),
        (
            "smollm2, prefill of 512, int4 over Q4_K_M",
            "smollm2/CELL:llama.cpp/Q4_K_M/prefill 512/tok_s",
            [500, 350, 250],
        ),
        ("smollm2, decode at 8,192", "smollm2/CELL:llama.cpp/Q4_0/decode at 8192/tok_s", [40.0, 28.0, 20.0]),
        ("smollm2, attention's share", "smollm2/CELL:rushlight/f32/prefill 2048/tok_s", [500.0, 350.0, 250.0]),
        ("repetitive completion", "gpt2/own/engine/speculation/median", 2.9),
        ("non-repetitive completion", "gpt2/own/engine/no_hits/median", 0.9),
        (
            "process start to first token, f32 safetensors",
            "gpt2/runtimes/rushlight/formats/f32/first_token_s/median",
            0.26,
        ),
        ("process start to first token, converted", "gpt2/own/first_token_converted_s/median", 0.21),
        (
            "process start to first token, f32, compared",
            "gpt2/runtimes/llama.cpp/formats/F32/first_token_s/median",
            0.2,
        ),
        ("peak memory minus weights and KV cache, int8", "gpt2/own/memory/int8/weights", 400_000_000),
        ("import rushlight", "gpt2/own/import_s/median", 0.08),
        ("rushlight --help", "gpt2/own/help_s/median", 0.16),
        ("call overhead", "gpt2/own/calls_s/int4/median", 1e-3),
        ("sampling", "gpt2/own/sampling_s/median", 1e-3),
        ("installed size", "gpt2/runtimes/rushlight/installed_bytes", 131_000_000),
        ("perplexity of the embedded model on held-out text, int8", "gpt2/own/loss/int8", 3.603),
        ("perplexity of the embedded model on held-out text, int4 over", "gpt2/own/loss/int4", 3.65),
        ("perplexity of the embedded model on held-out text, int4 calibrated", "gpt2/own/loss/int4 calibrated", 3.615),
    ],
)
def test_each_goal_can_be_missed(models, start, path, value):
    def found():
        return [goal.met for goal in goals(models, BUSY) if goal.metric.startswith(start)]

    assert any(found())
    assert False not in found()
    model, _, rest = path.partition("/CELL:")
    if rest:
        runtime, form, cell, name = rest.split("/")
        put(models, f"{model}/runtimes/{runtime}/formats/{form}/cells/{cell}/{name}", value)
    else:
        put(models, path, value)
    assert False in found()
    assert "✗ |" in markdown("zen4", models, BUSY)


def test_a_busy_machine_is_judged_by_the_table_of_threads(tmp_path):
    rates = {"after, default": [90.0], "after, -t 1": [60.0], "after, -t 2": [100.0]}
    rows = [{"neighbours": "0", "rates": {**rates, "after, default": [10.0]}}, {"neighbours": "1@0", "rates": rates}]
    (tmp_path / "threads.json").write_text(json.dumps({"kind": "zen4", "date": "2026", "rows": rows}))
    assert results.busy(tmp_path, "zen4") == {"date": "2026", "default_over_best": 0.9}
    assert results.busy(tmp_path, "zen3") is None


# the kind of the processor


def cpuinfo(path, **fields):
    path.write_text("".join(f"{key.replace('_', ' ')}\t: {value}\n" for key, value in fields.items()))
    return path


@pytest.mark.parametrize(
    ("vendor", "family", "model", "kind"),
    [
        ("AuthenticAMD", 25, 0x01, "zen3"),
        ("AuthenticAMD", 25, 0x11, "zen4"),
        ("AuthenticAMD", 25, 0x21, "zen3"),
        ("AuthenticAMD", 25, 0x61, "zen4"),
        ("AuthenticAMD", 25, 0xA0, "zen4"),
        ("AuthenticAMD", 26, 0x02, "zen5"),
        ("GenuineIntel", 6, 0x6A, "ice-lake"),
        ("GenuineIntel", 6, 0x8F, "sapphire-rapids"),
        ("GenuineIntel", 6, 0x01, "some-cpu-r-3000"),
        ("AuthenticAMD", 99, 0x01, "some-cpu-r-3000"),
    ],
)
def test_results_are_named_by_the_kind_of_processor(tmp_path, vendor, family, model, kind):
    text = f"vendor_id : {vendor}\ncpu family : {family}\nmodel : {model}\nmodel name : Some CPU (R) 3000\n"
    (tmp_path / "cpuinfo").write_text(text)
    assert processor_kind(tmp_path / "cpuinfo") == kind


@pytest.mark.parametrize(
    ("flags", "kind"),
    [("avx512f amx_bf16 amx_tile", "sapphire-rapids"), ("amx_tile amx_fp16", "granite-rapids"), ("avx512f", "a-xeon")],
)
def test_a_virtual_machine_that_hides_the_model_is_named_by_its_instructions(tmp_path, flags, kind):
    text = f"vendor_id : GenuineIntel\ncpu family : 6\nmodel : 167\nmodel name : A Xeon\nflags : {flags}\n"
    (tmp_path / "cpuinfo").write_text(text)
    assert processor_kind(tmp_path / "cpuinfo") == kind


def test_kinds_come_in_the_order_of_readme(tmp_path):
    for kind in ("zen3", "a-xeon", "zen4", "threads"):
        results.save(tmp_path, kind, {})
    assert list(results.load_all(tmp_path)) == ["zen4", "zen3", "a-xeon"]


def test_without_cpuinfo_the_architecture_names_the_results(tmp_path):
    assert processor_kind(tmp_path / "missing")


# the report, the plot and the pages


def test_the_report_is_tables_with_ratios(models):
    text = markdown("zen4", models, BUSY)
    assert "| decode, one sequence | 100 (2.50, 1.67) |" in text.replace("70 (2.50", "100 (2.50")
    assert "| GPT-2, decode, batch size 16, f32, over llama.cpp | ≥ 2.00 × | 2.50 × (llama.cpp F32) | ✓ |" in text
    assert "| llama.cpp Q4_K_M | 28 | 20 – 40 | 3 | 2.50 × |" in text
    assert "2026-01-02" in text
    assert "A Processor, AVX2, 2 threads" in text
    assert "100% of the measurements in the wide regime" in text
    for block in text.split("\n\n"):
        if block.startswith("|"):
            assert len({line.count("|") for line in block.splitlines()}) == 1


def test_a_cell_in_which_another_runtime_is_ahead_is_marked(record):
    def cell():
        (found,) = [each for each in summary({"zen4": {"gpt2": record}}).splitlines() if ", decode, one" in each]
        return found.split(" | ")[1]

    assert cell() == "70 (2.50, 1.67)"
    column(record, "OpenVINO", "f32")["tok_s"] = [101.0, 71.0, 51.0]
    assert cell() == "70 (2.50, 0.99) **✗**"


def test_the_table_says_which_products_are_computed_by_amx(models):
    assert "AMX" not in summary({"zen4": models})
    models["gpt2"]["runtimes"]["OpenVINO"]["formats"]["bf16"]["computes"] = "bf16, brgemm avx512 amx"
    assert "With AMX: OpenVINO bf16." in summary({"zen4": models})
    assert "| OpenVINO bf16 | bf16, brgemm avx512 amx | 0.003 |" in markdown("zen4", models)


def test_goals_that_are_missed_are_listed_for_each_kind(models):
    fast, slow = {"gpt2": models["gpt2"]}, json.loads(json.dumps({"gpt2": models["gpt2"]}))
    slow["gpt2"]["own"]["help_s"]["median"] = 0.2
    table = missed({"zen4": fast, "zen3": slow}, {})
    assert "| rushlight --help | ≤ 150 ms | 120 ms ✓ | 200 ms ✗ |" in table
    assert "import rushlight" not in table


def test_the_pages_quote_the_results():
    for path, text in results.pages():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run `python -m benchmarks --pages`"


def test_a_page_without_its_block_is_an_error():
    page = "a\n<!-- x: written by `python -m benchmarks` -->\nold\n<!-- end of x -->\nb\n"
    assert "\nnew\n\n<!-- end" in with_block(page, "x", "new")
    with pytest.raises(ValueError, match="no block 'y'"):
        with_block(page, "y", "new")


@pytest.mark.parametrize("kind", list(results.load_all(results.RESULTS)))
def test_the_reports_are_those_of_their_records(kind, tmp_path):
    for name in (f"{kind}.json", "threads.json"):
        (tmp_path / name).write_bytes((results.RESULTS / name).read_bytes())
    assert results.render(tmp_path, kind) == (results.RESULTS / f"{kind}.md").read_text(encoding="utf-8")
    assert (tmp_path / f"{kind}.svg").read_text() == (results.RESULTS / f"{kind}.svg").read_text()


def test_the_plot_is_svg_with_a_bar_for_each_rate(record):
    root = ElementTree.fromstring(svg(record))
    space = "{http://www.w3.org/2000/svg}"
    bars = [rect for rect in root.iter(f"{space}rect") if rect.find(f"{space}title") is not None]
    assert len(bars) == (5 + 5 + 3) * 3
    width = float(root.get("width"))
    assert all(float(bar.get("x")) + float(bar.get("width")) <= width for bar in bars)
    by_title = {bar.find(f"{space}title").text: float(bar.get("width")) for bar in bars}
    assert by_title["rushlight f32: 70 tok/s"] == pytest.approx(2.5 * by_title["llama.cpp f32: 28 tok/s"], rel=0.01)


def test_records_survive_saving(models, tmp_path):
    results.save(tmp_path, "zen4", models)
    assert results.load(tmp_path, "zen4") == models
    assert results.load(tmp_path, "zen3") == {}
    assert results.render(tmp_path, "zen4") == markdown("zen4", models)


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
        assert {"f32"} <= set(module.FORMATS.values()) <= set(DTYPES)
        assert all(hasattr(module, part) for part in ("DISTRIBUTION", "NEEDS", "prepare", "Runtime", "first_token"))
    assert set(SLOW) <= set(PEERS)
    assert LOGITS_TOLERANCE.keys() == GAP_TOLERANCE.keys() == set(DTYPES)
    assert installed_version("rushlight") == rushlight.__version__


def test_cells_fit_the_context():
    def names(context, n_parameters=1000):
        return list(cells(BenchmarkModel("m", None, "", 300, context, n_parameters), 32))

    assert names(1024) == ["decode", "batch", "prefill 512", "prefill 1024"]
    assert names(8192)[2:] == ["prefill 512", "prefill 2048", "decode at 2048", "decode at 8192"]
    assert names(8192, 600_000_000)[-1] == "decode at 2048"  # a large model would compute 8,192 positions for minutes
    assert names(96) == ["decode", "batch", "prefill 96"]


def test_dtypes_of_a_large_model_are_compared_in_pairs(tmp_path):
    def groups(n_parameters):
        model = BenchmarkModel("m", tmp_path, "", 300, 96, n_parameters)
        return BenchmarkRun(RunConfig(work=tmp_path, dtypes=("f32", "int4", "int8")), model)._groups()

    assert groups(1000) == [("int8", "int4", "f32")]
    assert groups(3_000_000_000) == [("int8", "int4"), ("f32",)]


def test_a_folder_is_a_model_too(checkpoint, tmp_path):
    model = benchmark_model(str(checkpoint), tmp_path)
    assert (model.name, model.vocab_size, model.context) == ("small", 300, 96)
    assert not model.is_large
    with pytest.raises(FileNotFoundError):
        benchmark_model(str(tmp_path / "missing"), tmp_path)


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
        path = handle.ask("prepare", checkpoint=str(checkpoint), form="f32", folder=str(tmp_path))["path"]
        assert handle.ask("open", path=path, form="f32", threads=1, vocab_size=300)["seconds"] > 0
        assert handle.ask("prefill", n_tokens=8)["seconds"] > 0
        decoded = handle.ask("decode", n_sequences=2, n_tokens=3)
        assert decoded["seconds"] > 0
        assert [len(tokens) for tokens in decoded["tokens"]] == [4, 4]
        assert handle.ask("decode_at", position=80, n_tokens=3)["seconds"] > 0
        assert handle.ask("decode_at", position=80, n_tokens=3)["seconds"] > 0
        gaps = handle.ask("gaps", tokens=dict(enumerate(decoded["tokens"])))["gaps"]
        assert gaps == pytest.approx([0.0] * 8, abs=1e-4)
        wrong = [(token + 1) % 300 for token in decoded["tokens"][0]]
        assert max(handle.ask("gaps", tokens={0: wrong})["gaps"]) > GAP_TOLERANCE["f32"]
        handle.ask("logits", n_tokens=8, file=str(tmp_path / "logits.npy"))
        assert np.load(tmp_path / "logits.npy").shape == (8, 300)
        assert handle.ask("peak")["bytes"] > 10_000_000
        assert handle.ask("own", what="bandwidth")["bytes"] > 0
        sizes = handle.ask("own", what="sizes")
        assert sizes["head_weights"] == 300 * 64
        assert sizes["weights"] == 300 * 64 + 2 * 12 * 64 * 64
        assert (sizes["attention"], sizes["context"]) == (2 * 2 * 64, 96)
        assert len(handle.ask("own", what="sampling", n=2)["seconds"]) == 2
        assert handle.ask("computes")["computes"].startswith("f32, ")
        with pytest.raises(WorkerError, match="RequestError"):
            handle.ask("logits", n_tokens=0, file="")
        with pytest.raises(WorkerError, match="DtypeError"):
            handle.ask("open", path=path, form="f13", threads=1, vocab_size=300)


def test_a_worker_that_fails_to_start_raises():
    with Handle("no such runtime", 1) as handle, pytest.raises(WorkerError, match="exited with code 1"):
        handle.ask("peak")


def test_a_worker_that_does_not_answer_is_stopped(monkeypatch):
    monkeypatch.setattr("benchmarks.handle.ANSWER_S", 0.0)
    with Handle("rushlight", 1) as handle, pytest.raises(WorkerError, match="did not answer to 'peak'"):
        handle.ask("peak")


class FakeProbe:
    """Limits without the native kernels, at once."""

    def __init__(self, threads):
        assert threads == 1

    def limits(self, _dtype):
        return Limits(50.0, 30.0, 200.0, 100.0)


@pytest.fixture
def only_rushlight(monkeypatch):
    monkeypatch.setattr("benchmarks.run.installed_version", lambda name: "1" if name == "rushlight" else None)
    monkeypatch.setattr("benchmarks.run.Probe", FakeProbe)
    monkeypatch.setattr("benchmarks.run.FRESH_ROUNDS", 1)


def test_a_benchmark_run_from_checkpoint_to_plot(checkpoint, tmp_path, only_rushlight):
    held_out = tmp_path / "held_out.txt"
    held_out.write_text("Once upon a time there was a king who had a daughter. " * 60, encoding="utf-8")
    config = RunConfig(
        work=tmp_path,
        runtimes=("rushlight", "llama.cpp"),
        dtypes=("f32",),
        threads=1,
        repeats=1,
        tokens=2,
        held_out=held_out,
    )
    record = json.loads(json.dumps(BenchmarkRun(config, small_model(checkpoint, "gpt2")).run()))

    mine = record["runtimes"]["rushlight"]["formats"]["f32"]
    assert mine["agrees"]
    assert mine["logits_error"] == 0.0
    assert list(mine["cells"]) == ["decode", "batch", "prefill 96"]
    for columns in mine["cells"].values():
        assert columns["rounds"] == [0]
        assert columns["tok_s"][0] > 0
        assert (columns["read_gb_s"], columns["peak_gops"]) == ([50.0], [200.0])
    assert mine["cells"]["decode"]["weights_gb_s"][0] > 0
    assert min(record["own"][name]["median"] for name in ("import_s", "bare_python_s", "help_s")) > 0
    assert record["own"].keys() >= {"sizes", "memory", "sampling_s", "calls_s", "help_s"}
    assert record["own"]["engine"].keys() == {"speculation", "no_hits", "engine_step", "batching"}
    assert 1 < record["own"]["loss"]["f32"] < 9
    # This checkpoint has no tokenizer, so generation fails: the report says so, and the rest is measured.
    assert "first_token_s" not in mine
    record["runtimes"]["llama.cpp"]["problem"] += "\nor\n\nbroken"
    text = markdown("a-kind", {"gpt2": record})
    assert "is not installed or broken" in text
    assert "rushlight f32 in a fresh process: ended with 2" in text
    assert "llama-cpp-python is not installed" in text
    ElementTree.fromstring(svg(record))


def test_an_interrupted_run_continues(tmp_path, only_rushlight):
    write_decoder(tmp_path / "llama", SMALL_LLAMA)
    config = RunConfig(work=tmp_path, runtimes=("rushlight",), dtypes=("f32",), threads=1, repeats=2, tokens=2)
    saved = []

    def save(record):
        saved.append(json.dumps(record))
        if len(saved) == 1:
            raise KeyboardInterrupt

    model = small_model(tmp_path / "llama", context=128)
    with pytest.raises(KeyboardInterrupt):
        BenchmarkRun(config, model, save).run()
    half = json.loads(saved[0])
    assert half["rounds"] == {"f32": 1}
    assert not half["complete"]

    done = BenchmarkRun(config, model, save, json.loads(saved[0])).run()
    assert done["complete"]
    assert done["date"] == half["date"]
    columns = column(done, "rushlight", "f32")
    assert columns["rounds"] == [0, 1]
    assert columns["tok_s"][0] == column(half, "rushlight", "f32")["tok_s"][0]
    assert columns["tok_s"][1] > 0


def test_no_round_begins_after_the_minutes_that_a_model_has(tmp_path, only_rushlight):
    write_decoder(tmp_path / "llama", SMALL_LLAMA)
    config = RunConfig(
        work=tmp_path, runtimes=("rushlight",), dtypes=("int8",), threads=1, repeats=5, tokens=2, minutes=1e-9
    )
    done = BenchmarkRun(config, small_model(tmp_path / "llama", context=128)).run()
    assert done["rounds"] == {"int8": 1}
    assert done["complete"]
    assert markdown("zen4", {"small": done})


def test_builds_are_compared_in_turn(checkpoint):
    works = {"decode": Work("decode", 1, 2), "prefill": Work("prefill", 8, every=2)}
    source = results.ROOT / "src"
    builds = [Build(source, checkpoint, "f32") for _ in range(2)]
    rows = compare(builds, works, FakeProbe(1), "f32", 3)
    for build in builds:
        build.close()
    assert [len(each["before_s"]) for each in rows] == [len(each["after_s"]) for each in rows] == [3, 2]
    assert all(min(each["before_s"]) > 0 for each in rows)
    rows[0] |= {"before_s": [0.9, 1.8, 0.9], "after_s": [1.0, 2.0, 1.0]}
    assert "| 0.900 | **slower** | 50 (50 – 50) |" in line(rows[0])


def test_the_size_of_a_package_includes_its_dependencies():
    assert installed_bytes("pytest") > installed_bytes("pluggy") > 10_000  # pytest requires pluggy
    assert installed_bytes("no-such-package") is None
