"""`rushlight batch`."""

import json
import os
import signal
import subprocess
import sys
import time

import pexpect
import pytest

PROMPTS = '{"prompt": "The king", "id": "é"}\n{"prompt": "The fox", "temperature": 0.9, "max_tokens": 4}\n'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, with prompts.jsonl in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.jsonl").write_text(PROMPTS, encoding="utf-8")
    return tmp_path


def records(text):
    return [json.loads(line) for line in text.splitlines()]


def test_running_a_finished_job_again_does_nothing(rushlight, folder):
    done = rushlight("batch", "prompts.jsonl", "-o", "out.jsonl", "-n", "3")
    assert (done.code, done.out) == (0, "")
    assert done.err.startswith("batch: 2 lines done; 7 tokens in ")
    results = (folder / "out.jsonl").read_text(encoding="utf-8")
    assert [(record["index"], record.get("id"), len(record["ids"])) for record in records(results)] == [
        (0, "é", 3),
        (1, None, 4),
    ]
    again = rushlight("batch", "prompts.jsonl", "-o", "out.jsonl", "-n", "3", "--json")
    assert again.code == 0
    assert again.err.startswith("batch: 0 lines done, 2 already done; 0 tokens in ")
    summary = json.loads(again.out)
    assert (summary["n_done"], summary["n_failed"], summary["n_skipped"]) == (0, 0, 2)
    assert (folder / "out.jsonl").read_text(encoding="utf-8") == results


def test_other_settings_are_refused_without_force(rushlight, folder):
    command = ("batch", "prompts.jsonl", "-o", "out.jsonl")
    rushlight(*command, "-n", "3")
    before = (folder / "out.jsonl").read_bytes()
    for change, changed in (
        (["-n", "2"], "settings"),
        (["-n", "3", "--seed", "1"], "settings"),
        (["-n", "3", "--echo"], "settings"),
        (["-n", "3", "--dtype", "int8"], "dtype"),
        (["-n", "2", "--dtype", "int8"], "settings, dtype"),
    ):
        refused = rushlight(*command, *change)
        assert (refused.code, refused.out) == (2, "")
        assert f"the results belong to another job; changed since then: {changed}; " in refused.err
        assert "--force" in refused.err
        assert (folder / "out.jsonl").read_bytes() == before
    assert rushlight(*command, "--force", "-m", "no/such/model", "--offline").code == 2
    assert (folder / "out.jsonl").read_bytes() == before
    assert rushlight(*command, "-n", "2", "--force").code == 0
    assert len(records((folder / "out.jsonl").read_text(encoding="utf-8"))[0]["ids"]) == 2


def test_failed_lines_exit_with_1(rushlight, folder):
    (folder / "prompts.jsonl").write_text(PROMPTS + '{"prompt": "a", "top_p": 7}\nbroken\n', encoding="utf-8")
    done = rushlight("batch", "prompts.jsonl", "-o", "out.jsonl", "-n", "1")
    assert done.code == 1
    assert done.err.startswith("batch: 2 lines done, 2 failed; ")
    errors = [record["error"] for record in records((folder / "out.jsonl").read_text()) if "error" in record]
    assert [error["type"] for error in errors] == ["invalid_request"] * 2
    assert rushlight("batch", "prompts.jsonl", "-o", "out.jsonl", "-n", "1").code == 1


def test_reads_stdin_and_writes_stdout(rushlight, folder):
    named = rushlight("batch", "prompts.jsonl", "-o", "out.jsonl", "-n", "3", "--ordered")
    assert named.code == 0
    piped = rushlight("batch", "-", "-o", "-", "-n", "3", "--ordered", stdin=PROMPTS.encode())
    assert piped.code == 0
    assert piped.out == (folder / "out.jsonl").read_text(encoding="utf-8")
    resumed = rushlight("batch", "-", "-o", "out.jsonl", "-n", "3", stdin=PROMPTS.encode())
    assert "2 already done" in resumed.err


def test_text_lines_are_prompts(rushlight, folder):
    (folder / "lines.txt").write_text("The “king”\r\n\n{not JSON\n", encoding="utf-8")
    done = rushlight("batch", "lines.txt", "--text-lines", "-o", "-", "-n", "2", "--echo", "--stop", "zzz")
    assert done.code == 0
    found = {record["index"]: record["prompt"] for record in records(done.out)}
    assert found == {0: "The “king”", 2: "{not JSON"}


@pytest.mark.parametrize("line", ["- -o prompts.jsonl --force < prompts.jsonl", "prompts.jsonl -o - >> prompts.jsonl"])
def test_the_input_is_never_overwritten(process, folder, line):
    done = process(f"$rushlight batch {line}", cwd=folder)
    assert (done.code, done.out) == (2, "")
    assert "input and output are the same file" in done.err
    assert (folder / "prompts.jsonl").read_text(encoding="utf-8") == PROMPTS


def test_a_byte_order_mark_is_ignored(rushlight, folder):
    (folder / "prompts.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "The king"}\r\n')
    done = rushlight("batch", "prompts.jsonl", "-o", "-", "-n", "2")
    assert done.code == 0
    assert done.err.startswith("batch: 1 line done; 2 tokens in ")


def test_penalties_and_biases_equal_those_of_generate(rushlight, folder):
    flags = ["--presence-penalty", "1.5", "--frequency-penalty", "0.5", "--logit-bias", "5=-3", "-n", "20"]
    done = rushlight("batch", "prompts.jsonl", "-o", "-", "--ordered", *flags)
    solo = rushlight("generate", "-p", "The king", "--json", *flags)
    assert records(done.out)[0]["text"] == json.loads(solo.out)["text"]
    plain = rushlight("generate", "-p", "The king", "--json", "-n", "20")
    assert json.loads(plain.out)["text"] != json.loads(solo.out)["text"]


def test_an_empty_input_has_empty_results(rushlight, folder):
    (folder / "prompts.jsonl").write_bytes(b"\n \n")
    done = rushlight("batch", "prompts.jsonl", "-o", "out.jsonl", "--json")
    assert done.code == 0
    assert json.loads(done.out)["n_done"] == 0
    assert (folder / "out.jsonl").read_bytes() == b""


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["prompts.jsonl"], "--output"),
        (["none.jsonl", "-o", "out.jsonl"], "none.jsonl: No such file"),
        ([".", "-o", "out.jsonl"], "Is a directory"),
        (["prompts.jsonl", "-o", "no/out.jsonl"], "no/out.jsonl: No such file"),
        (["prompts.jsonl", "-o", "prompts.jsonl"], "input and output are the same file"),
        (["prompts.jsonl", "-o", "notes.txt"], "line 1 is not a result of rushlight batch"),
        (["prompts.jsonl", "-o", "out.jsonl", "--parallel", "0"], "--parallel"),
        (["prompts.jsonl", "-o", "out.jsonl", "--temp", "-1"], "temperature is -1.0"),
        (["prompts.jsonl", "-o", "out.jsonl", "--seed", "-1"], "seed is -1"),
        (["prompts.jsonl", "-o", "out.jsonl", "--stop", ""], "stop string"),
        (["prompts.jsonl", "-o", "out.jsonl", "-m", "no/such/model"], "no/such/model"),
        (["prompts.jsonl", "-o", "-", "--json"], "--json"),
    ],
)
def test_invalid_arguments_are_refused(rushlight, folder, arguments, problem):
    (folder / "notes.txt").write_text("mine\n")
    done = rushlight("batch", *arguments, *([] if "-m" in arguments else ["--offline"]))
    assert (done.code, done.out if "--json" not in arguments else "") == (2, "")
    assert problem in done.err
    assert (folder / "notes.txt").read_text() == "mine\n"
    assert (folder / "prompts.jsonl").read_text(encoding="utf-8") == PROMPTS
    assert not (folder / "out.jsonl").exists()


def many(n):
    return "".join(json.dumps({"prompt": f"Tale {i}: once", "temperature": i % 2 * 0.9}) + "\n" for i in range(n))


@pytest.fixture
def waiting(folder):
    """Starts a job whose input pipe stays open, and returns the process once there are three results."""
    children = []

    def start(prompts, *arguments):
        child = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "rushlight",
                "batch",
                "-",
                "-o",
                "out.jsonl",
                "-n",
                "6",
                "--parallel",
                "2",
                *arguments,
            ],
            cwd=folder,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        children.append(child)
        child.stdin.write(prompts.encode())
        child.stdin.flush()
        out = folder / "out.jsonl"
        deadline = time.monotonic() + 50
        while not (out.exists() and out.read_bytes().count(b"\n") >= 3):
            assert child.poll() is None, child.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return child

    yield start
    for child in children:
        child.kill()
        child.communicate()


@pytest.mark.parametrize("ordered", [["--ordered"], []], ids=["ordered", "unordered"])
def test_a_killed_job_is_resumed(rushlight, folder, waiting, ordered):
    (folder / "many.jsonl").write_text(many(24))
    child = waiting(many(20), *ordered)
    child.kill()
    child.communicate()
    out = folder / "out.jsonl"
    n_complete = out.read_bytes().count(b"\n")
    kept = out.read_bytes().splitlines(keepends=True)[:n_complete]
    assert 3 <= len(kept) <= 20
    with out.open("ab") as file:
        file.write(b'{"index": 23, "te')  # as if killed during a write
    arguments = ("batch", "many.jsonl", "-n", "6", *ordered)
    resumed = rushlight(*arguments, "-o", "out.jsonl")
    assert resumed.code == 0
    assert f" done, {len(kept)} already done; " in resumed.err
    assert rushlight(*arguments, "-o", "complete.jsonl").code == 0
    resumed_lines, complete_lines = (path.read_bytes().splitlines() for path in (out, folder / "complete.jsonl"))
    assert resumed_lines == complete_lines if ordered else sorted(resumed_lines) == sorted(complete_lines)


def test_an_interrupt_keeps_finished_results(folder, waiting):
    child = waiting(many(20))
    child.send_signal(signal.SIGINT)
    assert child.wait(timeout=20) == 130
    error = child.stderr.read().decode()
    assert "Traceback" not in error
    assert "lines done; " in error
    assert 3 <= len(records((folder / "out.jsonl").read_text())) <= 20


def test_a_terminal_shows_the_progress(folder):
    (folder / "many.jsonl").write_text(many(20))
    env = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100", "PYTHONPATH": os.pathsep.join(sys.path)}
    arguments = ["-m", "rushlight", "batch", "many.jsonl", "-o", "out.jsonl", "-n", "6"]
    child = pexpect.spawn(sys.executable, arguments, cwd=str(folder), env=env, encoding="utf-8", timeout=30)
    child.expect(r"\d+%")
    child.expect(r"\d+ lines +[\d,]+ tok/s")
    child.expect("left")
    child.expect("batch: 20 lines done; 120 tokens")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_a_full_disk_exits_with_2(process, rushlight, folder):
    (folder / "many.jsonl").write_text(many(12))
    done = process(f"cd {folder} && ulimit -f 1 && $rushlight batch many.jsonl -n 2 -o out.jsonl")
    assert done.code == 2
    assert done.err.splitlines()[-1] == "error: out.jsonl: File too large"
    assert len((folder / "out.jsonl").read_bytes()) == 1024
    assert rushlight("batch", "many.jsonl", "-n", "2", "-o", "out.jsonl").code == 0
    assert len(records((folder / "out.jsonl").read_text())) == 12


def test_results_go_to_a_file_or_to_stdout(rushlight, folder):
    os.mkfifo(folder / "pipe")
    for path in ("/dev/full", "pipe", "."):
        done = rushlight("batch", "prompts.jsonl", "-o", path)
        assert done.code == 2
        assert "not a regular file; use - for standard output" in done.err


def test_without_an_output_the_error_mentions_stdout(rushlight):
    done = rushlight("batch", "prompts.jsonl")
    assert (done.code, done.out) == (2, "")
    assert "missing option '--output' / '-o': the file for the results, one per line; - is stdout" in done.err
