"""The law of marks: wherever a stream is cut, the client has exactly the groups whose marks have come."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distaff.server.ray_serve.marks import MarkedStream

blocks = st.lists(
    st.sampled_from([b"data: a\n\n", b"event: b\ndata: {}\n\n", b": keep-alive\n\n"]), max_size=3
)
streams = st.lists(blocks.map(b"".join), min_size=1, max_size=6)


def marked(groups: Sequence[bytes]) -> bytes:
    """A server's stream: each group with its mark, and the end, which has none."""
    return b"".join(group + b": resume %03dA\n\n" % n for n, group in enumerate(groups)) + b"data: [DONE]\n\n"


@given(streams, st.data())
def test_a_whole_stream_arrives_without_its_marks_in_whatever_pieces_it_comes(groups, data):
    text, client, passed = marked(groups), MarkedStream(), b""
    while text:
        cut = data.draw(st.integers(1, len(text)))
        passed += client.feed(text[:cut])
        text = text[cut:]
    passed += client.finish()
    assert passed == b"".join(groups) + b"data: [DONE]\n\n"
    assert client.marks == b"\n".join(b"%03dA" % n for n in range(len(groups)))


@given(streams, st.data())
def test_what_a_lost_server_sent_without_a_mark_is_not_passed_on(groups, data):
    text = marked(groups)
    cut = data.draw(st.integers(0, len(text)))
    client = MarkedStream()
    passed = client.feed(text[:cut])
    client.drop()
    kept = client.marks.count(b"A")
    assert passed == b"".join(groups[:kept])
    assert client.feed(b"data: rest\n\n: resume 999A\n\n") == b"data: rest\n\n"


@given(streams.map(b"".join), st.data())
def test_a_stream_without_marks_passes_at_its_end(text, data):
    cut = data.draw(st.integers(0, len(text)))
    client = MarkedStream()
    assert client.feed(text[:cut]) + client.feed(text[cut:]) == b""
    assert client.finish() == text
    assert client.marks == b""


@pytest.mark.parametrize("first", [b"", b"data: 1\n\n: resume AAAA\n\n"])
def test_bytes_are_searched_once_however_many_pieces_a_group_has(first):
    """Else a group of 15 MiB, such as the last event of a long answer with probabilities, takes a minute."""
    searched = 0

    class Counting(bytearray):
        def find(self, part, start=0):
            nonlocal searched
            found = super().find(part, start)
            searched += (len(self) if found < 0 else found) - start
            return found

    client = MarkedStream()
    client.feed(first)
    client._held = Counting()
    group = b"data: " + b"x" * 1_000_000 + b"\n\n"
    for start in range(0, len(group), 100):
        assert client.feed(group[start : start + 100]) == b""
    assert client.feed(b": resume BBBB\n\n") == group
    assert len(group) <= searched < 1.1 * len(group)


def test_what_a_model_writes_is_no_mark():
    """A mark is a line of its own, which an event's data never is."""
    client = MarkedStream()
    text = b'data: {"content": ": resume AAAA"}\n\n'
    assert client.feed(text) + client.finish() == text and not client.marks
