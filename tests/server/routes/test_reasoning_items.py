"""Reasoning in the Responses API: items that are answered, streamed and sent back."""

import json

import pytest

from ..conftest import MODEL
from .thinking_text import CALL, NOW, OFF, REPLY, THOUGHT, ThinkingText


@pytest.fixture
def text(server):
    server.served.text = text = ThinkingText()
    return text


@pytest.fixture
def respond(http, engine, text):
    """A whole answer of /v1/responses, and the events of the streamed one."""

    def answered(reply=REPLY, **changes):
        engine.reply = reply
        body = {"model": MODEL, "input": "2 + 2?", "max_output_tokens": 300} | changes
        streamed = (
            http.post("/v1/responses", json=body | {"stream": True}).content.decode().split("\n\n")[:-1]
        )
        events = [json.loads(event.split("data: ", 1)[1]) for event in streamed]
        return http.post("/v1/responses", json=body).json(), events

    return answered


def test_reasoning_is_an_item_before_the_message(respond):
    body, events = respond()
    reasoning, message = body["output"]
    assert reasoning.pop("id").startswith("rs_")
    assert reasoning == {
        "type": "reasoning",
        "summary": [],
        "status": "completed",
        "content": [{"type": "reasoning_text", "text": "It is four, I think."}],
        "encrypted_content": None,
    }
    assert message["content"][0]["text"] == "Four."
    assert body["usage"]["output_tokens_details"]["reasoning_tokens"] == len(THOUGHT.rstrip())
    kinds = [event["type"].removeprefix("response.") for event in events if event.get("output_index") == 0]
    assert [kind for i, kind in enumerate(kinds) if kind not in kinds[:i]] == [
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
    ]
    deltas = [event["delta"] for event in events if event["type"] == "response.reasoning_text.delta"]
    assert "".join(deltas) == "It is four, I think."
    last = events[-1]["response"]["output"]
    assert [item["type"] for item in last] == ["reasoning", "message"]
    assert events[2]["item"]["content"] == []


def test_a_response_that_is_cut_short_may_be_reasoning_alone(respond):
    body, events = respond(max_output_tokens=12)
    [item] = body["output"]
    assert (item["type"], item["status"], body["status"]) == ("reasoning", "incomplete", "incomplete")
    assert events[-1]["type"] == "response.incomplete"


def test_a_response_has_its_own_place_for_the_effort(respond, engine):
    respond(reasoning={"effort": "none"})
    assert bytes(token for token in engine.requests[-1].prompt if token < 256).endswith(OFF.encode())
    respond(max_reasoning_tokens=0, reasoning={"effort": "high", "summary": "auto"})
    assert bytes(token for token in engine.requests[-1].prompt if token < 256).endswith(OFF.encode())


def test_a_call_follows_reasoning_at_once(respond):
    body, _ = respond(THOUGHT + CALL, tools=[{"type": "function", **NOW["function"]}])
    assert [item["type"] for item in body["output"]] == ["reasoning", "function_call"]


@pytest.mark.parametrize("kept", ["content", "encrypted_content"])
def test_items_are_accepted_as_they_were_answered(respond, text, kept):
    """Some clients send the one, some the other."""
    body, _ = respond(include=["reasoning.encrypted_content"])
    reasoning, message = body["output"]
    for name in {"content", "encrypted_content"} - {kept}:
        reasoning.pop(name)
    user = {"role": "user", "content": "Sure?"}
    respond(input=[{"role": "user", "content": "2 + 2?"}, reasoning, message, user])
    assert text.rendered["messages"][1:] == [
        {"role": "assistant", "content": "Four.", "reasoning_content": "It is four, I think."},
        user,
    ]


def test_reasoning_before_a_call_is_in_its_message(respond, text):
    call = {"type": "function_call", "call_id": "c", "name": "now", "arguments": "{}"}
    thought = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Ask."}]}
    output = {"type": "function_call_output", "call_id": "c", "output": "noon"}
    respond(input=[{"role": "user", "content": "Time?"}, thought, call, output, thought])
    _, first, result, second = text.rendered["messages"]
    assert first["reasoning_content"] == second["reasoning_content"] == "Ask." and "noon" in result["content"]


def test_what_another_server_has_encrypted_is_left_out(respond, text):
    secret = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAA"}
    respond(input=[{"role": "user", "content": "2 + 2?"}, secret, {"role": "assistant", "content": "Four."}])
    assert "reasoning_content" not in text.rendered["messages"][1]


def test_the_official_client_reads_items(client, engine, text):
    engine.reply = REPLY
    reply = client.responses.create(model=MODEL, input="2 + 2?", max_output_tokens=200)
    assert reply.output_text == "Four." and reply.output[0].content[0].text == "It is four, I think."
    streamed = client.responses.create(model=MODEL, input="2 + 2?", max_output_tokens=200, stream=True)
    assert [event.text for event in streamed if event.type == "response.reasoning_text.done"] == [
        "It is four, I think."
    ]
