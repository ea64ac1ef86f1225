"""Chat: sandboxed templates, conversations that keep their token ids, and context overflow.

For rendering without a session: `find_template(model).render(messages)` gives the text, `ConversationEncoder` its token
ids, and `turn_end_ids` the tokens that end an answer.
"""

from rushlight.chat.encoder import ConversationEncoder
from rushlight.chat.session import Answer, Chat
from rushlight.chat.template import ChatTemplate, find_template, turn_end_ids

__all__ = ["Answer", "Chat", "ChatTemplate", "ConversationEncoder", "find_template", "turn_end_ids"]
