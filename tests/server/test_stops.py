"""Stop strings: whatever the pieces, the text is cut where it would be cut in one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distaff.server.stops import StopSearch

LETTERS = st.text("abc", max_size=30)
STOPS = st.lists(st.text("abc", min_size=1, max_size=5), max_size=4)


def cut(text: str, stops: list[str]) -> str:
    """The reference: the whole text, up to the earliest stop string."""
    return text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))]


@given(st.lists(st.text("abc", max_size=4), max_size=12), STOPS)
def test_any_pieces_give_the_text_cut_in_one(pieces, stops):
    search, emitted = StopSearch(stops), ""
    for piece in pieces:
        emitted += search.push(piece)
        assert cut("".join(pieces), stops).startswith(emitted)
    emitted += search.flush()
    assert emitted == cut("".join(pieces), stops)
    assert search.found == any(stop in "".join(pieces) for stop in stops)


@given(LETTERS, STOPS)
def test_nothing_is_held_that_cannot_become_a_stop(text, stops):
    search = StopSearch(stops)
    held = len(text) - len(search.push(text))
    assert search.found or held < max(map(len, stops), default=1)


def test_no_stop_strings_hold_nothing():
    assert StopSearch([]).push("abc") == "abc"


@pytest.mark.parametrize(
    ("stop", "said"),
    [
        ("world", "Hello, "),
        (["nope", "o"], "Hell"),
        (["world", "lo, w"], "Hel"),
        ("Hello, world!", ""),
        ("!!", "Hello, world!"),
        (", w", "Hello"),
    ],
)
def test_a_reply_ends_before_a_stop_string(ask, stream, stop, said):
    choice = ask(stop=stop).json()["choices"][0]
    assert choice["message"]["content"] == said
    assert choice["finish_reason"] == "stop"
    pieces = [c["choices"][0]["delta"].get("content", "") for c in stream(stop=stop)]
    assert "".join(pieces) == said
    assert "" not in pieces[1:-1]


def test_a_stop_string_ends_the_sequence_in_the_engine(ask, engine):
    engine.delay = 0.002
    assert ask(stop="lo", ignore_eos=True, max_tokens=3000).status_code == 200
    assert engine.aborted == [engine.requests[0].id]
    assert engine.running == {}


def test_one_choice_may_stop_before_the_other(ask, engine):
    engine.reply = lambda request: b"xyz" if request.choice else b"abcabc"
    first, second = ask(n=2, stop="c").json()["choices"]
    assert (first["message"]["content"], second["message"]["content"]) == ("ab", "xyz")


def test_a_stop_string_at_the_limit_is_a_stop(ask):
    choice = ask(stop="lo", max_tokens=5).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Hel", "stop")


def test_held_text_is_flushed_at_the_limit(ask):
    choice = ask(stop="lox", max_tokens=5).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Hello", "length")


def test_the_prompt_is_not_searched(ask):
    assert ask(stop="hi").json()["choices"][0]["message"]["content"] == "Hello, world!"
