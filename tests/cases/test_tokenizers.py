"""Tokenizers that once differed from transformers; the expected results are those of transformers 5.24."""

import contextlib
import json
import logging
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers, processors

import rushlight
from rushlight.errors import ConfigError, RequestError, TemplateError, TokenizerError
from rushlight.runtime.lens import lens
from rushlight.text import read_tokenizer_json
from rushlight.text.byte_level import SYMBOLS, token_bytes

MakeGPT2 = Callable[..., Path]
GPT2 = {"tokenizer_class": "GPT2Tokenizer"}
FILE = {"tokenizer_class": "PreTrainedTokenizerFast"}
ADDED = {"<|user|>": 257, "<|bot|>": 258}
TURNS = (
    "{% for m in messages %}{{ '<|user|>' if m.role == 'user' else '<|bot|>' }}{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|bot|>{% endif %}"
)
NO_SLOW = {"vocab.json": None, "merges.txt": None}


def byte_vocabulary() -> dict[str, int]:
    return {symbol: token_bytes(symbol)[0] for symbol in SYMBOLS} | {"<|endoftext|>": 256}


def byte_level(*extra: str, end: str = "<|endoftext|>", post=None, add_prefix_space: bool = False) -> dict:
    """A tokenizer.json with the 256 bytes and special tokens."""
    vocab = byte_vocabulary()
    vocab[end] = vocab.pop("<|endoftext|>")
    library = Library(models.BPE(vocab, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens([end, *extra])
    if post is not None:
        library.post_processor = post
    return json.loads(library.to_str())


def metaspace() -> dict:
    """A tokenizer.json like SentencePiece's: ten pieces, with ▁ for a space."""
    words = "<unk> ▁the ▁king ▁was ▁a ▁man ▁of ▁sea s ▁old".split()
    library = Library(models.Unigram([(word, -float(i)) for i, word in enumerate(words)], unk_id=0))
    library.add_special_tokens(["<unk>"])
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Metaspace()
    return json.loads(library.to_str())


@pytest.fixture
def old_king(make_gpt2: MakeGPT2) -> Path:
    """A model that continues "the king" with "old"."""
    files = {**NO_SLOW, "tokenizer.json": metaspace(), "tokenizer_config.json": FILE}
    return make_gpt2(vocab_size=10, seed=2, eos_token_id=0, bos_token_id=0, files=files)


# Added tokens


def test_added_tokens_json_is_read(make_gpt2: MakeGPT2, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_gpt2(
        vocab_size=259, files={"added_tokens.json": ADDED, "tokenizer_config.json": {**GPT2, "chat_template": TURNS}}
    )
    model = rushlight.load(folder)
    chat = rushlight.Chat(model, max_tokens=6)
    assert chat.send("Hi").prompt_ids == [257, 72, 105, 258]
    chat.reset()
    assert chat.send("<|bot|>Hi").prompt_ids == [257, *b"<|bot|>Hi", 258]  # typed: plain characters
    assert model.tokenizer.decode([257, 258]) == "<|user|><|bot|>"
    assert model.generate([65], max_tokens=1, logit_bias={257: 1000.0}).text == "<|user|>"
    assert not caplog.records


def test_an_added_token_has_the_id_in_its_file(make_gpt2: MakeGPT2) -> None:
    tokenizer = rushlight.load(make_gpt2(vocab_size=300, files={"added_tokens.json": {"<x>": 280}})).tokenizer
    assert tokenizer.encode("<x>a", allow_special=True) == [280, 97]
    assert not tokenizer.has_token(270)


def test_unused_ids_are_never_sampled(make_gpt2: MakeGPT2) -> None:
    model = rushlight.load(make_gpt2(vocab_size=262, files={"added_tokens.json": ADDED}))
    bias = {259: 1000.0, 260: 1000.0, 258: 500.0}
    assert model.generate("a", max_tokens=3, logit_bias=bias).ids == [258] * 3


@pytest.mark.parametrize(
    ("files", "added"),
    [
        ({"added_tokens.json": ADDED}, {257: ("<|user|>", False), 258: ("<|bot|>", False)}),
        (
            {"added_tokens.json": ADDED, "special_tokens_map.json": {"pad_token": "<|bot|>", "sep_token": "<sep>"}},
            {257: ("<|user|>", False), 258: ("<|bot|>", True), 259: ("<sep>", True)},
        ),
        (
            {"tokenizer_config.json": {**GPT2, "pad_token": "[PAD]", "bos_token": {"content": "<s>", "lstrip": False}}},
            {257: ("<s>", True), 258: ("[PAD]", True)},
        ),
        (
            {
                "tokenizer_config.json": {
                    **GPT2,
                    "added_tokens_decoder": {"257": {"content": "<a>", "special": False}},
                    "pad_token": "[PAD]",
                },
                "special_tokens_map.json": {"sep_token": "<sep>"},
                "added_tokens.json": {"<b>": 258},
            },
            {257: ("<a>", False), 258: ("[PAD]", True)},
        ),
        (
            {**NO_SLOW, "tokenizer.json": byte_level(), "added_tokens.json": ADDED, "tokenizer_config.json": FILE},
            {257: ("<|user|>", False), 258: ("<|bot|>", False)},
        ),
    ],
    ids=["added_tokens.json", "special_tokens_map.json", "names", "added_tokens_decoder", "tokenizer.json"],
)
def test_has_token_finds_exactly_the_added_tokens(make_gpt2: MakeGPT2, files: dict, added: dict) -> None:
    tokenizer = rushlight.load(make_gpt2(vocab_size=300, files=files)).tokenizer
    found = {i: tokenizer.decode([i]) for i in range(257, 300) if tokenizer.has_token(i)}
    assert found == {i: content for i, (content, _) in added.items()}
    for i, (content, special) in added.items():
        assert tokenizer.encode(content, allow_special=True) == [i]
        assert tokenizer.encode(content) == (list(content.encode()) if special else [i])


def test_a_character_named_as_padding_stays_a_character(make_gpt2: MakeGPT2) -> None:
    model = rushlight.load(make_gpt2(files={"tokenizer_config.json": {**GPT2, "pad_token": "!"}}))
    assert model.tokenizer.encode("Hi!") == list(b"Hi!")


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        (
            {"added_tokens.json": {"a": 257}},
            'added_tokens.json: "a" has another id in the vocabulary .expected 97, found 257',
        ),
        ({"added_tokens.json": {"<x>": 5}}, "have the same id 5"),
        ({"added_tokens.json": {"<x>": "257"}}, 'added_tokens.json: the id of "<x>" is invalid'),
        ({"added_tokens.json": "["}, "added_tokens.json: not JSON"),
        ({"tokenizer_config.json": {"bos_token": 5}}, "tokenizer_config.json: bos_token is not a token"),
        ({"tokenizer_config.json": {"added_tokens_decoder": {"x": {}}}}, "added_tokens_decoder is invalid"),
        ({"tokenizer_config.json": {"add_prefix_space": "yes"}}, "add_prefix_space is invalid .expected true or false"),
        ({"tokenizer_config.json": {"tokenizer_class": 5}}, "tokenizer_class is invalid"),
        (
            {"tokenizer_config.json": {"add_bos_token": True, "bos_token": None}, "vocab.json": {"a": 0}},
            "the vocabulary has no",
        ),
        (
            {**NO_SLOW, "tokenizer.json": byte_level(), "added_tokens.json": {"<x>": 280}},
            'added_tokens.json: .*"<x>" another id .expected 257, found 280',
        ),
    ],
)
def test_invalid_tokenizer_files_are_an_error(make_gpt2: MakeGPT2, files: dict, problem: str) -> None:
    with pytest.raises(TokenizerError, match=problem):
        rushlight.load(make_gpt2(vocab_size=300, files=files))


# Tokens before a text


@pytest.mark.parametrize(
    ("files", "vocab_size", "n_positions", "prompt_ids", "ids"),
    [
        (
            {
                "tokenizer.json": byte_level(
                    "<s>", post=processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 257)])
                ),
                "tokenizer_config.json": FILE,
            },
            258,
            32,
            [257, 72, 105],
            [193, 180, 180, 107, 193, 254],
        ),
        (
            {"tokenizer_config.json": {**GPT2, "add_bos_token": True}},
            257,
            64,
            [256, 72, 105],
            [147, 115, 93, 122, 180, 213],
        ),
    ],
    ids=["post_processor", "add_bos_token"],
)
def test_prefix_ids_start_the_prompt(
    make_gpt2: MakeGPT2, files: dict, vocab_size: int, n_positions: int, prompt_ids: list[int], ids: list[int]
) -> None:
    model = rushlight.load(make_gpt2(vocab_size=vocab_size, n_positions=n_positions, files=files))
    result = model.generate("Hi", max_tokens=6)
    assert (result.prompt_ids, result.ids) == (prompt_ids, ids)
    assert model.generate("", max_tokens=1).prompt_ids == prompt_ids[:1]
    assert model.generate([72, 105], max_tokens=1).prompt_ids == [72, 105]  # ids are not changed
    assert model.stream("Hi").result.prompt_ids == prompt_ids
    assert model.beam_search("Hi", n_beams=2, max_tokens=2)[0].prompt_ids == prompt_ids
    assert model.score("Hi", "!").prompt_ids == prompt_ids
    assert model.score("Hi", "!").ids == model.score([72], "!").ids == [33]
    assert len(model.logits("Hi")) == 3
    assert lens(model, "Hi").prompt_ids == prompt_ids
    with model.trace("h.0") as trace:
        model.logits("Hi")
    assert len(trace["h.0"]) == 3
    assert model.tokenizer.encode("Hi") == [72, 105]


def test_a_text_without_the_prefix(make_gpt2: MakeGPT2) -> None:
    folder = make_gpt2(vocab_size=257, files={"tokenizer_config.json": {**GPT2, "add_bos_token": True}})
    model = rushlight.load(folder, add_bos=False)
    assert model.generate("Hi", max_tokens=1).prompt_ids == [72, 105]
    assert model.perplexity("Hi there").n_ids == 8
    assert lens(model, "Hi").prompt_ids == [72, 105]
    assert len(model.generate("", max_tokens=1).prompt_ids) == 1


@pytest.mark.parametrize("command", ["generate", "eval", "batch"])
def test_no_bos_on_the_command_line(make_gpt2: MakeGPT2, tmp_path: Path, capsys, command: str) -> None:
    from rushlight.cli import main

    folder = make_gpt2(files={"tokenizer_config.json": {**GPT2, "add_bos_token": True}})
    (tmp_path / "text.txt").write_text("Hi")
    arguments = {
        "generate": ["generate", str(folder), "-p", "Hi", "-n", "1", "--json"],
        "eval": ["eval", str(folder), "--text", str(tmp_path / "text.txt"), "--json"],
        "batch": ["batch", str(tmp_path / "text.txt"), "-m", str(folder), "--text-lines", "-n", "1", "-o", "-"],
    }[command]

    def n_tokens(*flags: str) -> int:
        with contextlib.suppress(SystemExit):
            main([*arguments, *flags])
        record = json.loads(capsys.readouterr().out.splitlines()[-1])
        return {**record, **record.get("stats", {}), **record.get("usage", {})}[
            "tokens" if command == "eval" else "prompt_tokens"
        ]

    assert n_tokens() - n_tokens("--no-bos") == 1
    assert n_tokens("--bos") == n_tokens()


@pytest.mark.parametrize(
    ("config", "start"),
    [
        ({"bos_token_id": 3, "eos_token_id": [5, 7]}, 3),
        ({"bos_token_id": None, "eos_token_id": [5, 7]}, 5),
    ],
)
def test_an_empty_prompt_starts_with_the_bos_token_or_else_the_first_end(
    make_gpt2: MakeGPT2, config: dict, start: int
) -> None:
    model = rushlight.load(make_gpt2(**config))
    assert model.generate("", max_tokens=1).prompt_ids == [start]
    assert model.generate([], max_tokens=1).prompt_ids == [start]
    assert model.score("", "a").prompt_ids == [start]


def test_perplexity_as_in_the_guide_with_a_prefix(make_gpt2: MakeGPT2) -> None:
    """1363.2887 is the result of the loop in transformers' guide for 176 tokens, a window of 32 and a stride of 16."""
    post = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 257)])
    files = {"tokenizer.json": byte_level("<s>", post=post), "tokenizer_config.json": FILE}
    model = rushlight.load(make_gpt2(vocab_size=258, n_positions=32, files=files))
    text = "Once upon a time there was a king. " * 5
    found = model.perplexity(text, stride=16)
    assert found.n_ids == 176
    assert found.guide_perplexity == pytest.approx(1363.28870, rel=1e-5)
    assert model.perplexity(iter([text[:7], text[7:]]), stride=16).nll == found.nll
    assert found.bits_per_byte == pytest.approx(found.nll_sum / math.log(2) / len(text))
    assert model.perplexity(list(text.encode()), stride=16).n_ids == 175


def test_tokens_after_a_text_are_left_out(make_gpt2: MakeGPT2) -> None:
    """A model should continue the text, and an end-of-text token would end it."""
    post = processors.BertProcessing(("</s>", 258), ("<s>", 257))
    files = {"tokenizer.json": byte_level("<s>", "</s>", post=post), "tokenizer_config.json": FILE}
    model = rushlight.load(make_gpt2(vocab_size=259, files=files))
    assert model.generate("Hi", max_tokens=1).prompt_ids == [257, 72, 105]


def test_a_recorded_text_begins_with_the_prefix_too() -> None:
    from rushlight.proof.record_source import _prompt_ids

    class Theirs:
        def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
            ids = list(text.encode())
            return [257, *ids, 258] if add_special_tokens else ids

    assert _prompt_ids(Theirs(), "Hi") == [257, 72, 105]


def test_add_eos_token_is_not_applied_and_said(make_gpt2: MakeGPT2, caplog: pytest.LogCaptureFixture) -> None:
    config = {**GPT2, "add_bos_token": True, "add_eos_token": True}
    with caplog.at_level(logging.WARNING, "rushlight"):
        model = rushlight.load(make_gpt2(files={"tokenizer_config.json": config}))
    [note] = [record.getMessage() for record in caplog.records]
    assert "tokenizer_config.json: add_eos_token is not applied" in note
    assert model.generate("Hi", max_tokens=1).prompt_ids == [256, 72, 105]


def test_a_chat_has_the_prefix_that_its_template_writes(make_gpt2: MakeGPT2) -> None:
    config = {**GPT2, "add_bos_token": True, "chat_template": TURNS}
    model = rushlight.load(
        make_gpt2(vocab_size=259, files={"added_tokens.json": ADDED, "tokenizer_config.json": config})
    )
    assert rushlight.Chat(model, max_tokens=1).send("Hi").prompt_ids == [257, 72, 105, 258]


MERGED = {
    "vocab.json": {**byte_vocabulary(), "ĠH": 257, "ĠHi": 258},
    "merges.txt": "Ġ H\nĠH i\n",
}


@pytest.mark.parametrize(
    ("files", "ids"),
    [
        ({**MERGED, "tokenizer_config.json": {**GPT2, "add_prefix_space": True}}, [258, 32, 105, 115]),
        ({**MERGED, "tokenizer_config.json": {**GPT2, "add_prefix_space": False}}, [72, 105, 32, 105, 115]),
        ({**MERGED}, [72, 105, 32, 105, 115]),
        (
            {"tokenizer.json": byte_level(), "tokenizer_config.json": {**GPT2, "add_prefix_space": True}},
            [32, 72, 105, 32, 105, 115],
        ),
        (
            {
                "tokenizer.json": byte_level(add_prefix_space=True),
                "tokenizer_config.json": {**GPT2, "add_prefix_space": False},
            },
            [72, 105, 32, 105, 115],
        ),
        (
            {"tokenizer.json": byte_level(), "tokenizer_config.json": {**FILE, "add_prefix_space": True}},
            [72, 105, 32, 105, 115],
        ),
    ],
    ids=["slow", "slow, false", "slow, none", "over the file", "over the file, false", "the file alone"],
)
def test_add_prefix_space_is_honoured(make_gpt2: MakeGPT2, files: dict, ids: list[int]) -> None:
    model = rushlight.load(make_gpt2(vocab_size=259, files=files))
    assert model.generate("Hi is", max_tokens=1).prompt_ids == ids


def test_generating_after_a_prefix_space(make_gpt2: MakeGPT2) -> None:
    files = {**MERGED, "tokenizer_config.json": {**GPT2, "add_prefix_space": True}}
    model = rushlight.load(make_gpt2(vocab_size=259, files=files))
    assert model.generate("Hi is", max_tokens=6).ids == [194, 114, 114, 114, 191, 114]


# Text after other text


def test_a_new_word_has_its_space(old_king: Path) -> None:
    model = rushlight.load(old_king)
    assert model.generate("the king", max_tokens=6).text == " old" * 6
    assert list(model.stream("the king", max_tokens=3)) == [" old"] * 3
    assert [beam.text for beam in model.beam_search("the king", n_beams=2, max_tokens=1)] == [" old"]
    many = model.generate("the king", max_tokens=2, n=3, temperature=0.5, seed=1)
    assert all(each.text.startswith((" ", "s", "<unk>")) for each in many)
    assert model.generate("", max_tokens=1, logit_bias={9: 1000.0}).text == "old"  # there is no text before it
    record = model.generate("the king", max_tokens=1, logprobs=1).to_json(model.tokenizer)
    assert record["logprobs"][0]["token"] == record["logprobs"][0]["top"][0]["token"] == " old"


def test_a_stop_string_at_the_first_token(old_king: Path) -> None:
    model = rushlight.load(old_king)
    result = model.generate("the king", max_tokens=6, stop=" old")
    assert (result.ids, result.text, result.finish_reason) == ([9], "", "stop")
    [beam] = model.beam_search("the king", n_beams=2, max_tokens=3, stop=[" old"])
    assert (beam.ids, beam.text) == ([9], "")


def test_generate_on_the_command_line(old_king: Path, tmp_path: Path) -> None:
    generated = run("generate", old_king, "-p", "the king", "-n", "6")
    assert generated.stdout.strip() == "the king old old old old old old"
    (tmp_path / "in.jsonl").write_text('{"prompt": "the king"}\n')
    run("batch", tmp_path / "in.jsonl", "-m", old_king, "-o", tmp_path / "out.jsonl", "-n", "2")
    assert json.loads((tmp_path / "out.jsonl").read_text())["text"] == " old old"
    shown = json.loads(run("lens", old_king, "-p", "the king", "--json").stdout)
    assert [token["text"] for token in shown["tokens"]] == ["the", "·king"]
    assert shown["blocks"][-1]["top"][-1][0]["text"] == "·old"


def test_an_answer_of_a_chat_has_its_space(old_king: Path) -> None:
    model = rushlight.load(old_king)
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with rushlight.Chat(model, template=template, max_tokens=2) as chat:
        assert chat.send("the king").text == " old old"
        # Text after an answer is not at the start of the text, so that no space is added before it.
        assert chat.send("s").prompt_ids == [1, 2, 9, 9, 8]


WORDS = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n你\n好\n##cc\n秋\n##s\n.\nking\n"


def test_a_bert_vocabulary_is_read(make_gpt2: MakeGPT2) -> None:
    """A Chinese GPT-2 with BERT's vocab.txt: `[CLS]` begins a text, and the `[SEP]` after it is left out."""
    files = {**NO_SLOW, "vocab.txt": WORDS, "tokenizer_config.json": {"tokenizer_class": "BertTokenizer"}}
    model = rushlight.load(make_gpt2(vocab_size=12, seed=2, eos_token_id=3, bos_token_id=2, files=files))
    result = model.generate("你好", max_tokens=6)
    assert result.prompt_ids == [2, 5, 6]
    assert (result.ids, result.text) == ([11, 1, 9, 9, 0, 1], " king [UNK]ss [PAD] [UNK]")
    assert model.tokenizer.encode("KINGs 你x。") == [11, 9, 5, 1, 1]


def test_a_bert_tokenizer_is_recognised_by_config_json(make_gpt2: MakeGPT2) -> None:
    files = {**NO_SLOW, "vocab.txt": WORDS, "tokenizer_config.json": {"do_lower_case": False}}
    folder = make_gpt2(vocab_size=12, eos_token_id=3, tokenizer_class="BertTokenizer", bos_token_id=2, files=files)
    assert rushlight.load(folder).tokenizer.encode("KING king") == [1, 11]
    (folder / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(TokenizerError, match=r"vocab.txt: not a BERT vocabulary: it is missing \[UNK\]"):
        rushlight.load(folder)


@pytest.mark.parametrize("split", [0, 1, 3, 6])
@pytest.mark.parametrize(
    "decoder",
    [
        decoders.Metaspace(),
        decoders.WordPiece(),
        decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        ),
        decoders.CTC(),
    ],
    ids=lambda decoder: type(decoder).__name__,
)
def test_decoding_continues_where_the_prompt_ends(tmp_path: Path, decoder: decoders.Decoder, split: int) -> None:
    pieces = "a ▁a ▁ ##s <0xE4> <0xBD> <0xA0> .".split()
    library = Library(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, "a"))
    library.decoder = decoder
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = read_tokenizer_json(tmp_path / "tokenizer.json")
    rng = np.random.default_rng(split)
    for _ in range(100):
        ids = rng.integers(0, len(pieces), 6 + split).tolist()
        # Within a run of bytes, the replacement characters of the first ones can change as more arrive.
        if split and pieces[ids[split - 1]].startswith("<") and pieces[ids[split]].startswith("<"):
            continue
        if isinstance(decoder, decoders.CTC) and split and ids[split] == ids[split - 1]:
            continue
        before, new = ids[:split], ids[split:]
        text = tokenizer.decode(new, before=before)
        assert tokenizer.decode(before) + text == tokenizer.decode(ids)
        stream = tokenizer.stream(before=before)
        assert "".join([*map(stream.push, new), stream.flush()]) == text


def test_a_character_split_between_prompt_and_output(tmp_path: Path) -> None:
    pieces = "a <0xE4> <0xBD> <0xA0>".split()
    library = Library(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, "a"))
    library.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = read_tokenizer_json(tmp_path / "tokenizer.json")
    assert tokenizer.decode([3, 0], before=[0, 1, 2]) == "你a"
    assert tokenizer.decode([0], before=[0, 1, 2]) == "a"


# The tokenizer of a folder


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"merges.txt": None}, "vocab.json: the prompt is text, and a tokenizer without its merges.txt cannot be read"),
        ({"vocab.json": None}, "merges.txt: .* without its vocab.json"),
        (
            {**NO_SLOW, "tokenizer.model": "x"},
            "tokenizer.model: .*SentencePiece model can only be read from a tokenizer.json",
        ),
        ({**NO_SLOW, "spiece.model": "x"}, "spiece.model: .*transformers is installed: `python -c .*AutoTokenizer"),
        ({**NO_SLOW, "vocab.txt": WORDS}, "vocab.txt: .*no file states .*BertTokenizer"),
        (
            {**NO_SLOW, "tokenizer_config.json": {"tokenizer_class": "T5Tokenizer"}},
            "tokenizer_config.json: .*a T5Tokenizer, but none of its files are here",
        ),
        (
            {"tokenizer_config.json": {"tokenizer_class": "RobertaTokenizer"}},
            "a RobertaTokenizer can only be read from a tokeni",
        ),
    ],
)
def test_no_other_tokenizer_replaces_the_models(
    make_gpt2: MakeGPT2, files: dict, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = rushlight.load(make_gpt2(vocab_size=50257, files=files))
    assert not caplog.records
    assert model.tokenizer is None
    with pytest.raises(TokenizerError, match=problem):
        model.generate("Olá mundo")
    with pytest.raises(TokenizerError, match="a chat needs a tokenizer"):
        rushlight.Chat(model)
    assert len(model.generate([1, 2], max_tokens=2).ids) == 2  # ids need no tokenizer
    report = rushlight.check(make_gpt2("checked", vocab_size=50257, files=files), data=False)
    assert [finding for finding in report.findings if "the tokenizer cannot be read" in finding.title]


def test_a_bare_folder_gets_the_gpt2_tokenizer(make_gpt2: MakeGPT2, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_gpt2(vocab_size=50257, files={**NO_SLOW, "tokenizer_config.json": GPT2})
    with caplog.at_level(logging.WARNING, "rushlight"):
        model = rushlight.load(folder)
    assert [record.getMessage()[:30] for record in caplog.records] == ["no tokenizer next to the weigh"]
    assert model.generate("Hello", max_tokens=1).prompt_ids == [15496]
    (folder / "tokenizer_config.json").write_text(json.dumps({**GPT2, "add_bos_token": True}))
    assert rushlight.load(folder).prompt_ids("Hello") == [50256, 15496]


# Tokens that the model does not embed


def test_an_added_token_beyond_the_table(make_gpt2: MakeGPT2, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_gpt2(files={"tokenizer.json": byte_level("[PAD]"), "tokenizer_config.json": FILE})
    with caplog.at_level(logging.WARNING, "rushlight"):
        model = rushlight.load(folder)
    [note] = [record.getMessage() for record in caplog.records]
    assert note.startswith("the tokenizer has tokens beyond the model's 257: [PAD]")
    assert model.generate("Hi", max_tokens=6).ids == [243, 122, 93, 184, 184, 122]
    assert model.generate("[PAD]", max_tokens=1).prompt_ids == list(b"[PAD]")  # typed: plain characters
    with pytest.raises(RequestError, match=r"no such token: 257 .expected ids from 0 to 256"):
        model.generate([257])
    template = "{% for m in messages %}{{ m.content }}[PAD]{% endfor %}"
    with pytest.raises(RequestError, match="257"):
        rushlight.Chat(model, template=template).send("Hi")
    assert rushlight.check(folder, data=False).fits
    assert model.generate("a", max_tokens=5, regex="[ab]{3}").text.strip("ab") == ""


def test_an_added_token_beyond_the_table_in_a_prompt_is_an_error(make_gpt2: MakeGPT2) -> None:
    model = rushlight.load(make_gpt2(files={"added_tokens.json": {"<x>": 257}}))
    problem = 'the token "<x>", 257, is outside the model.s vocabulary .expected ids from 0 to 256'
    for ask in (model.generate, model.logits, lambda text: model.score(text, "b"), model.perplexity):
        with pytest.raises(RequestError, match=problem):
            ask("a<x>b")
    assert model.generate("a", max_tokens=1).text


def test_a_prefix_id_beyond_the_table_is_an_error(make_gpt2: MakeGPT2) -> None:
    post = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 257)])
    model = rushlight.load(make_gpt2(files={**NO_SLOW, "tokenizer.json": byte_level("<s>", post=post)}))
    problem = 'the token "<s>", 257, is outside the model.s vocabulary .expected ids from 0 to 256'
    methods = model.generate, model.stream, model.beam_search, model.logits, model.perplexity
    for ask in (*methods, lambda text: model.score(text, "b")):
        with pytest.raises(RequestError, match=problem):
            ask("Hi")
    assert model.generate([72, 105], max_tokens=1).prompt_ids == [72, 105]


def test_a_vocabulary_beyond_the_table_is_refused(make_gpt2: MakeGPT2) -> None:
    folder = make_gpt2(files={"vocab.json": {**byte_vocabulary(), "th": 257}})
    with pytest.raises(TokenizerError, match="ids up to 257, and the model embeds 257 tokens; take the tokenizer and"):
        rushlight.load(folder)


# An end-of-text id that the tokenizer does not have


def test_a_chat_without_an_end_of_text_token(make_gpt2: MakeGPT2) -> None:
    template = "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"
    files = {
        "tokenizer.json": byte_level(end="<|end|>"),
        "tokenizer_config.json": {**FILE, "eos_token": "<|end|>", "chat_template": template},
    }
    folder = make_gpt2(vocab_size=300, eos_token_id=299, bos_token_id=299, files=files)
    model = rushlight.load(folder)
    answer = rushlight.Chat(model, max_tokens=3).send("Hi")
    assert answer.prompt_ids == [72, 105, 256]
    assert len(model.generate("Hi", max_tokens=3).ids) == 3
    assert model.generate("Hi", max_tokens=3, logprobs=20).to_json(model.tokenizer)["logprobs"]


def test_dialogpt_without_an_end_of_text_token_is_an_error(make_gpt2: MakeGPT2) -> None:
    folder = make_gpt2(
        vocab_size=300, eos_token_id=299, bos_token_id=299, task_specific_params={"conversational": {"max_length": 9}}
    )
    with pytest.raises(TemplateError, match=r"the tokenizer has no token 299; set eos_token in tokenizer_config"):
        rushlight.Chat(rushlight.load(folder))


# A vocabulary without every byte


LETTERS = {
    **{letter: i for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz")},
    "Ġ": 26,
    "<|endoftext|>": 27,
    "th": 28,
}


def test_a_vocabulary_without_every_byte(make_gpt2: MakeGPT2) -> None:
    files = {"vocab.json": LETTERS, "merges.txt": "t h\n", "added_tokens.json": {"É": 29, "\n": 30}}
    model = rushlight.load(make_gpt2(vocab_size=31, eos_token_id=27, bos_token_id=27, files=files))
    assert model.tokenizer.encode("the") == [28, 4]
    assert model.generate("abc the", max_tokens=6).prompt_ids == [0, 1, 2, 26, 28, 4]
    with pytest.raises(RequestError, match=r"vocab.json: the tokenizer has no token for 'A'; leave it out"):
        model.generate("the A")
    with pytest.raises(RequestError, match="no token for 'é'"):
        model.tokenizer.encode("é", allow_special=True)
    assert model.tokenizer.encode("aÉ\n") == [0, 29, 30]  # an added token matches as a unit


def test_decoding_with_a_vocabulary_without_every_byte(make_gpt2: MakeGPT2) -> None:
    files = {"vocab.json": LETTERS, "merges.txt": "t h\n"}
    model = rushlight.load(make_gpt2(vocab_size=29, eos_token_id=27, bos_token_id=27, files=files))
    result = model.generate("abc the", max_tokens=6)
    assert (result.ids, result.text) == ([24, 24, 24, 4, 1, 24], "yyyeby")


@pytest.mark.parametrize("vocab", [{"a": 0, "a</w>": 1}, {"▁": 0, "a": 1}, {"é": 0, "日": 1}])
def test_a_vocabulary_that_is_not_byte_level_is_an_error(make_gpt2: MakeGPT2, vocab: dict) -> None:
    with pytest.raises(TokenizerError, match=r"vocab.json: not a byte-level BPE vocabulary .found the token"):
        rushlight.load(make_gpt2(vocab_size=300, files={"vocab.json": vocab}))


# A token that spans the end of the prompt


def test_the_continuation_after_a_token_over_the_join() -> None:
    model = rushlight.load()
    encode = model.tokenizer.encode
    assert (encode("a"), encode("b"), encode("ab")) == ([65], [66], [605])
    one = model.score("a", "b")
    assert (one.prompt_ids, one.ids) == ([65], [66])
    assert one.logprob == pytest.approx(-6.3125, abs=1e-3)
    two, same = model.score_many([("a", "b "), ([65], [66, 221])])
    assert two.ids == [66, 221] == same.ids
    assert two.logprobs == pytest.approx([-6.3125, -9.4151], abs=1e-3)
    assert two == same


def test_a_join_that_changes_the_text_is_refused(make_gpt2: MakeGPT2) -> None:
    files = {**NO_SLOW, "vocab.txt": WORDS + "kings\n", "tokenizer_config.json": {"tokenizer_class": "BertTokenizer"}}
    model = rushlight.load(make_gpt2(vocab_size=13, eos_token_id=3, bos_token_id=2, files=files))
    with pytest.raises(RequestError, match=r"a token spans the boundary .* give token ids"):
        model.score("king", "s")
    assert model.score("king", " 你").ids == [5]


# Files of another kind


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1355256\n"
PAGE = "<!DOCTYPE html><html><body>404</body></html>"


@pytest.mark.parametrize(("content", "kind"), [(POINTER, "a Git LFS pointer"), (PAGE, "an HTML page")])
@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "tokenizer_config.json", "config.json"])
def test_a_downloaded_file_of_another_kind_is_an_error(make_gpt2: MakeGPT2, name: str, content: str, kind: str) -> None:
    folder = make_gpt2()
    (folder / name).write_text(content)
    with pytest.raises(ConfigError if name == "config.json" else TokenizerError, match=rf"{name}: not .* but {kind}"):
        rushlight.load(folder)


def test_a_tokenizer_of_a_newer_library_suggests_an_upgrade(make_gpt2: MakeGPT2) -> None:
    tokenizer = byte_level()
    tokenizer["pre_tokenizer"] = {"type": "OfTomorrow"}
    with pytest.raises(TokenizerError, match=r"tokenizer.json: not a tokenizer: .*pip install --upgrade tokenizers"):
        rushlight.load(make_gpt2(files={"tokenizer.json": tokenizer}))


def test_a_decoder_whose_type_is_not_a_string(make_gpt2: MakeGPT2) -> None:
    tokenizer = byte_level()
    tokenizer["decoder"] = {"type": ["x"], "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": True}
    model = rushlight.load(make_gpt2(files={"tokenizer.json": tokenizer}))
    assert isinstance(model.generate("Hi", max_tokens=2).text, str)


@pytest.mark.parametrize("charsmap", ["AAAA", "!!", "", None, "CAAAAAAAAAA=", "BAAAAAAAAAD/"])
def test_a_charsmap_that_makes_the_library_panic(
    make_gpt2: MakeGPT2, charsmap: str | None, capfd: pytest.CaptureFixture
) -> None:
    tokenizer = byte_level()
    normalizer = {"type": "Precompiled", "precompiled_charsmap": charsmap}
    tokenizer["normalizer"] = {"type": "Sequence", "normalizers": [normalizer]}
    with pytest.raises(TokenizerError, match=r"tokenizer.json: not a tokenizer: Precompiled cannot"):
        rushlight.load(make_gpt2(files={"tokenizer.json": tokenizer}))
    assert capfd.readouterr().err == ""


def run(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "rushlight", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
