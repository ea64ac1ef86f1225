"""Conversations: templates rendered out of harm's way, turns whose token ids stay, and the end of the context."""

from rushlight.chat.session import Answer, Chat
from rushlight.chat.template import ChatTemplate, find_template

__all__ = ["Answer", "Chat", "ChatTemplate", "find_template"]
