"""Six published tokenizers: ids, decoding, streaming and chat equal to the tokenizers library and transformers.

Ids are compared with the library and the file itself: transformers 5 rebuilds the pipeline of some classes, such as
Llama's, and then differs from both.
"""

import random
import re
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
import tokenizers

from rushlight.chat import ConversationEncoder, find_template, turn_end_ids
from rushlight.errors import TemplateError
from rushlight.text import encode_chunks, read_tokenizer

pytestmark = pytest.mark.real

TEMPLATES = Path(__file__).parents[1] / "chat" / "templates"

# Two have no template in their files: those of the chat tests, written in the style of the published ones. The file of
# Llama 3.1 has only the short one of Llama 3, so it is also rendered with the style of 3.1, which has dates and tools.
FOLDERS = {
    "qwen3": [None],
    "llama3_1": [None, "llama31_tools", "llama32_date"],
    "llama2": ["llama2"],
    "gemma3": [None],
    "deepseek_v3": [None, "deepseek_r1"],
    "gptoss": ["gpt_oss"],
}
CASES = [(folder, template) for folder, templates in FOLDERS.items() for template in templates]

SCRIPTS = {
    "Latin": (0x20, 0x17F),
    "Greek": (0x370, 0x400),
    "Cyrillic": (0x400, 0x500),
    "Armenian": (0x531, 0x590),
    "Hebrew": (0x591, 0x5F5),
    "Arabic": (0x600, 0x700),
    "Devanagari": (0x900, 0x980),
    "Bengali": (0x980, 0xA00),
    "Tamil": (0xB80, 0xC00),
    "Thai": (0xE01, 0xE5C),
    "Tibetan": (0xF00, 0xFD9),
    "Georgian": (0x10A0, 0x1100),
    "Hangul": (0xAC00, 0xAD00),
    "Ethiopic": (0x1200, 0x1380),
    "Khmer": (0x1780, 0x17FA),
    "Kana": (0x3040, 0x3100),
    "Han": (0x4E00, 0x4F00),
    "symbols": (0x2000, 0x2300),
    "emoji": (0x1F300, 0x1F700),
    "any": (0x0, 0xD800),
}
COMMON = [" the", "ing", " ", "  ", "\n", "\n\n", "\r\n", "\t", "'s", "12", "345", ".", ", ", "...", "▁", "<"]
COMMON.append("e\u0301")  # NFC composes them


def random_texts(folder):
    """100 texts in each of the 20 scripts, with what the text of any script may have between its words."""
    rng = random.Random(folder)
    for first, last in SCRIPTS.values():
        for _ in range(100):
            pieces = [
                rng.choice(COMMON)
                if rng.random() < 0.3
                else "".join(chr(rng.randrange(first, last)) for _ in range(rng.randint(1, 8)))
                for _ in range(rng.randint(0, 12))
            ]
            yield "".join(pieces)


@pytest.fixture(scope="session")
def load(real_models):
    """`load(name)`: the folder, and its tokenizer as rushlight and as the library read it."""
    loaded = {}

    def load(name):
        if name not in loaded:
            loaded.clear()  # the vocabularies are large
            folder = real_models(f"tokenizers/{name}")
            ours = read_tokenizer(lambda file: path if (path := folder / file).exists() else None)
            loaded[name] = folder, ours, tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        return loaded[name]

    return load


@pytest.mark.parametrize("name", FOLDERS)
def test_ids_and_text_equal_the_library(load, name):
    _, ours, theirs = load(name)
    rng = random.Random(name)
    n = 0
    for text in random_texts(name):
        n += 1
        ids = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text) == ours.encode(text, allow_special=True) == ids, repr(text)
        decoded = theirs.decode(ids, skip_special_tokens=False)
        assert ours.decode(ids) == decoded
        assert "".join(pieces(ours, ids)) == decoded
        if ours.split_characters:
            cuts = sorted(rng.choices(range(len(text) + 1), k=3))
            parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
            assert list(encode_chunks(ours, parts)) == ids
    assert n == 2000


@pytest.mark.parametrize("name", FOLDERS)
def test_random_ids_decode_and_stream_as_in_the_library(load, name):
    _, ours, theirs = load(name)
    rng = random.Random(name)
    added = list(theirs.get_added_tokens_decoder())
    for _ in range(2000):
        ids = [
            rng.choice(added) if rng.random() < 0.1 else rng.randrange(ours.vocab_size)
            for _ in range(rng.randint(0, 12))
        ]
        expected = theirs.decode(ids, skip_special_tokens=False)
        assert ours.decode(ids) == expected
        assert "".join(pieces(ours, ids)) == expected
        middle = rng.randint(0, len(ids))
        head = ours.decode(ids[:middle])
        if "\N{REPLACEMENT CHARACTER}" not in head and not ours._added.special.keys() & set(ids[:1]):
            assert head + ours.decode(ids[middle:], before=ids[:middle]) == expected
    assert ours.vocabulary() == theirs.get_vocab()


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("qwen3", []),
        ("llama3_1", ["<|begin_of_text|>"]),
        ("llama2", ["<s>"]),
        ("gemma3", ["<bos>"]),
        # The post-processor adds none, and add_bos_token in tokenizer_config.json is true.
        ("deepseek_v3", ["<｜begin▁of▁sentence｜>"]),
        ("gptoss", []),
    ],
)
def test_a_text_begins_with_the_tokens_that_the_files_say(load, name, prefix):
    _, ours, theirs = load(name)
    assert [theirs.id_to_token(token_id) for token_id in ours.prefix_ids] == prefix
    if name != "deepseek_v3":
        assert [*ours.prefix_ids, *ours.encode("Once upon")] == theirs.encode("Once upon").ids


@pytest.mark.parametrize("name", FOLDERS)
def test_ids_without_a_token_are_never_generated(load, name):
    _, ours, theirs = load(name)
    rows = {"qwen3": 151_936, "gemma3": 262_144, "gptoss": 201_088}.get(name, ours.vocab_size)
    assert ours.unused_ids(rows) == [i for i in range(rows) if theirs.id_to_token(i) is None]
    assert ours.check_fits(rows) == (["<image_soft_token>"] if name == "gemma3" else [])


def user(text):
    return {"role": "user", "content": text}


def answer(text, **more):
    return {"role": "assistant", "content": text, **more}


def system(text):
    return {"role": "system", "content": text}


CONVERSATIONS = {
    "question": [user("What is the capital of France?")],
    "system": [system("Answer in one word. "), user("  And of Italy?\n")],
    "turns": [
        user("1+1?"),
        answer("2"),
        user("日本語 and 🕯️?\n\nYes: <table>\n\n\n<b>x</b>"),
        answer(" ok\n"),
        user("so?"),
    ],
    "system turns": [system("Be\n\nkind."), user("Hi"), answer("Hello!"), user("कैसे हो?")],
    "tagged reasoning": [user("Why?"), answer("<think>\nhm, so\n</think>\n\nBecause."), user("Sure?")],
    "reasoning": [user("Why?"), answer("Because.", reasoning="hm, so"), user("Sure?")],
    "wrong order": [answer("I begin."), user("You do?")],
}
VARIABLES = {
    "qwen3": [{}, {"enable_thinking": True}, {"enable_thinking": False}],
    "gptoss": [{}, {"reasoning_effort": "high"}],
}


@pytest.fixture
def same_time(transformers, monkeypatch):
    from transformers.utils import chat_template_utils

    time = datetime(2026, 2, 3, 4, 5, 6)

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return time

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)
    return time


@pytest.mark.parametrize(("name", "style"), CASES)
def test_conversations_have_the_ids_of_the_text_that_transformers_renders(load, transformers, same_time, name, style):
    import jinja2

    folder, ours, library = load(name)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    source = None if style is None else (TEMPLATES / f"{style}.jinja").read_text(encoding="utf-8")
    model = SimpleNamespace(folder=folder, tokenizer=ours, name=name, eos_ids=())
    n_rendered = 0
    for variables in VARIABLES.get(name, [{}]):
        template = find_template(model, source, variables=variables, now=same_time)
        for messages in CONVERSATIONS.values():
            try:
                text = theirs.apply_chat_template(
                    messages, chat_template=source, tokenize=False, add_generation_prompt=True, **variables
                )
            except jinja2.exceptions.TemplateError as error:
                problem = str(error).rstrip(".")
                with pytest.raises(TemplateError, match=re.escape(problem)):
                    template.render(messages)
                continue
            n_rendered += 1
            rendered = template.render(messages)
            assert rendered.text == text
            assert ConversationEncoder(ours).encode(rendered) == library.encode(text, add_special_tokens=False).ids
        template.close()
    assert n_rendered >= 4


@pytest.mark.parametrize(
    ("name", "style", "ends"),
    [
        ("qwen3", None, ["<|im_end|>"]),
        ("llama3_1", None, ["<|eot_id|>"]),
        ("llama2", "llama2", ["</s>"]),
        ("gemma3", None, ["<end_of_turn>"]),
        ("deepseek_v3", None, ["<｜end▁of▁sentence｜>"]),
        ("gptoss", "gpt_oss", ["<|return|>"]),
    ],
)
def test_an_answer_ends_with_the_template_s_end_of_turn(load, name, style, ends):
    folder, ours, library = load(name)
    source = None if style is None else (TEMPLATES / f"{style}.jinja").read_text(encoding="utf-8")
    template = find_template(SimpleNamespace(folder=folder, tokenizer=ours, name=name, eos_ids=()), source)
    assert [library.id_to_token(i) for i in turn_end_ids(template, ours, ours.vocab_size)] == ends
    template.close()


def pieces(tokenizer, ids):
    stream = tokenizer.stream()
    return [*(stream.push(token_id) for token_id in ids), stream.flush()]
