"""A conversation at a terminal."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rushlight.cli.chat.answer import out_whole, summary, without_leading_space
from rushlight.cli.error_report import in_words
from rushlight.cli.interrupt import Interrupts
from rushlight.cli.prompt_progress import with_prompt_progress
from rushlight.cli.terminal import columns, out, say_wrapped, visible
from rushlight.cli.word_wrap import WordWrap
from rushlight.errors import RequestError, RushlightError, printable_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from rushlight.chat import Answer, Chat
    from rushlight.runtime.result import Generation

SETTINGS = (
    "max_tokens temperature top_k top_p min_p repetition_penalty presence_penalty frequency_penalty seed ignore_eos"
).split()
"""What /set changes: the sampling settings that a word can say."""


class Terminal:
    """The conversation of a person at a terminal: messages, and commands that begin with a slash."""

    def __init__(self, conversation: Chat, *, history: bool, stats: bool) -> None:
        from rushlight.cli.chat.line_editor import LineEditor, history_path

        self._chat = conversation
        self._stats = stats
        self._last: Generation | None = None
        self._commands: dict[str, tuple[str, str, Callable[[str], None]]] = {
            "/help": ("", "list the commands", self._help),
            "/clear": ("", "forget the conversation; the system prompt stays", self._clear),
            "/system": ("[TEXT]", "set the system prompt, or remove it", self._system),
            "/set": ("[NAME VALUE]", "change a setting, or list them", self._set),
            "/show": ("", "print the conversation, and how it is written for the model", self._show),
            "/stats": ("", "counts and rates of the last answer", self._show_stats),
            "/retry": ("", "another answer to the last message", self._retry),
            "/undo": ("", "take the last message and its answer back", self._undo),
            "/save": ("FILE", "save the conversation", self._save),
            "/load": ("FILE", "go on with a saved conversation", self._load),
            "/exit": ("", "end, as do /bye and Ctrl-D", self._exit),
            "/bye": ("", "", self._exit),
        }
        self._editor = LineEditor(history_path() if history else None, tuple(self._commands))

    def run(self, first: str | None = None) -> None:
        """Answers the first message, if there is one; then reads and answers until /exit or Ctrl-D."""
        say_wrapped("/help lists the commands. Ctrl-C stops an answer, Ctrl-D ends.")
        if first is not None:
            out(f"> {visible(first)}\n")
            self._go_on(lambda: self._answer(self._chat.stream(first)))
        while True:
            try:
                text = self._editor.read("> ")
            except EOFError:
                out("\n")
                return
            except KeyboardInterrupt:
                say_wrapped("\n(Ctrl-D or /exit ends)")
                continue
            except UnicodeDecodeError:
                say_wrapped("error: what was typed is not text in the terminal's encoding")
                continue
            if self._go_on(partial(self._turn, text)) is False:
                return

    def _go_on(self, step: Callable[[], bool | None]) -> bool | None:
        """What the step returns; if it fails or is stopped, that is said, and the conversation goes on."""
        try:
            return step()
        except KeyboardInterrupt:
            say_wrapped("\n(stopped)")
        except (RushlightError, OSError) as error:
            say_wrapped(f"error: {in_words(error)}")
        return None

    def _turn(self, text: str) -> bool:
        """Does what a line asks for; False once that is to end."""
        text = text.strip()
        if text.startswith("/") and not text.startswith("//"):
            word = text.split(maxsplit=1)[0]
            if word in self._commands:
                self._commands[word][2](text.removeprefix(word).strip())
                return self._commands[word][2] != self._exit
            if "\n" not in text:  # what has several lines was pasted, and may begin with a path
                say_wrapped(
                    f"error: no command {printable_name(word)}; /help lists them, and // begins a message with a slash"
                )
                return True
        if text:
            self._answer(self._chat.stream(text.removeprefix("/") if text.startswith("//") else text))
        return True

    def _answer(self, answer: Answer) -> None:
        wrap = WordWrap(lambda: columns(sys.stdout))
        with Interrupts() as interrupts:
            try:
                pieces = without_leading_space(with_prompt_progress(answer))
                out_whole(interrupts.passing(wrap.push(visible(piece)) for piece in pieces), out)
            except KeyboardInterrupt:
                pass
            finally:
                answer.close()
        self._last = result = answer.result
        if interrupts.came:
            say_wrapped(
                "(stopped: what came is kept)" if result.text.strip() else "(stopped: the message is taken back)"
            )
        elif result.finish_reason == "length":
            say_wrapped(f"(cut at {len(result.ids)} tokens: /set max_tokens N)")
        elif result.finish_reason == "context":
            say_wrapped("(cut: the context is full)")
        if self._stats:
            self._show_stats("")
        out("\n")

    def _help(self, _: str) -> None:
        for name, (argument, what, _command) in self._commands.items():
            if what:
                say_wrapped(f"{name} {argument}".ljust(22) + what)
        say_wrapped("A line that ends with \\ goes on in the next. A pasted text is one message.")

    def _clear(self, _: str) -> None:
        self._chat.reset()
        say_wrapped("the conversation is forgotten")

    def _system(self, text: str) -> None:
        self._chat.system_prompt = text or None
        say_wrapped("the system prompt is set" if text else "there is no system prompt")

    def _set(self, text: str) -> None:
        from rushlight.generation.sampling.params import SamplingParams

        name, _, value = text.partition(" ")
        current = {key: getattr(SamplingParams(**self._chat.settings), key) for key in SETTINGS}
        if not name:
            for key, now in current.items():
                say_wrapped(f"{key} {now}")
            return
        if name not in SETTINGS:
            raise RequestError(f"no setting {printable_name(name)}", expected=", ".join(SETTINGS))
        settings: Any = {**self._chat.settings, name: _parse_value(value.strip())}
        SamplingParams(**settings)
        self._chat.settings = settings

    def _show(self, _: str) -> None:
        model = self._chat.model
        say_wrapped(f"{model.name}, context {model.context_length}; written as {self._chat.template.name}")
        head = self._chat.system_prompt is not None
        for i, message in enumerate(self._chat.messages):
            unread = head <= i < head + self._chat.n_forgotten
            say_wrapped(
                f"{message['role']}{' (no longer read)' if unread else ''}: {visible(message['content'].strip())}"
            )

    def _show_stats(self, _: str) -> None:
        say_wrapped("nothing was said yet" if self._last is None else summary(self._last))

    def _retry(self, _: str) -> None:
        self._answer(self._chat.retry())

    def _undo(self, _: str) -> None:
        say_wrapped(f"taken back: {visible(self._chat.undo())}")

    def _save(self, path: str) -> None:
        if not path:
            raise RequestError("/save needs the name of a file")
        self._chat.save(_path(path))
        say_wrapped(f"saved {len(self._chat.messages)} messages in {printable_name(path)}")

    def _load(self, path: str) -> None:
        if not path:
            raise RequestError("/load needs the name of a file")
        self._chat.load(_path(path))
        say_wrapped(f"{len(self._chat.messages)} messages")

    def _exit(self, _: str) -> None:
        self._chat.close()


def _path(text: str) -> Path:
    """The path that a person means, who is not at a shell here: `~` is the home."""
    try:
        return Path(text).expanduser()
    except RuntimeError:  # there is none
        return Path(text)


def _parse_value(text: str) -> Any:
    """A number, true, false or none as they are written; anything else is left to the check of the setting."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
