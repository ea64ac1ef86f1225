"""`rushlight chat`: line by line, and at a real terminal."""

import json
import os
import re
import signal
import stat
import sys
import time

import pexpect
import pytest

from rushlight.cli.chat.line_editor import MAX_ENTRIES, LineEditor, history_path
from rushlight.cli.interrupt import Interrupts
from rushlight.cli.terminal import visible

READY = "\x1b\\[\\?2004h> "
"""The prompt, once the terminal marks pastes."""


@pytest.fixture
def piped(rushlight):
    """Runs `rushlight chat` with these lines on standard input."""

    def run(*arguments, stdin):
        return rushlight("chat", "--temp", "0", "-n", "6", *arguments, stdin=stdin.encode())

    return run


class TestLineByLine:
    def test_a_turn_a_line(self, piped):
        done = piped(stdin="Once upon a time\n\nAnd then?\r\n")
        assert done.code == 0
        assert "\x1b" not in done.out
        assert "> " not in done.out
        assert "this model has no chat template and was not trained to chat" in done.err
        again = piped(stdin="Once upon a time\n")
        assert done.out.startswith(again.out)
        assert len(done.out) > len(again.out)

    def test_json(self, piped):
        lines = ['{"content": "Once"}', '{"role": "user", "content": "日本?"}', '{"content": 3}', '{"content": "So?"}']
        done = piped("--json", "--system-prompt", "Be kind.", stdin="\n".join(lines))
        records = [json.loads(line) for line in done.out.splitlines()]
        assert [list(record) for record in records] == [
            ["role", "content", "finish_reason", "seed", "stats"] if i != 2 else ["error"] for i in range(4)
        ]
        assert records[2]["error"]["code"] == "invalid_request"
        assert records[0]["stats"]["prompt_tokens"] < records[1]["stats"]["prompt_tokens"]
        assert done.code == 2

    def test_a_turn_that_fails_leaves_the_others_be(self, piped):
        done = piped(stdin=f"Once\n{'word ' * 600}\nAnd?\n")
        assert done.code == 2
        assert "error: the message takes" in done.err
        assert done.out == piped(stdin="Once\nAnd?\n").out

    def test_a_line_that_is_no_text(self, rushlight):
        done = rushlight("chat", "-n", "2", stdin=b"Once\n\xff\xfe\n")
        assert done.code == 2
        assert "error: standard input, line 2: byte 0: a message is not UTF-8" in done.err

    def test_a_line_of_any_length_harms_no_other(self, piped):
        done = piped(stdin=f"Once\n{'x' * (9 << 20)}\nAnd?\n")
        assert done.code == 2
        assert "error: standard input, line 2: a message is too long (found 9,437,185 bytes)" in done.err
        assert done.out == piped(stdin="Once\nAnd?\n").out

    def test_a_byte_order_mark_is_no_part_of_the_first_line(self, piped):
        assert piped(stdin="\ufeffOnce\n").out == piped(stdin="Once\n").out
        assert piped("--json", stdin='\ufeff{"content": "Once"}\n').code == 0

    def test_slashes_are_text_there(self, piped):
        assert piped(stdin="/exit\nOnce\n").out.count("\n") >= 2

    def test_nothing_said(self, piped):
        done = piped(stdin="")
        assert (done.code, done.out) == (0, "")

    def test_stats(self, piped):
        done = piped("--stats", stdin="Once\n")
        assert re.search(r"^prompt \d+ tokens \(0 cached\).* 6 tokens at .*; ended by length$", done.err, re.MULTILINE)

    def test_a_template_and_a_saved_conversation(self, piped, tmp_path):
        saved = tmp_path / "talk.json"
        messages = [
            {"role": "system", "content": "S"},
            {"role": "user", "content": "U"},
            {"role": "assistant", "content": "A"},
        ]
        saved.write_text(json.dumps({"format": "rushlight conversation", "version": 1, "messages": messages}))
        template = "{% if messages|map(attribute='content')|join != 'SUAOnce' %}{{ raise_exception('no') }}{% endif %}x"
        done = piped("--chat-template", template, "--load", saved, stdin="Once\n")
        assert (done.code, "fallback" in done.err, "was not trained" in done.err) == (0, False, False)
        assert piped("--chat-template", template, stdin="Once\n").code == 2

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--chat-template", "nowhere.jinja"], "nowhere.jinja: cannot read the chat template"),
            (["--load", "nowhere.json"], "nowhere.json"),
            (["--temp", "-1"], "temperature"),
            (["--stop", ""], "stop string"),
            (["gpt2", "--model", "other", "-p", "Once"], "two models"),
        ],
    )
    def test_bad_arguments(self, rushlight, arguments, message):
        done = rushlight("chat", *arguments, stdin=b"Once\n")
        assert done.code == 2
        assert message in done.err


class Person:
    """Somebody at a terminal of so many columns."""

    def __init__(self, folder, *arguments, columns=80, program=("-m", "rushlight")):
        env = os.environ | {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8", "XDG_STATE_HOME": str(folder / "state")}
        env["HOME"] = str(folder / "home")
        (folder / "home").mkdir(exist_ok=True)
        env.pop("INPUTRC", None)
        self.child = pexpect.spawn(
            sys.executable,
            [*program, "chat", "--temp", "0", "-n", "12", *arguments],
            env=env,
            cwd=folder,
            encoding="utf-8",
            timeout=60,
            dimensions=(24, columns),
        )

    def wait(self, pattern=READY):
        """What was printed up to the pattern, by default the next prompt."""
        self.child.expect(pattern)
        return self.child.before.replace("\r", "")

    def say(self, text):
        """Types a line; what is printed up to the next prompt."""
        self.child.sendline(text)
        return self.wait()

    def end(self):
        self.child.expect(pexpect.EOF)
        self.child.close()
        return self.child.exitstatus


@pytest.fixture
def person(tmp_path):
    people = []

    def sit_down(*arguments, **options):
        people.append(Person(tmp_path, *arguments, **options))
        people[-1].greeting = people[-1].wait(options.pop("prompt", READY)) if "program" not in options else ""
        return people[-1]

    yield sit_down
    for somebody in people:
        somebody.child.close(force=True)


class TestAtATerminal:
    def test_a_conversation_with_its_commands(self, person, tmp_path):
        somebody = person("--system-prompt", "Be kind.")
        assert "not trained to chat" in somebody.greeting
        assert "/help lists the commands" in somebody.greeting
        first = somebody.say("Once upon a time")
        assert "(cut at 12 tokens: /set max_tokens N)" in first
        assert "/retry" in somebody.say("/help")
        assert "no command /nonsense" in somebody.say("/nonsense")
        assert "max_tokens 12" in somebody.say("/set")
        somebody.say("/set max_tokens 3")
        assert "max_tokens 3" in somebody.say("/set")
        assert "temperature is -1" in somebody.say("/set temperature -1")
        assert "no setting colour" in somebody.say("/set colour red")
        assert "cut at 3 tokens" in somebody.say("/retry")
        assert "answer 3 tokens" in somebody.say("/stats")
        assert "saved 3 messages in talk.json" in somebody.say("/save talk.json")
        shown = somebody.say("/show")
        assert "written as plain turns" in shown
        assert "system: Be kind.\nuser: Once upon a time\nassistant: " in shown
        assert "taken back: Once upon a time" in somebody.say("/undo")
        assert "the conversation has no message yet" in somebody.say("/undo")
        assert "3 messages" in somebody.say("/load talk.json")
        assert "user: Once upon a time" in somebody.say("/show")
        assert "the conversation is forgotten" in somebody.say("/clear")
        assert "user:" not in somebody.say("/show")
        assert "the system prompt is set" in somebody.say("/system Be brief.")
        assert "there is no system prompt" in somebody.say("/system")
        assert "system:" not in somebody.say("/show")
        assert "no such file" in somebody.say("/load nowhere.json")
        assert "error: no/talk.json: No such file or directory\n" in somebody.say("/save no/talk.json")
        assert "error: /proc/talk.json: " in somebody.say("/save /proc/talk.json")
        assert "no such file" in somebody.say("/load ~/nowhere.json")
        assert "saved 0 messages in ~/talk.json" in somebody.say("/save ~/talk.json")
        assert (tmp_path / "home" / "talk.json").is_file()
        assert "0 messages" in somebody.say("/load ~/talk.json")
        somebody.say("//help me")
        assert "user: /help me" in somebody.say("/show")
        somebody.child.sendline("/exit")
        assert somebody.end() == 0

    def test_ctrl_c_stops_the_answer_and_ctrl_d_ends(self, person):
        somebody = person("-n", "400")
        somebody.child.sendline("Once upon a time")
        somebody.child.expect("years")
        somebody.child.sendintr()
        stopped = somebody.wait()
        assert "(stopped: what came is kept)" in stopped
        assert "Traceback" not in stopped
        assert "years" in somebody.say("/show")
        somebody.child.send("half a line")
        somebody.child.expect("half a line")
        time.sleep(0.2)  # Python's input() misses a Ctrl-C that comes just before it begins to wait
        somebody.child.sendintr()
        assert "Ctrl-D or /exit ends" in somebody.wait()
        somebody.say("/set max_tokens 2")
        assert "cut at 2 tokens" in somebody.say("Go on")
        somebody.child.sendeof()
        assert somebody.end() == 0

    def test_a_paste_of_several_lines_in_a_narrow_window(self, person):
        somebody = person(columns=24)
        somebody.child.send("\x1b[200~A fox 🦊 met a crane 鶴 in the wood\nand said:\n\tYou!\x1b[201~")
        time.sleep(0.3)
        somebody.child.send("\r")
        answer = somebody.wait()
        assert "(cut at 12 tokens" in answer
        shown = somebody.say("/show")
        assert "user: A fox 🦊 met a \ncrane 鶴 in the wood\nand said:\n" in shown
        assert shown.count("user:") == 1

    def test_a_paste_that_begins_with_a_path_is_no_command(self, person):
        somebody = person()
        somebody.child.send("\x1b[200~/usr/bin/fox: not found\nWhat now?\x1b[201~")
        time.sleep(0.3)
        somebody.child.send("\r")
        assert "(cut at 12 tokens" in somebody.wait()
        assert "user: /usr/bin/fox: not found\nWhat now?\n" in somebody.say("/show")

    def test_unicode_is_edited_by_the_character(self, person):
        somebody = person()
        somebody.child.send("鶴🦊é")
        somebody.child.send("\x7f\x7f")
        somebody.say("!")
        assert "user: 鶴!\n" in somebody.say("/show")

    def test_a_backslash_goes_on(self, person):
        somebody = person()
        somebody.child.send("one\\\rtwo\r")
        somebody.wait()
        assert "user: one\ntwo\n" in somebody.say("/show")

    def test_history_lasts(self, person, tmp_path):
        somebody = person("-n", "2")
        somebody.say("first words")
        somebody.child.sendeof()
        somebody.end()
        file = tmp_path / "state" / "rushlight" / "chat_history"
        assert json.loads(file.read_text()) == "first words"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        somebody = person("-n", "2")
        somebody.child.send("\x1b[A")
        somebody.say("")
        assert "user: first words" in somebody.say("/show")
        quiet = person("-n", "2", "--no-history")
        quiet.say("secret")
        assert "secret" not in file.read_text()

    def test_a_paste_where_python_has_no_readline(self, person, tmp_path):
        """As on Windows, and much as with libedit: what comes at once is one message."""
        script = tmp_path / "bare.py"
        script.write_text("import sys; sys.modules['readline'] = None\nfrom rushlight.cli import main\nmain()\n")
        somebody = person(program=(str(script),))
        somebody.wait("\n> ")
        somebody.child.send("one\ntwo\nthree\n")
        somebody.wait(r"tokens N\)|max_tokens N\)")
        somebody.wait("\n> ")
        somebody.child.sendline("/show")
        assert "user: one\ntwo\nthree\n" in somebody.wait("assistant:")


def test_ctrl_c_between_and_before_pieces():
    with Interrupts() as interrupts:
        passed = interrupts.passing(iter("abcd"))
        assert next(passed) == "a"
        signal.raise_signal(signal.SIGINT)
        assert (interrupts.came, list(passed)) == (True, [])
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with Interrupts() as interrupts, pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert interrupts.came


def test_control_characters_cannot_drive_the_terminal():
    assert visible("a\x1b[2J\x07\r\n\té\x9b") == "a\\x1b[2J\\x07\\r\n\té\\x9b"


def test_the_history_file_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    path = history_path()
    path.parent.mkdir()
    path.write_text("".join(f"{json.dumps(f'line {i}')}\n" for i in range(3 * MAX_ENTRIES)) + "not JSON\n\xff{}\n")
    entries = LineEditor(path)._load()
    assert (len(entries), entries[-1]) == (MAX_ENTRIES, f"line {3 * MAX_ENTRIES - 1}")
    assert len(path.read_text().splitlines()) == MAX_ENTRIES
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["chat_history"]


@pytest.mark.parametrize("path", ["/proc/none/history", "/"])
def test_a_history_that_cannot_be_kept_is_done_without(path, monkeypatch):
    from pathlib import Path

    monkeypatch.setattr("builtins.input", lambda prompt="": "words")
    editor = LineEditor(Path(path))
    assert editor.read("> ") == "words"
    assert editor.read("> ") == "words"


def test_the_history_is_nowhere_without_a_home(monkeypatch):
    monkeypatch.setattr("pathlib.Path.home", lambda: (_ for _ in ()).throw(RuntimeError))
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert history_path() is None
