"""Tools over HTTP: what the engine is asked for, and calls in OpenAI's shapes, streamed and whole."""

import json

import pytest

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
NOW = {"type": "function", "function": {"name": "now"}}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
NAMED = {"type": "function", "function": {"name": "get_weather"}}


@pytest.fixture(autouse=True)
def replies(engine):
    engine.reply = f"Let me see.\n{CALL}\n{CALL.replace('Paris', 'Rome')}"


def test_a_whole_reply_with_calls(ask):
    """Content before the calls, each call with an id and arguments that are a string of JSON."""
    reply = ask(tools=[WEATHER, NOW]).json()
    [choice] = reply["choices"]
    message = choice["message"]
    assert choice["finish_reason"] == "tool_calls" and message["content"] == "Let me see."
    assert [json.loads(call["function"]["arguments"])["city"] for call in message["tool_calls"]] == [
        "Paris",
        "Rome",
    ]
    for call in message["tool_calls"]:
        assert call["type"] == "function" and call["function"]["name"] == "get_weather"
        assert call["id"].startswith("call_") and len(call["id"]) == 29
    assert len({call["id"] for call in message["tool_calls"]}) == 2


def test_calls_alone_have_no_content(ask, engine):
    engine.reply = CALL
    assert ask(tools=[WEATHER]).json()["choices"][0]["message"]["content"] is None


def test_a_stream_with_calls(stream):
    """Id and name once per call, indices from 0, fragments without null keys, one call after the other."""
    chunks = stream(tools=[WEATHER, NOW])
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": "", "refusal": None}
    text = "".join(delta.get("content") or "" for delta in deltas)
    parts = [call for delta in deltas for call in delta.get("tool_calls", ())]
    heads = [part for part in parts if "id" in part]
    assert text == "Let me see." and [head["index"] for head in heads] == [0, 1]
    assert [part["index"] for part in parts] == sorted(part["index"] for part in parts)
    assert all(set(part) == {"index", "function"} for part in parts if "id" not in part)
    assert all(set(part["function"]) == {"arguments"} for part in parts if "id" not in part)
    for index, city in enumerate(["Paris", "Rome"]):
        said = "".join(part["function"]["arguments"] for part in parts if part["index"] == index)
        assert json.loads(said) == {"city": city}
    assert chunks[-1]["choices"][0] == {
        "index": 0,
        "delta": {},
        "logprobs": None,
        "finish_reason": "tool_calls",
    }


def test_a_call_without_text_begins_with_a_role_and_null(stream, engine):
    engine.reply = CALL
    first, second, *_ = (chunk["choices"][0]["delta"] for chunk in stream(tools=[WEATHER]))
    assert first == {"role": "assistant", "content": None, "refusal": None}
    assert second["tool_calls"][0]["function"] == {"name": "get_weather", "arguments": ""}


@pytest.mark.parametrize("choice", [{"tool_choice": NAMED}, {"tool_choice": "required"}])
def test_a_single_forced_call_begins_with_the_call(stream, engine, choice):
    """As OpenAI records it: one chunk with role and call."""
    engine.reply = CALL
    chunks = stream(tools=[WEATHER], parallel_tool_calls=False, **choice)
    delta = chunks[0]["choices"][0]["delta"]
    assert list(delta) == ["role", "content", "tool_calls", "refusal"] and delta["content"] is None
    assert delta["tool_calls"][0]["function"] == {"name": "get_weather", "arguments": ""}
    fragments = [chunk["choices"][0]["delta"] for chunk in chunks[1:-1]]
    assert all(list(fragment) == ["tool_calls"] for fragment in fragments) and len(fragments) > 5


@pytest.mark.parametrize("n", [1, 3])
def test_the_official_client_puts_a_stream_together(client, engine, n):
    """Its helper joins what it is sent; a repeated id or name would show."""
    engine.reply = CALL
    with client.chat.completions.stream(
        model="tgi", messages=[{"role": "user", "content": "x"}], tools=[WEATHER], n=n
    ) as events:
        kinds = {event.type for event in events}
        final = events.get_final_completion()
    assert "tool_calls.function.arguments.done" in kinds
    for choice in final.choices:
        [call] = choice.message.tool_calls
        assert (call.function.name, call.function.arguments) == ("get_weather", '{"city":"Paris"}')
        assert choice.finish_reason == "tool_calls" and choice.message.role == "assistant"


def test_a_limit_is_truthful(ask):
    """A reply that was cut short ends with `length`, calls or not."""
    assert ask(tools=[WEATHER], max_tokens=100).json()["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("changes", "held"),
    [
        ({}, False),
        ({"tool_choice": "auto"}, False),
        ({"tool_choice": "none"}, False),
        ({"tool_choice": "required"}, True),
        ({"tool_choice": NAMED}, True),
        ({"response_format": {"type": "json_object"}}, True),
    ],
)
def test_calls_are_held_to_a_grammar_where_they_must_be(ask, engine, changes, held):
    """Where a call is forced, or anything else is asked of the reply."""
    ask(tools=[WEATHER, NOW], **changes)
    grammar = engine.requests[0].params.grammar
    assert (grammar is not None) == held
    if held:
        assert "get_weather" in grammar and ("now" in grammar) == (changes.get("tool_choice") != NAMED)


def test_a_strict_tool_is_held_to_its_schema(ask, engine):
    strict = {"type": "function", "function": WEATHER["function"] | {"strict": True}}
    ask(tools=[strict])
    assert "city" in engine.requests[0].params.grammar


def test_none_neither_tells_nor_finds_tools(ask, server):
    """The text is the text, and the model hears of no tool."""
    choice = ask(tools=[WEATHER], tool_choice="none").json()["choices"][0]
    assert CALL in choice["message"]["content"] and choice["finish_reason"] == "stop"
    assert "get_weather" not in str(server.served.text.rendered["messages"])


def test_a_template_without_tools_is_told_in_words(ask, server):
    """Calls and results of earlier turns too, also when no tools are given any more."""
    history = [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "c", "type": "function", "function": {"name": "now", "arguments": '{"a": 1}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "c", "content": "noon"},
    ]
    ask(messages=history, tools=[WEATHER])
    messages = server.served.text.rendered["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert "get_weather" in messages[0]["content"] and server.served.text.rendered["tools"] is None
    ask(messages=history)
    assert [m["role"] for m in server.served.text.rendered["messages"]] == ["user", "assistant", "user"]


def test_a_template_with_tools_gets_them(ask, server):
    """As OpenAI's own objects."""
    server.served.text.knows_tools = True
    ask(tools=[WEATHER])
    rendered = server.served.text.rendered
    assert rendered["tools"] == [WEATHER] and len(rendered["messages"]) == 1


def test_allowed_tools_are_the_only_ones(ask, engine):
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NOW]}}
    ask(tools=[WEATHER, NOW], tool_choice=choice)
    assert "get_weather" not in engine.requests[0].params.grammar


def test_a_schema_that_cannot_be_followed_is_refused(ask):
    """Before anything is generated, and by the name of the parameter."""
    parameters = {"type": "object", "properties": {"x": {"type": "nonsense"}}}
    broken = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    error = ask(tools=[broken], tool_choice="required").json()["error"]
    assert error["param"] == "tools[0].function.parameters" and error["message"] == (
        "Invalid schema for function 'f': In context=('properties', 'x'), Invalid type: nonsense"
    )


def test_entries_are_of_the_content_alone(ask):
    """Tokens of calls are not listed."""
    choice = ask(tools=[WEATHER], logprobs=True).json()["choices"][0]
    said = b"".join(bytes(entry["bytes"]) for entry in choice["logprobs"]["content"])
    assert said.decode() == choice["message"]["content"] == "Let me see."


@pytest.mark.parametrize(("format", "length"), [("mistral", 9), ("mistral-args", 9), ("llama3", 29)])
def test_ids_are_of_the_kind_that_the_models_own_templates_take(ask, engine, server, format, length):
    """Mistral's refuse all but nine letters or digits."""
    written = {
        "mistral": '[TOOL_CALLS] [{"name": "now", "arguments": {}}, {"name": "now", "arguments": {}}]',
        "mistral-args": "[TOOL_CALLS]now[ARGS]{}[TOOL_CALLS]now[ARGS]{}",
        "llama3": '{"name": "now", "parameters": {}}; {"name": "now", "parameters": {}}',
    }
    engine.reply, server.served.tool_format = written[format], format
    try:
        calls = ask(tools=[NOW]).json()["choices"][0]["message"]["tool_calls"]
    finally:
        server.served.tool_format = None
    ids = {call["id"] for call in calls}
    assert len(ids) == 2 and {len(id) for id in ids} == {length}
    assert all(id.removeprefix("call_").isalnum() for id in ids)
