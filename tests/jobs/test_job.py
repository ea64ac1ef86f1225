"""Jobs whose requests finish in order and out of order."""

import io
import json
import re

import pytest

from rushlight.errors import JobError, PortError
from rushlight.jobs import Job, RequestLines, ResultsFile, read_lines
from rushlight.runtime.model import Model

INPUT = "".join(
    json.dumps({"prompt": f"The {animal} said", "id": animal, "temperature": 0.8 * (n % 3), "max_tokens": 2 + n % 4})
    + "\n"
    for n, animal in enumerate(["wolf", "fox", "hen", "king", "mouse", "cat", "dog", "owl", "hare", "bear"])
)
BROKEN = INPUT.replace('"The hen said"', '"The hen said"]').replace(
    '"id": "cat", "temperature": 1.6', '"temperature": "hot"'
)


def records(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def lines(text):
    return read_lines(io.BytesIO(text.encode()))


def run(model, path, text=INPUT, *, ordered=False, check=True, seed=0, stop_after=None):
    """Runs the job, and interrupts it after `stop_after` results if given."""

    def progress(summary):
        if summary.n_done + summary.n_failed == stop_after:
            raise KeyboardInterrupt

    with ResultsFile(path) as results:
        job = Job(model, RequestLines({"max_tokens": 3}, seed=seed), results, ordered=ordered)
        if check:
            job.check(lines(text))
        return job.run(lines(text), progress)


def test_every_output_equals_the_solo_output(model, tmp_path):
    out = tmp_path / "out.jsonl"
    summary = run(model, out)
    found = sorted(records(out), key=lambda record: record["index"])
    assert [record["index"] for record in found] == list(range(10))
    for record, request in zip(found, map(json.loads, INPUT.splitlines()), strict=True):
        solo = model.generate(
            request["prompt"],
            max_tokens=request["max_tokens"],
            temperature=request["temperature"],
            seed=record["seed"],
        )
        assert (record["id"], record["text"], record["ids"]) == (request["id"], solo.text, solo.ids)
        assert (record["finish_reason"], record["seed"]) == (solo.finish_reason, solo.seed)
        n_prompt, n_new = len(solo.prompt_ids), len(solo.ids)
        assert record["usage"] == {
            "prompt_tokens": n_prompt,
            "completion_tokens": n_new,
            "total_tokens": n_prompt + n_new,
        }
    assert (summary.n_done, summary.n_failed, summary.n_skipped) == (10, 0, 0)
    assert summary.n_bytes == len(INPUT)
    assert summary.generated_tokens == sum(len(record["ids"]) for record in found)
    assert summary.tok_s > 0


def test_a_failed_line_does_not_affect_the_others(model, tmp_path):
    out = tmp_path / "out.jsonl"
    summary = run(model, out, BROKEN)
    assert (summary.n_done, summary.n_failed) == (8, 2)
    errors = {record["index"]: record["error"] for record in records(out) if "error" in record}
    assert errors.keys() == {2, 5}
    assert errors[2]["type"] == errors[5]["type"] == "invalid_request"
    assert "not JSON" in errors[2]["message"]
    assert errors[5]["message"] == "temperature is 'hot', expected a number of at least 0"


def test_a_defect_of_the_model_file_ends_the_job(model, tmp_path, monkeypatch):
    def generate_many(self, requests, **options):
        next(requests)
        yield 0, PortError("unfinished")

    monkeypatch.setattr(Model, "generate_many", generate_many)
    with pytest.raises(PortError):
        run(model, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.usefixtures("finishing_in_disorder")
def test_results_are_written_when_finished_or_in_order(model, tmp_path):
    run(model, tmp_path / "out.jsonl", BROKEN)
    run(model, tmp_path / "ordered.jsonl", BROKEN, ordered=True)
    loose, ordered = (tmp_path / name for name in ("out.jsonl", "ordered.jsonl"))
    assert [record["index"] for record in records(loose)] != list(range(10))
    assert [record["index"] for record in records(ordered)] == list(range(10))
    assert sorted(loose.read_bytes().splitlines()) == sorted(ordered.read_bytes().splitlines())


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("check", [False, True], ids=["from a pipe", "from a file"])
@pytest.mark.usefixtures("finishing_in_disorder")
def test_a_resumed_job_equals_an_uninterrupted_one(model, tmp_path, ordered, check):
    complete = tmp_path / "whole.jsonl"
    run(model, complete, BROKEN, ordered=ordered)
    for stop_after in (1, 5, 9):
        out = tmp_path / f"{stop_after}.jsonl"
        with pytest.raises(KeyboardInterrupt):
            run(model, out, BROKEN, ordered=ordered, stop_after=stop_after)
        there = len(records(out)) if out.exists() else 0
        summary = run(model, out, BROKEN, ordered=ordered, check=check)
        assert (summary.n_skipped, summary.n_done + summary.n_failed) == (there, 10 - there)
        assert summary.n_bytes == len(BROKEN)
        found, expected = out.read_bytes(), complete.read_bytes()
        assert found == expected if ordered else sorted(found.splitlines()) == sorted(expected.splitlines())


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"text": INPUT.replace("hen", "Hen")}, "line 3 of the input has changed since its result was written"),
        ({"text": INPUT[INPUT.index("\n") + 1 :]}, "line 1 of the input has changed"),
        ({"seed": 1}, "the results belong to another job; changed since then: settings"),
        ({"text": "".join(INPUT.splitlines(keepends=True)[:4])}, "found 10 results, .* only 4 of their lines"),
    ],
)
def test_a_changed_job_is_refused_before_any_work(model, tmp_path, change, problem):
    out = tmp_path / "out.jsonl"
    run(model, out)
    before = out.read_bytes()
    change = {"text": INPUT, **change}
    change["text"] += "\n" * 20 + '{"prompt": "One more"}'
    with pytest.raises(JobError, match=f"{problem}.*--force"):
        run(model, out, **change)
    assert out.read_bytes() == before


def test_added_lines_are_generated(model, tmp_path):
    out = tmp_path / "out.jsonl"
    run(model, out)
    summary = run(model, out, INPUT + '\n\n{"prompt": "One more"}')
    assert (summary.n_done, summary.n_skipped) == (1, 10)
    assert records(out)[-1]["index"] == 12


@pytest.mark.parametrize(("removed", "ordered_is_refused"), [([3], True), ([9], False), ([8, 9], False)])
def test_removed_results_are_generated_again(model, tmp_path, removed, ordered_is_refused):
    out = tmp_path / "out.jsonl"
    run(model, out, ordered=True)
    complete = out.read_text().splitlines(keepends=True)
    out.write_text("".join(line for n, line in enumerate(complete) if n not in removed))
    if ordered_is_refused:
        with pytest.raises(JobError, match=r"not in order, or have a gap; run without --ordered"):
            run(model, out, ordered=True)
        run(model, out)
    else:
        run(model, out, ordered=True)
        assert out.read_text() == "".join(complete)
    assert sorted(out.read_text().splitlines(keepends=True)) == sorted(complete)


@pytest.mark.usefixtures("finishing_in_disorder")
def test_unordered_results_cannot_be_resumed_in_order(model, tmp_path):
    out = tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(model, out, stop_after=4)
    with pytest.raises(JobError, match="not in order"):
        run(model, out, ordered=True)


def test_lines_are_read_as_the_batch_has_room(model, tmp_path):
    read = []

    def endless():
        for line in lines('{"prompt": "a"}\n' * 1000):
            read.append(line.index)
            yield line

    def progress(summary):
        assert len(read) <= summary.n_done + 2 * 4
        if summary.n_done == 10:
            raise KeyboardInterrupt

    with ResultsFile(tmp_path / "out.jsonl") as results, pytest.raises(KeyboardInterrupt):
        Job(model, RequestLines({"max_tokens": 1}), results, max_active=4).run(endless(), progress)


def test_echo_includes_prompts(model, tmp_path):
    with ResultsFile(tmp_path / "out.jsonl") as results:
        job = Job(model, RequestLines({"max_tokens": 1}), results, echo=True)
        job.run(lines('{"prompt": "The “king”"}\n{"prompt": [5, 6]}\n'))
    assert [record["prompt"] for record in records(tmp_path / "out.jsonl")] == ["The “king”", [5, 6]]
    assert re.search("The “king”", (tmp_path / "out.jsonl").read_text(encoding="utf-8"))
