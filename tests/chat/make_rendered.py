"""Writes rendered.json: each conversation as transformers renders it with each template.

    python tests/chat/make_rendered.py        # needs transformers: .venv-parity

The templates are written for these tests in the styles of published ones.
"""

import json
import sys
from datetime import datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from conversations import CONVERSATIONS, NOW, SPECIAL_TOKENS, TEMPLATES

RECORD = Path(__file__).with_name("rendered.json")


def rendered() -> dict:
    """Versions, and for each template the text for each conversation, or the error as [its message]."""
    import jinja2
    import transformers
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from transformers.utils import chat_template_utils

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls.fromisoformat(NOW)

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"x": 0})), **SPECIAL_TOKENS)
    original, chat_template_utils.datetime = chat_template_utils.datetime, Clock
    try:
        texts: dict = {}
        for path in sorted(TEMPLATES.glob("*.jinja")):
            texts[path.stem] = {}
            for name, (messages, variables) in CONVERSATIONS.items():
                try:
                    text = tokenizer.apply_chat_template(
                        messages, chat_template=path.read_text(encoding="utf-8"), tokenize=False, **variables
                    )
                except jinja2.exceptions.TemplateError as error:
                    plain = type(error) is jinja2.exceptions.TemplateError
                    text = [str(error) if plain else f"{type(error).__name__}: {error}"]
                except (TypeError, AttributeError) as error:
                    text = [f"{type(error).__name__}: {error}"]
                texts[path.stem][name] = text
    finally:
        chat_template_utils.datetime = original
    return {"transformers": transformers.__version__, "jinja2": jinja2.__version__, "texts": texts}


if __name__ == "__main__":
    RECORD.write_text(json.dumps(rendered(), ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
