"""/v1/responses over HTTP: bodies, events, items, refusals; the official client reads them strictly."""

import functools
import json

import openai
import pytest

from ..conftest import MODEL
from .response_events import events_of, kinds, post_response

WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
SHELL = {"type": "local_shell"}
SEARCH = {"type": "web_search", "search_context_size": "low"}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'


@pytest.fixture
def post(http):
    """A usual body with some keys changed."""
    return functools.partial(post_response, http)


@pytest.fixture
def stream(post):
    return lambda **changes: events_of(post(stream=True, **changes))


def test_a_stream_of_text(stream, engine):
    """In the order of OpenAI's; every event of the text names its item and part."""
    engine.reply = "Hello there"
    events = stream()
    assert kinds(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert "".join(e["delta"] for e in events if e["type"].endswith(".delta")) == "Hello there"
    [item] = events[-1]["response"]["output"]
    assert item == events[-2]["item"] and item["status"] == "completed" and item["id"].startswith("msg_")
    assert {e["item_id"] for e in events if "item_id" in e} == {item["id"]}
    assert item["content"] == [
        {"type": "output_text", "annotations": [], "logprobs": [], "text": "Hello there"}
    ]
    assert events[0]["response"]["status"] == "in_progress" and events[0]["response"]["usage"] is None


def test_a_whole_answer_is_the_last_event(post, stream):
    """But for ids and times; the streamed one has the same usage."""
    body = post(temperature=0.5, instructions="Be brief.").json()
    last = stream(temperature=0.5, instructions="Be brief.")[-1]["response"]
    for each in (body, last):
        assert each.pop("id").startswith("resp_") and each.pop("created_at") <= each.pop("completed_at")
        each["output"][0].pop("id")
    assert body == last
    assert body["temperature"] == 0.5 and body["instructions"] == "Be brief." and body["store"] is False
    used = body["usage"]
    assert used["total_tokens"] == used["input_tokens"] + used["output_tokens"]


def test_both_penalties_are_repeated(post):
    """As said, and 0 for silence: clients of the open specification read them as required numbers."""
    body = post(presence_penalty=0.5).json()
    assert (body["presence_penalty"], body["frequency_penalty"]) == (0.5, 0)
    body = post(frequency_penalty=-1).json()
    assert (body["presence_penalty"], body["frequency_penalty"]) == (0, -1)


def test_what_was_cut_short_says_so(stream, post):
    events = stream(max_output_tokens=3)
    assert events[-1]["type"] == "response.incomplete"
    body = post(max_output_tokens=3).json()
    assert body["status"] == body["output"][0]["status"] == "incomplete"
    assert body["incomplete_details"] == {"reason": "max_output_tokens"} and body["completed_at"] is None
    assert body["usage"]["output_tokens"] == 3


def test_more_output_than_the_context_holds_is_cut(post, engine):
    """At most so many tokens: the answer ends where the context does, and repeats what was asked for."""
    engine.info = type(engine.info)(context=20, vocabulary=259, slots=4, fingerprint="0123456789")
    body = post(max_output_tokens=32_000).json()
    assert body["incomplete_details"] == {"reason": "max_output_tokens"}
    assert body["usage"]["input_tokens"] + body["usage"]["output_tokens"] == 20
    assert body["max_output_tokens"] == 32_000


def test_text_and_calls_are_items(stream, post, engine):
    """A call has an id of its own beside the one that its output refers to."""
    engine.reply = f"Let me see.\n{CALL}\n{CALL.replace('Paris', 'Rome')}"
    events = stream(tools=[WEATHER])
    output = events[-1]["response"]["output"]
    assert [item["type"] for item in output] == ["message", "function_call", "function_call"]
    assert output[0]["content"][0]["text"] == "Let me see."
    for index, city in ((1, "Paris"), (2, "Rome")):
        call = output[index]
        assert call["id"].startswith("fc_") and call["call_id"].startswith("call_")
        assert (call["name"], json.loads(call["arguments"])) == ("get_weather", {"city": city})
        said = [e["delta"] for e in events if e["type"].endswith("delta") and e["item_id"] == call["id"]]
        assert "".join(said) == call["arguments"]
    added = [e["item"] for e in events if e["type"] == "response.output_item.added"]
    assert [e["output_index"] for e in events if e["type"] == "response.output_item.added"] == [0, 1, 2]
    assert [item["id"] for item in added] == [item["id"] for item in output]
    assert added[1]["arguments"] == "" and added[0]["content"] == []
    whole = post(tools=[WEATHER]).json()["output"]
    assert [item["type"] for item in whole] == ["message", "function_call", "function_call"]


def test_tools_that_openai_runs_are_left_out(post, server, caplog):
    """The log says so once, each answer in its header; the model is told of the others."""
    for stream in (False, True):
        answered = post(tools=[SEARCH, WEATHER, SHELL, SEARCH], stream=stream)
        assert answered.headers["x-distaff-tools-left-out"] == "web_search, local_shell"
    logged = [r.getMessage() for r in caplog.records if "leaving out" in r.getMessage()]
    assert logged == [
        f"leaving out tools of the type '{kind}', which this server cannot run"
        for kind in ("web_search", "local_shell")
    ]
    system = server.served.text.rendered["messages"][0]["content"]
    assert "get_weather" in system and "web_search" not in system and "shell" not in system
    echoed = post(tools=[SEARCH, WEATHER]).json()["tools"]
    assert echoed == [SEARCH, {"strict": False, **WEATHER}]
    assert "x-distaff-tools-left-out" not in post(tools=[WEATHER]).headers


def test_a_call_alone_has_no_message(post, engine):
    engine.reply = CALL
    assert [item["type"] for item in post(tools=[WEATHER]).json()["output"]] == ["function_call"]


def test_an_empty_answer_is_an_empty_message(post, stream, engine):
    engine.reply = ""
    [item] = post().json()["output"]
    assert item["content"][0]["text"] == ""
    assert "output_text.delta" not in kinds(stream())


def test_items_come_to_the_prompt_of_a_chat_completion(post, ask, engine):
    """Calls and the text around them are one assistant's message; the instructions come first."""
    answered = post(
        instructions="Be brief.",
        tools=[WEATHER],
        input=[
            {"role": "developer", "content": "Be kind."},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Paris?"}]},
            {"type": "reasoning", "id": "rs_1", "summary": []},
            {"role": "assistant", "content": [{"type": "output_text", "text": "Let me see."}]},
            {"type": "function_call", "call_id": "c1", "name": "get_weather", "arguments": '{"city": "P"}'},
            {"type": "function_call", "call_id": "c2", "name": "get_weather", "arguments": "?"},
            {"role": "assistant", "content": " And?"},
            {"type": "function_call_output", "call_id": "c1", "output": "rain"},
            {
                "type": "function_call_output",
                "call_id": "c2",
                "output": [{"type": "input_text", "text": "sun"}],
            },
        ],
    )
    function = {"name": "get_weather", "arguments": '{"city": "P"}'}
    calls = [
        {"id": "c1", "type": "function", "function": function},
        {"id": "c2", "type": "function", "function": function | {"arguments": "?"}},
    ]
    chatted = ask(
        tools=[{"type": "function", "function": {k: v for k, v in WEATHER.items() if k != "type"}}],
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "developer", "content": "Be kind."},
            {"role": "user", "content": "Paris?"},
            {"role": "assistant", "content": "Let me see. And?", "tool_calls": calls},
            {"role": "tool", "tool_call_id": "c1", "content": "rain"},
            {"role": "tool", "tool_call_id": "c2", "content": "sun"},
        ],
    )
    assert (answered.status_code, chatted.status_code) == (200, 200)
    first, second = engine.requests
    assert first.prompt == second.prompt and b"Let me see." in bytes(t for t in first.prompt if t < 256)


def test_sampling_is_a_chat_completions(post, ask, engine):
    """Every parameter that both have comes to the same, and so does silence."""
    shared = {
        "temperature": 0.7,
        "top_p": 0.8,
        "top_k": 9,
        "min_p": 0.1,
        "frequency_penalty": 0.5,
        "presence_penalty": -0.5,
        "repetition_penalty": 1.5,
        "logit_bias": {"65": 3},
        "stop_token_ids": [66],
        "min_tokens": 2,
        "allowed_token_ids": [65, 66, 67],
        "ignore_eos": True,
        "cache_salt": "s",
        "top_logprobs": 2,
    }
    for given in ({}, shared):
        post(seed=1, max_output_tokens=4, **given)
        ask(seed=1, max_tokens=4, logprobs=bool(given) or None, **given)
        first, second = engine.requests[-2:]
        assert (first.params, first.cache_salt) == (second.params, second.cache_salt)


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"input": None}, "input", "missing_required_parameter"),
        ({"input": 5}, "input", "invalid_type"),
        ({"input": []}, "input", "empty_array"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role", "invalid_value"),
        ({"input": [{"role": "user"}]}, "input[0].content", "missing_required_parameter"),
        ({"input": [{"type": "dream"}]}, "input[0].type", "invalid_value"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0].type",
            "invalid_value",
        ),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input", None),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input", None),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "previous_response_not_found"),
        ({"messages": []}, "messages", "unsupported_parameter"),
        ({"max_tokens": 5}, "max_tokens", "unsupported_parameter"),
        ({"background": True}, "background", "unsupported_parameter"),
        ({"truncation": "auto"}, "truncation", "unsupported_parameter"),
        ({"conversation": "conv_1"}, "conversation", "unsupported_parameter"),
        ({"max_output_tokens": 0}, "max_output_tokens", "integer_below_min_value"),
        ({"include": ["everything"]}, "include[0]", "invalid_value"),
        ({"tools": [SEARCH], "tool_choice": "required"}, "tool_choice", None),
        ({"tools": [SEARCH], "tool_choice": SEARCH}, "tool_choice", None),
        ({"tools": [SEARCH, {"type": "function"}]}, "tools[1].name", "missing_required_parameter"),
        ({"tools": [{"type": "function"}]}, "tools[0].name", "missing_required_parameter"),
        ({"tool_choice": "required"}, "tool_choice", None),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.name", "missing_required_parameter"),
        ({"text": {"tone": "kind"}}, "text.tone", "unknown_parameter"),
        ({"reasoning": {"effort": "utmost"}}, "reasoning.effort", "invalid_value"),
        ({"temperature": 3}, "temperature", "decimal_above_max_value"),
        ({"input": "x" * 5000}, "input", "context_length_exceeded"),
    ],
    ids=lambda value: json.dumps(value)[:50] if isinstance(value, dict) else "",
)
def test_refusals(post, changes, param, code):
    answered = post(stream=True, **changes)
    assert answered.status_code == 400
    error = answered.json()["error"]
    assert (error["param"], error["code"]) == (param, code)


@pytest.mark.parametrize(
    "changes",
    [
        {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True},
        {"truncation": "disabled", "background": False, "store": True, "previous_response_id": None},
        {"include": ["reasoning.encrypted_content"], "reasoning": {"effort": "low"}, "text": {}},
        {"metadata": {"a": "b"}, "user": "me", "service_tier": "auto", "max_tool_calls": 3},
    ],
)
def test_what_clients_send_by_habit_passes(post, changes):
    assert post(**changes).status_code == 200


@pytest.mark.parametrize(
    ("changes", "held"),
    [
        ({}, False),
        ({"text": {"format": {"type": "text"}}}, False),
        ({"text": {"format": {"type": "json_object"}}}, True),
        ({"text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}}}, True),
        ({"guided_choice": ["yes", "no"]}, True),
        ({"tools": [WEATHER]}, False),
        ({"tools": [WEATHER | {"strict": True}]}, True),
        ({"tools": [WEATHER], "tool_choice": "required"}, True),
        ({"tools": [WEATHER], "tool_choice": "none"}, False),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "get_weather"}}, True),
        (
            {
                "tools": [WEATHER],
                "tool_choice": {
                    "type": "allowed_tools",
                    "mode": "required",
                    "tools": [{"type": "function", "name": "get_weather"}],
                },
            },
            True,
        ),
    ],
)
def test_what_an_answer_is_held_to(post, engine, changes, held):
    assert post(**changes).status_code == 200
    [request] = engine.requests
    assert (request.params.grammar is not None) == held


def test_log_probabilities_where_they_are_included(stream, post):
    events = stream(include=["message.output_text.logprobs"], top_logprobs=2)
    [part] = events[-1]["response"]["output"][0]["content"]
    told = [entry for e in events if e["type"].endswith("text.delta") for entry in e["logprobs"]]
    assert told == part["logprobs"] and all(len(entry["top_logprobs"]) == 2 for entry in told)
    assert bytes(b for entry in told for b in entry["bytes"]).decode() == part["text"]
    assert len(told) == events[-1]["response"]["usage"]["output_tokens"]


def test_a_stream_that_breaks_off(stream, client, engine):
    """An error, which the official client raises, and the answer as failed."""
    engine.fail_after = 2
    events = stream()
    assert [e["type"] for e in events[-2:]] == ["error", "response.failed"]
    assert events[-1]["response"]["status"] == "failed" and events[-1]["response"]["error"]["message"]
    with pytest.raises(openai.APIError):
        for _ in client.responses.create(model=MODEL, input="hi", stream=True):
            pass


def test_the_official_client(client, engine):
    """Whole, as raw events, by its helper and parsed; it takes no answer that departs from its types."""
    engine.reply = '{"city": "Paris"}'
    assert client.responses.create(model=MODEL, input="hi").output_text == engine.reply
    events = list(client.responses.create(model=MODEL, input="hi", stream=True, top_logprobs=1))
    assert events[-1].response.output_text == engine.reply
    from pydantic import BaseModel

    class Place(BaseModel):
        city: str

    parsed = client.responses.parse(model=MODEL, input="hi", text_format=Place)
    assert parsed.output_parsed == Place(city="Paris")
    with client.responses.stream(model=MODEL, input="hi", text_format=Place) as helper:
        text = "".join(event.delta for event in helper if event.type == "response.output_text.delta")
        assert text == engine.reply and helper.get_final_response().output_parsed == Place(city="Paris")


def test_the_official_client_gathers_calls(client, engine):
    engine.reply = CALL
    with client.responses.stream(model=MODEL, input="hi", tools=[WEATHER]) as helper:
        final = helper.get_final_response()
    [call] = final.output
    assert (call.name, call.arguments) == ("get_weather", '{"city":"Paris"}')
