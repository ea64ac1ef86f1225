"""`rushlight generate`, with the embedded model unless stated otherwise."""

import json
import re

import pytest

import rushlight as library
from rushlight.text.tokenizer import MAX_PROMPT_BYTES

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def tales():
    return library.load()


@pytest.fixture(scope="module")
def plain(tales):
    """The output for twenty tokens with the default settings."""
    return str(tales.generate(PROMPT, max_tokens=20))


def test_generate_uses_the_embedded_model_by_default(rushlight, tales):
    done = rushlight("generate", "-p", PROMPT)
    assert (done.code, done.out) == (0, f"{PROMPT}{tales.generate(PROMPT)}\n")


def test_a_note_names_the_embedded_model(rushlight):
    assert re.fullmatch("note: no model given, .*embedded.*\n", rushlight("generate", "-p", PROMPT, "-n", 1).err)


def test_a_given_model_has_no_note(rushlight, bare_gpt2):
    assert "embedded" not in rushlight("generate", bare_gpt2, "-p", PROMPT, "-n", 1).err


@pytest.mark.parametrize("name", ["", "nowhere", "./model.safetensors"])
def test_the_embedded_model_never_replaces_a_missing_one(rushlight, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    done = rushlight("generate", name, "-p", PROMPT, "--offline")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")


def test_the_model_by_argument_or_flag(rushlight, bare_gpt2):
    by_argument = rushlight("generate", bare_gpt2, "-p", PROMPT, "-n", 3)
    assert rushlight("generate", "--model", bare_gpt2, "-p", PROMPT, "-n", 3) == by_argument
    assert rushlight("generate", bare_gpt2, "-m", bare_gpt2, "-p", PROMPT, "-n", 3) == by_argument


def test_two_models_exit_with_2(rushlight, bare_gpt2):
    done = rushlight("generate", bare_gpt2, "-m", "gpt2", "-p", PROMPT)
    assert (done.code, done.out) == (2, "")
    assert "expected one model" in done.err


@pytest.mark.parametrize(
    ("flags", "settings"),
    [
        (["-n", "7"], {"max_tokens": 7}),
        (["--max-tokens", "0"], {"max_tokens": 0}),
        (["--temperature", "0.9", "--seed", "5"], {"temperature": 0.9, "seed": 5}),
        (["--temp", "1.5", "--seed", "5", "--top-k", "4"], {"temperature": 1.5, "seed": 5, "top_k": 4}),
        (["--temp", "1.5", "--seed", "5", "--top-p", "0.5"], {"temperature": 1.5, "seed": 5, "top_p": 0.5}),
        (["--temp", "1.5", "--seed", "5", "--min-p", "0.2"], {"temperature": 1.5, "seed": 5, "min_p": 0.2}),
        (["--repetition-penalty", "1.3"], {"repetition_penalty": 1.3}),
        (["--presence-penalty", "1"], {"presence_penalty": 1.0}),
        (["--frequency-penalty", "-1"], {"frequency_penalty": -1.0}),
        (["--logit-bias", "12=-100", "--logit-bias", "13=2.5"], {"logit_bias": {12: -100.0, 13: 2.5}}),
        (["--stop", ".", "--stop", " the"], {"stop": [".", " the"]}),
        (["--ignore-eos", "--logit-bias", "0=100"], {"ignore_eos": True, "logit_bias": {0: 100.0}}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_settings_reach_the_model(rushlight, tales, plain, flags, settings):
    """Each setting changes the output."""
    settings = {"max_tokens": 20} | settings
    done = rushlight("generate", "-p", PROMPT, "-n", 20, "--no-echo", *flags)
    assert done.out == f"{tales.generate(PROMPT, **settings)}\n"
    assert done.out != f"{plain}\n"


def test_device_and_dtype_reach_the_loader(rushlight):
    assert rushlight("generate", "-p", PROMPT, "-n", 2, "--device", "cpu", "--dtype", "f64").code == 0
    assert "tpu" in rushlight("generate", "-p", PROMPT, "--device", "tpu").err
    assert "f31" in rushlight("generate", "-p", PROMPT, "--dtype", "f31").err


def test_no_echo_prints_only_the_output(rushlight, tales):
    done = rushlight("generate", "-p", PROMPT, "-n", 5, "--no-echo")
    assert done.out == f"{tales.generate(PROMPT, max_tokens=5)}\n"


def test_stats_are_on_stderr(rushlight):
    plain = rushlight("generate", "-p", PROMPT, "-n", 5)
    done = rushlight("generate", "-p", PROMPT, "-n", 5, "--stats")
    assert done.out == plain.out
    lines = done.err.removeprefix(plain.err).splitlines()
    assert [line.split("  ")[0] for line in lines] == ["prompt", "generated", "load", "first text"]
    assert re.search(r" 5 tokens +[\d,.]+ tok/s$", lines[1])
    assert re.search(r" \d+\.\d\d s$", lines[2])


def test_stats_of_several_samples_are_totals(rushlight):
    done = rushlight("generate", "-p", PROMPT, "-n", 5, "--samples", 3, "--temp", 1, "--ignore-eos", "--stats")
    assert re.search(r"^generated +15 tokens +[\d,.]+ tok/s\nload +\d+\.\d\d s\n\Z", done.err, re.MULTILINE)


def test_a_note_reports_a_full_context(rushlight):
    expected = "note: the model's context of 512 tokens is full\n"
    command = ("generate", "-p", "word " * 500, "--ignore-eos")
    assert expected in rushlight(*command, "-n", 50).err
    assert expected not in rushlight(*command, "-n", 5).err
    assert expected not in rushlight(*command, "-n", 50, "--json").err


def test_a_note_warns_of_equal_samples(rushlight):
    expected = "at temperature 0 all outputs are the same"
    assert expected in rushlight("generate", "-p", PROMPT, "-n", 1, "--samples", 2).err
    assert expected not in rushlight("generate", "-p", PROMPT, "-n", 1, "--samples", 2, "--temp", 1).err
    assert expected not in rushlight("generate", "-p", PROMPT, "-n", 1).err


def test_json_prints_one_record(rushlight, tales):
    done = rushlight("generate", "-p", PROMPT, "-n", 20, "--temp", "0.7", "--seed", "3", "--json")
    expected = tales.generate(PROMPT, max_tokens=20, temperature=0.7, seed=3)
    assert done.out.count("\n") == 1
    record = json.loads(done.out)
    stats = record.pop("stats")
    assert record == {
        "model": "tales",
        "prompt": PROMPT,
        "text": expected.text,
        "ids": expected.ids,
        "finish_reason": "length",
        "seed": 3,
    }
    assert (stats["prompt_tokens"], stats["generated_tokens"]) == (len(expected.prompt_ids), 20)
    times = {"load_s", "first_text_s", "prefill_s", "decode_s", "prefill_tok_s", "decode_tok_s"}
    assert stats.keys() == {"prompt_tokens", "cached_tokens", "generated_tokens"} | times
    assert all(stats[time] > 0 for time in times)


def test_json_of_several_samples_with_logprobs(rushlight, tales):
    flags = ["-n", "4", "--temp", "1", "--seed", "3", "--samples", "2", "--logprobs", "1", "--prompt-logprobs", "0"]
    record = json.loads(rushlight("generate", "-p", PROMPT, "--json", *flags).out)
    settings = {"max_tokens": 4, "temperature": 1, "logprobs": 1}
    [other] = record["others"]
    for sample in (record, other):
        expected = tales.generate(PROMPT, seed=sample["seed"], **settings)
        assert (sample["text"], sample["ids"]) == (expected.text, expected.ids)
        for entry, (token, logprob, top) in zip(sample["logprobs"], expected.logprobs, strict=True):
            [(top_id, top_logprob)] = top
            assert entry == {
                "id": token,
                "token": tales.tokenizer.decode([token]),
                "logprob": logprob,
                "top": [{"id": top_id, "token": tales.tokenizer.decode([top_id]), "logprob": top_logprob}],
            }
    assert record["prompt_logprobs"][0] is None
    assert len(record["prompt_logprobs"]) == len(tales.tokenizer.encode(PROMPT))
    assert "prompt_logprobs" not in other


def test_several_samples_are_printed_in_order(rushlight, tales):
    first, second = tales.generate(PROMPT, max_tokens=4, temperature=1, seed=3, n=2)
    done = rushlight("generate", "-p", PROMPT, "-n", 4, "--temp", 1, "--seed", 3, "--samples", 2)
    assert done.out == f"{PROMPT}{first}\n{PROMPT}{second}\n"


def test_logprobs_require_json(rushlight):
    done = rushlight("generate", "-p", PROMPT, "--logprobs", 1)
    assert (done.code, done.out) == (2, "")
    assert "--json" in done.err


def test_output_constrained_by_a_pattern_or_a_schema(rushlight, tmp_path):
    done = rushlight("generate", "-p", PROMPT, "--regex", "(la )+end", "-n", 100, "--no-echo", "--temp", 2, "--seed", 1)
    assert re.fullmatch("(la )+end\n", done.out)
    schema = tmp_path / "schema.json"
    schema.write_text('{"enum": ["red", "green"]}', encoding="utf-8")
    done = rushlight("generate", "-p", PROMPT, "--json-schema", schema, "--no-echo")
    assert json.loads(done.out) in {"red", "green"}
    missing = rushlight("generate", "-p", PROMPT, "--json-schema", tmp_path / "missing.json")
    assert (missing.code, missing.out) == (2, "")
    assert f"error: {tmp_path / 'missing.json'}: no such file\n" in missing.err
    schema.write_bytes(b'{"enum": ["\xff"]}')
    assert "schema.json: byte 11: not UTF-8" in rushlight("generate", "-p", PROMPT, "--json-schema", schema).err
    schema.write_bytes(b" " * 300_000)
    assert len(rushlight("generate", "-p", PROMPT, "--json-schema", schema).err) < 200


def test_the_context_is_limited(rushlight):
    done = rushlight("generate", "-p", PROMPT, "--context", "20")
    assert done.code == 0
    assert "the model's context of 20 tokens is full" in done.err
    done = rushlight("generate", "-p", PROMPT, "--context", "513")
    assert (done.code, done.out) == (2, "")
    assert "a context of 513 tokens is longer than the model's, 512; use --context 512 or less" in done.err
    assert rushlight("generate", "-p", PROMPT, "--context", "0").code == 2


def test_a_draft_with_other_tokens_is_refused(rushlight, bare_gpt2):
    done = rushlight("generate", "-p", PROMPT, "--draft", bare_gpt2)
    assert (done.code, done.out) == (2, "")
    assert "cannot draft for tales: their tokens differ" in done.err


def test_speculative_decoding_does_not_change_the_output(rushlight, plain):
    for flags in (["--speculate"], ["--no-speculate"]):
        assert rushlight("generate", "-p", PROMPT, "-n", 20, "--no-echo", *flags).out == f"{plain}\n"


def test_json_of_an_empty_output(rushlight):
    record = json.loads(rushlight("generate", "-p", PROMPT, "-n", 0, "--json").out)
    assert (record["text"], record["ids"], record["finish_reason"]) == ("", [], "length")


def test_a_prompt_from_stdin_loses_its_last_newline(rushlight, tales):
    for stdin, prompt in [
        (b"Once upon a time\n", "Once upon a time"),
        (b"Once upon a time\r\n", "Once upon a time"),
        (b"Once upon a time", "Once upon a time"),
        (b"  a\n\n", "  a\n"),
        ("Dvořák – 木".encode(), "Dvořák – 木"),
    ]:
        done = rushlight("generate", "-n", 3, stdin=stdin)
        assert done.out == f"{prompt}{tales.generate(prompt, max_tokens=3)}\n"


def test_a_prompt_flag_is_exact_and_ignores_stdin(rushlight, tales):
    done = rushlight("generate", "-n", 3, "-p", "a\n", stdin=b"\xff")
    assert done.out == f"a\n{tales.generate(chr(97) + chr(10), max_tokens=3)}\n"


@pytest.mark.parametrize("stdin", [b"", b"\n"])
def test_an_empty_prompt_starts_from_the_end_of_text_token(rushlight, tales, stdin):
    done = rushlight("generate", "-n", 3, stdin=stdin)
    assert (done.code, done.out) == (0, f"{tales.generate('', max_tokens=3)}\n")


def test_no_prompt_at_a_terminal_exits_with_2(rushlight):
    done = rushlight("generate")
    assert (done.code, done.out) == (2, "")
    assert "--prompt" in done.err


def test_a_surrogate_in_the_prompt_exits_with_2(rushlight):
    done = rushlight("generate", "-p", "a\udcffb")
    assert (done.code, done.out) == (2, "")
    assert "character 2" in done.err.splitlines()[-1]


def test_nul_round_trips(rushlight):
    assert rushlight("generate", "-n", 1, stdin=b"a\0b").out.startswith("a\0b")


@pytest.mark.parametrize(("stdin", "offset"), [(b"caf\xe9", 3), (b"a\xc3", 1), (b"\xed\xa0\x80", 0)])
def test_stdin_that_is_not_utf8_exits_with_2(rushlight, stdin, offset):
    done = rushlight("generate", stdin=stdin)
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        f"error: standard input: byte {offset}: the prompt is not UTF-8 (found 0x{stdin[offset]:02x})\n"
    )


def test_a_prompt_of_10_mb_exits_with_2(rushlight):
    """The prompt is refused by its size, from stdin and from the flag."""
    prompt = "x" * 10_000_000
    for done in (rushlight("generate", stdin=prompt.encode()), rushlight("generate", "-p", prompt)):
        assert (done.code, done.out) == (2, "")
        assert f"at most {MAX_PROMPT_BYTES:,} bytes" in done.err


def test_a_prompt_longer_than_the_context_exits_with_2(rushlight, tales):
    done = rushlight("generate", "-p", "word " * tales.context_length)
    assert (done.code, done.out) == (2, "")
    assert str(tales.context_length) in done.err


def test_a_special_token_in_a_prompt_is_plain_text(rushlight, tales):
    record = json.loads(rushlight("generate", "-p", "<|endoftext|>", "-n", 1, "--json").out)
    assert record["stats"]["prompt_tokens"] > 1


@pytest.mark.parametrize(
    "flags",
    [
        ["--max-tokens", "-1"],
        ["--max-tokens", "many"],
        ["--max-tokens", "1e3"],
        ["--temperature", "nan"],
        ["--temperature", "inf"],
        ["--temperature", "-0.1"],
        ["--temperature", "true"],
        ["--top-p", "0"],
        ["--top-p", "1.01"],
        ["--top-p", "nan"],
        ["--top-k", "-1"],
        ["--top-k", "1.5"],
        ["--min-p", "2"],
        ["--repetition-penalty", "0"],
        ["--presence-penalty", "nan"],
        ["--frequency-penalty", "inf"],
        ["--stop", ""],
        [flag for i in range(100) for flag in ("--stop", str(i))],
        ["--seed", "-1"],
        ["--seed", str(2**64)],
        ["--seed", "9" * 5000],
        ["--logit-bias", "5"],
        ["--logit-bias", "five=1"],
        ["--logit-bias", "5=nan"],
        ["--logit-bias", "-5=1"],
        ["--logit-bias", "4096=1"],
        ["--logit-bias", f"{10**30}=1"],
    ],
    ids=lambda flags: " ".join(flags)[:40],
)
def test_invalid_settings_are_refused(rushlight, flags):
    done = rushlight("generate", "-p", PROMPT, *flags)
    assert (done.code, done.out) == (2, "")
    assert "Traceback" not in done.err
    assert "error:" in done.err.lower()


def test_settings_are_validated_before_loading(rushlight):
    done = rushlight("generate", "nowhere", "-p", PROMPT, "--top-p", 0)
    assert done.err == "error: top_p is 0.0, expected a number above 0 and at most 1\n"


def test_huge_settings_are_clamped(rushlight, bare_gpt2):
    """max_tokens is clamped to the context, top_k to the vocabulary."""
    flags = ["--ignore-eos", "--temp", "1", "--seed", "1"]
    done = rushlight("generate", bare_gpt2, "-p", PROMPT, "-n", 10**30, "--top-k", 10**30, "--json", *flags)
    record = json.loads(done.out)
    assert record["finish_reason"] == "context"
    assert record["stats"]["prompt_tokens"] + len(record["ids"]) == library.load(bare_gpt2).context_length


def test_characters_outside_the_encoding_are_escaped(process):
    done = process("$rushlight generate -p 'č–木' -n 1", env={"PYTHONIOENCODING": "ascii"})
    assert done.code == 0
    assert done.out.startswith("\\u010d\\u2013\\u6728")


def test_threads_do_not_change_the_output(rushlight):
    texts = {rushlight("generate", "-p", PROMPT, "-n", 8, *flags).out for flags in ((), ("-t", 1), ("--threads", 3))}
    assert len(texts) == 1


@pytest.mark.parametrize("threads", ["0", "-1", "1000000"])
def test_an_invalid_number_of_threads_exits_with_2(rushlight, threads):
    done = rushlight("generate", "-p", PROMPT, "--threads", threads)
    assert (done.code, done.out) == (2, "")
    assert f"threads is '{threads}'" in done.err


def test_beams_prints_the_best_output_of_a_beam_search(rushlight):
    [best] = library.load().beam_search("Once", n_beams=3, max_tokens=8)
    done = rushlight("generate", "-p", "Once", "--beams", "3", "-n", "8")
    assert (done.code, done.out) == (0, f"Once{best.text}\n")
    record = json.loads(rushlight("generate", "-p", "Once", "--beams", "3", "-n", "8", "--json").out)
    assert (record["text"], record["ids"], record["score"]) == (best.text, best.ids, best.score)


def test_beams_accepts_stop_strings_and_penalties(rushlight):
    flags = ["--stop", "the", "--repetition-penalty", "1.3", "--logit-bias", "5=-2", "--presence-penalty", "0.1"]
    [best] = library.load().beam_search(
        "Once", n_beams=3, max_tokens=30, stop="the", repetition_penalty=1.3, logit_bias={5: -2.0}, presence_penalty=0.1
    )
    done = rushlight("generate", "-p", "Once", "--beams", "3", "-n", "30", *flags)
    assert (done.code, done.out) == (0, f"Once{best.text}\n")


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--temp", "0.5", "--seed", "1"], "does not support --temperature, --seed"),
        (["--stop", "a", "--min-p", "0.1", "--top-k", "3"], "does not support --top-k, --min-p"),
        (["--stats"], "does not support --stats"),
        (["--draft", "no/such/model"], "does not support --draft"),
        (["-n", "0"], "max_tokens is 0"),
    ],
)
def test_beam_search_refuses_sampling_settings(rushlight, flags, problem):
    done = rushlight("generate", "-p", "Once", "--beams", "3", *flags)
    assert (done.code, done.out) == (2, "")
    assert problem in " ".join(done.err.split())
