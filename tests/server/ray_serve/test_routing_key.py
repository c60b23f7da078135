"""Routing keys: a conversation's next request shares all digests of the last one, whatever it is."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distaff.server.ray_serve import routing_key as module
from distaff.server.ray_serve.call import RoutingKey
from distaff.server.ray_serve.routing_key import MOST_BYTES, STEP, routing_key

texts = st.text(max_size=3 * STEP)
dialogues = st.lists(st.tuples(texts, texts), min_size=1, max_size=5)


def key(body, **headers: str) -> RoutingKey:
    return routing_key(
        {name.replace("_", "-"): value for name, value in headers.items()}, json.dumps(body).encode()
    )


def turns(dialogue, field="messages", **more):
    """The bodies of a conversation, one for each turn."""
    messages = [{"role": "system", "content": "Be brief."}] if field == "messages" else []
    for question, answer in dialogue:
        messages = [*messages, {"role": "user", "content": question}]
        yield {"model": "m", field: messages, **more}
        messages = [*messages, {"role": "assistant", "content": answer}]


@given(dialogues, st.sampled_from(["messages", "input"]))
def test_a_turn_begins_with_all_digests_of_the_last_one(dialogue, field):
    keys = [key(body) for body in turns(dialogue, field)]
    for last, following in itertools.pairwise(keys):
        assert following.digests[: len(last.digests)] == last.digests
    assert len({key.home for key in keys}) == 1
    size = sum(len(question) for question, _ in dialogue)
    assert len(keys[-1].digests) >= size // STEP - len(dialogue)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"model": "m"}, {"model": "n"}),
        ({"tools": [{"a": 1}]}, {"tools": [{"a": 2}]}),
        (
            {"messages": [{"role": "user", "content": "a" * STEP}]},
            {"messages": [{"role": "user", "content": "b" * STEP}]},
        ),
        ({"system": "a"}, {"system": "b"}),
        ({"prompt": "a"}, {"prompt": "b"}),
    ],
)
def test_what_belongs_to_the_prompt_changes_every_digest(one, other):
    common = {"model": "m", "messages": [{"role": "user", "content": "x" * 3 * STEP}]}
    first, second = key(common | one), key(common | other)
    assert first.digests and not set(first.digests) & set(second.digests)
    assert first.home != second.home


def test_sampling_and_the_order_of_keys_change_nothing():
    body = {"model": "m", "messages": [{"role": "user", "content": "x" * 3 * STEP}]}
    again = {"temperature": 1, "stream": True} | dict(reversed(body.items()))
    assert key(body) == key(again)


def test_a_named_conversation_is_its_own_home_wherever_the_name_is():
    first, second = {"model": "m", "prompt": "a"}, {"model": "m", "prompt": "b"}
    assert key(first, x_session_id="s").home == key(second | {"prompt_cache_key": "s"}).home
    assert (
        key(first).session == ""
        and key(first, session_id="s").session == key(second, x_session_id="s").session
    )


@pytest.mark.parametrize("where", ["body", "header"])
def test_of_a_conversations_name_only_a_digest_is_kept(where):
    """Routers remember thousands of names, which nobody has checked."""
    long = "x" * 1_000_000
    names = [f"{number}{long}" for number in range(2)]
    body = {"model": "m", "prompt": "a"}
    keys = [
        key(body, session_id=n) if where == "header" else key(body | {"prompt_cache_key": n}) for n in names
    ]
    assert {len(each.session) for each in keys} == {32} and keys[0].session != keys[1].session


def test_a_name_that_is_no_text_is_none():
    assert key({"prompt": "a", "prompt_cache_key": [5]}) == key({"prompt": "a", "prompt_cache_key": None})


@pytest.mark.parametrize("message", [b"[]", b"{}", b'{"a":1}', b"1", b'"a"'])
def test_a_body_of_very_many_messages_is_not_divided(message, monkeypatch):
    """Dividing it would take seconds, before any key is checked."""
    divided = []
    monkeypatch.setattr(module, "_is_users", lambda message: divided.append(message))
    body = b'{"messages": [%b]}' % b",".join([message] * 2_000_000)
    found = routing_key({}, body)
    assert not divided and len(found.digests) == MOST_BYTES // STEP and found.home


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"{}", b'{"model": "m"}', b"\xff", b"[" * 100_000, b'{"prompt": "\\ud800"}']
)
def test_what_is_no_prompt_has_no_key(body):
    """The server refuses it, or it is no request for an answer."""
    assert routing_key({}, body) == RoutingKey()
