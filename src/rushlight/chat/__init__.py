"""Chat: sandboxed templates, conversations that keep their token ids, and context overflow.

Without a session: `find_template(model).render(messages)` renders a conversation, `ConversationEncoder` encodes it, and
`turn_end_ids` returns the tokens that end an answer.
"""

from rushlight.chat.encoder import ConversationEncoder
from rushlight.chat.reasoning import AnswerDelta
from rushlight.chat.session import Answer, Chat, Reply
from rushlight.chat.template import ChatTemplate, find_template, turn_end_ids

__all__ = [
    "Answer",
    "AnswerDelta",
    "Chat",
    "ChatTemplate",
    "ConversationEncoder",
    "Reply",
    "find_template",
    "turn_end_ids",
]
