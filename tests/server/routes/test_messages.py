"""/v1/messages over HTTP: bodies, events, blocks, refusals, keys, and the models in Anthropic's shape."""

import json
import re
from dataclasses import replace

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distaff.server.answering import respond
from distaff.server.encode import to_json
from distaff.server.keys import Keys
from distaff.server.protocol.anthropic.message_reply import _input
from distaff.server.testing import EOS

from ..conftest import MODEL

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"name": "get_weather", "description": "Of a city.", "input_schema": SCHEMA}
SEARCH = {"type": "web_search_20250305", "name": "web_search", "max_uses": 5}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
KEY = "sk-first-0123456789"
ASKED = [{"role": "user", "content": "hi"}]


@pytest.fixture
def post(http):
    """A usual body with some keys changed (`...` drops one)."""

    def posted(path="/v1/messages", **changes):
        body = {"model": MODEL, "max_tokens": 100, "messages": ASKED} | changes
        return http.post(path, json={key: value for key, value in body.items() if value is not ...})

    return posted


@pytest.fixture
def count(post):
    return lambda **changes: post("/v1/messages/count_tokens", max_tokens=..., **changes)


@pytest.fixture
def stream(post):
    """The events of a stream; names and framing are checked."""
    return lambda **changes: events_of(post(stream=True, **changes).content)


def events_of(content: bytes) -> list[dict]:
    *parts, nothing = content.decode().split("\n\n")
    assert nothing == ""
    heads, bodies = zip(*(part.split("\n") for part in parts), strict=True)
    told = [json.loads(body.removeprefix("data: ")) for body in bodies]
    assert [f"event: {each['type']}" for each in told] == list(heads)
    return told


def folded(events: list[dict]) -> dict:
    """The message that a client makes of a stream."""
    message = dict(events[0]["message"], content=[])
    for event in events[1:]:
        match event:
            case {"type": "content_block_start"}:
                assert event["index"] == len(message["content"])
                message["content"].append(dict(event["content_block"]))
                said = ""
            case {"type": "content_block_delta", "delta": delta}:
                said += delta[{"text_delta": "text", "input_json_delta": "partial_json"}[delta["type"]]]
            case {"type": "content_block_stop"}:
                block = message["content"][-1]
                block |= {"text": said} if block["type"] == "text" else {"input": json.loads(said)}
            case {"type": "message_delta"}:
                message |= event["delta"]
                message["usage"] |= event["usage"]
    return message


def anonymous(message: dict) -> dict:
    """Without ids, which differ between two answers."""
    blocks = [{key: value for key, value in block.items() if key != "id"} for block in message["content"]]
    return message | {"id": None, "content": blocks}


def error_of(reply: httpx.Response) -> tuple[int, str, str]:
    """Status, type and message of an error in Anthropic's shape."""
    body = reply.json()
    assert list(body) == ["type", "error", "request_id"] and body["type"] == "error"
    assert body["request_id"] == reply.headers["request-id"]
    assert list(body["error"]) == ["type", "message"]
    return reply.status_code, body["error"]["type"], body["error"]["message"]


def test_a_message(post, engine):
    engine.cached = 4
    reply = post()
    body = reply.json()
    assert re.fullmatch("msg_[a-zA-Z0-9]{29}", body.pop("id"))
    assert body == {
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": [{"type": "text", "text": "Hello, world!"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 5,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 4,
            "output_tokens": 14,
        },
    }
    assert re.fullmatch("req_[0-9a-f]{32}", reply.headers["request-id"])


def test_a_stream_of_text(stream, engine):
    """In Anthropic's order; the counts of the prompt come with the first event."""
    engine.reply, engine.cached = "Hi!", 4
    kinds = [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * 3,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    events = stream()
    assert [event["type"] for event in events] == kinds
    assert events[0]["message"]["usage"]["cache_read_input_tokens"] == 4
    assert events[0]["message"]["content"] == [] and events[0]["message"]["stop_reason"] is None
    assert events[1] == {
        "type": "content_block_start",
        "index": 0,
        "content_block": {"type": "text", "text": ""},
    }
    assert events[2]["delta"] == {"type": "text_delta", "text": "H"}
    assert events[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert events[-2]["usage"]["output_tokens"] == 4


@pytest.mark.parametrize("reply", ["", "Hello", CALL, f"Let me see.\n{CALL}\n{CALL}", f"{CALL}\nBye."])
@pytest.mark.parametrize("choice", ["auto", "any"])
def test_a_stream_folds_to_the_whole(post, stream, engine, reply, choice):
    """Texts and calls, free and forced."""
    engine.reply = reply
    asked = {"tools": [WEATHER], "tool_choice": {"type": choice}}
    assert anonymous(folded(stream(**asked))) == anonymous(post(**asked).json())


def test_calls_are_blocks(post, engine):
    engine.reply = f"Let me see.\n{CALL}\n{CALL.replace('Paris', 'Rome')}"
    body = post(tools=[WEATHER], max_tokens=500).json()
    text, *calls = body["content"]
    assert text == {"type": "text", "text": "Let me see."} and body["stop_reason"] == "tool_use"
    assert all(re.fullmatch("toolu_[a-zA-Z0-9]{24}", call.pop("id")) for call in calls)
    assert calls == [
        {"type": "tool_use", "name": "get_weather", "input": {"city": city}} for city in ("Paris", "Rome")
    ]


def test_arguments_stream_while_they_are_generated(stream, engine):
    """Where the reply is held to a call; it is told as a call also where the request names the tool."""
    engine.reply = CALL
    events = stream(tools=[WEATHER], tool_choice={"type": "tool", "name": "get_weather"})
    pieces = [event["delta"]["partial_json"] for event in events if event["type"] == "content_block_delta"]
    assert "".join(pieces) == '{"city": "Paris"}' and len(pieces) > 5
    assert events[-2]["delta"]["stop_reason"] == "tool_use"


@pytest.mark.parametrize(("most", "found"), [(70, {"city": "Pa"}), (50, {}), (30, None)])
def test_a_call_that_is_cut_short_keeps_what_is_complete(post, engine, most, found):
    engine.reply = CALL.replace('"Paris"', '"Pa", "x": "y"')
    body = post(tools=[WEATHER], tool_choice={"type": "any"}, max_tokens=most).json()
    assert body["stop_reason"] == "max_tokens"
    assert [block["input"] for block in body["content"]] == ([] if found is None else [found])


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), VALUES, max_size=4), st.floats(0, 1))
def test_any_part_of_arguments_is_an_object(arguments, part):
    """The whole text is kept as it is, and what is cut short loses only its end."""
    text = json.dumps(arguments, ensure_ascii=False)
    assert to_json(_input(text)).decode() == to_json(msgspec.Raw(text.encode())).decode()
    found = json.loads(to_json(_input(text[: int(part * (len(text) - 1))])))
    assert list(found) == list(arguments)[: len(found)]


def test_why_it_ended(post, stream, engine):
    """A stop string is named; a full context differs from a limit."""
    engine.reply = "one STOP two"
    stopped = post(stop_sequences=["two", "STOP"]).json()
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", "STOP")
    assert stopped["content"][0]["text"] == "one "
    assert stream(stop_sequences=["STOP"])[-2]["delta"]["stop_sequence"] == "STOP"
    assert post(max_tokens=3).json()["stop_reason"] == "max_tokens"
    engine.info = replace(engine.info, context=13)
    for most, reason in ((4, "max_tokens"), (5, "model_context_window_exceeded"), (32_000,) * 2):
        body = post(max_tokens=most).json()
        expected = reason if most < 32_000 else "model_context_window_exceeded"
        assert (body["stop_reason"], body["usage"]["output_tokens"]) == (expected, 4)


def test_a_conversation_is_rendered_as_a_chat_completions(post, ask, engine):
    """Blocks become the messages and calls of a chat completion."""
    answered = post(
        system=[{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Be kind."}],
        tools=[WEATHER],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "Paris?"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Hm.", "signature": "s"},
                    {"type": "redacted_thinking", "data": "x"},
                    {"type": "text", "text": "Let me see."},
                    {"type": "tool_use", "id": "c1", "name": "get_weather", "input": {"city": "Paris"}},
                    {"type": "tool_use", "id": "c2", "name": "get_weather", "input": {}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "c1", "content": "rain"},
                    {
                        "type": "tool_result",
                        "tool_use_id": "c2",
                        "is_error": True,
                        "content": [{"type": "text", "text": "no"}, {"type": "text", "text": "city"}],
                    },
                    {"type": "text", "text": "And?"},
                ],
            },
            {"role": "system", "content": "Be quick."},
        ],
    )
    calls = [
        {"id": id, "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
        for id, arguments in (("c1", '{"city": "Paris"}'), ("c2", "{}"))
    ]
    function = {"name": "get_weather", "description": "Of a city.", "parameters": SCHEMA}
    chatted = ask(
        tools=[{"type": "function", "function": function}],
        messages=[
            {"role": "system", "content": "Be brief.\n\nBe kind."},
            {"role": "user", "content": "Paris?"},
            {"role": "assistant", "content": "Let me see.", "tool_calls": calls},
            {"role": "tool", "tool_call_id": "c1", "content": "rain"},
            {"role": "tool", "tool_call_id": "c2", "content": "Error: no\n\ncity"},
            {"role": "user", "content": "And?"},
            {"role": "system", "content": "Be quick."},
        ],
    )
    assert (answered.status_code, chatted.status_code) == (200, 200), answered.text
    first, second = engine.requests
    assert first.prompt == second.prompt


def test_thinking_reaches_the_template(post, server):
    said = {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm."}]}
    post(messages=[*ASKED, said, *ASKED])
    assert server.served.text.rendered["messages"][1]["reasoning_content"] == "Hm."


def test_a_last_message_of_the_assistant_is_continued(post, server):
    def rendered():
        return server.served.text.rendered

    post(messages=[*ASKED, {"role": "assistant", "content": "The best answer is ("}])
    assert rendered()["continue_final_message"] and not rendered()["add_generation_prompt"]
    for last in ([], [{"role": "assistant", "content": ""}], ASKED):
        post(messages=[*ASKED, *last])
        assert rendered()["add_generation_prompt"] and not rendered()["continue_final_message"]


def test_sampling_is_a_chat_completions(post, ask, engine):
    """And so is silence; a temperature that is nearly 0 is greedy."""
    for asked in ({}, {"temperature": 0.7, "top_p": 0.8, "top_k": 9}, {"temperature": 1e-9, "top_k": 0}):
        post(stop_sequences=["x"], **asked)
        ask(stop=["x"], max_tokens=100, **asked)
        first, second = (replace(request.params, seed=0) for request in engine.requests[-2:])
        assert first == second


@pytest.mark.parametrize(
    ("changes", "held"),
    [
        ({}, False),
        ({"tools": [WEATHER]}, False),
        ({"tools": [WEATHER | {"strict": True}]}, True),
        ({"tools": [WEATHER], "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}}, False),
        ({"tools": [WEATHER], "tool_choice": {"type": "any"}}, True),
        ({"tools": [WEATHER], "tool_choice": {"type": "none"}}, False),
        ({"tools": [WEATHER, SEARCH], "tool_choice": {"type": "tool", "name": "get_weather"}}, True),
        ({"output_config": {"effort": "high"}}, False),
        ({"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}, True),
    ],
)
def test_what_an_answer_is_held_to(post, engine, changes, held):
    assert post(**changes).status_code == 200
    [request] = engine.requests
    assert (request.params.grammar is not None) == held


@pytest.mark.parametrize(
    "changes",
    [
        {"thinking": {"type": "adaptive", "display": "omitted"}, "service_tier": "auto", "stream": False},
        {"thinking": {"type": "enabled", "budget_tokens": 1024}, "metadata": {"user_id": "u"}},
        {"context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}},
        {"output_config": {"effort": "medium", "format": None}, "cache_control": {"type": "ephemeral"}},
        {"system": [{"type": "text", "text": "S", "cache_control": {"type": "ephemeral", "ttl": "1h"}}]},
        {"tools": [WEATHER | {"type": "custom", "defer_loading": True, "cache_control": {"type": "x"}}]},
        {"tools": [], "tool_choice": {"type": "auto"}, "mcp_servers": [], "container": None},
        {"tools": [SEARCH], "tool_choice": {"type": "none"}},
    ],
)
def test_what_agents_send_by_habit_passes(post, count, changes):
    assert post(**changes).status_code == 200
    assert post("/v1/messages?beta=true", **changes).status_code == 200
    assert count(**changes).status_code == 200


def test_tools_of_anthropics_own_are_left_out(post, server, caplog):
    """With one log line for each type, and the model is told of the others."""
    for _ in range(2):
        post(tools=[SEARCH, WEATHER, {"type": "bash_20250124", "name": "bash"}])
    logged = [r.getMessage() for r in caplog.records if "leaving out" in r.getMessage()]
    assert logged == [
        f"leaving out tools of the type '{kind}', which this server cannot run"
        for kind in ("web_search_20250305", "bash_20250124")
    ]
    system = server.served.text.rendered["messages"][0]["content"]
    assert "get_weather" in system and "web_search" not in system


def content(*blocks):
    return [{"role": "user", "content": list(blocks)}]


TEXT = {"type": "text", "text": "x"}
RESULT = {"type": "tool_result", "tool_use_id": "c1"}
USE = {"type": "tool_use", "id": "c1", "name": "f", "input": {}}
CALLED = {"role": "assistant", "content": [USE]}
FAULTS = [
    ({"max_tokens": ...}, "Missing required parameter: 'max_tokens'."),
    ({"messages": ...}, "Missing required parameter: 'messages'."),
    ({"model": ...}, "you must provide a model parameter"),
    ({"max_tokens": 0}, "Invalid 'max_tokens': integer below minimum value. Expected a value >= 1, but got "),
    ({"temperature": 1.5}, "Expected a value <= 1, but got 1.5 instead."),
    ({"stop_sequences": "x"}, "Invalid type for 'stop_sequences': expected an array of strings, but got a "),
    ({"stop_sequences": ["x" * 2000]}, "string too long"),
    ({"stop_sequences": [""]}, "Invalid 'stop_sequences': string too short."),
    (
        {"messages": [{"role": "tool", "content": "x"}]},
        "messages[0].role: Invalid value: 'tool'. Supported values are: 'user', 'assistant', and 'system'.",
    ),
    ({"messages": [{"role": "user"}]}, "Missing required parameter: 'messages[0].content'."),
    (
        {"messages": content(TEXT, {"type": "image", "source": {}})},
        "messages[0].content[1].type: Invalid value: 'image'. "
        "Supported values are: 'text' and 'tool_result'.",
    ),
    ({"messages": content({"type": "document"})}, "Invalid value: 'document'."),
    ({"messages": content({"text": "x"})}, "Missing required parameter: 'messages[0].content[0].type'."),
    ({"messages": content({"type": "text"})}, "Missing required parameter: 'messages[0].content[0].text'."),
    (
        {"messages": content(RESULT)},
        "messages[0].content[0].tool_use_id: No 'tool_use' block before it has the id 'c1'.",
    ),
    (
        {"messages": [CALLED, *content(RESULT | {"content": [{"type": "image"}]})]},
        "messages[1].content[0].content[0].type: Invalid value: 'image'. "
        "Supported values are: 'text' and 'tool_reference'.",
    ),
    (
        {"messages": [*ASKED, CALLED]},
        "messages: The last message has 'tool_use' blocks without a 'tool_result' after them.",
    ),
    (
        {"messages": [{"role": "assistant", "content": [USE | {"input": None}]}]},
        "Missing required parameter: 'messages[0].content[0].input'.",
    ),
    ({"system": 5}, "Invalid type for 'system': expected one of a string or array of objects, but got an "),
    ({"tools": [{"name": "f"}]}, "Missing required parameter: 'tools[0].input_schema'."),
    (
        {"tools": [{"name": "f", "input_schema": {"type": "string"}}]},
        "tools[0].input_schema: Invalid schema for function 'f': schema must be a JSON Schema of",
    ),
    (
        {"tools": [{"type": "function", "function": {}}]},
        "tools[0].type: Invalid value: 'function'. Supported values are: 'custom'.",
    ),
    ({"tools": [WEATHER | {"name": "a b"}]}, "Invalid 'tools[0].name': string does not match pattern."),
    ({"tools": [WEATHER | {"name": "n" * 129}]}, "Expected a string with maximum length 128"),
    (
        {"tools": [SEARCH], "tool_choice": {"type": "tool", "name": "web_search"}},
        "tool_choice.name: The tool 'web_search' has the type 'web_search_20250305', which is not supported "
        "here. Expected one with an 'input_schema'.",
    ),
    (
        {"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "x"}},
        "tool_choice.name: Tool choice 'x' not found in 'tools' parameter.",
    ),
    (
        {"tool_choice": {"type": "any"}},
        "Invalid value for 'tool_choice': 'tool_choice' is only allowed when 'tools' are specified.",
    ),
    (
        {"output_config": {"format": {"type": "xml"}}},
        "output_config.format.type: Invalid value: 'xml'. Supported values are: 'json_schema'.",
    ),
    ({"output_config": {"effort": "utmost"}}, "output_config.effort: Invalid value: 'utmost'."),
    (
        {"output_config": {"format": {"type": "json_schema", "schema": {"not": {}}}}},
        "Invalid value for 'output_config.format': ",
    ),
    ({"metadata": {"user_id": 5}}, "Invalid type for 'metadata.user_id': expected a string"),
    ({"container": "c"}, "Unsupported parameter: 'container' is not supported with this model."),
    ({"messages": [{"role": "user", "content": "refuse me"}]}, "messages: Conversation roles must alternate"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "said"), FAULTS, ids=lambda value: str(value)[:60])
def test_refusals(post, changes, said):
    status, kind, message = error_of(post(stream=True, **changes))
    assert (status, kind) == (400, "invalid_request_error")
    assert said in message


def test_a_prompt_that_is_too_long_is_refused_in_words_that_agents_know(post):
    """The sum is not: at most so many tokens."""
    told = error_of(post(messages=[{"role": "user", "content": "x" * 5000}]))
    assert told == (400, "invalid_request_error", "prompt is too long: 5007 tokens > 4096 maximum")


def test_other_statuses(post, http, engine, make_server):
    """Each with Anthropic's type; overload has a status of its own, and says when to ask again."""
    assert error_of(post(model="x"))[:2] == (404, "not_found_error")
    assert error_of(http.get("/v1/messages/batches"))[:2] == (404, "not_found_error")
    assert error_of(http.get("/v1/messages"))[:2] == (405, "invalid_request_error")
    assert error_of(http.post("/v1/messages", content=b"{"))[:2] == (400, "invalid_request_error")
    large = b" " * (make_server().settings.most_body_bytes + 1)
    assert error_of(http.post("/v1/messages", content=large))[:2] == (413, "request_too_large")
    zipped = http.post("/v1/messages", content=b"{}", headers={"content-encoding": "zstd"})
    assert error_of(zipped)[:2] == (415, "invalid_request_error")
    engine.capacity = 0
    busy = post()
    assert error_of(busy)[:2] == (529, "overloaded_error") and busy.headers["retry-after"] == "1"
    engine.state = "starting"
    assert error_of(post())[:2] == (529, "overloaded_error")


def test_a_whole_answer_that_fails(post, engine):
    engine.fail_after = 2
    assert error_of(post())[:2] == (500, "api_error")


def test_a_stream_that_breaks_off_ends_with_an_error(post, engine):
    engine.fail_after = 2
    reply = post(stream=True)
    *_, last = events_of(reply.content)
    assert last["type"] == "error" and last["error"]["type"] == "api_error"
    assert last["request_id"] == reply.headers["request-id"]


def test_silence_is_filled_with_pings(stream, engine, monkeypatch):
    """Also before the first token."""
    monkeypatch.setattr(respond, "KEEP_ALIVE_SECONDS", 0.02)
    engine.reply, engine.delay = "a", 0.1
    events = stream()
    assert events[0] == {"type": "ping"}
    assert next(e["type"] for e in events if e["type"] != "ping") == "message_start"


def test_a_long_call_that_is_not_yet_told_is_filled_with_pings(stream, engine, monkeypatch):
    """Tokens come, but nothing is certain to be a call before it is complete."""
    monkeypatch.setattr(respond, "KEEP_ALIVE_SECONDS", 0.1)
    engine.reply, engine.delay = CALL, 0.01
    names = [event["type"] for event in stream(tools=[WEATHER])]
    assert names.count("ping") >= 2 and names.index("ping") < names.index("content_block_start")


def test_tokens_are_counted(post, count):
    """As many as the message's prompt has, whatever the context."""
    asked = {
        "system": "S",
        "tools": [WEATHER],
        "messages": [*ASKED, {"role": "assistant", "content": "x"}, *ASKED],
    }
    usage = post(**asked).json()["usage"]
    assert count(**asked).json() == {"input_tokens": usage["input_tokens"]}
    assert count(messages=[{"role": "user", "content": "x" * 5000}]).json() == {"input_tokens": 5007}
    assert count(tools=[WEATHER | {"name": "n" * 128}] * 1024).status_code == 200
    assert "array too long" in error_of(count(tools=[WEATHER] * 1025))[2]
    assert error_of(count(model="x"))[0] == 404


def test_unknown_keys_are_logged_or_refused(post, strict_server, caplog):
    assert post(seed=1).status_code == 200
    assert "ignoring the unknown request parameter 'seed'" in caplog.text
    body = {"model": "tgi", "max_tokens": 5, "messages": ASKED}
    with httpx.Client(base_url=strict_server.url) as http:
        assert http.post("/v1/messages", json=body).status_code == 200
        refused = http.post("/v1/messages", json=body | {"seed": 1})
        assert error_of(refused) == (
            400,
            "invalid_request_error",
            "Unknown parameter: 'seed'. Did you mean 'speed'?",
        )
        stops = http.post("/v1/messages", json=body | {"stop_sequences": list("abcdef")})
        assert stops.status_code == 200
        summed = http.post("/v1/messages", json=body | {"max_tokens": 32_000})
        assert "you requested 32009 tokens" in error_of(summed)[2]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"x-api-key": KEY}, 200),
        ({"authorization": f"Bearer {KEY}"}, 200),
        ({"x-api-key": "sk-ant-another-key", "authorization": f"Bearer {KEY}"}, 200),
        ({"x-api-key": KEY, "authorization": "Bearer sk-ant-another-key"}, 200),
        ({"x-api-key": "sk-ant-another-key"}, 401),
        ({"x-api-key": ""}, 401),
        ({}, 401),
    ],
)
def test_a_key_comes_in_either_header(make_server, headers, status):
    server = make_server(keys=Keys([KEY]))
    with httpx.Client(base_url=server.url, headers=headers) as http:
        body = {"model": "tgi", "max_tokens": 5, "messages": ASKED}
        for path in ("/v1/messages", "/v1/messages/count_tokens"):
            sent = body if path == "/v1/messages" else {key: body[key] for key in ("model", "messages")}
            reply = http.post(path, json=sent)
            assert reply.status_code == status
            assert status == 200 or error_of(reply)[1] == "authentication_error"
        listed = http.get("/v1/models", headers={"anthropic-version": "2023-06-01"})
        assert listed.status_code == status


def test_models_in_the_clients_shape(http, server):
    """The header decides, and OpenAI's clients see no difference."""
    asked = {"anthropic-version": "2023-06-01"}
    listed = http.get("/v1/models?limit=20", headers=asked).json()
    assert [model["id"] for model in listed["data"]] == list(server.settings.names)
    assert (listed["first_id"], listed["last_id"], listed["has_more"]) == (MODEL, "tgi", False)
    one = http.get("/v1/models/tgi", headers=asked).json()
    assert one == listed["data"][-1] and one["type"] == "model" and one["max_input_tokens"] == 4096
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", one["created_at"])
    assert error_of(http.get("/v1/models/x", headers=asked))[:2] == (404, "not_found_error")
    assert http.get("/v1/models").json()["object"] == "list"
    assert "request-id" not in http.get("/v1/models").headers


def test_a_special_tokens_name_stops_by_name(post, engine):
    engine.reply = [*b"ab", EOS]
    body = post(stop_sequences=["<|257|>"]).json()
    assert body["content"] == [{"type": "text", "text": "ab"}]
