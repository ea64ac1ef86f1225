"""Chat sessions: keep messages, stream answers, and drop the oldest turns when the context is full."""

from __future__ import annotations

import logging
from bisect import bisect_left
from dataclasses import dataclass, fields
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rushlight.chat.encoder import ConversationEncoder
from rushlight.chat.reasoning import reasoning_parser
from rushlight.chat.template import ChatTemplate, find_template, turn_end_ids
from rushlight.chat.transcript import Message, check_messages, read_transcript, write_transcript
from rushlight.errors import ContextLengthError, RequestError
from rushlight.generation import SamplingParams, without_none
from rushlight.runtime.result import Generation
from rushlight.text import StopStrings

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Self, Unpack

    from rushlight.chat.provenance import Rendered
    from rushlight.chat.reasoning import AnswerDelta, ReasoningParser
    from rushlight.generation import SamplingSettings
    from rushlight.runtime.model import Model
    from rushlight.runtime.streaming import Stream

__all__ = ["MAX_TOKENS", "Answer", "Chat", "Reply"]

MAX_TOKENS = 256
"""The default limit of an answer, in tokens."""

_log = logging.getLogger("rushlight")


@dataclass(slots=True)
class Reply(Generation):
    """A complete answer: a `Generation` whose `text` is the answer alone; `ids` are all new tokens.

    Attributes:
        reasoning: the reasoning before the answer, without the markers around it; empty if the model does not reason,
            or does not mark it.
    """

    reasoning: str = ""

    @classmethod
    def of(cls, answer: Answer) -> Self:
        """The answer, once it has ended."""
        values = {field.name: getattr(answer.result, field.name) for field in fields(Generation)}
        return cls(**values | {"text": answer.text}, reasoning=answer.reasoning)


class Answer:
    """A streamed answer: iterate for its text; `deltas` also yields the reasoning that precedes it.

    It is added to the conversation when it ends. If it is closed early, or by Ctrl-C, the text so far is added; without
    any text, the message that it answers is removed.

    Attributes:
        result: the tokens, and all text that the model generated, with the reasoning and the markers around it.
        text: the text so far, without reasoning.
        reasoning: the reasoning so far; empty if the model does not reason, or does not mark it.
    """

    def __init__(
        self, stream: Stream, parser: ReasoningParser, *, keep: Callable[[Answer], None], drop: Callable[[], None]
    ):
        self.result = stream.result
        self.text, self.reasoning = "", ""
        self._stream = stream
        self._parser = parser
        self._deltas = self._parsed()
        self._keep, self._drop = keep, drop
        self._ended = False

    @property
    def prompt_progress(self) -> tuple[int, int]:
        """(prompt tokens computed or found in the prefix cache, all prompt tokens); callable from any thread."""
        return self._stream.prompt_progress

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        return next(delta.text for delta in self._deltas if not delta.is_reasoning)

    def deltas(self) -> Iterator[AnswerDelta]:
        """The reasoning and the text, in the order in which they are generated."""
        return self._deltas

    def close(self) -> None:
        """Ends the answer early."""
        self._stream.close()
        self._end(complete=False)

    def _parsed(self) -> Iterator[AnswerDelta]:
        try:
            for piece in self._stream:
                for delta in self._parser.push(piece):
                    yield self._added(delta)
        except GeneratorExit:
            raise
        except Exception:
            self._ended = True
            self._drop()
            raise
        except BaseException:
            self.close()
            raise
        if not self._ended:
            for delta in self._parser.flush():
                yield self._added(delta)
        self._end(complete=True)

    def _added(self, delta: AnswerDelta) -> AnswerDelta:
        if delta.is_reasoning:
            self.reasoning += delta.text
        else:
            self.text += delta.text
        return delta

    def _end(self, *, complete: bool) -> None:
        if self._ended:
            return
        self._ended = True
        if not complete:
            for delta in self._parser.flush():
                self._added(delta)
        if complete or self.text.strip():
            self._keep(self)
        else:
            self._drop()


class Chat:
    """A conversation with a model.

        chat = rushlight.Chat(model, system_prompt="Answer in one sentence.")
        reply = chat.send("What is a rushlight?")
        print(reply.text)                             # reply.reasoning is what a reasoning model thought before it

    For each message, the model's chat template renders the entire conversation, and the model continues it. Part of the
    context is reserved for the answer: max_tokens, or half of the context if that is less. When a conversation leaves
    less room, entire turns are dropped from the prompt, oldest first, and never the system prompt; `messages` keeps
    them, and the "rushlight" logger reports it each time. A message that does not fit by itself is an error. Only one
    thread may use a chat at a time; several chats may share a model.

    Attributes:
        model: the model.
        messages: the conversation as `{"role": ..., "content": ...}`, with the system prompt first; an answer with
            marked reasoning has it as `"reasoning"`, and templates decide which of it stays in the prompt.
        template: the format in which it is rendered.
        settings: the sampling settings of the answers.
        stop: the stop strings besides those of the template.
        n_forgotten: the number of oldest messages that are no longer in the prompt.

    Args:
        model: a model with a tokenizer.
        system_prompt: None for none.
        template: a Jinja template, its file, or the name of one of the model's; None for the model's default.
        variables: the template's variables besides the messages: `tools`, `documents`, `enable_thinking`, ...
        now: the time for the template; None for the time at which the chat begins. It stays the same, so that each
            prompt extends the previous one.
        stop: stop strings besides those of the template.
        settings: as for `Model.generate`, without `n`; max_tokens is 256 by default.

    Raises:
        TokenizerError: the model has no tokenizer.
        TemplateError: the template is invalid.
        RequestError: a setting is out of range, or the stop strings are too many or too long.
    """

    def __init__(
        self,
        model: Model,
        *,
        system_prompt: str | None = None,
        template: str | os.PathLike[str] | None = None,
        variables: Mapping[str, Any] | None = None,
        now: datetime | None = None,
        stop: str | Sequence[str] | None = (),
        **settings: Unpack[SamplingSettings],
    ) -> None:
        tokenizer = model.need_tokenizer("a chat needs a tokenizer", or_ids=False)
        self.model = model
        self.template = find_template(model, template, variables=variables, now=now or datetime.now())
        self.stop = StopStrings(stop).strings
        self.settings: SamplingSettings = {"max_tokens": MAX_TOKENS, **without_none(settings)}
        _sampling_params(self.settings)  # validates
        StopStrings((*self.template.stop, *self.stop))
        self.messages: list[Message] = []
        self.n_forgotten = 0
        self._tokenizer = tokenizer
        # A chat template writes the beginning-of-text token itself.
        self._encoder = ConversationEncoder(
            tokenizer, () if isinstance(self.template, ChatTemplate) else tokenizer.prefix_ids
        )
        self._answer: Answer | None = None
        self._stop_ids: tuple[int, ...] | None = None
        self.system_prompt = system_prompt
        if self.template.note:
            _log.warning("%s", self.template.note)

    @property
    def system_prompt(self) -> str | None:
        """The system prompt; setting it does not change the turns."""
        return self.messages[0]["content"] if self._n_system else None

    @system_prompt.setter
    def system_prompt(self, text: str | None) -> None:
        self._close_answer()
        head: list[Message] = [] if text is None else [{"role": "system", "content": text}]
        self.messages = check_messages([*head, *self.messages[self._n_system :]])

    def send(self, text: str, **settings: Unpack[SamplingSettings]) -> Reply:
        """Sends a message and returns the answer, with its reasoning apart from its text.

        Args:
            text: the message. Text in it that spells a special token is plain text.
            settings: settings for this answer, which take precedence over those of the chat.

        Raises:
            ContextLengthError: the message does not fit next to the system prompt and the room for the answer. As
                after any error, the conversation is unchanged.
            RequestError: the message is empty, not a str or not Unicode, or a setting is out of range.
            TemplateError: the template raises an error on the conversation, or exceeds a limit.
            GenerationError: the logits contain NaN or infinity.
        """
        answer = self.stream(text, **settings)
        for _ in answer:
            pass
        return Reply.of(answer)

    def stream(self, text: str, **settings: Unpack[SamplingSettings]) -> Answer:
        """As `send`, but streams the answer. An invalid message raises here, before the first text."""
        self._close_answer()
        if not isinstance(text, str):
            raise RequestError("expected the message as str", found=type(text).__name__)
        if not text.strip():
            raise RequestError("the message is empty")
        return self._reply([*self.messages, {"role": "user", "content": text}], settings)

    def retry(self, **settings: Unpack[SamplingSettings]) -> Answer:
        """Generates another answer to the last message, which replaces the current one.

        Raises:
            RequestError: there is no message; or as `send`.
        """
        self._close_answer()
        return self._reply(self.messages[: self._last_user() + 1], settings)

    def undo(self) -> str:
        """Removes the last message and its answer; returns the message.

        Raises:
            RequestError: there is no message.
        """
        self._close_answer()
        at = self._last_user()
        text = self.messages[at]["content"]
        del self.messages[at:]
        self.n_forgotten = min(self.n_forgotten, len(self.messages) - self._n_system)
        return text

    def reset(self) -> None:
        """Removes all messages but the system prompt."""
        self._close_answer()
        del self.messages[self._n_system :]
        self.n_forgotten = 0

    def save(self, path: str | os.PathLike[str]) -> None:
        """Saves the conversation, including the system prompt, to a JSON file.

        Raises:
            RequestError: the file exists and is not a saved conversation.
            OSError: the file cannot be written.
        """
        self._close_answer()
        write_transcript(path, self.messages, model=self.model.name)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Replaces the conversation, including the system prompt, by one that `save` wrote.

        Raises:
            RequestError, SourceError: the file is not a saved conversation; the conversation is unchanged.
        """
        messages = read_transcript(path)
        self._close_answer()
        self.messages, self.n_forgotten = messages, 0

    def close(self) -> None:
        """Ends the subprocess that renders the template; the next message starts it again."""
        self._close_answer()
        if isinstance(self.template, ChatTemplate):
            self.template.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Chat with {self.model.name}: {len(self.messages)} messages, {self.template.name}>"

    @property
    def _n_system(self) -> int:
        """The number of system prompts at the start of the messages: 0 or 1."""
        return int(bool(self.messages) and self.messages[0]["role"] == "system")

    def _last_user(self) -> int:
        for at in range(len(self.messages) - 1, -1, -1):
            if self.messages[at]["role"] == "user":
                return at
        raise RequestError("the conversation has no message yet")

    def _close_answer(self) -> None:
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.close()

    def _reply(self, messages: list[Message], overrides: SamplingSettings) -> Answer:
        messages = check_messages(messages)
        settings: SamplingSettings = {
            "max_tokens": MAX_TOKENS,
            **without_none(self.settings),
            **without_none(overrides),
        }
        reserve = min(_sampling_params(settings).max_tokens, self.model.context_length // 2)
        rendered, ids, n_forgotten = self._fitting(messages, self.model.context_length - reserve)
        settings["stop_ids"] = (*(settings.get("stop_ids") or ()), *self._turn_end_ids())
        stream = self.model.stream(ids, stop=(*self.template.stop, *self.stop), **settings)
        before, self.messages = self.messages, messages
        n_before, self.n_forgotten = self.n_forgotten, n_forgotten

        def keep(answer: Answer) -> None:
            reasoning = {"reasoning": answer.reasoning} if answer.reasoning else {}
            self.messages = [*messages, {"role": "assistant", "content": answer.text, **reasoning}]
            self._encoder.remember(rendered, ids, list(answer.result.ids))

        def drop() -> None:
            self.messages, self.n_forgotten = before, n_before

        if n_forgotten > n_before:
            n_turns = sum(
                m["role"] == "user" for m in messages[self._n_system + n_before : self._n_system + n_forgotten]
            )
            _log.warning(
                "the context of %d tokens is full: the oldest %s no longer in the prompt",
                self.model.context_length,
                "turn is" if n_turns == 1 else f"{n_turns} turns are",
                extra={"each_time": True},
            )
        template = self.template.text if isinstance(self.template, ChatTemplate) else ""
        parser = reasoning_parser(template, self._tokenizer.added_tokens(), rendered.text)
        self._answer = Answer(stream, parser, keep=keep, drop=drop)
        return self._answer

    def _fitting(self, messages: list[Message], room: int) -> tuple[Rendered, list[int], int]:
        """The prompt, its ids, and the number of oldest messages left out so that it fits.

        Raises:
            ContextLengthError: the last message does not fit even without earlier turns.
        """
        head, turns = messages[: self._n_system], messages[self._n_system :]
        starts = [i for i, message in enumerate(turns) if message["role"] == "user" or i == 0]
        starts = [i for i in starts if i >= min(self.n_forgotten, starts[-1])]

        def prompt(start: int) -> tuple[Rendered, list[int]]:
            rendered = self.template.render([*head, *turns[start:]])
            return rendered, self._encoder.encode(rendered)

        rendered, ids = prompt(starts[0])
        if len(ids) <= room:
            return rendered, ids, starts[0]
        # Bisect: leaving out a turn never makes the prompt longer.
        at = bisect_left(starts, True, lo=1, key=lambda start: len(prompt(start)[1]) <= room)
        if at == len(starts):
            n_needed = len(prompt(starts[-1])[1])
            raise ContextLengthError(
                f"the message takes {n_needed} tokens{' with the system prompt' if head else ''}, and the context of "
                f"{self.model.context_length} has room for {room}: {self.model.context_length - room} are reserved for "
                "the answer",
                remedy=f"shorten it by {n_needed - room} tokens or more",
            )
        rendered, ids = prompt(starts[at])
        return rendered, ids, starts[at]

    def _turn_end_ids(self) -> tuple[int, ...]:
        if self._stop_ids is None:
            self._stop_ids = turn_end_ids(self.template, self._tokenizer, self.model.config.vocab_size)
        return self._stop_ids


def _sampling_params(settings: SamplingSettings) -> SamplingParams:
    """The settings, validated for a chat.

    Raises:
        RequestError: a setting is out of range, or n is above 1.
    """
    params = SamplingParams.of(settings)
    if params.n > 1:
        raise RequestError("a chat has one answer per message", found=f"n {params.n}", remedy="use `Chat.retry`")
    return params
