"""Stop strings: whatever the pieces, the text is cut where it would be cut in one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distaff.server.text.stops import StopSearch

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
    behind = "".join(pieces)[len(emitted) :]
    assert search.stop == min(filter(behind.startswith, stops), key=len, default=None)


@given(LETTERS, STOPS)
def test_nothing_is_held_that_cannot_become_a_stop(text, stops):
    search = StopSearch(stops)
    held = len(text) - len(search.push(text))
    assert search.found or held < max(map(len, stops), default=1)


@given(st.lists(st.tuples(st.text("abc<>", max_size=4), st.booleans()), max_size=12), STOPS)
def test_a_special_token_is_searched_and_never_said(pieces, stops):
    """Its name counts where a stop string holds it; elsewhere the text goes on as if it were not there."""
    stops = [*stops, "<s>", "a<s>b"]
    parts = [(f"{text}", True) for text, _ in pieces]
    parts = [
        part
        for text, special in zip(parts, pieces, strict=True)
        for part in (text, ("<s>", False))[: 1 + special[1]]
    ]
    search = StopSearch(stops)
    emitted = "".join([search.push(text, written=written) for text, written in parts]) + search.flush()
    size = len(cut("".join(text for text, _ in parts), stops))
    flags = [written for text, written in parts for _ in text]
    whole = "".join(text for text, _ in parts)
    assert emitted == "".join(c for c, written in zip(whole[:size], flags, strict=False) if written)


def test_a_special_token_that_no_stop_holds_is_not_there():
    search = StopSearch(["abc"])
    assert search.push("xa") + search.push("<s>", written=False) + search.push("bc") == "x"
    assert search.found


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


@pytest.mark.parametrize(
    "options", [{}, {"skip_special_tokens": False}, {"include_stop_str_in_output": True}]
)
@pytest.mark.parametrize("stop", ["<|258|>", "e<|258|>", ["nope", "<|258|>l"]])
def test_a_special_token_can_be_a_stop_string(ask, stream, engine, options, stop):
    """Whether special tokens are shown or not; it is shown only where it is asked for."""
    engine.reply = [*b"He", 258, *b"llo"]
    asked = {"stop": stop, "logprobs": True, **options}
    choice = ask(**asked).json()["choices"][0]
    said = "H" if stop == "e<|258|>" else "He"
    kept = {"e<|258|>": "He", "<|258|>": "He"}.get(str(stop), "Hel")
    assert choice["message"]["content"] == (kept if "include_stop_str_in_output" in options else said)
    assert choice["finish_reason"] == "stop"
    pieces = [c["choices"][0]["delta"].get("content", "") for c in stream(**asked)]
    assert "".join(pieces) == choice["message"]["content"]
    tokens = [entry["token"] for entry in choice["logprobs"]["content"]]
    assert tokens == (["H", "e", "<|258|>", "l"] if isinstance(stop, list) else ["H", "e", "<|258|>"])


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
