"""What users give, text or token ids, as the token ids that a model takes: checked, and with all that is wrong said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from numbers import Integral
from reprlib import repr as short_repr
from typing import TYPE_CHECKING, Any, cast

from rushlight.errors import ContextLengthError, RequestError, TokenizerError
from rushlight.generation import SamplingSettings, takes_settings
from rushlight.text import encode_pieces

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Unpack

    from rushlight.generation import Perplexity
    from rushlight.text import Tokenizer

    Prompt = str | Sequence[int]


@dataclass(frozen=True, slots=True, init=False)
class Request:
    """One of many prompts, with what `Model.generate` takes beside it: `Request("Once", max_tokens=20, stop=".")`.

    It is checked when it is generated, so that an invalid one does not stop the others.

    Attributes:
        prompt: text, or token ids.
        stop: strings that end the text.
        settings: what was given by keyword, and in the mapping `settings`, where a program has them in one; a keyword
            wins.
    """

    prompt: str | Sequence[int]
    stop: str | Sequence[str] | None
    settings: SamplingSettings

    @takes_settings
    def __init__(
        self,
        prompt: str | Sequence[int],
        stop: str | Sequence[str] | None = (),
        settings: SamplingSettings | None = None,
        **keywords: Unpack[SamplingSettings],
    ) -> None:
        given: Any = settings or {}
        if keywords and isinstance(given, Mapping):
            given = {**given, **keywords}
        for name, value in (("prompt", prompt), ("stop", stop), ("settings", given)):
            object.__setattr__(self, name, value)


@dataclass(frozen=True, slots=True)
class PromptEncoder:
    """Reads prompts for one model.

    Attributes:
        name: the model's, for its errors.
        tokenizer: None if it has none; then there is no text.
        no_tokenizer: the reason why it has none, if the files name one.
        vocab_size: V.
        context_length: the most tokens that it takes.
        start_id: what an empty prompt stands for; None if the model has no such token.
    """

    name: str
    tokenizer: Tokenizer | None
    vocab_size: int
    context_length: int
    start_id: int | None
    no_tokenizer: TokenizerError | None = None

    def need_tokenizer(self, why: str) -> Tokenizer:
        """The tokenizer.

        Raises:
            TokenizerError: there is none, and `why` it is needed.
        """
        if self.no_tokenizer is not None:
            raise TokenizerError(
                f"{why}, and {self.no_tokenizer.message}",
                file=self.no_tokenizer.file,
                remedy=f"give token ids, or {self.no_tokenizer.remedy}",
            )
        if self.tokenizer is None:
            raise TokenizerError(
                f"{why}, and {self.name} has no tokenizer",
                remedy="put its tokenizer.json, or vocab.json and merges.txt, beside the weights, or give token ids",
            )
        return self.tokenizer

    def ids(self, prompt: Prompt) -> list[int]:
        """The ids of a text, after what the tokenizer puts before every text; or the ids themselves, as they are.

        Raises:
            RequestError: it is neither, or several prompts, or the model does not embed one of the tokens.
            TokenizerError: there is text and no tokenizer.
        """
        if isinstance(prompt, str):
            return [*self.beginning("the prompt is text"), *self.text_ids(prompt)]
        ids: list[int] = []
        given: Iterator[int] = _items(prompt, "a prompt is text, or token ids")
        for i in given:
            if not isinstance(i, Integral) or isinstance(i, bool):
                is_prompt = isinstance(i, str | Sequence) or getattr(i, "ndim", 0) == 1
                remedy = "this takes one prompt: `generate_many` takes several" if is_prompt else None
                raise RequestError("a prompt is text, or token ids", found=short_repr(i), remedy=remedy)
            if not 0 <= i < self.vocab_size:
                raise RequestError(f"no such token: {i}", expected=f"ids from 0 to {self.vocab_size - 1}")
            ids.append(int(i))
        return ids

    def beginning(self, why: str) -> list[int]:
        """What the tokenizer puts before every text.

        Raises:
            RequestError: the model does not embed it.
            TokenizerError: there is no tokenizer, and `why` it is needed.
        """
        return list(self._embedded(self.need_tokenizer(why).beginning))

    def text_ids(self, text: str) -> list[int]:
        """The ids of a text alone.

        Raises:
            RequestError, TokenizerError: as `ids`.
        """
        tokenizer = self.need_tokenizer("the prompt is text")
        return list(self._embedded(tokenizer.encode(text)))

    def _embedded(self, ids: Iterable[int]) -> Iterator[int]:
        for i in ids:
            if i >= self.vocab_size:
                raise RequestError(
                    f'the model does not embed the token "{self.tokenizer and self.tokenizer.decode([i])}", {i}',
                    expected=f"ids from 0 to {self.vocab_size - 1}",
                )
            yield i

    def started(self, prompt: Prompt) -> list[int]:
        """The same, and for an empty prompt the token that a text starts from.

        Raises:
            RequestError: there is no such token.
        """
        ids = self.ids(prompt)
        if ids:
            return ids
        if self.start_id is None:
            raise RequestError("the prompt is empty, and the model has no end-of-text token to start from")
        return [self.start_id]

    def continued(self, prompt: Prompt, max_tokens: int) -> list[int]:
        """The same, of a prompt that leaves room for a token where some are wanted.

        Raises:
            ContextLengthError: it does not.
        """
        ids = self.started(prompt)
        most = self.context_length - (1 if max_tokens else 0)
        if len(ids) > most:
            raise ContextLengthError(
                f"the prompt has {len(ids)} tokens, and the model's context is {self.context_length}",
                remedy=f"shorten it by {len(ids) - most} tokens or more",
            )
        return ids

    def pair(self, prompt: Prompt, continuation: Prompt) -> tuple[list[int], list[int]]:
        """The ids of a prompt and of what follows it, encoded together where both are text.

        White space at the end of the prompt goes to the continuation, whose tokens are those that the whole has beyond
        the prompt's own, as lm-evaluation-harness has it. Where a token spans the join, so that the whole does not
        begin with the prompt's tokens, the continuation's are its own.

        Raises:
            RequestError: the continuation has no tokens; a token spans the join, and the two apart are another text; or
                both are too long (ContextLengthError).
        """
        if isinstance(prompt, str) and isinstance(continuation, str):
            prompt_ids = self.ids(prompt.rstrip())
            ids = self._continued(prompt_ids, prompt + continuation, prompt[len(prompt.rstrip()) :] + continuation)
        else:
            prompt_ids = self.ids(prompt)
            ids = self.text_ids(continuation) if isinstance(continuation, str) else self.ids(continuation)
        prompt_ids = prompt_ids or self.started(prompt_ids)
        if not ids:
            raise RequestError("the continuation has no tokens")
        n_ids = len(prompt_ids) + len(ids)
        if n_ids > self.context_length + 1:
            raise ContextLengthError(
                f"prompt and continuation have {n_ids} tokens, and the model's context is {self.context_length}",
                remedy=f"shorten them by {n_ids - self.context_length - 1} tokens or more",
            )
        return prompt_ids, ids

    def _continued(self, prompt_ids: list[int], whole: str, continuation: str) -> list[int]:
        """The ids of what follows a prompt in a whole text."""
        whole_ids = self.ids(whole)
        if whole_ids[: len(prompt_ids)] == prompt_ids:
            return whole_ids[len(prompt_ids) :]
        ids, decode = self.text_ids(continuation), self.need_tokenizer("the prompt is text").decode
        if decode([*prompt_ids, *ids]) != decode(whole_ids):
            raise RequestError(
                "a token spans the join of prompt and continuation, and apart they are another text",
                expected=repr(decode(whole_ids)[-40:]),
                found=repr(decode([*prompt_ids, *ids])[-40:]),
                remedy="cut the text where a word begins, or give token ids",
            )
        return ids

    def pieces(self, text: Iterable[str] | Iterable[int], result: Perplexity) -> Iterator[int]:
        """The ids of a text of any length, or of its pieces, or of ids, as they are asked for.

        Before those of text comes what the tokenizer puts before every text.

        Args:
            text: read as it is needed.
            result: it counts the bytes of each piece, and the tokens before the text.
        """
        what = "a text is a string, its pieces, or its token ids"
        items: Iterator[Any] = iter([text]) if isinstance(text, str) else _items(text, what)
        nothing = object()
        first = next(items, nothing)
        if first is nothing:
            return
        items = chain([first], items)
        if not isinstance(first, str):
            for i in items:
                yield from self.ids([i])
            return

        def counted() -> Iterator[str]:
            for piece in items:
                if not isinstance(piece, str):
                    raise RequestError(what, found=f"{short_repr(piece)} among its pieces")
                result.count_bytes(len(piece.encode(errors="surrogatepass")))
                yield piece

        tokenizer, beginning = self.need_tokenizer("there is text to encode"), self.beginning("there is text to encode")
        result.n_beginning = len(beginning)
        yield from beginning
        yield from self._embedded(encode_pieces(tokenizer, counted()))


def _items(given: object, what: str) -> Iterator[Any]:
    """What there is to go through.

    Raises:
        RequestError: nothing is; it says `what` was wanted.
    """
    if not isinstance(given, bytes | bytearray | Mapping):  # the numbers of bytes are no tokens
        with suppress(TypeError):
            return iter(cast("Iterable[Any]", given))
    raise RequestError(what, found=type(given).__name__)
