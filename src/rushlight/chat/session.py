"""A conversation with a model: turns, answers as they come, and what is done when the context is full."""

from __future__ import annotations

import logging
from bisect import bisect_left
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rushlight.chat.encoder import ConversationEncoder
from rushlight.chat.template import ChatTemplate, find_template
from rushlight.chat.transcript import Message, check_messages, read_transcript, write_transcript
from rushlight.errors import ContextLengthError, RequestError, RushlightError
from rushlight.generation import SamplingParams, given
from rushlight.text import StopStrings

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence
    from typing import Self, Unpack

    from rushlight.chat.provenance import Rendered
    from rushlight.generation import SamplingSettings
    from rushlight.runtime.model import Model
    from rushlight.runtime.result import Generation
    from rushlight.runtime.streaming import Stream

__all__ = ["MAX_TOKENS", "Answer", "Chat"]

MAX_TOKENS = 256
"""The longest answer, unless the settings say otherwise."""

_log = logging.getLogger("rushlight")


class Answer:
    """An answer as it is generated: iterate for its pieces; `result` then holds the whole.

    It enters the conversation when it ends. One that is closed early, or ended by Ctrl-C, enters it as far as it came;
    if nothing came, the message that it was to answer is taken back.
    """

    def __init__(self, stream: Stream, *, keep: Callable[[Generation], None], drop: Callable[[], None]):
        self.result = stream.result
        self._stream = stream
        self._keep, self._drop = keep, drop
        self._ended = False

    @property
    def prompt_progress(self) -> tuple[int, int]:
        """(prompt tokens computed or found in the prefix cache so far, all of them); any thread may ask."""
        return self._stream.prompt_progress

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        try:
            return next(self._stream)
        except StopIteration:
            self._end(complete=True)
            raise
        except Exception:
            self._ended = True
            self._drop()
            raise
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends the answer where it is."""
        self._stream.close()
        self._end(complete=False)

    def _end(self, *, complete: bool) -> None:
        if self._ended:
            return
        self._ended = True
        if complete or self.result.text.strip():
            self._keep(self.result)
        else:
            self._drop()


class Chat:
    """A conversation with a model.

        chat = rushlight.Chat(model, system_prompt="Answer in one sentence.")
        print(chat.send("What is a rushlight?"))

    Each turn renders the whole conversation by the model's chat template and lets the model go on from there. Before
    that, room is kept for the answer: max_tokens, or half of the context where that is less. A conversation that
    leaves no such room loses its oldest turns from what the model reads, each whole, never the system prompt;
    `messages` keeps them, and the "rushlight" logger says so each time. A single message that does not fit is refused.
    A conversation is for one thread at a time; several of them may share a model.

    Attributes:
        model: the model.
        messages: what was said, `{"role": ..., "content": ...}` each, the system prompt first.
        template: how it is written for the model.
        settings: the sampling settings of the answers; `stop` holds the caller's stop strings.
        n_forgotten: how many messages the model no longer reads.

    Args:
        model: with a tokenizer.
        system_prompt: what stands before the conversation; None for nothing.
        template: a Jinja template, its file, or the name of one of the model's several; None takes the model's
            default.
        variables: what the template sees beside the messages: `tools`, `documents`, `enable_thinking`, ...
        now: the time that the template is told; None is the time at which the chat begins, so that the prompt of each
            turn begins as the last one did.
        stop: strings that end an answer, beside those of the template.
        settings: as for `Model.generate`; max_tokens is 256 unless given, and None is not given.

    Raises:
        TokenizerError: the model has no tokenizer.
        TemplateError: there is no sound template where there should be one.
        RequestError: a setting is out of its range, or the stop strings are too many or too long.
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
        tokenizer = model.need_tokenizer("a conversation is text")
        self.model = model
        self.template = find_template(model, template, variables=variables, now=now or datetime.now())
        self.stop = StopStrings(stop).strings
        self.settings: SamplingSettings = {"max_tokens": MAX_TOKENS, **given(settings)}
        # Made for what they say is wrong, before anything is asked of the model.
        SamplingParams.of(self.settings)
        StopStrings((*self.template.stop, *self.stop))
        self.messages: list[Message] = []
        self.n_forgotten = 0
        self._tokenizer = tokenizer
        self._prompts = ConversationEncoder(tokenizer)
        self._answer: Answer | None = None
        self._end_ids: tuple[int, ...] | None = None
        self.system_prompt = system_prompt
        if self.template.note:
            _log.warning("%s", self.template.note)

    @property
    def system_prompt(self) -> str | None:
        """What stands before the conversation; setting it leaves the turns as they are."""
        return self.messages[0]["content"] if self._n_head else None

    @system_prompt.setter
    def system_prompt(self, text: str | None) -> None:
        self._close_answer()
        head: list[Message] = [] if text is None else [{"role": "system", "content": text}]
        self.messages = check_messages([*head, *self.messages[self._n_head :]])

    def send(self, text: str, **settings: Unpack[SamplingSettings]) -> Generation:
        """The answer to a message.

        Args:
            text: the message. What spells a special token in it is plain text.
            settings: for this answer alone, over those of the chat.

        Raises:
            ContextLengthError: the message does not fit beside the system prompt and the room for the answer. As after
                any error, the conversation is as it was.
            RequestError: the message is empty, no text or not Unicode, or a setting is out of its range.
            TemplateError: the template refuses the conversation, or takes too much.
            GenerationError: the logits hold NaN or infinity.
        """
        answer = self.stream(text, **settings)
        for _ in answer:
            pass
        return answer.result

    def stream(self, text: str, **settings: Unpack[SamplingSettings]) -> Answer:
        """As `send`, piece by piece. What is wrong is raised here, before the first piece."""
        self._close_answer()
        if not isinstance(text, str):
            raise RequestError("a message is text", found=type(text).__name__)
        if not text.strip():
            raise RequestError("the message is empty")
        return self._reply([*self.messages, {"role": "user", "content": text}], settings)

    def retry(self, **settings: Unpack[SamplingSettings]) -> Answer:
        """Another answer to the last message, in place of the one there is.

        Raises:
            RequestError: nothing was said yet; or as `send`.
        """
        self._close_answer()
        return self._reply(self.messages[: self._last_user() + 1], settings)

    def undo(self) -> str:
        """Takes the last message and its answer back; returns the message.

        Raises:
            RequestError: nothing was said yet.
        """
        self._close_answer()
        at = self._last_user()
        text = self.messages[at]["content"]
        del self.messages[at:]
        self.n_forgotten = min(self.n_forgotten, len(self.messages) - self._n_head)
        return text

    def reset(self) -> None:
        """Forgets all that was said; the system prompt stays."""
        self._close_answer()
        del self.messages[self._n_head :]
        self.n_forgotten = 0

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the conversation, with its system prompt, to a JSON file.

        Raises:
            RequestError: there is a file that is no saved conversation.
            OSError: it cannot be written.
        """
        self._close_answer()
        write_transcript(path, self.messages, model=self.model.name)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Takes the conversation of a file that `save` wrote in place of this one, with its system prompt.

        Raises:
            RequestError, SourceError: it is no such file; the conversation is as it was.
        """
        messages = read_transcript(path)
        self._close_answer()
        self.messages, self.n_forgotten = messages, 0

    def close(self) -> None:
        """Ends the process that renders the template; it starts again when it is needed."""
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
    def _n_head(self) -> int:
        return int(bool(self.messages) and self.messages[0]["role"] == "system")

    def _last_user(self) -> int:
        for at in range(len(self.messages) - 1, -1, -1):
            if self.messages[at]["role"] == "user":
                return at
        raise RequestError("nothing was said yet")

    def _close_answer(self) -> None:
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.close()

    def _reply(self, messages: list[Message], overrides: SamplingSettings) -> Answer:
        messages = check_messages(messages)
        settings: SamplingSettings = {"max_tokens": MAX_TOKENS, **given(self.settings), **given(overrides)}
        reserve = min(SamplingParams.of(settings).max_tokens, self.model.context_length // 2)
        rendered, ids, n_forgotten = self._fitting(messages, self.model.context_length - reserve)
        settings["stop_ids"] = (*(settings.get("stop_ids") or ()), *self._turn_ends())
        stream = self.model.stream(ids, stop=(*self.template.stop, *self.stop), **settings)
        before, self.messages = self.messages, messages
        n_before, self.n_forgotten = self.n_forgotten, n_forgotten

        def keep(result: Generation) -> None:
            self.messages = [*messages, {"role": "assistant", "content": result.text}]
            self._prompts.remember(rendered, ids, list(result.ids))

        def drop() -> None:
            self.messages, self.n_forgotten = before, n_before

        if n_forgotten > n_before:
            n_turns = sum(m["role"] == "user" for m in messages[self._n_head + n_before : self._n_head + n_forgotten])
            _log.warning(
                "the context of %d tokens is full: the oldest %s no longer read",
                self.model.context_length,
                "turn is" if n_turns == 1 else f"{n_turns} turns are",
                extra={"each_time": True},
            )
        self._answer = Answer(stream, keep=keep, drop=drop)
        return self._answer

    def _fitting(self, messages: list[Message], room: int) -> tuple[Rendered, list[int], int]:
        """The prompt, its ids, and how many of the oldest messages had to be left out for it to fit.

        Raises:
            ContextLengthError: the last message does not fit even alone.
        """
        head, turns = messages[: self._n_head], messages[self._n_head :]
        starts = [i for i, message in enumerate(turns) if message["role"] == "user" or i == 0]
        starts = [i for i in starts if i >= min(self.n_forgotten, starts[-1])]

        def prompt(start: int) -> tuple[Rendered, list[int]]:
            rendered = self.template.render([*head, *turns[start:]])
            return rendered, self._prompts.encode(rendered)

        rendered, ids = prompt(starts[0])
        if len(ids) <= room:
            return rendered, ids, starts[0]
        # Almost always one turn is enough, and never does leaving one out make the prompt longer.
        at = bisect_left(starts, True, lo=1, key=lambda start: len(prompt(start)[1]) <= room)
        if at == len(starts):
            n_needed = len(prompt(starts[-1])[1])
            raise ContextLengthError(
                f"the message takes {n_needed} tokens{' with the system prompt' if head else ''}, and of the context "
                f"of {self.model.context_length} there are {room} beside the {self.model.context_length - room} kept "
                "for the answer",
                remedy=f"shorten it by {n_needed - room} tokens or more",
            )
        rendered, ids = prompt(starts[at])
        return rendered, ids, starts[at]

    def _turn_ends(self) -> tuple[int, ...]:
        """The tokens with which the template ends an answer: those of the checkpoint's config may leave them out."""
        if self._end_ids is None:
            self._end_ids = self._find_turn_ends()
        return self._end_ids

    def _find_turn_ends(self) -> tuple[int, ...]:
        if not isinstance(self.template, ChatTemplate):
            return ()
        asked = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
        try:
            rendered = self.template.render(asked, answer=False)
        except RushlightError:  # it wants another conversation; then the config's tokens have to do
            return ()
        if not rendered.typed:
            return ()
        after = rendered.text[rendered.typed[-1][1] :].lstrip()
        end = max((token for token in self._tokenizer.added_tokens() if after.startswith(token)), key=len, default="")
        ids = self._tokenizer.encode(end, allow_special=True)
        return tuple(i for i in ids if i < self.model.config.vocab_size)
