"""Constrained generation: the tokens that a JSON schema or a regex allows next, through the llguidance library."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from rushlight.errors import GenerationError, LibraryError, RequestError
from rushlight.text.schema_cost import MAX_PROPERTIES, check_cost

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from rushlight.text.tokenizer import Tokenizer

__all__ = ["Constraint", "Grammars"]

_SPACES = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""White space as Python's json module writes it; free white space would let a model emit spaces without end."""
_MAX_SCHEMA_CHARS = 1 << 18
"""The longest schema passed as a mapping, in JSON."""
_ITEMS_OF_A_PROPERTY = 5
"""The most items per optional property in a row of the parser."""


class Constraint:
    """The grammar state of one sequence."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size

    def allowed(self) -> NDArray[np.bool_]:
        """(V,): whether each token may be next. End-of-text tokens may once the text is complete."""
        return np.frombuffer(self._matcher.compute_logit_bias(), np.uint8)[: self._vocab_size] > 0

    def accept_token(self, token_id: int) -> None:
        """Advances by the sampled token.

        Raises:
            GenerationError: the token is not allowed, or the library gives up because the grammar is too expensive.
        """
        if not self._matcher.consume_token(token_id):
            reason = self._matcher.get_error().partition("\n")[0]
            raise GenerationError(f"the grammar cannot be followed: {reason}")

    def copy(self) -> Constraint:
        """An independent copy, for a sequence that branches off here."""
        return Constraint(self._matcher.deep_copy(), self._vocab_size)


class Grammars:
    """Compiles constraints for the tokens of one model.

    Args:
        tokenizer: the model's tokenizer.
        vocab_size: V, the number of logits.
        eos_ids: the model's end-of-text tokens, at least one.

    Raises:
        LibraryError: llguidance is not installed.
        RequestError: the model has no end-of-text token, or the library cannot map this tokenizer's tokens to bytes.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_ids: Sequence[int]) -> None:
        try:
            import llguidance
        except ImportError:
            raise LibraryError(
                "json_schema and regex need the llguidance library", remedy="pip install 'rushlight[constrain]'"
            ) from None
        if not eos_ids:
            raise RequestError("json_schema and regex need an end-of-text token, and the model has none")
        self._matcher = llguidance.LLMatcher
        self._vocab_size = vocab_size
        n_vocab = max(vocab_size, tokenizer.vocab_size)  # the model may not embed every token
        self._limits = llguidance.LLParserLimits(max_items_in_row=_ITEMS_OF_A_PROPERTY * MAX_PROPERTIES)
        try:
            self._tokens = llguidance.LLTokenizer(tokenizer.to_json(), n_vocab=n_vocab, eos_token=list(eos_ids))
        except ValueError as error:
            raise RequestError(f"json_schema and regex do not work with this tokenizer: {error}") from None

    def json_schema(self, schema: Mapping[str, Any] | str) -> Constraint:
        """Constrains to JSON that a schema accepts (json-schema.org).

        Raises:
            RequestError: not a valid schema, or one that llguidance does not support or would compile for minutes.
        """
        try:
            value = json.loads(schema) if isinstance(schema, str) else dict(schema)
            text = json.dumps(value, allow_nan=False)
            n_chars = 0 if isinstance(schema, str) else len(json.dumps(value, ensure_ascii=False))
        except (RecursionError, TypeError, ValueError) as error:
            raise RequestError(f"json_schema is not JSON: {error}") from None
        if n_chars > _MAX_SCHEMA_CHARS:
            raise RequestError(
                "json_schema is too long", expected=f"at most {_MAX_SCHEMA_CHARS:,} characters", found=f"{n_chars:,}"
            )
        check_cost(value)
        try:
            grammar = self._matcher.grammar_from_json_schema(text, defaults=_SPACES)
        except ValueError as error:
            raise RequestError(f"json_schema cannot be used: {error}") from None
        return self._constraint("json_schema", grammar)

    def regex(self, pattern: str) -> Constraint:
        """Constrains to text that a pattern matches in full, in the syntax of Rust's regex crate.

        Raises:
            RequestError: not a valid pattern, or a feature that the syntax lacks, such as look-around.
        """
        return self._constraint("regex", self._matcher.grammar_from_regex(pattern))

    def _constraint(self, name: str, grammar: str) -> Constraint:
        matcher = self._matcher(self._tokens, grammar, log_level=0, limits=self._limits)
        if matcher.is_error():
            raise RequestError(f"{name} cannot be used: {_explanation(matcher.get_error())}")
        return Constraint(matcher, self._vocab_size)


def _explanation(error: str) -> str:
    """The library's explanation without the excerpt of the grammar."""
    lines = [line.strip() for line in error.splitlines()]
    reasons = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return "; ".join(reasons) or lines[0]
