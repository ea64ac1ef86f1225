"""Processes: daemon threads at exit, too little memory, and output that is written in full or fails."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import rushlight
from rushlight.errors import MemoryLimitError, RushlightError, ThreadLimitError
from rushlight.files.atomic import atomic_write
from rushlight.loading import load as loader

PROGRAM = (sys.executable, "-m", "rushlight")
TIMEOUT_S = 60


def run_python(code, **kwargs):
    """Runs code in another process; returns its exit code and its stderr."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=TIMEOUT_S, **kwargs)
    return done.returncode, done.stderr


def shell(command, **env):
    """Runs a bash command in which `rushlight` is the program."""
    script = f'rushlight() {{ {" ".join(PROGRAM)} "$@"; }}\n{command}'
    # A limit on file sizes would also truncate the bytecode files that Python writes.
    env = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"} | env
    return subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True, timeout=TIMEOUT_S)


@pytest.fixture(params=["", pytest.param("1", marks=pytest.mark.slow)], ids=["buffered", "unbuffered"])
def unbuffered(request):
    """With and without PYTHONUNBUFFERED."""
    return {"PYTHONUNBUFFERED": request.param}


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A checkpoint of 9,000 tensors, for which `inspect --json` prints a megabyte."""
    path = tmp_path_factory.mktemp("large") / "large.safetensors"
    save_file({f"layers.{i}.mlp.experts.gate_proj.weight": np.zeros(1, np.float16) for i in range(9000)}, path)
    return path


@pytest.fixture(scope="module")
def full_output(large):
    """The output of `inspect --json` for it."""
    return subprocess.run(
        [*PROGRAM, "inspect", large, "--json"], capture_output=True, check=True, timeout=TIMEOUT_S
    ).stdout


DAEMON = """
import rushlight, threading, time
model = rushlight.load()
def forever():
    while True:
        {work}
threading.Thread(target=forever, daemon=True).start()
time.sleep({seconds})
"""


@pytest.mark.parametrize(
    "work",
    [
        "model.generate('A fox', max_tokens=50)",
        "model.logits('A fox and a dog went')",
        "list(model.stream('A fox', max_tokens=50))",
        "model.score('A fox', ' and a dog')",
        "rushlight.load()",
    ],
    ids=["generate", "logits", "stream", "score", "load"],
)
@pytest.mark.parametrize("seconds", [0.2, pytest.param(0.05, marks=pytest.mark.slow)])
def test_python_exits_while_a_daemon_thread_computes(work, seconds):
    """The process must not abort: at exit Python unwinds threads that request the GIL, and C++ cannot be unwound."""
    assert run_python(DAEMON.format(work=work, seconds=seconds)) == (0, "")


def test_python_exits_while_a_forward_is_recorded():
    """The thread ends in Python code that C++ has called."""
    assert run_python(
        """
import sys, threading, time
import numpy as np
from rushlight.backends import _native
from rushlight.backends.batch import Batch, Chunk
sys.setswitchinterval(1e-4)
device = _native.Device(1, "portable")
def forever():
    while True:
        plan = device.plan(Batch.of([Chunk([1], 0, [0])], device.kv_cache("f32", 1, 1, 16, 1)))
        plan.record(lambda _: [i for i in range(3000)] and device.array(np.zeros((1, 4), np.float32)))
threading.Thread(target=forever, daemon=True).start()
time.sleep(0.1)
"""
    ) == (0, "")


def test_a_daemon_thread_with_a_model_is_not_reported_as_a_leak():
    code = """
import rushlight, threading, time
model = rushlight.load()
threading.Thread(target=lambda: (model, time.sleep(100)), daemon=True).start()
"""
    assert run_python(code) == (0, "")


@pytest.mark.skipif(sys.platform != "linux", reason="macOS holds to no limit on addresses")
@pytest.mark.parametrize(
    "megabytes", [64, 260, 400, *(pytest.param(n, marks=pytest.mark.slow) for n in (230, 300, 450, 700, 1000))]
)
def test_a_limit_on_address_space_is_an_out_of_memory_error(megabytes):
    """Either text or an out-of-memory error, and no other failure. The embedded model of 7 MB fits into 400 MB."""
    done = shell(f"ulimit -v {megabytes}000; rushlight generate -p x -n 2", RUSHLIGHT_NUM_THREADS="1")
    assert done.returncode in ((0,) if megabytes >= 400 else (0, 2))
    if done.returncode:
        last = done.stderr.splitlines()[-1]
        assert last.startswith("error: ")
        assert "memory" in last
        assert done.stdout == ""


@pytest.mark.skipif(sys.platform != "linux", reason="macOS holds to no limit on addresses")
def test_too_many_threads_for_the_address_space_are_an_out_of_memory_error():
    done = shell("ulimit -v 350000; rushlight generate -p x -n 2", RUSHLIGHT_NUM_THREADS="64")
    assert (done.returncode, "memory" in done.stderr) in ((0, False), (2, True))


@pytest.mark.skipif(sys.platform != "linux", reason="macOS holds to no limit on addresses")
def test_a_model_larger_than_the_limit_is_an_error(make_gpt2):
    """The error states the memory needed and the memory available."""
    folder = make_gpt2(vocab_size=200_000, files={"vocab.json": None, "merges.txt": None})
    code = f"""
import resource, rushlight
rushlight.load().logits("a")
with open("/proc/self/statm") as file:
    limit = int(file.read().split()[0]) * 4096 + 30_000_000
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    rushlight.load({str(folder)!r})
except rushlight.RushlightError as error:
    assert type(error).__name__ == "MemoryLimitError"
    assert error.need_bytes > 51_000_000 > 30_000_000 >= error.have_bytes > 0, error
    print(error)
else:
    raise SystemExit("it was loaded")
"""
    env = os.environ | {"RUSHLIGHT_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=TIMEOUT_S, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("the model does not fit in memory: 5")


@pytest.mark.skipif(sys.platform != "linux", reason="macOS holds to no limit on addresses")
def test_the_kv_cache_stays_within_the_limit():
    code = """
import resource, rushlight
model = rushlight.load()
with open("/proc/self/statm") as file:
    before = int(file.read().split()[0]) * 4096
limit = before + 60_000_000
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
model.generate("a", max_tokens=2)
"""
    assert run_python(code, env=os.environ | {"RUSHLIGHT_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}) == (0, "")


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (MemoryError(), MemoryLimitError, "the model does not fit in memory"),
        (ImportError("x.so: failed to map segment from shared object"), MemoryLimitError, "does not fit in memory"),
        (RuntimeError("can't start new thread"), ThreadLimitError, "cannot start a thread"),
        (RuntimeError("Resource temporarily unavailable"), ThreadLimitError, "cannot start a thread"),
    ],
)
def test_shortages_while_loading_are_errors_of_the_library(monkeypatch, error, kind, text):
    def fail(*_args, **_kwargs):
        raise error

    monkeypatch.setattr(loader, "identify", fail)
    with pytest.raises(RushlightError, match=text) as raised:
        rushlight.load()
    assert type(raised.value) is kind


def test_weights_are_read_without_a_thread_if_none_can_be_started(monkeypatch):
    expected = rushlight.load().generate("a", max_tokens=3).ids

    def start(_self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    assert rushlight.load().generate("a", max_tokens=3).ids == expected


def test_a_command_runs_without_threads():
    code = """
import sys, threading
def start(self): raise RuntimeError("can't start new thread")
threading.Thread.start = start
from rushlight.cli import main
main(["generate", "-p", "a", "-n", "2"])
"""
    code, message = run_python(code)
    assert code == 0
    assert "Traceback" not in message


def test_a_file_size_limit_truncates_output_and_exits_with_2(large, full_output, tmp_path, unbuffered):
    done = shell(f"ulimit -f 500; rushlight inspect {large} --json > {tmp_path}/out", **unbuffered)
    assert (done.returncode, done.stderr) == (2, "error: standard output: File too large\n")
    assert (tmp_path / "out").read_bytes() == full_output[: 500 * 1024]


def test_a_reader_that_closes_the_pipe_of_a_large_result_exits_with_141(large, unbuffered):
    done = shell(f"rushlight inspect {large} --json | head -c 10; exit ${{PIPESTATUS[0]}}", **unbuffered)
    assert (done.returncode, done.stderr, len(done.stdout)) == (141, "", 10)


def test_a_reader_that_closes_the_pipe_of_help_exits_with_141(unbuffered):
    assert shell("rushlight --help | true; exit ${PIPESTATUS[0]}", **unbuffered).returncode == 141


def test_a_large_result_is_written_in_full_to_a_non_blocking_pipe(large, full_output, unbuffered):
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    command = subprocess.Popen([*PROGRAM, "inspect", large, "--json"], stdout=writer, env=os.environ | unbuffered)
    os.close(writer)
    read = b""
    while piece := os.read(reader, 1 << 16):
        read += piece
        time.sleep(0.002)
    os.close(reader)
    assert command.wait(TIMEOUT_S) == 0
    assert read == full_output


FULL, CLOSED = (">/dev/full", ": No space left on device"), (">&-", " is closed")
OUTPUTS = {
    "generate -p a -n 2": [FULL, CLOSED],
    "inspect $model": [CLOSED],
    "batch $text --text-lines -n 2 -o -": [FULL, CLOSED],
    "chat < $text": [FULL],
    "--help": [FULL, CLOSED],
}
OTHER_OUTPUTS = {
    "generate -p a -n 2 --json": [FULL],
    "check $model --json": [FULL],
    "lens -p abc": [CLOSED],
    "lens -p abc --json": [FULL],
    "devices": [FULL],
    "devices --json": [CLOSED],
    "eval --text $text": [FULL],
    "chat < $text": [CLOSED],
    "port $model -o -": [CLOSED],
    "--version": [FULL],
    "generate --help": [CLOSED],
}


@pytest.mark.parametrize(
    ("command", "outputs"),
    [*OUTPUTS.items(), *(pytest.param(*each, marks=pytest.mark.slow) for each in OTHER_OUTPUTS.items())],
)
def test_output_that_cannot_be_written_is_an_error(make_gpt2, tmp_path, command, outputs):
    model = make_gpt2()
    text = tmp_path / "text"
    text.write_text("Once upon a time\n", encoding="utf-8")
    for redirection, reason in outputs:
        done = shell(f"rushlight {command} {redirection}", model=str(model), text=str(text))
        assert (done.returncode, done.stderr.splitlines()[-1]) == (2, f"error: standard output{reason}")
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["generate -p a -n 3 --stats", "batch $text --text-lines -n 3 -o -"])
def test_unwritable_notes_do_not_lose_output(tmp_path, command):
    """The output is complete, and the exit code reports the lost notes, unless stderr was closed on purpose."""
    text = tmp_path / "text"
    text.write_text("a\n", encoding="utf-8")
    right = shell(f"rushlight {command}", text=str(text))
    full = shell(f"rushlight {command} 2>/dev/full", text=str(text))
    closed = shell(f"rushlight {command} 2>&-", text=str(text))
    assert right.returncode == closed.returncode == 0
    assert full.returncode == 2
    assert right.stdout == full.stdout == closed.stdout != ""


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("inspect $large --html $folder/page.html", "page.html"),
        ("port $model -o $folder/port.py", "port.py"),
    ],
)
def test_a_file_that_cannot_be_written_is_named(make_gpt2, tmp_path, large, command, name):
    folder = tmp_path / "out"
    folder.mkdir()
    done = shell(f"ulimit -f 1; rushlight {command}", large=str(large), folder=str(folder), model=str(make_gpt2()))
    assert (done.returncode, done.stderr) == (2, f"error: {folder / name}: File too large\n")
    assert list(folder.iterdir()) == []


def test_a_golden_file_that_cannot_be_written_is_named(tmp_path):
    from rushlight.proof import read_golden
    from rushlight.proof.record import write_golden

    golden = read_golden(Path(__file__).parents[1] / "fixtures" / "proof" / "gpt2.golden.safetensors")
    with pytest.raises(OSError, match="No such file or directory") as error:
        write_golden(golden, tmp_path / "none" / "golden.safetensors")
    assert error.value.filename == str(tmp_path / "none" / "golden.safetensors")


def test_an_interrupt_during_imports_exits_with_130():
    """The exit code is 130, without output, at any point of the imports."""
    code = """
import builtins, os, signal, sys
real, seen = builtins.__import__, 0
def imports(name, *rest):
    global seen
    seen += name.startswith("rushlight.") or name == "typer"
    if seen == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGINT)
    return real(name, *rest)
from rushlight.__main__ import program
builtins.__import__ = imports
sys.argv[2:] = ["generate", "-p", "a", "-n", "2"]
try:
    program()
finally:
    builtins.__import__ = real
"""
    for at in (1, 2, 4, 8):
        done = subprocess.run([sys.executable, "-c", code, str(at)], capture_output=True, timeout=TIMEOUT_S)
        assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


def test_an_interrupt_that_the_shell_ignores_stays_ignored():
    interrupts = "for i in $(seq 20); do kill -INT $!; sleep 0.01; done"
    done = shell(f"trap '' INT; rushlight generate -p a -n 2 --json & {interrupts}; wait $!")
    assert done.returncode == 0
    assert json.loads(done.stdout)["finish_reason"] == "length"


def test_a_pipe_is_written_to_instead_of_replaced(tmp_path):
    """Otherwise a privileged user would replace /dev/null with a page."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    reader.start()
    atomic_write(pipe, b"page")
    reader.join(10)
    assert pipe.is_fifo()
    assert read == [b"page"]
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_a_page_can_be_written_to_a_pipe(make_gpt2):
    done = shell(f"rushlight inspect {make_gpt2()} --html /dev/fd/1 | head -c 15")
    assert done.stdout == "<!doctype html>"
