"""The command line as a process: signals, pipes, terminals, and a restricted environment."""

import json
import os
import sys
import time

import pexpect
import pytest

SLOW = 3
"""Upper bound for an exit that takes half a second on an idle machine."""


@pytest.fixture
def terminal():
    """Starts Python on a pseudo-terminal."""
    children = []

    def spawn(*arguments):
        env = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100"}
        child = pexpect.spawn(sys.executable, list(arguments), env=env, encoding="utf-8", timeout=30)
        children.append(child)
        return child

    yield spawn
    for child in children:
        child.close(force=True)


def interrupt(child):
    """Sends Ctrl-C; returns the exit code, the remaining output, and the seconds until the exit."""
    start = time.perf_counter()
    child.sendintr()
    child.expect(pexpect.EOF)
    seconds = time.perf_counter() - start
    child.close()
    return child.exitstatus, child.before, seconds


def test_ctrl_c_while_streaming(terminal):
    child = terminal("-m", "rushlight", "generate", "-p", "Once upon a time", "-n", "400", "--ignore-eos")
    child.expect("Once upon a time")
    child.expect(" ")
    code, rest, seconds = interrupt(child)
    assert code == 130
    assert seconds < SLOW
    assert rest.endswith("\r\n")
    assert "Traceback" not in rest
    assert "\x1b[?25l" not in rest


@pytest.mark.parametrize(
    "work",
    [
        pytest.param("while True: pass", id="Python"),
        # Like a download that hangs: after the interrupt the pool waits for its thread.
        pytest.param("with ThreadPoolExecutor() as pool: pool.submit(time.sleep, 60).result()", id="threads"),
        # Like the prefill of a long prompt: the main thread does not execute Python.
        pytest.param("matrix @ matrix @ matrix @ matrix", id="NumPy"),
    ],
)
def test_ctrl_c_while_loading(terminal, work):
    child = terminal(
        "-c",
        "import time, numpy, rushlight\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from rushlight.cli import main\n"
        "matrix = numpy.ones((6000, 6000), numpy.float32)\n"
        f"def load(*args, **kwargs):\n    {work}\n"
        "rushlight.load = load\n"
        "main(['generate', 'gpt2', '-p', 'x'])",
    )
    child.expect("loading gpt2")
    time.sleep(0.2)
    code, rest, seconds = interrupt(child)
    assert code == 130
    assert seconds < SLOW
    assert "Traceback" not in rest


def test_the_status_is_shown_and_erased(terminal):
    child = terminal("-m", "rushlight", "generate", "-p", "Once", "-n", "2", "--no-echo")
    child.expect(r"loading the embedded model \.\.\.\r\x1b\[2K")
    child.expect("note: no model given")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_no_prompt_at_a_terminal(terminal):
    child = terminal("-m", "rushlight", "generate")
    child.expect("--prompt")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 2


def test_inspect_at_a_terminal_has_colours(terminal, bare_gpt2):
    child = terminal("-m", "rushlight", "inspect", str(bare_gpt2))
    child.expect(pexpect.EOF)
    assert "\x1b[36mF16" in child.before
    assert "━" in child.before


@pytest.mark.parametrize(
    "command",
    ["generate -p 'Once upon a time' -n 50", "inspect {}", "inspect {} --json", "--help"],
)
def test_a_reader_that_closes_the_pipe(process, bare_gpt2, command):
    done = process(f"$rushlight {command.format(bare_gpt2)} 2> >(grep -v ^note: >&2) | head -c 1")
    assert len(done.out) == 1
    assert (done.code, done.err) == (0, "")


def test_the_exit_code_for_a_closed_pipe(process):
    done = process("$rushlight generate -p Once -n 50 | true; exit ${PIPESTATUS[0]}")
    assert done.code == 141


@pytest.mark.parametrize(
    ("redirection", "line"),
    [("> /dev/full", "error: standard output: No space left on device"), (">&-", "error: standard output is closed")],
)
def test_an_unwritable_stdout(process, redirection, line):
    done = process(f"$rushlight generate -p Once -n 2 {redirection}")
    assert (done.code, done.err.splitlines()[-1]) == (2, line)


def test_a_closed_stderr(process):
    done = process("$rushlight generate -p Once -n 2 --stats 2>&-")
    assert done.code == 0
    assert "note" not in done.out


def test_a_closed_stdin(process):
    done = process("$rushlight generate <&-")
    assert done.code == 2
    assert "--prompt" in done.err


def test_a_deleted_working_directory(process, tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    # A script, as pip installs it: `python -m` reads the working directory.
    script = tmp_path / "rushlight"
    script.write_text("from rushlight.cli import main\nmain()\n")
    done = process(f"rmdir $PWD && {sys.executable} {script} generate -p Once -n 2 --json", cwd=folder)
    assert done.code == 0
    assert json.loads(done.out)["finish_reason"] == "length"


def test_without_home_and_cache(process):
    done = process("unset HOME XDG_CACHE_HOME; HF_HOME=/proc/none $rushlight generate -p Once -n 2 --json")
    assert done.code == 0
    assert json.loads(done.out)["finish_reason"] == "length"
