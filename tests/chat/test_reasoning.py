"""The reasoning of an answer is separated from its text, however the text is streamed."""

from pathlib import Path

import pytest
from chat_helpers import CHATML
from hypothesis import given
from hypothesis import strategies as st

from rushlight import Chat
from rushlight.chat import find_template
from rushlight.chat.reasoning import AnswerDelta, Channels, TextOnly, ThinkTags, reasoning_parser
from rushlight.errors import RequestError
from rushlight.runtime.result import Generation, Stats

TEMPLATES = Path(__file__).parent / "templates"
HARMONY = (
    "<|channel|>analysis<|message|>User asks.<|end|><|start|>assistant<|channel|>commentary<|message|>Look up.<|end|>"
    "<|start|>assistant<|channel|>final<|message|>Paris."
)


def split(parser, pieces):
    deltas = [delta for piece in pieces for delta in parser.push(piece)] + list(parser.flush())
    assert all(delta.text for delta in deltas if not isinstance(parser, TextOnly))
    reasoning, text = ("".join(d.text for d in deltas if d.is_reasoning is kind) for kind in (True, False))
    return reasoning, text


def in_pieces(text, cuts):
    cuts = sorted(min(cut, len(text)) for cut in cuts)
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


CUTS = st.lists(st.integers(0, 200), max_size=12)

EXAMPLES = [
    (False, "<think>\nhm, so\n</think>\n\nBecause.", ("hm, so", "Because.")),
    (False, "\n<think>a</think>b", ("a", "b")),
    (False, "<think>\n\n</think>\n\nAt once.", ("", "At once.")),
    (False, "No reasoning, but a <think> tag</think>.", ("", "No reasoning, but a <think> tag</think>.")),
    (False, "  plain ", ("", "  plain ")),
    (False, "<thin", ("", "<thin")),
    (False, "", ("", "")),
    (False, "<think>cut off </thi", ("cut off </thi", "")),
    (False, "<think>a < b </ c\n\n d</think>x</think>", ("a < b </ c\n\n d", "x</think>")),
    (True, "\nhm</think>\n\nBecause.", ("hm", "Because.")),
    (True, " still thinking \n", ("still thinking", "")),
]


@pytest.mark.parametrize(("is_open", "text", "expected"), EXAMPLES)
@given(cuts=CUTS)
def test_think_tags(is_open, text, expected, cuts):
    assert split(ThinkTags(is_open=is_open), in_pieces(text, cuts)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (HARMONY, ("User asks.\nLook up.", "Paris.")),
        ("<|channel|>final<|message|>At once.", ("", "At once.")),
        ("<|channel|>analysis<|message|>Cut o", ("Cut o", "")),
        ("<|channel|>analysis<|message|>Cut <|en", ("Cut <|en", "")),
        ("<|channel|>analysis<|message|>a<|end|><|start|>assist", ("a", "")),
        ("<|channel|>final <|constrain|>json<|message|>{}", ("", "{}")),
        ("no header", ("", "no header")),
        ("", ("", "")),
    ],
)
@given(cuts=CUTS)
def test_channels(text, expected, cuts):
    assert split(Channels(), in_pieces(text, cuts)) == expected


def test_reasoning_is_streamed_as_it_comes():
    parser = ThinkTags(is_open=False)
    assert [list(parser.push(piece)) for piece in ["<think>", "\n", "I ", "am.", "\n", "</", "think>", "\n", "So"]] == [
        [], [], [("I", True)], [(" am.", True)], [], [], [], [], [AnswerDelta("So", is_reasoning=False)],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("template", "added", "prompt", "kind"),
    [
        ("{{ messages[0].content.split('</think>') }}", [], "", ThinkTags),
        (CHATML, ["<think>", "</think>"], "", ThinkTags),
        (CHATML, ["<|im_end|>"], "<think>", TextOnly),
        ("", ["</think>"], "", TextOnly),
        ("<|start|>assistant<|channel|>final<|message|>{{ x }}", ["</think>"], "", Channels),
    ],
)
def test_the_parser_is_that_of_the_model(template, added, prompt, kind):
    assert type(reasoning_parser(template, added, prompt)) is kind


def test_an_answer_continues_the_reasoning_that_the_prompt_begins():
    deltas = reasoning_parser("</think>", [], "<|im_start|>assistant\n<think>\n").push("so</think>x")
    assert list(deltas) == [("so", True), ("x", False)]


class Scripted:
    """A stream of given pieces."""

    prompt_progress = (1, 1)

    def __init__(self, *pieces):
        self.result = Generation([1, 2], None, Stats(2), ids=[3], text="".join(pieces), finish_reason="stop")
        self._pieces = iter(pieces)

    def __iter__(self):
        return self

    def __next__(self):
        return next(self._pieces)

    def close(self):
        self._pieces = iter(())


QWEN = (
    "{% for m in messages %}<{{ m.role }}>"
    "{% if m.reasoning_content is defined and loop.last %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% if enable_thinking is false %}<think></think>{% endif %}{% endif %}"
)


@pytest.fixture
def scripted(tales, monkeypatch):
    """`scripted(*pieces)`: a chat whose model answers with these pieces."""
    chats = []

    def scripted(*pieces, template=QWEN):
        chats.append(Chat(tales, template=template))
        monkeypatch.setattr(tales, "stream", lambda *_, **__: Scripted(*pieces))
        return chats[-1]

    yield scripted
    for chat in chats:
        chat.close()


def test_an_answer_has_its_reasoning_apart_from_its_text(scripted, tmp_path):
    chat = scripted("<think>", "hm", "</think>", "\n\nBe", "cause.")
    answer = chat.stream("Why?")
    assert list(answer.deltas()) == [("hm", True), ("Be", False), ("cause.", False)]
    assert (answer.reasoning, answer.text) == ("hm", "Because.")
    assert answer.result.text == "<think>hm</think>\n\nBecause."
    assert chat.messages[-1] == {"role": "assistant", "content": "Because.", "reasoning": "hm"}
    assert "".join(chat.stream("Why?")) == "Because."
    assert (
        chat.template.render(chat.messages[:2], answer=False).text == "<user>Why?<assistant><think>hm</think>Because."
    )
    chat.save(tmp_path / "talk.json")
    saved = list(chat.messages)
    chat.reset()
    chat.load(tmp_path / "talk.json")
    assert chat.messages == saved


def test_a_reply_has_its_reasoning_apart_from_its_text(scripted):
    chat = scripted("<think>", "hm", "</think>", "\n\nBe", "cause.")
    reply = chat.send("Why?")
    assert isinstance(reply, Generation)
    assert (str(reply), reply.text, reply.reasoning) == ("Because.", "Because.", "hm")
    assert (reply.prompt_ids, reply.ids, reply.finish_reason) == ([1, 2], [3], "stop")


def test_a_reply_of_a_model_that_does_not_reason_is_all_text(tales):
    with Chat(tales, max_tokens=5) as chat:
        reply = chat.send("Hello")
        assert reply.reasoning == ""
        assert reply.text == tales.tokenizer.decode(reply.ids, before=reply.prompt_ids) == chat.messages[-1]["content"]


def test_qwen3_sees_the_reasoning_of_no_earlier_turn(scripted):
    chat = scripted("<think>\nhm, so\n</think>\n\nBecause.", template=TEMPLATES / "qwen3.jinja")
    assert chat.send("Why?").reasoning == "hm, so"
    rendered = chat.template.render([*chat.messages, {"role": "user", "content": "So?"}])
    assert rendered.text == (
        "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\nBecause.<|im_end|>\n"
        "<|im_start|>user\nSo?<|im_end|>\n<|im_start|>assistant\n"
    )
    last = chat.template.render(chat.messages, answer=False)
    assert last.text.endswith("<|im_start|>assistant\n<think>\nhm, so\n</think>\n\nBecause.<|im_end|>\n")


def test_the_template_leaves_out_earlier_reasoning(scripted):
    chat = scripted("<think>hm</think>Because.")
    chat.send("Why?")
    rendered = chat.template.render([*chat.messages, {"role": "user", "content": "So?"}])
    assert rendered.text == "<user>Why?<assistant>Because.<user>So?<assistant>"
    assert rendered.typed is not None


@pytest.mark.parametrize(("n", "messages"), [(1, []), (3, ["Why?", "Be"])], ids=["in the reasoning", "in the text"])
def test_an_answer_that_is_closed_early_is_kept_if_it_has_text(scripted, n, messages):
    chat = scripted("<think>hm", " so", "</think>\n\nBe", "cause.")
    answer = chat.stream("Why?")
    deltas = answer.deltas()
    for _ in range(n):
        next(deltas)
    answer.close()
    assert answer.reasoning == ("hm" if n == 1 else "hm so")
    assert [message["content"] for message in chat.messages] == messages


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        ({"role": "user", "content": "x", "reasoning": "y"}, "only an answer has reasoning"),
        ({"role": "assistant", "content": "x", "reasoning": 3}, "the reasoning must be a string"),
        ({"role": "assistant", "content": "x", "reasoning": "\ud800"}, "the reasoning contains half"),
        ({"role": "assistant", "content": "x", "thoughts": "y"}, "expected exactly role and content"),
    ],
)
def test_reasoning_of_another_kind_is_an_error(scripted, message, problem):
    chat = scripted("x")
    chat.messages = [{"role": "user", "content": "a"}, message]
    with pytest.raises(RequestError, match=problem):
        chat.stream("b")


def test_variables_turn_thinking_off(tales):
    template = find_template(tales, QWEN, variables={"enable_thinking": False})
    assert template.render([{"role": "user", "content": "Hi"}]).text.endswith("<assistant><think></think>")
    template.close()
