"""Large bodies: how much of one there is, counted before it is read, and an answer written item by item."""

import json

from hypothesis import given
from hypothesis import strategies as st

from distaff.server.protocol.body import has_too_many_parts
from distaff.server.protocol.encode import to_json, to_json_by_items

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
