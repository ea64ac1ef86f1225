"""`rushlight chat` in a pipe, and on a pseudo-terminal."""

import json
import os
import re
import shutil
import signal
import stat
import sys
import time

import pexpect
import pytest

from rushlight import demo
from rushlight.chat import AnswerDelta
from rushlight.cli.chat.answer import ReasoningStyle, styled
from rushlight.cli.chat.line_editor import MAX_ENTRIES, LineEditor, history_path
from rushlight.cli.interrupt import Interrupts
from rushlight.cli.terminal import visible
from rushlight.cli.word_wrap import WordWrap

READY = "\x1b\\[\\?2004h> "
"""The input prompt, with bracketed paste enabled."""


@pytest.fixture
def piped(rushlight):
    """Runs `rushlight chat` with these lines on stdin."""

    def run(*arguments, stdin):
        return rushlight("chat", "--temp", "0", "-n", "6", *arguments, stdin=stdin.encode())

    return run


class TestPiped:
    def test_each_line_of_stdin_is_a_turn(self, piped):
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

    @pytest.mark.parametrize(
        ("author", "flags", "same_as", "note"),
        [
            (
                {"do_sample": True, "temperature": 0.3, "top_k": 20, "max_new_tokens": 9},
                [],
                ["--temp", "0.3", "--top-k", "20"],
                "the author's settings are used: temperature 0.3, top_k 20; flags change them; "
                "max_new_tokens is applied only by flags: -n 9",
            ),
            (
                {"do_sample": True, "temperature": 0.3, "top_k": 20},
                ["--temp", "1.5"],
                ["--temp", "1.5", "--top-k", "20"],
                "the author's settings are used: top_k 20; flags change them",
            ),
            ({"do_sample": True}, ["--temp", "0.2"], ["--temp", "0.2"], None),
            ({"do_sample": False}, [], ["--temp", "0"], "the author's settings are used: temperature 0.0; flags"),
            ({"temperature": 0.2, "top_k": 3}, [], ["--temp", "0.7"], None),
            (
                {"repetition_penalty": 1.3},
                [],
                ["--temp", "0.7", "--repetition-penalty", "1.3"],
                "repetition_penalty 1.3;",
            ),
        ],
    )
    def test_the_author_s_settings_are_used(self, rushlight, tmp_path, author, flags, same_as, note):
        def answer(name, *arguments, config):
            folder = tmp_path / name
            shutil.copytree(demo.folder(), folder)
            (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 0, **config}))
            return rushlight("chat", folder, "-n", "12", "--seed", "3", *arguments, stdin=b"Once\n")

        done, expected = answer("a", *flags, config=author), answer("b", *same_as, config={})
        assert (done.code, done.out) == (0, expected.out)
        assert done.err.count("generation_config.json") == (note is not None)
        assert note is None or f"note: generation_config.json: {note}" in done.err or note in done.err

    def test_a_failed_turn_does_not_affect_the_others(self, piped):
        done = piped(stdin=f"Once\n{'word ' * 600}\nAnd?\n")
        assert done.code == 2
        assert "error: the message takes" in done.err
        assert done.out == piped(stdin="Once\nAnd?\n").out

    def test_a_line_that_is_not_utf8_exits_with_2(self, rushlight):
        done = rushlight("chat", "-n", "2", stdin=b"Once\n\xff\xfe\n")
        assert done.code == 2
        assert "error: standard input, line 2: byte 0: a message is not UTF-8" in done.err

    def test_a_line_that_is_too_long_does_not_affect_the_others(self, piped):
        done = piped(stdin=f"Once\n{'x' * (9 << 20)}\nAnd?\n")
        assert done.code == 2
        assert "error: standard input, line 2: a message is too long (found 9,437,185 bytes)" in done.err
        assert done.out == piped(stdin="Once\nAnd?\n").out

    def test_a_byte_order_mark_is_ignored(self, piped):
        assert piped(stdin="\ufeffOnce\n").out == piped(stdin="Once\n").out
        assert piped("--json", stdin='\ufeff{"content": "Once"}\n').code == 0

    def test_slash_commands_are_messages_in_a_pipe(self, piped):
        assert piped(stdin="/exit\nOnce\n").out.count("\n") >= 2

    def test_empty_input_prints_nothing(self, piped):
        done = piped(stdin="")
        assert (done.code, done.out) == (0, "")

    def test_stats_are_printed_after_a_turn(self, piped):
        done = piped("--stats", stdin="Once\n")
        assert re.search(
            r"^prompt \d+ tokens \(0 cached\).* 6 tokens at .*; finish reason: length$", done.err, re.MULTILINE
        )

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
            (["gpt2", "--model", "other", "-p", "Once"], "expected one model"),
        ],
    )
    def test_bad_arguments_exit_with_2(self, rushlight, arguments, message):
        done = rushlight("chat", *arguments, stdin=b"Once\n")
        assert done.code == 2
        assert message in done.err


class User:
    """A user on a pseudo-terminal."""

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
        self.child.delaybeforesend = None  # for programs that turn echo off late

    def wait(self, pattern=READY):
        """Returns the output up to the pattern, by default the next input prompt."""
        self.child.expect(pattern)
        return self.child.before.replace("\r", "")

    def type(self, text):
        """Types a line, and returns the output up to the next input prompt."""
        self.child.sendline(text)
        return self.wait()

    def end(self):
        self.child.expect(pexpect.EOF)
        self.child.close()
        return self.child.exitstatus


@pytest.fixture
def user_at(tmp_path):
    users = []

    def start(*arguments, **options):
        users.append(User(tmp_path, *arguments, **options))
        users[-1].greeting = users[-1].wait(options.pop("prompt", READY)) if "program" not in options else ""
        return users[-1]

    yield start
    for user in users:
        user.child.close(force=True)


class TestTerminal:
    def test_commands(self, user_at, tmp_path):
        user = user_at("--system-prompt", "Be kind.")
        assert "not trained to chat" in user.greeting
        assert "/help lists the commands" in user.greeting
        first = user.type("Once upon a time")
        assert "(stopped after 12 tokens: /set max_tokens N)" in first
        assert "/retry" in user.type("/help")
        assert "unknown command /nonsense" in user.type("/nonsense")
        assert "max_tokens 12" in user.type("/set")
        user.type("/set max_tokens 3")
        assert "max_tokens 3" in user.type("/set")
        assert "temperature is -1" in user.type("/set temperature -1")
        assert "unknown setting colour" in user.type("/set colour red")
        assert "stopped after 3 tokens" in user.type("/retry")
        assert "answer 3 tokens" in user.type("/stats")
        assert "saved 3 messages to talk.json" in user.type("/save talk.json")
        shown = user.type("/show")
        assert "chat template: plain turns" in shown
        assert "system: Be kind.\nuser: Once upon a time\nassistant: " in shown
        assert "removed: Once upon a time" in user.type("/undo")
        assert "the conversation has no message yet" in user.type("/undo")
        assert "loaded 3 messages" in user.type("/load talk.json")
        assert "user: Once upon a time" in user.type("/show")
        assert "new conversation" in user.type("/clear")
        assert "user:" not in user.type("/show")
        assert "system prompt set" in user.type("/system Be brief.")
        assert "system prompt removed" in user.type("/system")
        assert "system:" not in user.type("/show")
        assert "no such file" in user.type("/load nowhere.json")
        assert "error: no/talk.json: No such file or directory\n" in user.type("/save no/talk.json")
        assert "error: /proc/talk.json: " in user.type("/save /proc/talk.json")
        assert "no such file" in " ".join(user.type("/load ~/nowhere.json").split())  # wrapped at any width
        assert "saved 0 messages to ~/talk.json" in user.type("/save ~/talk.json")
        assert (tmp_path / "home" / "talk.json").is_file()
        assert "loaded 0 messages" in user.type("/load ~/talk.json")
        user.type("//help me")
        assert "user: /help me" in user.type("/show")
        user.child.sendline("/exit")
        assert user.end() == 0

    def test_ctrl_c_stops_the_answer_and_ctrl_d_quits(self, user_at):
        user = user_at("-n", "400")
        user.child.sendline("Once upon a time")
        user.child.expect("years")
        user.child.sendintr()
        stopped = user.wait()
        assert "(stopped: the partial answer is kept)" in stopped
        assert "Traceback" not in stopped
        assert "years" in user.type("/show")
        user.child.send("half a line")
        user.child.expect("half a line")
        time.sleep(0.2)  # Python's input() misses a Ctrl-C just before it starts to wait
        user.child.sendintr()
        assert "Ctrl-D or /exit quits" in user.wait()
        user.type("/set max_tokens 2")
        assert "stopped after 2 tokens" in user.type("Go on")
        user.child.sendeof()
        assert user.end() == 0

    def test_a_paste_of_several_lines_in_a_narrow_window(self, user_at):
        user = user_at(columns=24)
        user.child.send("\x1b[200~A fox 🦊 met a crane 鶴 in the wood\nand said:\n\tYou!\x1b[201~")
        time.sleep(0.3)
        user.child.send("\r")
        answer = user.wait()
        assert "(stopped after 12" in answer
        shown = user.type("/show")
        assert "user: A fox 🦊 met a \ncrane 鶴 in the wood\nand said:\n" in shown
        assert shown.count("user:") == 1

    def test_a_paste_that_begins_with_a_path_is_not_a_command(self, user_at):
        user = user_at()
        user.child.send("\x1b[200~/usr/bin/fox: not found\nWhat now?\x1b[201~")
        time.sleep(0.3)
        user.child.send("\r")
        assert "(stopped after 12 tokens" in user.wait()
        assert "user: /usr/bin/fox: not found\nWhat now?\n" in user.type("/show")

    def test_editing_deletes_whole_characters(self, user_at):
        user = user_at()
        user.child.send("鶴🦊é")
        user.child.send("\x7f\x7f")
        user.type("!")
        assert "user: 鶴!\n" in user.type("/show")

    def test_a_backslash_continues_the_line(self, user_at):
        user = user_at()
        user.child.send("one\\\rtwo\r")
        user.wait()
        assert "user: one\ntwo\n" in user.type("/show")

    def test_the_history_persists(self, user_at, tmp_path):
        user = user_at("-n", "2")
        user.type("first words")
        user.child.sendeof()
        user.end()
        file = tmp_path / "state" / "rushlight" / "chat_history"
        assert json.loads(file.read_text()) == "first words"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        user = user_at("-n", "2")
        user.child.send("\x1b[A")
        user.type("")
        assert "user: first words" in user.type("/show")
        quiet = user_at("-n", "2", "--no-history")
        quiet.type("secret")
        assert "secret" not in file.read_text()

    def test_a_paste_where_python_has_no_readline(self, user_at, tmp_path):
        """Windows has no readline, and libedit is similar: lines that arrive at once are one message."""
        script = tmp_path / "bare.py"
        script.write_text("import sys; sys.modules['readline'] = None\nfrom rushlight.cli import main\nmain()\n")
        user = user_at(program=(str(script),))
        user.wait("\n> ")
        user.child.send("one\ntwo\nthree\n")
        user.wait(r"tokens N\)|max_tokens N\)")
        user.wait("\n> ")
        user.child.sendline("/show")
        assert "user: one\ntwo\nthree\n" in user.wait("assistant:")


OPEN = "{{ messages[-1].content }}{% if add_generation_prompt %}<think>{% endif %}{# </think> #}"
"""A template after which every answer is reasoning, since the model ends none."""


class TestReasoning:
    def test_is_dimmed(self, user_at):
        user = user_at("--chat-template", OPEN, columns=30)
        shown = user.type("Once upon a time")
        dimmed = re.search("\x1b\\[2m(.+)\x1b\\[22m", shown, re.DOTALL)
        assert dimmed
        rows = re.sub("\x1b\\[[0-9]+D\x1b\\[K", "", dimmed[1]).split("\n")
        assert len(rows) > 1
        assert max(map(len, rows)) < 30

    def test_can_be_hidden(self, user_at):
        user = user_at("--chat-template", OPEN, "--hide-thinking")
        shown = user.type("Once upon a time")
        assert "(thinking)" in shown
        assert "\x1b[2m" not in shown
        assert "the reasoning of answers is shown" in user.type("/thinking")
        assert "\x1b[2m" in user.type("/retry")
        assert "the reasoning of answers is hidden" in user.type("/thinking")

    def test_is_json_in_a_pipe_and_no_text(self, rushlight):
        arguments = ["chat", "--chat-template", OPEN, "--temp", "0", "-n", "4"]
        done = rushlight(*arguments, "--json", stdin=b'{"content": "Once upon a time"}')
        record = json.loads(done.out)
        assert list(record) == ["role", "reasoning", "content", "finish_reason", "seed", "stats"]
        assert record["reasoning"]
        assert record["content"] == ""
        assert rushlight(*arguments, stdin=b"Once upon a time").out == "\n"


DELTAS = [
    AnswerDelta("so", is_reasoning=True),
    AnswerDelta(" it", is_reasoning=True),
    AnswerDelta(" is", is_reasoning=False),
]


@pytest.mark.parametrize(
    ("env", "shows", "text", "message"),
    [
        ({}, True, "\x1b[2mso it\x1b[22m\n\nis.", ""),
        ({"NO_COLOR": "1"}, True, "<think>\nso it\n</think>\n\nis.", ""),
        ({"TERM": "dumb"}, True, "<think>\nso it\n</think>\n\nis.", ""),
        ({}, False, "is.", "(thinking)\n"),
    ],
    ids=["dimmed", "NO_COLOR", "dumb terminal", "hidden"],
)
def test_reasoning_is_apart_from_the_text(monkeypatch, capsys, env, shows, text, message):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    wrap = WordWrap(lambda: 80)
    deltas = [*DELTAS, AnswerDelta(".", is_reasoning=False)]
    assert "".join(styled(deltas, wrap.push, ReasoningStyle.of_terminal(), shows_reasoning=shows)) == text
    assert capsys.readouterr().err == message
    cut = "".join(styled(DELTAS[:2], wrap.push, ReasoningStyle.of_terminal(), shows_reasoning=shows))
    assert cut == text.partition("\n\nis")[0].removesuffix("is.")


@pytest.mark.parametrize("value", ["enable_thinking", "[1]", "{"])
def test_variables_that_are_not_an_object_exit_with_2(rushlight, value):
    done = rushlight("chat", "--chat-template-kwargs", value, stdin=b"Once\n")
    assert done.code == 2
    assert "error: --chat-template-kwargs: " in done.err
    assert '{"enable_thinking": false}' in done.err


@pytest.mark.parametrize("name", ["messages", "add_generation_prompt"])
def test_variables_that_the_conversation_sets_exit_with_2(rushlight, name):
    arguments = ["chat", "--chat-template", "{{ messages[0].content }}", "--chat-template-kwargs", f'{{"{name}": []}}']
    done = rushlight(*arguments, stdin=b"Once\n")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: {name} is not a variable of the chat template to set")


def test_variables_reach_the_template(rushlight):
    arguments = [
        "chat",
        "-n",
        "1",
        "--temp",
        "0",
        "--json",
        "--chat-template",
        "{{ 'word ' * n }}{{ messages[-1].content }}",
    ]
    done = rushlight(*arguments, "--chat-template-kwargs", '{"n": 20}', stdin=b'{"content": "Once"}')
    assert json.loads(done.out)["stats"]["prompt_tokens"] > 20


def test_ctrl_c_before_and_between_pieces():
    with Interrupts() as interrupts:
        pieces = interrupts.until_interrupted(iter("abcd"))
        assert next(pieces) == "a"
        signal.raise_signal(signal.SIGINT)
        assert (interrupts.came, list(pieces)) == (True, [])
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with Interrupts() as interrupts, pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert interrupts.came


def test_control_characters_are_escaped():
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
def test_an_unusable_history_file_is_ignored(path, monkeypatch):
    from pathlib import Path

    monkeypatch.setattr("builtins.input", lambda prompt="": "words")
    editor = LineEditor(Path(path))
    assert editor.read("> ") == "words"
    assert editor.read("> ") == "words"


def test_without_a_home_directory_there_is_no_history(monkeypatch):
    monkeypatch.setattr("pathlib.Path.home", lambda: (_ for _ in ()).throw(RuntimeError))
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert history_path() is None
