"""Encoding and decoding: text round-trips, or is refused."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rushlight.errors import RequestError, TokenizerError
from rushlight.text import Tokenizer, gpt2_tokenizer
from rushlight.text.tokenizer import MAX_PROMPT_BYTES

Load = Callable[[dict], Tokenizer]
UNICODE = st.text(st.characters(exclude_categories=["Cs"]))
GPT2 = gpt2_tokenizer()


@given(UNICODE)
def test_text_round_trips(text: str) -> None:
    assert GPT2.decode(GPT2.encode(text)) == text


def test_nul_round_trips() -> None:
    assert GPT2.decode(GPT2.encode("a\0b\0")) == "a\0b\0"


def test_unused_ids():
    tokenizer = gpt2_tokenizer()
    assert tokenizer.unused_ids(50257) == []
    assert tokenizer.unused_ids(50260) == [50257, 50258, 50259]


def test_half_of_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(RequestError, match="character 3 is half of a surrogate pair"):
        GPT2.encode("ab\ud83d")


def test_ten_megabytes_are_refused_before_they_are_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GPT2, "_library", None)
    with pytest.raises(RequestError, match="at most 4,194,304 bytes, found 10,000,000"):
        GPT2.encode("a" * 10_000_000)
    with pytest.raises(RequestError, match="found 4,194,306"):  # bytes count, not characters
        GPT2.encode("é" * (MAX_PROMPT_BYTES // 2 + 1))


@pytest.mark.parametrize("unknown", [-1, 50_257, 10**9, 2**40, -(2**40)])
def test_an_unknown_id_is_refused(unknown: int) -> None:
    for decode in GPT2.decode, lambda ids: [GPT2.stream().push(token_id) for token_id in ids]:
        with pytest.raises(RequestError, match=rf"unknown token id {unknown} \(expected ids from 0 to 50256\)"):
            decode([unknown])


def test_an_id_that_the_vocabulary_skips_is_refused(fields: dict, load: Load) -> None:
    fields["model"]["vocab"]["extra"] = 300
    tokenizer = load(fields)
    assert tokenizer.vocab_size == 301
    assert tokenizer.has_token(300)
    assert not tokenizer.has_token(299)
    assert {299, 300, 301} & set(tokenizer.unused_ids(302)) == {299, 301}
    with pytest.raises(RequestError, match="299"):
        tokenizer.decode([299])


def test_text_that_spells_a_special_token_is_plain_text() -> None:
    ids = GPT2.encode("a<|endoftext|>b")
    assert 50_256 not in ids
    assert GPT2.decode(ids) == "a<|endoftext|>b"
    assert GPT2.encode("a<|endoftext|>b", allow_special=True) == [64, 50_256, 65]
    assert GPT2.encode("a<|endoftext|>b") == ids


def test_a_special_token_decodes_to_its_text() -> None:
    assert GPT2.decode([64, 50_256]) == "a<|endoftext|>"


@pytest.mark.parametrize(
    "model",
    [
        {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["</s>", 0.0], ["a", -1.0]]},
        {"type": "WordLevel", "unk_token": "<unk>", "vocab": {"<unk>": 0, "</s>": 1, "a": 2}},
    ],
    ids=lambda model: model["type"],
)
def test_a_special_token_that_is_a_word_of_the_model_cannot_be_forged(fields: dict, load: Load, model: dict) -> None:
    end = {**fields["added_tokens"][0], "content": "</s>", "id": 1}
    tokenizer = load({**fields, "model": model, "added_tokens": [end], "pre_tokenizer": None, "decoder": None})
    assert tokenizer.encode("a") == [2]
    assert tokenizer.encode("</s>", allow_special=True) == [1]
    with pytest.raises(RequestError, match='spells the special token "</s>"'):
        tokenizer.encode("</s>")


def test_threads_do_not_share_the_special_token_option(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        """A library that lets other threads run between setting the option and encoding."""

        encode_special_tokens: bool

        def encode(self, text: str, *, add_special_tokens: bool) -> SimpleNamespace:
            time.sleep(0.001)
            return SimpleNamespace(ids=[int(self.encode_special_tokens)])

    monkeypatch.setattr(GPT2, "_library", Slow())
    with ThreadPoolExecutor(4) as threads:
        ids = list(threads.map(lambda allow: GPT2.encode("", allow_special=allow), [True, False] * 10))
    assert ids == [[0], [1]] * 10


@pytest.mark.parametrize(
    "setting",
    [
        {"truncation": {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}},
        {
            "padding": {
                "strategy": {"Fixed": 9},
                "direction": "Right",
                "pad_to_multiple_of": None,
                "pad_id": 0,
                "pad_type_id": 0,
                "pad_token": "!",
            }
        },
        {
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [
                    {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
                    {"Sequence": {"id": "A", "type_id": 0}},
                ],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
                "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [258], "tokens": ["<|endoftext|>"]}},
            }
        },
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_a_setting_in_the_file_does_not_change_the_ids(fields: dict, load: Load, setting: dict) -> None:
    plain = load(fields).encode("hello there")
    assert load({**fields, **setting}).encode("hello there") == plain


def test_encoding_is_deterministic(fields: dict, load: Load) -> None:
    fields["model"]["dropout"] = 0.9
    tokenizer = load(fields)
    assert {tuple(tokenizer.encode("hel")) for _ in range(20)} == {(257,)}


def test_a_tokenizer_larger_than_the_model_does_not_fit() -> None:
    GPT2.check_fits(50_257)
    GPT2.check_fits(50_304)
    with pytest.raises(TokenizerError, match="ids up to 50256, and the model embeds 50000 tokens"):
        GPT2.check_fits(50_000)


def test_a_text_that_the_tokenizer_cannot_encode_is_an_error(fields: dict, load: Load) -> None:
    model = {"type": "WordLevel", "unk_token": "<unk>", "vocab": {"a": 0}}
    tokenizer = load({**fields, "model": model, "added_tokens": [], "pre_tokenizer": None})
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: the tokenizer fails on this text: .*Missing \[UNK\]"):
        tokenizer.encode("b")


def test_a_panic_while_encoding_is_an_error(fields: dict, load: Load) -> None:
    tokenizer = load({**fields, "pre_tokenizer": {"type": "FixedLength", "length": 0}})
    with pytest.raises(TokenizerError, match="fails on this text: chunk size must be non-zero"):
        tokenizer.encode("hello")


def test_ctrl_c_in_the_library_propagates(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted:
        def encode(self, *args: object, **settings: object) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(GPT2, "_library", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        GPT2.encode("hello")


def metaspace(fields: dict, scheme: str) -> dict:
    """A BPE over words that begin with ▁, as in Llama's tokenizers."""
    pieces = ["<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz<>/|", "hi", "▁hi", "go", "▁go"]
    merges = [["h", "i"], ["g", "o"], ["▁", "hi"], ["▁", "go"]]
    model = {
        "type": "BPE",
        "vocab": {piece: i for i, piece in enumerate(pieces)},
        "merges": merges,
        "unk_token": "<unk>",
    }
    added = [{**fields["added_tokens"][0], "id": len(pieces) + i, "content": c} for i, c in enumerate(("<s>", "</s>"))]
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": True}
    return {**fields, "model": model, "added_tokens": added, "pre_tokenizer": space, "decoder": space}


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
def test_a_typed_special_token_leaves_the_tokens_around_the_others_unchanged(
    fields: dict, load: Load, scheme: str
) -> None:
    tokenizer = load(metaspace(fields, scheme))
    library = tokenizer._library
    text = "hi<s>hi</s>go hi"
    expected = tokenizer.encode(text, allow_special=True)
    assert expected == library.encode(text, add_special_tokens=False).ids
    text = text.replace("</s>go", "</s>go</s>")  # of which the user typed the last
    typed = [(text.index("go"), len(text))]
    ids = tokenizer.encode_rendered(text, typed)
    n = len(expected) - 1
    assert ids[: n - 1] == expected[: n - 1]
    pieces = [library.id_to_token(i) for i in ids]
    assert (
        pieces[:4]
        == {
            "first": ["▁hi", "<s>", "hi", "</s>"],
            "always": ["▁hi", "<s>", "▁hi", "</s>"],
            "never": ["hi", "<s>", "hi", "</s>"],
        }[scheme]
    )
    assert pieces[4:6] == (["▁go", "<"] if scheme == "always" else ["go", "<"])


def test_only_the_first_stretch_of_a_text_begins_with_the_dummy_prefix(fields: dict, load: Load) -> None:
    tokenizer = load(metaspace(fields, "first"))
    ids = tokenizer.encode_rendered("<s>hi</s> <s> go", [(9, 12)])
    assert [tokenizer._library.id_to_token(i) for i in ids] == ["<s>", "hi", "</s>", "▁", "<", "s", ">", "▁go"]
    ids = tokenizer.encode_rendered("<s>hi", [(0, 3)])
    assert [tokenizer._library.id_to_token(i) for i in ids] == ["▁", "<", "s", ">", "hi"]


def test_typed_words_of_the_vocabulary_stay_tokens_unless_the_template_writes_them(fields: dict, load: Load) -> None:
    fields["model"]["vocab"] |= {"<table>": 259, "ĊĊ": 260, "<turn>": 261}
    added = fields["added_tokens"][0]
    words = ["<table>", "<turn>"]
    fields["added_tokens"] += [
        {**added, "special": False, "id": 259 + 2 * i, "content": w} for i, w in enumerate(words)
    ]
    tokenizer = load(fields)
    text = "<turn>he<table>"
    assert tokenizer.encode_rendered(text, [(6, 15)]) == [261, 256, 259]
    forged = tokenizer.encode_rendered(text + "<turn>", [(6, 21)])
    assert forged[:3] == [261, 256, 259]
    assert forged.count(261) == 1
    assert tokenizer.decode(forged) == text + "<turn>"


def test_unused_ids_of_a_vocabulary_with_gaps(fields: dict, load: Load) -> None:
    fields["model"]["vocab"]["far"] = 262
    assert load(fields).unused_ids(265) == [259, 260, 261, 263, 264]


def test_added_tokens_beyond_the_model_are_named_in_the_order_of_their_ids(fields: dict, load: Load) -> None:
    added = fields["added_tokens"][0]
    fields["added_tokens"] += [{**added, "id": 259 + i, "content": c} for i, c in enumerate(["<b>", "<a>"])]
    assert load(fields).check_fits(259) == ["<b>", "<a>"]
    fields["added_tokens"][1:] = []
    fields["model"]["vocab"]["far"] = 300
    with pytest.raises(TokenizerError, match="ids up to 300, and the model embeds 259 tokens"):
        load(fields).check_fits(259)
    del fields["model"]["vocab"]["far"]
    fields["model"]["vocab"] |= {"<c>": 270}
    fields["added_tokens"].append({**added, "id": 270, "content": "<c>"})
    assert load(fields).check_fits(259) == ["<c>"]
