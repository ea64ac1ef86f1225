"""Cases from new users and attackers of the command line: sources, prompts, wrong usage, and terminals."""

import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pexpect
import pytest

import rushlight as library
from rushlight import demo
from rushlight.cli import main, prompt_progress, terminal
from rushlight.cli.error_report import describe
from rushlight.cli.options import complete_source
from rushlight.cli.prompt_progress import with_prompt_progress
from rushlight.cli.word_wrap import WordWrap, cells, shortened, wrapped
from rushlight.errors import SourceError

PROMPT = "Once upon a time"


class Tty(io.StringIO):
    """A stdin that is a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def run(capsys, monkeypatch):
    """Runs `rushlight ARGUMENTS`; returns the exit code, stdout and stderr."""

    def run(*arguments, stdin=None):
        monkeypatch.setattr(sys, "stdin", Tty() if stdin is None else io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        return (end.value.code or 0, *capsys.readouterr())

    return run


@pytest.fixture
def at_terminal(tmp_path):
    """Runs `rushlight ARGUMENTS` on a pseudo-terminal; returns its output."""

    def run(*arguments, columns=40, program=("-m", "rushlight")):
        child = pexpect.spawn(
            sys.executable,
            [str(argument) for argument in (*program, *arguments)],
            env=os.environ | {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8"},
            cwd=tmp_path,
            encoding="utf-8",
            timeout=60,
            dimensions=(24, columns),
        )
        child.expect(pexpect.EOF)
        child.close()
        return child.before.replace("\r\n", "\n")

    return run


@pytest.fixture
def tty(capsys, monkeypatch):
    """Makes stderr a terminal of 40 columns; returns a function that returns the new output."""

    def begin():
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        monkeypatch.setattr(terminal, "columns", lambda _: 40)
        return lambda: capsys.readouterr().err

    return begin


class TestTales:
    """The embedded model has a name."""

    def test_the_name_works_in_python(self):
        assert library.load("tales").name == "tales"
        assert library.inspect("tales").source == "tales"
        with library.open_checkpoint("tales") as checkpoint:
            assert checkpoint.folder == demo.folder()

    def test_a_path_of_that_name_takes_precedence(self, make_gpt2, monkeypatch):
        folder = make_gpt2("tales")
        monkeypatch.chdir(folder.parent)
        with library.open_checkpoint("tales") as checkpoint:
            assert checkpoint.folder == Path("tales")
        assert library.load().config.vocab_size == 4096

    def test_a_missing_path_is_not_the_name(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for source in (Path("tales"), "./tales"):
            with pytest.raises(SourceError, match="no such file or folder"):
                library.open_checkpoint(source)

    def test_a_revision_of_the_embedded_model_is_an_error(self):
        with pytest.raises(SourceError, match="tales is the embedded model"):
            library.open_checkpoint("tales", revision="main")

    @pytest.mark.parametrize(
        ("command", "flags"),
        [
            ("generate", ["-p", "a", "-n", "2"]),
            ("chat", ["-n", "2", "--temp", "0"]),
            ("lens", ["-p", "a", "--json"]),
            ("inspect", ["--json"]),
            ("check", ["--json"]),
            ("port", ["-o", "-"]),
        ],
    )
    def test_the_name_works_as_argument_or_flag(self, run, command, flags):
        by_argument = run(command, "tales", *flags, stdin=b"a\n")
        by_flag = run(command, "-m", "tales", *flags, stdin=b"a\n")
        assert by_argument[0] == 0
        assert by_argument[1]
        assert by_flag == by_argument
        assert "no model given" not in by_argument[2]

    @pytest.mark.parametrize("which", [["tales"], ["--model", "tales"]])
    def test_the_name_works_for_commands_that_print_times(self, run, tmp_path, which):
        text = tmp_path / "text.txt"
        text.write_text("Once upon a time", encoding="utf-8")
        assert json.loads(run("eval", *which, "--text", text, "--json")[1])["model"] == "tales"
        flags = ["--tokens", "1", "--repeats", "1", "--batch", "1", "--prompt-tokens", "4", "--json"]
        [measured] = json.loads(run("bench", *which, *flags)[1])["measurements"]
        assert measured["model"] == "tales"
        code, _, err = run("verify", *which)
        assert (code, "nothing to compare tales with" in err) == (2, True)

    def test_the_name_works_for_batch(self, run, tmp_path):
        prompts, results = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
        prompts.write_text('{"prompt": "a"}\n', encoding="utf-8")
        assert run("batch", prompts, "-o", results, "-m", "tales", "-n", "2")[0] == 0
        assert json.loads(results.read_text(encoding="utf-8"))["finish_reason"] == "length"

    def test_shell_completion_lists_the_name_with_paths(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "tame").mkdir()
        (tmp_path / "other.safetensors").touch()
        assert complete_source("ta") == ["tales", "tame/"]
        names = complete_source("")
        assert names[0] == "tales"
        assert {"smollm2", "qwen3"} <= {*names}
        assert names[-2:] == ["other.safetensors", "tame/"]
        assert complete_source("oth") == []  # the shell's own completion of paths


class TestPrompts:
    """A prompt is the second argument, or -p."""

    def test_the_prompt_may_be_an_argument(self, run):
        by_flag = run("generate", "tales", "-p", PROMPT, "-n", "3")
        assert run("generate", "tales", PROMPT, "-n", "3") == by_flag
        assert by_flag[1].startswith(PROMPT)
        assert run("lens", "tales", "a", "--json") == run("lens", "tales", "-p", "a", "--json")

    def test_the_prompt_is_the_first_message_of_a_chat(self, run):
        flags = ["tales", "-n", "3", "--temp", "0"]
        expected = run("chat", *flags, stdin=b"One\nTwo\n")
        assert run("chat", *flags[:1], "One", *flags[1:], stdin=b"Two\n") == expected
        assert run("chat", *flags, "-p", "One", stdin=b"Two\n") == expected
        assert expected[1].count("\n") >= 2

    def test_a_first_message_on_a_terminal_is_escaped_and_bye_quits(self, tmp_path):
        child = pexpect.spawn(
            sys.executable,
            ["-m", "rushlight", "chat", "tales", "Once\x1b[2J", "--temp", "0", "-n", "3", "--no-history"],
            env=os.environ | {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8"},
            encoding="utf-8",
            timeout=60,
        )
        child.expect_exact("> Once\\x1b[2J\r\n")
        child.expect_exact("(stopped after 3 tokens: /set max_tokens N)")
        child.expect_exact("> ")
        child.sendline("/bye")
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == 0

    def test_a_prompt_given_twice_is_an_error(self, run):
        for command in ("generate", "chat", "lens"):
            code, out, err = run(command, "tales", "a", "-p", "b", stdin=b"")
            assert (code, out) == (2, "")
            assert "--prompt: the prompt is given twice" in err

    @pytest.mark.parametrize("stdin", [None, b"text"])
    def test_a_prompt_in_place_of_the_source_is_an_error(self, run, stdin):
        for command in ("generate", "chat", "lens"):
            code, out, err = run(command, "Once upon a time", stdin=stdin)
            assert (code, out, err.count("\n")) == (2, "", 1)
            assert "'Once upon a time' is neither an existing path" in err
            assert "-p" in err

    def test_a_word_in_place_of_the_source_is_an_error(self, run):
        code, _, err = run("generate", "Hello")
        assert code == 2
        assert "'Hello' was read as SOURCE: write the prompt after it" in err


class TestUsage:
    """Errors have one form, and no note before them."""

    @pytest.mark.parametrize(
        ("arguments", "line"),
        [
            (["genrate"], "no such command 'genrate'; did you mean 'generate'? (see `rushlight --help`)"),
            (["generate", "--max-token", "3"], "no such option: --max-token; did you mean --max-tokens? (see"),
            (["generate", "-n"], "option '-n' requires an argument (see `rushlight generate --help`)"),
            (
                ["inspect", "a", "--depth", "-1"],
                "--depth: -1 is not in the range x>=0 (see `rushlight inspect --help`)",
            ),
            (["inspect"], "SOURCE: no model given; tales is the embedded model (see"),
            (["batch"], "missing argument 'INPUT' (see `rushlight batch --help`)"),
            (["-p", "x"], "--model-path is missing; for the embedded model: rushlight generate -p TEXT (see `rush"),
            (["\x1b[2J\n"], r"no such command '\x1b[2J\n' (see"),
        ],
    )
    def test_wrong_usage_is_a_one_line_error(self, run, arguments, line):
        code, out, err = run(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert err.startswith(f"error: {line}")

    @pytest.mark.parametrize("flags", [["--top-p", "0"], ["--device", "tpu"], ["--logit-bias", "4096=1"]])
    def test_no_note_before_an_error(self, run, flags):
        code, _, err = run("generate", "-p", "a", *flags)
        assert (code, err.count("\n")) == (2, 1)
        assert err.startswith("error: ")
        assert "no model given" in run("generate", "-p", "a", "-n", "1")[2]

    def test_check_accepts_an_architecture(self, run):
        assert run("check", "tales", "--architecture", "gpt2")[0] == 0
        assert run("check", "-m", "tales", "-a", "gpt2")[0] == 0
        code, _, err = run("check", "tales", "--model", "gpt2")
        assert code == 2
        assert "use --architecture gpt2" in err

    def test_a_local_file_is_not_quoted(self, run, tmp_path):
        secret = tmp_path / "passwd"
        secret.write_text("root:x:0:0:root:/root:/bin/bash\n", encoding="utf-8")
        code, _, err = run("generate", secret, "-p", "a")
        assert (code, "root:x" in err) == (2, False)
        assert "not safetensors but text" in err


class TestFinishReason:
    """Notes about the finish reason."""

    def test_is_shown_on_a_terminal(self, at_terminal):
        assert at_terminal("generate", "tales", "a", "-n", "3", columns=60).endswith(
            "\nnote: stopped after 3 tokens (--max-tokens)\n"
        )

    def test_is_not_shown_in_a_pipe(self, run):
        assert run("generate", "tales", "a", "-n", "3")[2] == ""
        assert run("generate", "tales", "a", "-n", "3", "--json")[2] == ""

    @pytest.mark.parametrize("flags", [[], ["--json"], ["--samples", "2", "--temp", "1", "--seed", "1"]])
    def test_is_always_shown_if_a_constraint_may_be_violated(self, run, flags):
        code, _, err = run("generate", "tales", "a", "-n", "3", "--regex", "(la )+end", *flags)
        expected = "note: stopped after 3 tokens (--max-tokens): the output may not match the pattern\n"
        assert (code, err) == (0, expected)


class TestTerminal:
    """Model output and names cannot control the terminal, and the status is erased."""

    ESCAPES = ("--logit-bias", "216=1000")

    def test_text_is_escaped_only_on_a_terminal(self, at_terminal, run):
        assert library.load().tokenizer.decode([216]) == "\x1b"
        shown = at_terminal("generate", "tales", "a", "-n", "3", *self.ESCAPES)
        assert r"a\x1b\x1b\x1b" in shown
        assert run("generate", "tales", "a", "-n", "3", *self.ESCAPES)[1] == "a\x1b\x1b\x1b\n"

    def test_an_answer_to_a_piped_message_is_escaped(self, at_terminal, tmp_path):
        script = tmp_path / "piped.py"
        script.write_text(
            "import io, sys\nfrom rushlight.cli import main\nsys.stdin = io.TextIOWrapper(io.BytesIO(b'a'))\nmain()\n"
        )
        flags = ["chat", "tales", "--temp", "0", "-n", "3", *self.ESCAPES]
        assert r"\x1b\x1b\x1b" in at_terminal(*flags, program=(script,))

    def test_the_original_command_line_escapes_text(self, at_terminal, tmp_path):
        for path in demo.folder().iterdir():
            if path.suffix in {".json", ".safetensors"}:
                shutil.copy(path, tmp_path)
        shown = at_terminal("-m", "./model.safetensors", "-d", "cpu", "-p", "a\x1b]0;title\x07")
        assert r"Model loaded successfully!" in shown
        assert r"a\x1b]0;title\x07" in shown

    @pytest.mark.parametrize("character", ["\x9b", "\x7f", "\u202e", "\u2066", "\u2028", "\u2029", "\x1b"])
    def test_json_is_escaped_only_on_a_terminal(self, capsys, monkeypatch, character):
        value = {"na" + character: [character, "é木\t"]}
        terminal.out_json(value)
        piped = capsys.readouterr().out
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        terminal.out_json(value)
        shown = capsys.readouterr().out
        assert json.loads(piped) == json.loads(shown) == value
        assert character not in shown
        assert "é木" in shown
        terminal.out_text(character)
        assert character not in capsys.readouterr().out

    def test_a_name_cannot_forge_an_output_line(self, tty):
        written = tty()
        assert describe(FileNotFoundError(2, "No such file", "a\nerror: b\u202e")) == (
            r"a\nerror: b\u202e: No such file"
        )
        with terminal.status("opening a\nnote: b"):
            pass
        assert r"opening a\nnote: b ..." in written()

    @pytest.mark.parametrize("name", ["/a/long/path/" * 9 + "end", "木" * 60, "short"])
    def test_a_status_is_one_row_and_is_erased(self, tty, name):
        written = tty()
        with terminal.status(f"opening {name}"):
            row = written().removeprefix(terminal.ERASE_LINE)
            assert row.startswith("opening ")
            assert cells(row) <= 39
        assert written() == terminal.ERASE_LINE

    def test_a_long_path_leaves_nothing_behind(self, at_terminal, make_gpt2):
        folder = make_gpt2("m" * 100)
        shown = at_terminal("inspect", folder, "--depth", "0", columns=60)
        status, _, rest = shown.rpartition(terminal.ERASE_LINE)
        assert cells(status.rpartition(terminal.ERASE_LINE)[2]) <= 59
        assert "opening" not in rest


class SlowStream:
    """A stream whose prefill takes a while."""

    prompt_progress = (450, 900)

    def __init__(self, seconds):
        self.seconds = seconds

    def __iter__(self):
        time.sleep(self.seconds)
        yield from ("a", "b")


class TestPromptProgress:
    """The status during a long prefill."""

    @pytest.mark.parametrize(("seconds", "is_shown"), [(0.2, True), (0.0, False)])
    def test_is_shown_on_a_terminal(self, tty, monkeypatch, seconds, is_shown):
        monkeypatch.setattr(prompt_progress, "DELAY_S", 0.02)
        written = tty()
        pieces = with_prompt_progress(stream := SlowStream(seconds), stream)
        assert next(pieces) == "a"
        shown = written()
        assert ("processing 900 prompt tokens ... 50%" in shown) == is_shown
        assert shown.endswith(terminal.ERASE_LINE if is_shown else "")
        assert list(pieces) == ["b"]

    def test_is_not_shown_in_a_pipe(self, capsys, monkeypatch):
        monkeypatch.setattr(prompt_progress, "DELAY_S", 0.0)
        assert list(with_prompt_progress(stream := SlowStream(0.05), stream)) == ["a", "b"]
        assert capsys.readouterr().err == ""

    def test_counts_the_tokens_of_the_prompt(self):
        stream = library.load().stream(PROMPT, max_tokens=4)
        total = len(stream.result.prompt_ids)
        assert stream.prompt_progress == (0, total)
        list(stream)
        assert stream.prompt_progress == (total, total)

    def test_an_error_erases_the_status(self, tty, monkeypatch):
        class Failing(SlowStream):
            def __iter__(self):
                time.sleep(0.2)
                raise KeyboardInterrupt
                yield

        monkeypatch.setattr(prompt_progress, "DELAY_S", 0.02)
        written = tty()
        with pytest.raises(KeyboardInterrupt):
            next(with_prompt_progress(stream := Failing(0), stream))
        shown = written()
        assert "processing" in shown
        assert shown.endswith(terminal.ERASE_LINE)


TEXT = (
    "The wolf was falling, and the little fox—who had seen it all—said:\n\tOnce upon a time there was a "
    "Donaudampfschifffahrtsgesellschaftskapitän   in the wood; 狐はどこへ行きましたか、森の中で🦊 e\u0301nd of it.\n\n"
)


def screen(written):
    """Returns the visible rows, without erased words."""
    while match := re.search("\x1b\\[(\\d+)D\x1b\\[K", written):
        before, columns = written[: match.start()], int(match[1])
        while columns > 0:
            columns -= cells(before[-1])
            before = before[:-1]
        written = before + written[match.end() :]
    return written


class TestWordWrap:
    """Rows break between words, independent of the pieces."""

    @pytest.mark.parametrize("columns", [4, 11, 24, 80])
    def test_rows_fit_the_terminal(self, columns):
        rows = wrapped(TEXT, columns).split("\n")
        assert all(cells(row.expandtabs(8)) < columns for row in rows if columns > 8 or "\t" not in row)
        assert "".join(wrapped(TEXT, columns).split()) == "".join(TEXT.split())
        assert "\x1b" not in wrapped(TEXT, columns)

    def test_words_are_not_broken_if_they_fit(self):
        assert wrapped("the wolf was falling", 11) == "the wolf \nwas \nfalling"
        assert wrapped("a incomprehensible", 8) == "a \nincompr\nehensib\nle"
        assert wrapped("狐はどこへ行く", 8) == "狐はど\nこへ行\nく"

    @pytest.mark.parametrize("columns", [4, 11, 24, 80])
    def test_in_pieces(self, columns):
        rng = random.Random(1)
        for longest in (1, 2, 5, 20):
            wrap, written, at = WordWrap(lambda: columns), "", 0
            while at < len(TEXT):
                end = at + rng.randint(1, longest)
                written += wrap.push(TEXT[at:end])
                at = end
            assert screen(written) == wrapped(TEXT, columns)

    def test_the_middle_is_left_out(self):
        assert shortened("/home/user/models/gpt2", 12) == "/home...gpt2"
        assert shortened("short", 12) == "short"
        assert cells(shortened("木" * 30, 12)) <= 12

    def test_an_answer_on_a_terminal(self, tmp_path):
        child = pexpect.spawn(
            sys.executable,
            ["-m", "rushlight", "chat", "tales", "Once upon a time", "--temp", "0", "-n", "60", "--no-history"],
            env=os.environ | {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8"},
            encoding="utf-8",
            timeout=60,
            dimensions=(24, 40),
        )
        child.expect_exact("> Once upon a time\r\n")
        child.expect_exact("\r\n(stopped after 60 tokens")
        rows = screen(child.before.replace("\r\n", "\n")).split("\n")
        child.close(force=True)
        answer = subprocess.run(
            [sys.executable, "-m", "rushlight", "chat", "tales", "Once upon a time", "--temp", "0", "-n", "60"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
        ).stdout
        assert len(rows) > 3
        assert max(map(len, rows)) < 40
        assert " ".join(" ".join(rows).split()) == " ".join(answer.split())
