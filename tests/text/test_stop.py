"""Stop strings: compared with their definition for every way to split a text; invalid ones are refused."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rushlight.errors import RequestError
from rushlight.text import StopStrings
from rushlight.text.stop import MAX_STOP_CHARS, MAX_STOP_STRINGS

# Few letters, so that stop strings occur, overlap and contain each other.
TEXT = st.text("ab\n", max_size=30)
STOPS = st.lists(st.text("ab\n", min_size=1, max_size=5), max_size=4)
PIECES = st.lists(st.text("ab\n", max_size=4), max_size=12)


def by_definition(text: str, stops: list[str]) -> tuple[str, bool]:
    """The text before the first complete stop string; of several that end at the same character, the longest."""
    for end in range(len(text) + 1):
        ended = [stop for stop in stops if text[:end].endswith(stop)]
        if ended:
            return text[: end - max(map(len, ended))], True
    return text, False


def filtered(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    filter_ = StopStrings(stops)
    shown, stopped = "", False
    for piece in pieces:
        new, stopped = filter_.push(piece)
        shown += new
    return shown + filter_.flush(), stopped


@given(PIECES, STOPS)
def test_output_equals_the_definition(pieces: list[str], stops: list[str]) -> None:
    assert filtered(pieces, stops) == by_definition("".join(pieces), stops)


@given(TEXT, STOPS)
def test_only_a_possible_start_of_a_stop_string_is_held_back(text: str, stops: list[str]) -> None:
    filter_, shown = StopStrings(stops), ""
    for end, character in enumerate(text, 1):
        new, stopped = filter_.push(character)
        shown += new
        if stopped:
            return
        held = text[len(shown) : end]
        prefixes = [stop[:n] for stop in stops for n in range(1, len(stop)) if text[:end].endswith(stop[:n])]
        assert held == max(prefixes, key=len, default="")


@pytest.mark.parametrize(
    ("pieces", "stops", "shown"),
    [
        (["one\nUs", "er: two"], ["\nUser:"], "one"),
        (["abc"], ["abc", "b"], "a"),  # b is complete first
        (["abc"], ["c", "bc"], "a"),  # both complete at once: the longer
        (["aaab"], ["aab"], "a"),
        (["x", "END"], ["END"], "x"),
        (["END"], "END", ""),
        (["one END two END"], ["END"], "one "),
        (["a\0", "b"], ["\0b"], "a"),
    ],
)
def test_examples(pieces: list[str], stops: list[str], shown: str) -> None:
    assert filtered(pieces, stops) == (shown, True)


def test_text_held_back_is_shown_once_it_cannot_be_a_stop_string() -> None:
    stop = StopStrings(["\nUser:"])
    assert stop.push("one\nUse") == ("one", False)
    assert stop.push("ful") == ("\nUseful", False)
    assert stop.push("\nUser") == ("", False)
    assert stop.flush() == "\nUser"
    assert stop.flush() == ""


def test_no_text_follows_a_stop_string() -> None:
    stop = StopStrings("x")
    assert stop.push("axb") == ("a", True)
    assert stop.push("c") == ("", True)
    assert stop.flush() == ""


def test_without_stop_strings_all_text_passes() -> None:
    assert StopStrings().push("abc") == ("abc", False)


@pytest.mark.parametrize(
    ("stops", "problem"),
    [
        ("", "empty or too long .expected 1 to 256 characters, found 0"),
        (["a", ""], "empty or too long"),
        ("a" * (MAX_STOP_CHARS + 1), "empty or too long .*found 257"),
        ([b"a"], r"must be str .found b'a'"),
        (3, "must be str .found 3"),
        (["a"] * (MAX_STOP_STRINGS + 1), "too many stop strings .expected at most 16, found 17"),
    ],
)
def test_invalid_stop_strings_are_refused(stops: Any, problem: str) -> None:
    with pytest.raises(RequestError, match=problem):
        StopStrings(stops)


def test_the_most_and_longest_stop_strings() -> None:
    stops = [chr(0x100 + n) * MAX_STOP_CHARS for n in range(MAX_STOP_STRINGS)]
    assert filtered(["a" + stops[-1]], stops) == ("a", True)


# Stop strings and texts for which a naive search compares the most characters.
REPETITIVE = ["a" * 255 + "b", *("a" * 64 + "b" + "a" * (63 + n) for n in range(MAX_STOP_STRINGS - 1))]


@pytest.mark.parametrize("piece_chars", [1, 7, 5000])
def test_work_per_character_is_bounded(piece_chars: int) -> None:
    """Each piece is searched together with the text held back, which is shorter than a stop string."""
    text = ("a" * 254 + "c") * 40 + "a" * 5000
    stop, shown = StopStrings(REPETITIVE), ""
    for start in range(0, len(text), piece_chars):
        piece = text[start : start + piece_chars]
        new, stopped = stop.push(piece)
        assert not stopped
        shown += new
        assert start + len(piece) - len(shown) < MAX_STOP_CHARS
    assert shown + stop.flush() == text


@given(st.lists(st.sampled_from(["a" * 64, "a" * 63, "a", "b", "c"]), max_size=30))
def test_long_stop_strings(pieces: list[str]) -> None:
    assert filtered(pieces, REPETITIVE) == by_definition("".join(pieces), REPETITIVE)
