"""The message and the exit code of a failed command."""

import json
import logging

import pytest

import rushlight as library
from rushlight.errors import RequestError


@pytest.fixture
def failing(rushlight, monkeypatch):
    """Runs `rushlight generate`, with an error while loading."""

    def run(error, *flags):
        def load(*args, **kwargs):
            raise error

        monkeypatch.setattr(library, "load", load)
        return rushlight("generate", "gpt2", "-p", "x", *flags)

    return run


def test_an_error_is_one_line(failing):
    done = failing(RequestError("too long", file="a", offset=3, expected=5, found=6, remedy="cut it"))
    assert done == (2, "", "error: a: byte 3: too long (expected 5, found 6); cut it\n")


def test_debug_shows_the_traceback_before_it(failing):
    for flags in (["--debug"], []):
        done = failing(RequestError("too long"), *flags)
        assert ("Traceback" in done.err) == bool(flags)
        assert done.err.endswith("error: too long\n")
        assert done.code == 2


def test_debug_is_accepted_before_the_command(rushlight, tmp_path):
    done = rushlight("--debug", "inspect", tmp_path / "none")
    assert done.code == 2
    assert "Traceback" in done.err
    assert done.err.splitlines()[-1].startswith("error: ")


def test_json_also_reports_the_error_on_stdout(failing):
    done = failing(RequestError("too long"), "--json")
    assert json.loads(done.out) == {"error": {"code": "invalid_request", "message": "too long"}}
    assert (done.code, done.err) == (2, "error: too long\n")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (FileNotFoundError(2, "No such file or directory", "a/b"), "a/b: No such file or directory"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError("odd"), "odd"),
    ],
)
def test_a_system_error_is_one_line(failing, error, line):
    assert failing(error) == (2, "", f"error: {line}\n")


@pytest.mark.parametrize("error", [ValueError("odd \x1b[2J"), KeyError("k"), RecursionError("deep")])
def test_a_defect_is_not_reported_as_bad_input(failing, error):
    done = failing(error)
    assert (done.code, done.out) == (70, "")
    assert done.err.startswith(f"error: a defect in rushlight: {type(error).__name__}: ")
    assert "--debug" in done.err
    assert "\x1b" not in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code", "word"),
    [
        (MemoryError(), "not_enough_memory", "memory"),
        (ImportError("x.so: failed to map segment from shared object"), "not_enough_memory", "memory"),
        (OSError(12, "Cannot allocate memory"), "not_enough_memory", "memory"),
        (RuntimeError("can't start new thread"), "no_more_threads", "cannot start a thread"),
    ],
)
def test_too_little_memory_or_threads_is_bad_input(failing, error, code, word):
    done = failing(error, "--json")
    assert (done.code, json.loads(done.out)["error"]["code"]) == (2, code)
    assert done.err.startswith("error: ")
    assert word in done.err
    assert "defect" not in done.err


def test_an_interrupt_prints_nothing(failing):
    assert failing(KeyboardInterrupt()) == (130, "", "")


def test_log_messages_are_notes_on_stderr(rushlight, monkeypatch):
    def load(*args, **kwargs):
        logging.getLogger("rushlight").warning("no %s\x1b[2J", "config.json")
        raise RequestError("stop")

    monkeypatch.setattr(library, "load", load)
    done = rushlight("generate", "gpt2", "-p", "x")
    assert done.err == "note: no config.json\\x1b[2J\nerror: stop\n"
    assert logging.getLogger("rushlight").handlers == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["generate", "--nonsense"],
        ["generate", "a", "b", "c"],
        ["inspect", "a", "--depth", "x"],
        ["--nonsense"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2(rushlight, arguments):
    done = rushlight(*arguments)
    assert (done.code, done.out) == (2, "")
    assert "Traceback" not in done.err
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    command = " ".join(["rushlight", *(word for word in arguments[:1] if word in ("generate", "inspect"))])
    assert done.err.endswith(f"(see `{command} --help`)\n")
    assert json.loads(rushlight(*arguments, "--json").out)["error"]["code"] == "wrong_usage"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["generate", "tales", "Once", "upon", "a"],
            "unexpected argument: upon a; put text with spaces in quotes (see `rushlight generate --help`)",
        ),
        (["generate", "-n", "five"], "--max-tokens: 'five' is not an integer (see `rushlight generate --help`)"),
        (["generate", "--temp", "hot"], "--temperature: 'hot' is not a number (see `rushlight generate --help`)"),
        (["-p"], "option '-p' requires an argument (see `rushlight --help`)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_reported_in_plain_words(rushlight, arguments, line):
    assert rushlight(*arguments) == (2, "", f"error: {line}\n")
