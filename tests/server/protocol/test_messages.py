"""Conversations as clients send them -> as templates read them."""

import copy

from distaff.server.protocol.messages import read_messages

CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}


def text(*parts):
    return [{"type": "text", "text": part} for part in parts]


def test_every_role_takes_a_string_or_parts():
    for role, read_as in [
        ("system", "system"),
        ("developer", "system"),
        ("user", "user"),
        ("assistant", "assistant"),
        ("function", "tool"),
    ]:
        expected = [{"role": read_as, "content": "one two"}]
        assert read_messages([{"role": role, "content": "one two"}]) == expected
        assert read_messages([{"role": role, "content": text("one ", "two")}]) == expected


def test_an_assistant_without_content():
    [message] = read_messages([{"role": "assistant", "content": None, "tool_calls": [CALL]}])
    assert message == {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}},
        ],
    }


def test_arguments_that_are_no_object_stay_a_string():
    broken = copy.deepcopy(CALL)
    broken["function"]["arguments"] = '{"x": '
    [message] = read_messages([{"role": "assistant", "tool_calls": [broken]}])
    assert message["tool_calls"][0]["function"]["arguments"] == '{"x": '


def test_a_refusal_is_what_the_assistant_said():
    parts = [{"type": "refusal", "refusal": "no"}]
    assert read_messages([{"role": "assistant", "content": parts}])[0]["content"] == "no"
    assert read_messages([{"role": "assistant", "refusal": "no"}])[0]["content"] == "no"


def test_a_tool_answers_a_call():
    answer = {"role": "tool", "tool_call_id": "c1", "content": text("42")}
    messages = read_messages([{"role": "assistant", "tool_calls": [CALL]}, answer, answer])
    assert messages[1:] == [{"role": "tool", "tool_call_id": "c1", "content": "42"}] * 2


def test_a_name_is_kept_and_the_rest_is_dropped():
    message = {"role": "user", "content": "x", "name": "ann", "reasoning_content": "y", "prefix": True}
    assert read_messages([message]) == [{"role": "user", "content": "x", "name": "ann"}]


def test_the_callers_messages_are_not_touched():
    messages = [{"role": "assistant", "content": None, "tool_calls": [CALL]}]
    before = copy.deepcopy(messages)
    read_messages(messages)
    assert messages == before


def test_templates_refusals_are_the_clients_fault(ask):
    reply = ask(messages=[{"role": "user", "content": "refuse me"}])
    assert reply.status_code == 400
    assert reply.json()["error"]["message"] == "Conversation roles must alternate"
    assert reply.json()["error"]["param"] == "messages"


def test_a_model_without_a_template_says_so(ask, server):
    server.served.text.has_template = False
    reply = ask()
    assert reply.status_code == 400
    assert "no chat template" in reply.json()["error"]["message"]


def test_empty_content_is_fine(ask, engine):
    assert ask(messages=[{"role": "user", "content": ""}]).status_code == 200
    assert bytes(engine.requests[-1].prompt[1:-1]) == b"user:"
