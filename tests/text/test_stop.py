"""Stop strings: against the definition, however the text is cut; and what is refused."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rushlight.errors import RequestError
from rushlight.text import StopStrings
from rushlight.text.stop import MAX_STOP_CHARS, MAX_STOP_STRINGS

# Few letters, so that stop strings occur, overlap and hold each other.
TEXT = st.text("ab\n", max_size=30)
STOPS = st.lists(st.text("ab\n", min_size=1, max_size=5), max_size=4)
PIECES = st.lists(st.text("ab\n", max_size=4), max_size=12)


def by_definition(text: str, stops: list[str]) -> tuple[str, bool]:
    """The text up to the longest stop string that the first character to complete one completes."""
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
def test_the_text_ends_where_the_definition_says(pieces: list[str], stops: list[str]) -> None:
    assert filtered(pieces, stops) == by_definition("".join(pieces), stops)


@given(TEXT, STOPS)
def test_only_what_may_begin_a_stop_string_is_held_back(text: str, stops: list[str]) -> None:
    filter_, shown = StopStrings(stops), ""
    for end, character in enumerate(text, 1):
        new, stopped = filter_.push(character)
        shown += new
        if stopped:
            return
        held = text[len(shown) : end]
        beginnings = [stop[:n] for stop in stops for n in range(1, len(stop)) if text[:end].endswith(stop[:n])]
        assert held == max(beginnings, key=len, default="")


@pytest.mark.parametrize(
    ("pieces", "stops", "shown"),
    [
        (["one\nUs", "er: two"], ["\nUser:"], "one"),
        (["abc"], ["abc", "b"], "a"),  # b is complete first
        (["abc"], ["c", "bc"], "a"),  # both at once: the longer
        (["aaab"], ["aab"], "a"),
        (["x", "END"], ["END"], "x"),
        (["END"], "END", ""),
        (["one END two END"], ["END"], "one "),
        (["a\0", "b"], ["\0b"], "a"),
    ],
)
def test_examples(pieces: list[str], stops: list[str], shown: str) -> None:
    assert filtered(pieces, stops) == (shown, True)


def test_text_held_back_is_shown_when_the_stop_string_does_not_go_on() -> None:
    stop = StopStrings(["\nUser:"])
    assert stop.push("one\nUse") == ("one", False)
    assert stop.push("ful") == ("\nUseful", False)
    assert stop.push("\nUser") == ("", False)
    assert stop.flush() == "\nUser"
    assert stop.flush() == ""


def test_nothing_comes_after_a_stop_string() -> None:
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
        ([b"a"], r"not text .found b'a'"),
        (3, "not text .found 3"),
        (["a"] * (MAX_STOP_STRINGS + 1), "too many stop strings .expected at most 16, found 17"),
    ],
)
def test_refused(stops: Any, problem: str) -> None:
    with pytest.raises(RequestError, match=problem):
        StopStrings(stops)


def test_as_many_and_as_long_as_allowed() -> None:
    stops = [chr(0x100 + n) * MAX_STOP_CHARS for n in range(MAX_STOP_STRINGS)]
    assert filtered(["a" + stops[-1]], stops) == ("a", True)


def test_work_is_linear_in_the_text() -> None:
    """Each character steps down the automaton once, and up at most as often as it stepped down."""
    steps = 0

    class Counted(dict):
        def __contains__(self, character: object) -> bool:
            nonlocal steps
            steps += 1
            return super().__contains__(character)

    stop = StopStrings(["a" * 255 + "b"])
    state = stop._root
    while state.children:
        child = state.children["a" if state.depth < 255 else "b"]
        state.children = Counted(state.children)
        state = child
    state.children = Counted()
    text = ("a" * 254 + "c") * 40 + "a" * 5000
    assert stop.push(text)[1] is False
    assert len(text) <= steps <= 2 * len(text)
