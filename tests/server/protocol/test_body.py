"""Large bodies: how much of one there is, counted before it is read, and an answer written item by item."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distaff.server.encode import to_json, to_json_by_items
from distaff.server.errors import BadRequest
from distaff.server.protocol.body import MOST_PARTS, has_too_many_parts
from distaff.server.protocol.openai.chat import parse_chat

TEXT = st.text('\\"[{:,]}x')
VALUES = st.recursive(
    st.none() | st.integers() | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
)


def count(value: object) -> int:
    """Objects, arrays and members."""
    match value:
        case dict():
            return 1 + len(value) + sum(map(count, value.values()))
        case list():
            return 1 + sum(map(count, value))
    return 0


@given(VALUES)
def test_parts_are_counted_as_a_reader_of_json_counts_them(value: object) -> None:
    body, parts = json.dumps(value).encode(), count(value)
    assert not has_too_many_parts(body, parts)
    assert parts == 0 or has_too_many_parts(body, parts - 1)


@given(VALUES)
def test_an_answer_is_the_same_item_by_item(value: object) -> None:
    assert to_json_by_items(value) == to_json(value)


def _calling(arguments: str) -> list[dict]:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return [{"role": "assistant", "tool_calls": [call]}]


@pytest.mark.parametrize(
    "changes",
    [
        lambda inner: {"guided_json": inner},
        lambda inner: {"json_schema": inner},
        lambda inner: {"structured_outputs": {"json": inner}},
        lambda inner: {"messages": _calling(inner)},
    ],
    ids=["guided_json", "json_schema", "structured_outputs", "arguments"],
)
def test_json_within_a_string_is_bounded_as_a_body_is(changes):
    """Its quotes are escaped there, so the body's own count does not see it."""
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    for parts, refused in [(MOST_PARTS, True), (MOST_PARTS // 4, False)]:
        inner = json.dumps({"enum": [[]] * parts})
        if not refused:
            parse_chat(body | changes(inner), most_choices=1, strict=False)
            continue
        with pytest.raises(BadRequest, match="too complex") as caught:
            parse_chat(body | changes(inner), most_choices=1, strict=False)
        assert caught.value.code == "body_too_complex"
