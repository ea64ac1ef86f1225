"""`rushlight eval`."""

import json
import math

import pytest

import rushlight as package

TEXT = "Once upon a time there was a king.\nHe had three sons, and “Boots” was the youngest.\n" * 8


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "tale.txt"
    path.write_text(TEXT)
    return path


def test_the_record_is_the_perplexity_of_the_model(rushlight, text):
    done = rushlight("eval", "--text", text, "--window", "64", "--stride", "16", "--json")
    assert (done.code, done.err) == (0, "")
    record = json.loads(done.out)
    expected = package.load().perplexity(TEXT, window=64, stride=16)
    assert record["nll"] == expected.nll
    assert record["perplexity"] == expected.perplexity == math.exp(record["nll"])
    assert record["guide_perplexity"] == expected.guide_perplexity
    assert record["bits_per_byte"] == expected.bits_per_byte
    assert record["bytes"] == len(TEXT.encode())
    assert (record["tokens"], record["scored_tokens"]) == (expected.n_ids, expected.n_ids - 1)
    assert (record["window"], record["stride"], record["windows"]) == (64, 16, expected.n_windows)
    assert record["tok_s"] > 0


def test_the_model_by_argument_or_flag(rushlight, text):
    folder = package.demo.folder()
    by_flag, by_argument = (rushlight("eval", *which, "--text", text).out for which in (["-m", folder], [folder]))
    assert by_flag.splitlines()[:-1] == by_argument.splitlines()[:-1] != []
    assert "expected one model" in rushlight("eval", folder, "-m", "other", "--text", text).err


def test_an_infinite_perplexity_is_null(rushlight, text, monkeypatch):
    monkeypatch.setattr(package.Perplexity, "nll", 1e4)
    done = rushlight("eval", "--text", text, "--json")
    assert json.loads(done.out, parse_constant=pytest.fail)["perplexity"] is None


def test_the_table(rushlight, text):
    done = rushlight("eval", "--text", text)
    assert (done.code, done.err) == (0, "")
    lines = dict(line.split("  ", 1) for line in done.out.splitlines())
    result = package.load().perplexity(TEXT)
    assert lines["perplexity"].strip() == f"{result.perplexity:.4f}"
    assert lines["tokens"].strip() == f"{result.n_ids} in {len(TEXT.encode())} bytes"


def test_text_from_a_pipe(rushlight, text):
    piped = rushlight("eval", "--text", "-", "--json", stdin=TEXT.encode())
    named = rushlight("eval", "--text", text, "--json")
    assert json.loads(piped.out)["nll"] == json.loads(named.out)["nll"]


@pytest.mark.parametrize(
    ("arguments", "content", "problem"),
    [
        (["--text", "none.txt"], None, "none.txt: No such file"),
        (["--text", "."], None, "Is a directory"),
        ([], None, "--text"),
        (["--text", "t.txt"], b"", "no tokens to score"),
        (["--text", "t.txt"], b"abc \xff", "t.txt: byte 4: the text is not UTF-8 (found 0xff)"),
        (["--text", "t.txt", "--stride", "600"], b"some text", "the stride is 600 tokens"),
        (["--text", "t.txt", "--window", "600"], b"some text", "the window is 600 tokens"),
        (["--text", "t.txt", "--stride", "x"], b"some text", "--stride"),
    ],
)
def test_invalid_input_is_refused(rushlight, tmp_path, monkeypatch, arguments, content, problem):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "t.txt").write_bytes(content)
    done = rushlight("eval", *arguments)
    assert (done.code, done.out) == (2, "")
    assert problem in done.err
