"""`rushlight chat`: a conversation, at a terminal or line by line."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rushlight.cli.interrupt import Interrupts, interrupts_end_no_process
from rushlight.cli.options import (
    OUTPUT,
    TEXT,
    Debug,
    Device,
    Draft,
    Dtype,
    FrequencyPenalty,
    LogitBias,
    MaxTokens,
    MinP,
    ModelFlag,
    Offline,
    Port,
    PresencePenalty,
    RepetitionPenalty,
    Revision,
    Seed,
    Source,
    Speculate,
    Stop,
    Temperature,
    Threads,
    TopK,
    TopP,
    one_of,
    parse_biases,
)
from rushlight.cli.terminal import out, say, status
from rushlight.errors import RequestError, RushlightError, printable_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rushlight.chat import Answer, Chat
    from rushlight.generation.params import SamplingSettings
    from rushlight.result import Generation

EXAMPLES = """
\b
Examples:
  rushlight chat
  rushlight chat ./folder --system-prompt "Answer in one sentence."
  rushlight chat gpt2 --chat-template template.jinja --temp 0.9 --seed 7
  echo "Who are you?" | rushlight chat microsoft/DialoGPT-small
  rushlight chat gpt2 --json < turns.jsonl
"""

FAILED = 2
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def chat(
    source: Source = None,
    model: ModelFlag = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
    offline: Offline = False,
    revision: Revision = None,
    port: Port = None,
    speculate: Speculate = None,
    draft: Draft = None,
    system_prompt: Annotated[
        str | None,
        typer.Option(
            "--system-prompt", metavar="TEXT", rich_help_panel=TEXT, help="What stands before the conversation."
        ),
    ] = None,
    chat_template: Annotated[
        str | None,
        typer.Option(
            "--chat-template",
            metavar="FILE",
            rich_help_panel=TEXT,
            help="A Jinja template's file, text or name. Without it: the model's own.",
        ),
    ] = None,
    load: Annotated[
        str | None,
        typer.Option("--load", metavar="FILE", rich_help_panel=TEXT, help="Go on with a conversation that was saved."),
    ] = None,
    max_tokens: MaxTokens = 256,
    stop: Stop = None,
    temperature: Temperature = 0.7,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    presence_penalty: PresencePenalty = 0.0,
    frequency_penalty: FrequencyPenalty = 0.0,
    logit_bias: LogitBias = None,
    seed: Seed = None,
    history: Annotated[
        bool,
        typer.Option(
            "--history/--no-history",
            rich_help_panel=TEXT,
            help="Keep what is typed for the next time, which is the default.",
        ),
    ] = True,
    stats: Annotated[
        bool, typer.Option("--stats", rich_help_panel=OUTPUT, help="Print counts and rates of each answer on stderr.")
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", rich_help_panel=OUTPUT, help="Read and write a JSON object a line, a turn each."),
    ] = False,
    _debug: Debug = False,
) -> None:
    """Hold a conversation; its answers are printed as they come."""
    import rushlight
    from rushlight.generation.params import SamplingParams
    from rushlight.text.stop import StopStrings

    name = one_of(source, model)
    settings: SamplingSettings = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
        "logit_bias": parse_biases(logit_bias),
        "seed": seed,
        "speculate": speculate,
    }
    # The model checks these too, but by then it may have been downloaded for nothing.
    SamplingParams(**settings)
    StopStrings(stop or ())
    if name is None:
        say("note: no model named: this is the embedded one, of tales; or try: rushlight chat gpt2")
    with status(f"loading {name or 'the embedded model'}"):
        loaded = rushlight.load(
            name,
            device=device,
            dtype=dtype,
            threads=threads,
            offline=offline,
            revision=revision,
            port=port,
            draft=draft,
        )
    with rushlight.Chat(
        loaded, system_prompt=system_prompt, template=chat_template, stop=stop or (), **settings
    ) as conversation:
        if load is not None:
            conversation.load(load)
            if system_prompt is not None:
                conversation.system_prompt = system_prompt
        if as_json or not _at_terminal():
            if not _answer_lines(conversation, as_json=as_json, stats=stats):
                raise typer.Exit(FAILED)
        else:
            with interrupts_end_no_process():
                Terminal(conversation, history=history, stats=stats).run()


class Terminal:
    """The conversation of a person at a terminal: messages, and commands that begin with a slash."""

    def __init__(self, conversation: Chat, *, history: bool, stats: bool) -> None:
        from rushlight.cli.line_editor import LineEditor, history_path

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
            "/exit": ("", "end, as does Ctrl-D", self._exit),
        }
        self._editor = LineEditor(history_path() if history else None, tuple(self._commands))

    def run(self) -> None:
        """Reads and answers until /exit or Ctrl-D."""
        say("/help lists the commands. Ctrl-C stops an answer, Ctrl-D ends.")
        while True:
            try:
                text = self._editor.read("> ")
            except EOFError:
                out("\n")
                return
            except KeyboardInterrupt:
                say("\n(Ctrl-D or /exit ends)")
                continue
            except UnicodeDecodeError:
                say("error: what was typed is not text in the terminal's encoding")
                continue
            try:
                if not self._turn(text):
                    return
            except KeyboardInterrupt:
                say("\n(stopped)")
            except (RushlightError, OSError) as error:
                say(f"error: {error}")

    def _turn(self, text: str) -> bool:
        """Does what a line asks for; False once that is to end."""
        text = text.strip()
        if text.startswith("/") and not text.startswith("//"):
            word, _, rest = text.partition(" ")
            if word not in self._commands:
                say(f"error: no command {printable_name(word)}; /help lists them, and // begins a message with a slash")
                return True
            self._commands[word][2](rest.strip())
            return word != "/exit"
        if text:
            self._answer(self._chat.stream(text.removeprefix("/") if text.startswith("//") else text))
        return True

    def _answer(self, answer: Answer) -> None:
        with Interrupts() as interrupts:
            try:
                out_whole(interrupts.passing(visible(piece) for piece in without_leading_space(answer)))
            except KeyboardInterrupt:
                pass
            finally:
                answer.close()
        self._last = result = answer.result
        if interrupts.came:
            say("(stopped: what came is kept)" if result.text.strip() else "(stopped: the message is taken back)")
        elif result.finish_reason == "length":
            say(f"(cut at {len(result.ids)} tokens: /set max_tokens N)")
        elif result.finish_reason == "context":
            say("(cut: the context is full)")
        if self._stats:
            self._show_stats("")
        out("\n")

    def _help(self, _: str) -> None:
        for name, (argument, what, _command) in self._commands.items():
            say(f"{name} {argument}".ljust(22) + what)
        say("A line that ends with \\ goes on in the next. A pasted text is one message.")

    def _clear(self, _: str) -> None:
        self._chat.reset()

    def _system(self, text: str) -> None:
        self._chat.system_prompt = text or None

    def _set(self, text: str) -> None:
        from rushlight.generation.params import SamplingParams

        name, _, value = text.partition(" ")
        current = {key: getattr(SamplingParams(**self._chat.settings), key) for key in SETTINGS}
        if not name:
            for key, now in current.items():
                say(f"{key} {now}")
            return
        if name not in SETTINGS:
            raise RequestError(f"no setting {printable_name(name)}", expected=", ".join(SETTINGS))
        settings: Any = {**self._chat.settings, name: _parse_value(value.strip())}
        SamplingParams(**settings)
        self._chat.settings = settings

    def _show(self, _: str) -> None:
        model = self._chat.model
        say(f"{model.name}, context {model.context_length}; written as {self._chat.template.name}")
        head = self._chat.system_prompt is not None
        for i, message in enumerate(self._chat.messages):
            unread = head <= i < head + self._chat.n_forgotten
            say(f"{message['role']}{' (no longer read)' if unread else ''}: {visible(message['content'].strip())}")

    def _show_stats(self, _: str) -> None:
        say("nothing was said yet" if self._last is None else summary(self._last))

    def _retry(self, _: str) -> None:
        self._answer(self._chat.retry())

    def _undo(self, _: str) -> None:
        say(f"taken back: {visible(self._chat.undo())}")

    def _save(self, path: str) -> None:
        if not path:
            raise RequestError("/save needs the name of a file")
        self._chat.save(path)
        say(f"saved {len(self._chat.messages)} messages in {printable_name(path)}")

    def _load(self, path: str) -> None:
        if not path:
            raise RequestError("/load needs the name of a file")
        self._chat.load(path)
        say(f"{len(self._chat.messages)} messages")

    def _exit(self, _: str) -> None:
        self._chat.close()


SETTINGS = (
    "max_tokens temperature top_k top_p min_p repetition_penalty presence_penalty frequency_penalty seed ignore_eos"
).split()
"""What /set changes: the sampling settings that a word can say."""


def visible(text: str) -> str:
    """`text` with control characters escaped, so that what a model writes cannot drive the terminal."""
    return CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)


def without_leading_space(pieces: Answer) -> Iterator[str]:
    """The pieces without the white space that models begin an answer with."""
    begun = False
    for piece in pieces:
        text = piece if begun else piece.lstrip()
        begun = begun or bool(text)
        if text:
            yield text


def out_whole(pieces: Iterator[str]) -> None:
    """The pieces as they come, then the end of the line, whatever ends them."""
    last = ""
    try:
        for last in pieces:
            out(last)
    finally:
        out("" if last.endswith("\n") else "\n")


def summary(result: Generation) -> str:
    """Counts and rates of an answer, in a line."""
    stats = result.stats
    return (
        f"prompt {stats.prompt_tokens:,} tokens ({stats.cached_tokens:,} known) at {stats.prefill_tok_s:,.0f} tok/s; "
        f"answer {stats.generated_tokens:,} tokens at {stats.decode_tok_s:,.0f} tok/s; "
        f"ended by {result.finish_reason or 'Ctrl-C'}"
    )


def _at_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty() and sys.stdout is not None and sys.stdout.isatty()


def _answer_lines(conversation: Chat, *, as_json: bool, stats: bool) -> bool:
    """Answers each line of standard input in one turn; whether all went well. A turn that fails harms no other."""
    sound = True
    for text in _lines():
        try:
            answer = conversation.stream(_content(text) if as_json else _decoded(text))
            if as_json:
                for _ in answer:
                    pass
                out(json.dumps(_record(answer.result), ensure_ascii=False) + "\n")
            else:
                out_whole(without_leading_space(answer))
            if stats:
                say(summary(answer.result))
        except RushlightError as error:
            sound = False
            if as_json:
                record = {"error": {"code": error.code, "message": str(error)}}
                out(json.dumps(record, ensure_ascii=False) + "\n")
            say(f"error: {error}")
    return sound


def _lines() -> Iterator[bytes]:
    """The lines of standard input that are not empty, each of a length that can be a message."""
    from rushlight.text.tokenizer import MAX_PROMPT_BYTES

    if sys.stdin is None:
        raise RequestError("standard input is closed", remedy="pipe the messages in, one a line")
    while line := sys.stdin.buffer.readline(MAX_PROMPT_BYTES):
        if len(line) == MAX_PROMPT_BYTES and not line.endswith(b"\n"):
            raise RequestError(
                "a message is too long", file="standard input", expected=f"fewer than {MAX_PROMPT_BYTES:,} bytes"
            )
        if line.strip():
            yield line


def _decoded(line: bytes) -> str:
    try:
        return line.decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise RequestError("a message is not UTF-8", file="standard input", offset=error.start) from None


def _content(line: bytes) -> str:
    """The message of a line of JSON."""
    from rushlight.strict_json import parse_json_object

    values = parse_json_object(line, file="standard input", error=RequestError)
    content = values.get("content")
    if not isinstance(content, str) or values.get("role", "user") != "user" or values.keys() - {"role", "content"}:
        raise RequestError("not a message", file="standard input", expected='{"role": "user", "content": "..."}')
    return content


def _record(result: Generation) -> dict[str, Any]:
    return {
        "role": "assistant",
        "content": result.text,
        "finish_reason": result.finish_reason,
        "seed": result.seed,
        "stats": asdict(result.stats),
    }


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
