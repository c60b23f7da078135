"""Bodies and events arrive in pieces of any size, and are the same for every way to split them."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distaff.server.bench.events import EventReader, read_chunk
from distaff.server.bench.framing import Chunked, Counted, UntilClosed, framing_of


def split(data: bytes, places: list[int]) -> list[bytes]:
    """`data` in pieces that end at these places, taken modulo its length."""
    cuts = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[start:end] for start, end in itertools.pairwise(cuts)]


PLACES = st.lists(st.integers(0, 1 << 16), max_size=20)


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=8), PLACES, st.sampled_from([b"", b";a=b"]))
def test_chunks_are_taken_off_a_body(chunks: list[bytes], places: list[int], extension: bytes):
    """With extensions and trailers; what follows the body is not read."""
    framed = b"".join(b"%X%s\r\n%s\r\n" % (len(chunk), extension, chunk) for chunk in chunks)
    framing, found = Chunked(), b""
    for piece in split(framed + b"0\r\nExpires: never\r\n\r\n", places):
        assert not framing.ended
        found += framing.feed(piece)
    assert framing.ended and found == b"".join(chunks)


@given(st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=4), st.integers(0, 200))
def test_a_body_that_is_cut_off_does_not_end(chunks: list[bytes], place: int):
    """Wherever the connection broke."""
    framed = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    framing = Chunked()
    framing.feed(framed[: min(place, len(framed) - 1)])
    framing.feed(b"")
    assert not framing.ended


@pytest.mark.parametrize("framed", [b"x\r\n", b"2\r\nabc\r\n", b"\r\n\r\n"])
def test_a_body_that_is_not_in_chunks_is_an_error(framed: bytes):
    """No size, or a chunk that is longer than its size."""
    with pytest.raises(ValueError):
        Chunked().feed(framed)


def test_the_head_says_how_a_body_is_framed():
    """The length counts only without chunks; without both, the connection's end is the body's."""
    assert isinstance(framing_of(200, {"transfer-encoding": "Chunked", "content-length": "3"}), Chunked)
    assert isinstance(framing_of(200, {}), UntilClosed)
    assert framing_of(204, {}).ended and framing_of(200, {"content-length": "0"}).ended
    counted = Counted(3)
    assert (counted.feed(b"ab"), counted.ended) == (b"ab", False)
    assert (counted.feed(b"c"), counted.ended) == (b"c", True)
    with pytest.raises(ValueError):
        framing_of(200, {"content-length": "three"})


TEXTS = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=12)


@given(st.lists(st.lists(TEXTS, min_size=1, max_size=3), max_size=6), PLACES, st.sampled_from(["\n", "\r\n"]))
def test_events_are_found_however_they_are_split(events: list[list[str]], places: list[int], end: str):
    """Several lines of data are one event; comments, names and empty events are skipped."""
    text = "".join(
        f": a comment{end}event: name{end}" + "".join(f"data: {line}{end}" for line in lines) + end
        for lines in events
    )
    reader, found = EventReader(), []
    for piece in split(text.encode(), places):
        found += reader.feed(piece)
    assert found == ["\n".join(lines).encode() for lines in events]


def test_data_without_a_space_and_lone_returns():
    """Both are allowed by the standard; a lone return at the end of a piece waits for the next one."""
    assert EventReader().feed(b"data:a\n\n") == [b"a"]
    reader = EventReader()
    assert reader.feed(b"data: a\r\rdata: b\r\r") + reader.feed(b"data: c\r") == [b"a", b"b"]


@pytest.mark.parametrize(
    ("choice", "has_tokens", "written"),
    [
        ({"delta": {"role": "assistant", "content": ""}}, False, ""),
        ({"delta": {"content": "a"}}, True, "a"),
        ({"delta": {"reasoning_content": "a"}}, True, ""),
        ({"delta": {"reasoning": "a", "content": None}}, True, ""),
        ({"delta": {"tool_calls": [{"index": 0}]}}, True, ""),
        ({"delta": {}, "finish_reason": "stop"}, False, ""),
        ({"text": "a"}, True, "a"),
        ({"text": "", "finish_reason": "length"}, False, ""),
    ],
)
def test_which_chunks_hold_generated_text(choice: dict, has_tokens: bool, written: str):
    """The role alone does not: some servers send it before they have computed anything."""
    (found,) = read_chunk(json.dumps({"id": "x", "choices": [{"index": 0} | choice]}).encode()).choices
    assert (found.has_tokens, found.written) == (has_tokens, written)
