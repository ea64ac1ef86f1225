"""Conversation formats without a template: DialoGPT's, and plain turns for models that were not trained to chat."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rushlight.chat.provenance import Rendered
from rushlight.errors import TemplateError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["EndOfTextTurns", "PlainTurns"]


class PlainTurns:
    """Plain text with `User:` and `Assistant:` before the turns, for a model without a template.

    Roles are marked by ordinary characters, not special tokens, so a message can forge a turn.
    """

    name = "plain turns"
    note = (
        "this model has no chat template and was not trained to chat: using plain User: and Assistant: turns "
        "(--chat-template FILE sets another format)"
    )
    stop = ("\nUser:", "\nAssistant:", "\nSystem:")

    def render(self, messages: Sequence[Mapping[str, str]]) -> Rendered:
        """The conversation as text, up to the beginning of the answer."""
        return _joined(
            messages, [*(piece for message in messages for piece in _plain_turn(message)), ("Assistant:", "")]
        )


class EndOfTextTurns:
    """Turns without roles, each followed by the end-of-text token, as in DialoGPT's training data.

    Zhang et al., "DialoGPT: Large-Scale Generative Pre-training for Conversational Response Generation",
    arXiv:1911.00536; `{{ message.content }}{{ eos_token }}` in its tokenizer_config.json.
    """

    name = "DialoGPT's end-of-text turns"
    note = None
    stop: tuple[str, ...] = ()

    def __init__(self, end_of_text: str) -> None:
        self._end = end_of_text

    def render(self, messages: Sequence[Mapping[str, str]]) -> Rendered:
        """The conversation as text; the end of the last turn is also the beginning of the answer."""
        if any(message["role"] == "system" for message in messages):
            raise TemplateError(
                "DialoGPT's format has no roles, and so no system prompt", remedy="leave out the system prompt"
            )
        return _joined(messages, [piece for turn in messages for piece in (("", turn["content"]), (self._end, ""))])


def _plain_turn(message: Mapping[str, str]) -> list[tuple[str, str]]:
    role, content = message["role"], message["content"]
    if role == "system":
        return [("", content.strip()), ("\n\n", "")]
    if role == "user":
        return [("User: ", content.strip()), ("\n", "")]
    # An answer keeps the space that the model began it with, so that its tokens stay the same.
    return [("Assistant:" if content[:1].isspace() or not content else "Assistant: ", content), ("\n", "")]


def _joined(messages: Sequence[Mapping[str, str]], pieces: list[tuple[str, str]]) -> Rendered:
    """The text of pieces, which are pairs (text of the format, text of a message)."""
    text, typed = "", []
    for written, content in pieces:
        text += written
        if content:
            typed.append((len(text), len(text) + len(content)))
        text += content
    return Rendered(text, tuple(typed), tuple(message["content"] for message in messages))
