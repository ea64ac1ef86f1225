"""Batch jobs with padded vocabularies, exchanged models and forged results files."""

import json
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import rushlight
from rushlight.cli import main
from rushlight.errors import JobError
from rushlight.jobs import Job, RequestLines, ResultsFile, read_lines
from rushlight.jobs import result_line as result_line_module

PROMPTS = [{"prompt": "The king"}, {"prompt": "A fox", "temperature": 0.8}, {"prompt": "One"}]


@pytest.fixture
def batch(tmp_path, monkeypatch, capsys):
    """Runs `rushlight batch in.jsonl -o o.jsonl`, three tokens a line; returns the exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(folder, *arguments):
        command = ["batch", "in.jsonl", "-o", "o.jsonl", "-n", "3", "-m", folder, *arguments]
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in command])
        return (end.value.code or 0, *capsys.readouterr())

    return run


def write_lines(path, values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")


def read_results(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def padded(make_gpt2):
    """A model with 320 rows for 257 tokens, whose head prefers ids from 300 on at every position."""
    folder = make_gpt2("padded", vocab_size=320)
    weights = load_file(folder / "model.safetensors")
    weights["transformer.wte.weight"][300:] *= 10
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_tokens_without_text_are_null_among_the_alternatives(batch, padded, tmp_path):
    lines = [
        {"prompt": "The king"},
        {"prompt": "The king", "logprobs": 20},
        {"prompt": [65, 310, 66], "prompt_logprobs": 3},
        {"prompt": "A fox"},
    ]
    write_lines(tmp_path / "in.jsonl", lines)
    code, _, err = batch(padded, "--ordered")
    assert code == 0, err
    found = read_results(tmp_path / "o.jsonl")
    assert [record["index"] for record in found] == [0, 1, 2, 3]
    tops = [other for entry in found[1]["logprobs"] for other in entry["top"]]
    assert {other["id"] >= 257 for other in tops} == {True, False}
    assert all((other["token"] is None) == (other["id"] >= 257) for other in tops)
    assert all(entry["token"] is not None for entry in found[1]["logprobs"])
    assert [entry and (entry["id"], entry["token"]) for entry in found[2]["prompt_logprobs"]] == [
        None,
        (310, None),
        (66, "B"),
    ]


def test_generate_prints_tokens_without_text_as_null(padded):
    command = [sys.executable, "-m", "rushlight", "generate", padded, "-p", "a", "-n", "2", "--json", "--logprobs", "9"]
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    tops = [other for entry in json.loads(done.stdout)["logprobs"] for other in entry["top"]]
    assert any(other["token"] is None for other in tops)


def test_an_end_of_text_token_without_text_does_not_end_a_chat(make_gpt2):
    model = rushlight.load(make_gpt2(vocab_size=320, eos_token_id=310, bos_token_id=310))
    with rushlight.Chat(model, template="{{ messages[0].content }}", max_tokens=2) as chat:
        assert chat.send("Hello").ids


def test_an_error_affects_only_its_line(make_gpt2, tmp_path, monkeypatch):
    """Also errors while writing the result, and ids that cannot be serialised."""
    model = rushlight.load(make_gpt2())
    monkeypatch.setattr(result_line_module, "MAX_RESULT_BYTES", 4000)
    deep = "[" * 600 + "]" * 600
    lines = [
        '{"prompt": "a"}',
        '{"prompt": "a", "logprobs": 20, "max_tokens": 9}',
        f'{{"prompt": "a", "id": {deep}}}',
        f'{{"prompt": [{deep}]}}',
        f'{{"prompt": "a", "json_schema": {deep}}}',
        f'{{"prompt": "a", "stop_ids": [{"9" * 4000}]}}',
        '{"prompt": "a", "json_schema": {"multipleOf": 99999989}}',
        '{"prompt": "b"}',
    ]
    path = tmp_path / "o.jsonl"
    with ResultsFile(path) as results:
        summary = Job(model, RequestLines({"max_tokens": 2}), results, ordered=True).run(
            read_lines(iter_bytes("\n".join(lines)))
        )
    found = read_results(path)
    assert ["error" in record for record in found] == [False, *[True] * 6, False]
    assert (summary.n_done, summary.n_failed, summary.generated_tokens) == (2, 6, 4)
    assert "the result is too long (expected at most 4,000 bytes, found " in found[1]["error"]["message"]
    assert all(len(record["error"]["message"]) < 2050 for record in found if "error" in record)
    with ResultsFile(path) as results:
        assert len(results) == 8


def iter_bytes(text):
    import io

    return io.BytesIO(text.encode())


def test_a_huge_index_needs_no_memory(tmp_path):
    path = tmp_path / "o.jsonl"
    records = [
        {"index": index, "request": f"{index + 1:016x}", "job": {"dtype": "f32"}}
        for index in (2**28 - 1, 0, 10**12, *range(1000, 2000))
    ]
    write_lines(path, records)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with ResultsFile(path) as results:
        assert len(results) == 1003
        assert results.digest(2**28 - 1) == f"{2**28:016x}"
        assert results.digest(10**12) == f"{10**12 + 1:016x}"
        assert results.digest(1) is None
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * (1 if sys.platform == "darwin" else 1024) < 200 << 20  # an earlier version used 4 GB


@pytest.fixture
def finished(batch, make_gpt2, tmp_path):
    """A folder with a model and a finished job whose last line is truncated."""
    folder = make_gpt2(files={"generation_config.json": {"eos_token_id": 256}})
    write_lines(tmp_path / "in.jsonl", PROMPTS)
    assert batch(folder, "--ordered")[0] == 0
    out = tmp_path / "o.jsonl"
    complete = out.read_bytes()
    out.write_bytes(complete[:-20])
    return folder, out, complete


def other_weights(folder):
    weights = load_file(folder / "model.safetensors")
    weights["transformer.h.1.ln_2.bias"][-1] += np.float32(1e-3)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def edit(name, before, after):
    def change(folder):
        text = (folder / name).read_text(encoding="utf-8")
        assert before in text
        (folder / name).write_text(text.replace(before, after), encoding="utf-8")

    return change


@pytest.mark.parametrize(
    ("change", "arguments", "changed"),
    [
        (other_weights, [], "weights"),
        (edit("config.json", '"n_head": 2', '"n_head": 1'), [], "config"),
        (edit("generation_config.json", "256", "10"), [], "config"),
        (edit("merges.txt", "", "a b\n"), [], "tokenizer"),
        (None, ["--dtype", "int8"], "dtype"),
        (None, ["--temp", "0.5"], "settings"),
        (None, ["--temp", "0.5", "--dtype", "f16"], "settings, dtype"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_refused_job_names_the_changes(batch, finished, change, arguments, changed):
    folder, out, _ = finished
    if changed == "tokenizer":
        vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        (folder / "vocab.json").write_text(json.dumps(vocabulary, indent=1), encoding="utf-8")
    elif change is not None:
        change(folder)
    before = out.read_bytes()
    code, shown, err = batch(folder, "--ordered", *arguments)
    assert (code, shown) == (2, "")
    assert f"the results belong to another job; changed since then: {changed}; choose another file" in err
    assert out.read_bytes() == before, "a job that is refused leaves the file as it was"


def test_a_job_that_reads_a_pipe_is_refused_before_any_work(finished, tmp_path):
    folder, out, _ = finished
    before = out.read_bytes()
    other_weights(folder)
    model = rushlight.load(folder)
    with pytest.raises(JobError, match="changed since then: settings, weights"), ResultsFile(out) as results:
        Job(model, RequestLines({"max_tokens": 3}), results).run(read_lines(iter_bytes('{"prompt": "new"}\n' * 9)))
    assert out.read_bytes() == before


def test_a_copy_of_the_model_resumes_the_job(batch, finished, tmp_path):
    folder, out, complete = finished
    shutil.copytree(folder, tmp_path / "elsewhere")
    code, _, err = batch(tmp_path / "elsewhere", "--ordered")
    assert code == 0, err
    assert "1 line done, 2 already done" in err
    assert out.read_bytes() == complete


def test_the_port_is_identified_by_its_content(batch, make_gpt2, tmp_path):
    folder = make_gpt2()
    write_lines(tmp_path / "in.jsonl", PROMPTS)
    port = tmp_path / "port.py"
    source = "from rushlight.models.gpt2 import GPT2\n\nARCHITECTURE = GPT2\n"
    port.write_text(source)
    assert batch(folder, "--port", port)[0] == 0
    port.rename(tmp_path / "renamed.py")
    code, _, err = batch(folder, "--port", tmp_path / "renamed.py")
    assert code == 0
    assert "0 lines done, 3 already done" in err
    port.write_text(source + "\n# otherwise\n")
    for arguments in (["--port", port], []):
        code, _, err = batch(folder, *arguments)
        assert code == 2
        assert "changed since then: port;" in err
