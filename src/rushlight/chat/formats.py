"""The two formats of turns that need no template: DialoGPT's, and one for models that never learnt to chat."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rushlight.chat.provenance import Rendered
from rushlight.errors import TemplateError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["EndOfTextTurns", "PlainTurns"]


class PlainTurns:
    """`User:` and `Assistant:` before plain text, for a model without a template.

    What stands between the turns are characters that anybody can type: where no token marks a role, none can be kept
    from being forged.
    """

    name = "plain turns"
    note = (
        "this model has no chat template and was not trained to chat: using plain User: and Assistant: turns "
        "(--chat-template FILE gives another form)"
    )
    stop = ("\nUser:", "\nAssistant:", "\nSystem:")

    def render(self, messages: Sequence[Mapping[str, str]]) -> Rendered:
        """The conversation as text, up to where the model speaks."""
        return _joined(
            messages, [*(piece for message in messages for piece in _plain_turn(message)), ("Assistant:", "")]
        )


class EndOfTextTurns:
    """Turns that each end with the end-of-text token and name no speaker, as DialoGPT was trained on.

    Zhang et al., "DialoGPT: Large-Scale Generative Pre-training for Conversational Response Generation",
    arXiv:1911.00536; `{{ message.content }}{{ eos_token }}` in its tokenizer_config.json.
    """

    name = "DialoGPT's end-of-text turns"
    note = None
    stop: tuple[str, ...] = ()

    def __init__(self, end_of_text: str) -> None:
        self._end = end_of_text

    def render(self, messages: Sequence[Mapping[str, str]]) -> Rendered:
        """The conversation as text. The end of the last turn is also where the model speaks."""
        if any(message["role"] == "system" for message in messages):
            raise TemplateError(
                "DialoGPT's turns name no roles: there is no place for a system prompt", remedy="leave it out"
            )
        return _joined(messages, [piece for turn in messages for piece in (("", turn["content"]), (self._end, ""))])


def _plain_turn(message: Mapping[str, str]) -> list[tuple[str, str]]:
    role, content = message["role"], message["content"]
    if role == "system":
        return [("", content.strip()), ("\n\n", "")]
    if role == "user":
        return [("User: ", content.strip()), ("\n", "")]
    # An answer begins with the space that the model gave it, so that it keeps its tokens.
    return [("Assistant:" if content[:1].isspace() or not content else "Assistant: ", content), ("\n", "")]


def _joined(messages: Sequence[Mapping[str, str]], pieces: list[tuple[str, str]]) -> Rendered:
    """A text of pieces (what the format writes, what was typed)."""
    text, typed = "", []
    for written, content in pieces:
        text += written
        if content:
            typed.append((len(text), len(text) + len(content)))
        text += content
    return Rendered(text, tuple(typed), tuple(message["content"] for message in messages))
