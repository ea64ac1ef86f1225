"""Templates in the styles of published ones render byte for byte as in transformers."""

import json
from datetime import datetime
from pathlib import Path

import conversations as cases
import pytest

from rushlight.errors import TemplateError

HERE = Path(__file__).parent


RECORD = json.loads((HERE / "rendered.json").read_text(encoding="utf-8"))
NAMES = sorted(path.stem for path in cases.TEMPLATES.glob("*.jinja"))


def test_the_record_covers_all_templates():
    assert len(NAMES) >= 50
    assert sorted(RECORD["texts"]) == NAMES
    assert all(list(texts) == list(cases.CONVERSATIONS) for texts in RECORD["texts"].values())
    assert int(RECORD["transformers"].partition(".")[0]) >= 5


@pytest.mark.parametrize("template", NAMES)
def test_a_template_renders_as_in_transformers(renderer, template):
    source = (cases.TEMPLATES / f"{template}.jinja").read_text(encoding="utf-8")
    for name, (messages, variables) in cases.CONVERSATIONS.items():
        known = {"tools": None, "documents": None, "add_generation_prompt": False}
        try:
            [text] = renderer.render(
                source,
                [messages],
                {**cases.SPECIAL_TOKENS, **known, **variables},
                now=datetime.fromisoformat(cases.NOW),
            )
        except TemplateError as error:
            text = [error.message.partition(": ")[2]]
        assert text == RECORD["texts"][template][name], name


@pytest.mark.parity
def test_the_record_equals_transformers():
    from make_rendered import rendered

    live = rendered()
    assert live["texts"] == RECORD["texts"]
