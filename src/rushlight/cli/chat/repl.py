"""A conversation on a terminal: the read–eval–print loop and its slash commands."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rushlight.cli.chat.answer import ReasoningStyle, out_answer, styled, summary
from rushlight.cli.error_report import describe
from rushlight.cli.interrupt import Interrupts
from rushlight.cli.prompt_progress import with_prompt_progress
from rushlight.cli.terminal import columns, out, visible, write_message
from rushlight.cli.word_wrap import WordWrap
from rushlight.errors import RequestError, RushlightError, printable_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rushlight.chat import Answer, Chat
    from rushlight.runtime.result import Generation


class Repl:
    """A conversation on a terminal.

    Args:
        conversation: answers the messages.
        settings: the sampling settings that /set lists and changes.
        history: whether to save typed messages in the history file.
        stats: whether to print the statistics of each answer.
        shows_reasoning: whether to show the reasoning of each answer.
    """

    def __init__(
        self, conversation: Chat, settings: Sequence[str], *, history: bool, stats: bool, shows_reasoning: bool
    ) -> None:
        from rushlight.cli.chat.line_editor import LineEditor, history_path

        self._chat = conversation
        self._settings = settings
        self._stats = stats
        self._shows_reasoning = shows_reasoning
        self._last: Generation | None = None
        self._commands: dict[str, tuple[str, str, Callable[[str], None]]] = {
            "/help": ("", "list the commands", self._help),
            "/clear": ("", "start a new conversation with the same system prompt", self._clear),
            "/system": ("[TEXT]", "set the system prompt, or remove it", self._system),
            "/set": ("[NAME VALUE]", "change a sampling setting, or list them", self._set),
            "/thinking": ("", "show or hide the reasoning of answers", self._thinking),
            "/show": ("", "print the conversation and the name of its template", self._show),
            "/stats": ("", "print token counts and rates of the last answer", self._show_stats),
            "/retry": ("", "answer the last message again", self._retry),
            "/undo": ("", "remove the last message and its answer", self._undo),
            "/save": ("FILE", "save the conversation", self._save),
            "/load": ("FILE", "continue a saved conversation", self._load),
            "/exit": ("", "quit; /bye and Ctrl-D too", self._exit),
            "/bye": ("", "", self._exit),
        }
        self._editor = LineEditor(history_path() if history else None, tuple(self._commands))

    def run(self, first: str | None = None) -> None:
        """Answers the first message, if given, and then what is typed, until /exit or Ctrl-D."""
        write_message("/help lists the commands. Ctrl-C stops an answer, Ctrl-D quits.")
        if first is not None:
            out(f"> {visible(first)}\n")
            self._run(lambda: self._answer(self._chat.stream(first)))
        while True:
            try:
                text = self._editor.read("> ")
            except EOFError:
                out("\n")
                return
            except KeyboardInterrupt:
                write_message("\n(Ctrl-D or /exit quits)")
                continue
            except UnicodeDecodeError:
                write_message("error: the input is not valid in the terminal's encoding")
                continue
            if self._run(partial(self._turn, text)) is False:
                return

    def _run(self, step: Callable[[], bool | None]) -> bool | None:
        """The result of the step; an error or an interrupt is reported, and the conversation continues."""
        try:
            return step()
        except KeyboardInterrupt:
            write_message("\n(stopped)")
        except (RushlightError, OSError) as error:
            write_message(f"error: {describe(error)}")
        return None

    def _turn(self, text: str) -> bool:
        """Runs a command or answers a message; False if it ends the conversation."""
        text = text.strip()
        if text.startswith("/") and not text.startswith("//"):
            word = text.split(maxsplit=1)[0]
            if word in self._commands:
                self._commands[word][2](text.removeprefix(word).strip())
                return self._commands[word][2] != self._exit
            if "\n" not in text:  # several lines are a paste, which may begin with a path
                write_message(
                    f"error: unknown command {printable_name(word)}; /help lists the commands, // begins a message with"
                    " a slash"
                )
                return True
        if text:
            self._answer(self._chat.stream(text.removeprefix("/") if text.startswith("//") else text))
        return True

    def _answer(self, answer: Answer) -> None:
        wrap = WordWrap(lambda: columns(sys.stdout))
        style = ReasoningStyle.of_terminal()
        deltas = with_prompt_progress(answer, answer.deltas())
        pieces = styled(deltas, lambda text: wrap.push(visible(text)), style, shows_reasoning=self._shows_reasoning)
        with Interrupts() as interrupts:
            try:
                out_answer(interrupts.until_interrupted(pieces), out)
            except KeyboardInterrupt:
                pass
            finally:
                answer.close()
        if interrupts.came and style.is_control:
            out(style.end)
        self._last = result = answer.result
        if interrupts.came:
            write_message(
                "(stopped: the partial answer is kept)" if answer.text.strip() else "(stopped: the message is removed)"
            )
        elif result.finish_reason == "length":
            write_message(f"(stopped after {len(result.ids)} tokens: /set max_tokens N)")
        elif result.finish_reason == "context":
            write_message("(stopped: the context is full)")
        if self._stats:
            self._show_stats("")
        out("\n")

    def _help(self, _: str) -> None:
        for name, (argument, help_text, _command) in self._commands.items():
            if help_text:
                write_message(f"{name} {argument}".ljust(22) + help_text)
        write_message("A line that ends with \\ continues on the next line. Pasted text is one message.")

    def _clear(self, _: str) -> None:
        self._chat.reset()
        write_message("new conversation")

    def _system(self, text: str) -> None:
        self._chat.system_prompt = text or None
        write_message("system prompt set" if text else "system prompt removed")

    def _set(self, text: str) -> None:
        from rushlight.generation.sampling.params import SamplingParams

        name, _, value = text.partition(" ")
        current = {key: getattr(SamplingParams(**self._chat.settings), key) for key in self._settings}
        if not name:
            for key, now in current.items():
                write_message(f"{key} {now}")
            return
        if name not in self._settings:
            raise RequestError(f"unknown setting {printable_name(name)}", expected=", ".join(self._settings))
        settings: Any = {**self._chat.settings, name: _parse_value(value.strip())}
        SamplingParams(**settings)
        self._chat.settings = settings

    def _thinking(self, _: str) -> None:
        self._shows_reasoning = not self._shows_reasoning
        write_message(f"the reasoning of answers is {'shown' if self._shows_reasoning else 'hidden'}")

    def _show(self, _: str) -> None:
        model = self._chat.model
        write_message(f"{model.name}, context {model.context_length}; chat template: {self._chat.template.name}")
        head = self._chat.system_prompt is not None
        for i, message in enumerate(self._chat.messages):
            dropped = head <= i < head + self._chat.n_forgotten
            write_message(
                f"{message['role']}{' (out of context)' if dropped else ''}: {visible(message['content'].strip())}"
            )

    def _show_stats(self, _: str) -> None:
        write_message("no messages yet" if self._last is None else summary(self._last))

    def _retry(self, _: str) -> None:
        self._answer(self._chat.retry())

    def _undo(self, _: str) -> None:
        write_message(f"removed: {visible(self._chat.undo())}")

    def _save(self, path: str) -> None:
        if not path:
            raise RequestError("/save needs a file name")
        self._chat.save(_path(path))
        write_message(f"saved {len(self._chat.messages)} messages to {printable_name(path)}")

    def _load(self, path: str) -> None:
        if not path:
            raise RequestError("/load needs a file name")
        self._chat.load(_path(path))
        write_message(f"loaded {len(self._chat.messages)} messages")

    def _exit(self, _: str) -> None:
        self._chat.close()


def _path(text: str) -> Path:
    """The path with `~` expanded, as a shell would."""
    try:
        return Path(text).expanduser()
    except RuntimeError:  # there is no home directory
        return Path(text)


def _parse_value(text: str) -> Any:
    """The value of a number, true, false or none; other text is returned for the validation to refuse."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
