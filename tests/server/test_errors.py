"""The error table of the protocol, word for word."""

from dataclasses import replace

import pytest

SYSTEM = {"role": "system", "content": "s"}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def user(content):
    return [{"role": "user", "content": content}]


def below(name, low, got, kind="integer"):
    return f"Invalid '{name}': {kind} below minimum value. Expected a value >= {low}, but got {got} instead."


def above(name, high, got, kind="integer"):
    return f"Invalid '{name}': {kind} above maximum value. Expected a value <= {high}, but got {got} instead."


def wrong_type(name, expected, got):
    return f"Invalid type for '{name}': expected {expected}, but got {got} instead."


NO_CONTENT = "Invalid value for 'content': expected a string, got null."
ROLES = "'system', 'assistant', 'user', 'function', 'tool', and 'developer'"

TOOL = {"type": "function", "function": {"name": "f"}}

TABLE = [
    # (changes to a good body, message, param, code)
    ({"model": ...}, "you must provide a model parameter", None, None),
    ({"model": None}, "you must provide a model parameter", None, None),
    ({"model": ""}, "you must provide a model parameter", None, None),
    ({"model": 5}, wrong_type("model", "a string", "an integer"), "model", "invalid_type"),
    (
        {"messages": ...},
        "Missing required parameter: 'messages'.",
        "messages",
        "missing_required_parameter",
    ),
    (
        {"messages": []},
        "Invalid 'messages': empty array. Expected an array with minimum length 1, but got an empty array "
        "instead.",
        "messages",
        "empty_array",
    ),
    (
        {"messages": "hi"},
        wrong_type("messages", "an array of objects", "a string"),
        "messages",
        "invalid_type",
    ),
    (
        {"messages": ["hi"]},
        wrong_type("messages[0]", "an object", "a string"),
        "messages[0]",
        "invalid_type",
    ),
    (
        {"messages": [{"content": "x"}]},
        "Missing required parameter: 'messages[0].role'.",
        "messages[0].role",
        "missing_required_parameter",
    ),
    (
        {"messages": [SYSTEM, {"role": "bogus", "content": "x"}]},
        f"Invalid value: 'bogus'. Supported values are: {ROLES}.",
        "messages[1].role",
        "invalid_value",
    ),
    (
        {"messages": user(5)},
        wrong_type("messages[0].content", "one of a string or array of objects", "an integer"),
        "messages[0].content",
        "invalid_type",
    ),
    ({"messages": user(None)}, NO_CONTENT, "messages.[0].content", None),
    ({"messages": [SYSTEM, {"role": "user"}]}, NO_CONTENT, "messages.[1].content", None),
    ({"messages": [{"role": "assistant", "tool_calls": None}]}, NO_CONTENT, "messages.[0].content", None),
    (
        {"messages": user([])},
        "Invalid 'messages[0].content': empty array. Expected an array with minimum length 1, but got an "
        "empty array instead.",
        "messages[0].content",
        "empty_array",
    ),
    (
        {"messages": user([{"type": "text"}])},
        "Missing required parameter: 'messages[0].content[0].text'.",
        "messages[0].content[0].text",
        "missing_required_parameter",
    ),
    (
        {"messages": user([{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {}}])},
        "Invalid value: 'image_url'. Supported values are: 'text'.",
        "messages[0].content[1].type",
        "invalid_value",
    ),
    (
        {"messages": [{"role": "assistant", "content": [{"type": "file"}]}]},
        "Invalid value: 'file'. Supported values are: 'text' and 'refusal'.",
        "messages[0].content[0].type",
        "invalid_value",
    ),
    (
        {"messages": [*user("x"), {"role": "tool", "content": "x", "tool_call_id": "c1"}]},
        "Invalid parameter: messages with role 'tool' must be a response to a preceeding message with "
        "'tool_calls'.",
        "messages.[1].role",
        None,
    ),
    ({"n": "2"}, wrong_type("n", "an integer", "a string"), "n", "invalid_type"),
    ({"n": True}, wrong_type("n", "an integer", "a boolean"), "n", "invalid_type"),
    ({"n": 1.5}, wrong_type("n", "an integer", "a decimal number"), "n", "invalid_type"),
    ({"n": 0}, below("n", 1, 0), "n", "integer_below_min_value"),
    ({"n": 17}, above("n", 16, 17), "n", "integer_above_max_value"),
    (
        {"temperature": 200},
        above("temperature", 2, 200, "decimal"),
        "temperature",
        "decimal_above_max_value",
    ),
    (
        {"temperature": -0.1},
        below("temperature", 0, -0.1, "decimal"),
        "temperature",
        "decimal_below_min_value",
    ),
    ({"temperature": "1"}, wrong_type("temperature", "a decimal", "a string"), "temperature", "invalid_type"),
    ({"top_p": [1]}, wrong_type("top_p", "a decimal", "an array"), "top_p", "invalid_type"),
    ({"top_p": [{}]}, wrong_type("top_p", "a decimal", "an array of objects"), "top_p", "invalid_type"),
    ({"logprobs": 1}, wrong_type("logprobs", "a boolean", "an integer"), "logprobs", "invalid_type"),
    (
        {"logprobs": True, "top_logprobs": 21},
        above("top_logprobs", 20, 21),
        "top_logprobs",
        "integer_above_max_value",
    ),
    (
        {"top_logprobs": 2},
        "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled.",
        "top_logprobs",
        None,
    ),
    (
        {"stop": ["a"] * 65},
        "Invalid 'stop': array too long. Expected an array with maximum length 64, but got an array with "
        "length 65 instead.",
        "stop",
        "array_above_max_length",
    ),
    ({"stream": "yes"}, wrong_type("stream", "a boolean", "a string"), "stream", "invalid_type"),
    (
        {"stream_options": {"include_usage": True}},
        "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
        "stream_options",
        None,
    ),
    (
        {"stream": True, "stream_options": {"bogus": 1}},
        "Unknown parameter: 'stream_options.bogus'.",
        "stream_options.bogus",
        "unknown_parameter",
    ),
    (
        {"stream": True, "stream_options": {"include_usage": 1}},
        wrong_type("stream_options.include_usage", "a boolean", "an integer"),
        "stream_options.include_usage",
        "invalid_type",
    ),
    (
        {"response_format": {"type": "bogus"}},
        "Invalid value: 'bogus'. Supported values are: 'json_object', 'json_schema', and 'text'.",
        "response_format.type",
        "invalid_value",
    ),
    (
        {"response_format": {}},
        "Missing required parameter: 'response_format.type'.",
        "response_format.type",
        "missing_required_parameter",
    ),
    (
        {"tool_choice": "auto"},
        "Invalid value for 'tool_choice': 'tool_choice' is only allowed when 'tools' are specified.",
        "tool_choice",
        None,
    ),
    (
        {"parallel_tool_calls": True},
        "Invalid value for 'parallel_tool_calls': 'parallel_tool_calls' is only allowed when 'tools' are "
        "specified.",
        "parallel_tool_calls",
        None,
    ),
    (
        {"tools": [{"type": "custom"}]},
        "Invalid value: 'custom'. Supported values are: 'function'.",
        "tools[0].type",
        "invalid_value",
    ),
    (
        {"tools": [{"type": "function"}]},
        "Missing required parameter: 'tools[0].function'.",
        "tools[0].function",
        "missing_required_parameter",
    ),
    (
        {"tools": [{"type": "function", "function": {}}]},
        "Missing required parameter: 'tools[0].function.name'.",
        "tools[0].function.name",
        "missing_required_parameter",
    ),
    (
        {"tools": [{"type": "function", "function": {"name": "a b"}}]},
        "Invalid 'tools[0].function.name': string does not match pattern. Expected a string that matches "
        "the pattern '^[a-zA-Z0-9_-]+$'.",
        "tools[0].function.name",
        "invalid_value",
    ),
    (
        {"tools": [TOOL], "tool_choice": "maybe"},
        "Invalid value: 'maybe'. Supported values are: 'none', 'auto', and 'required'.",
        "tool_choice",
        "invalid_value",
    ),
    (
        {"tools": [TOOL], "tool_choice": {"type": "function"}},
        "Missing required parameter: 'tool_choice.function'.",
        "tool_choice.function",
        "missing_required_parameter",
    ),
    (
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
        "Tool choice 'g' not found in 'tools' parameter.",
        "tool_choice",
        None,
    ),
    (
        {"response_format": {"type": "json_schema"}},
        "Missing required parameter: 'response_format.json_schema'.",
        "response_format.json_schema",
        "missing_required_parameter",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
        "Missing required parameter: 'response_format.json_schema.name'.",
        "response_format.json_schema.name",
        "missing_required_parameter",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "y"}}}},
        "Invalid schema for response_format 'x': Invalid type: y",
        "response_format",
        None,
    ),
    (
        {"guided_regex": "a", "response_format": {"type": "json_object"}},
        "Only one of 'response_format' and 'guided_regex' can be given.",
        "guided_regex",
        None,
    ),
    (
        {"guided_regex": "a", "guided_choice": ["b"]},
        "Only one of 'guided_regex' and 'guided_choice' can be given.",
        "guided_choice",
        None,
    ),
    (
        {"logit_bias": {"a": 1}},
        "Invalid key in 'logit_bias': 'a'. Expected a token id such as '50256'.",
        "logit_bias",
        "invalid_value",
    ),
    (
        {"logit_bias": {"5": 101}},
        above("logit_bias.5", 100, 101, "decimal"),
        "logit_bias.5",
        "decimal_above_max_value",
    ),
    (
        {"logit_bias": {"259": 1}},
        "Invalid 'logit_bias': no token has the id 259. Expected an id from 0 to 258.",
        "logit_bias",
        "invalid_value",
    ),
    (
        {"stop_token_ids": ["a"]},
        wrong_type("stop_token_ids[0]", "an integer", "a string"),
        "stop_token_ids[0]",
        "invalid_type",
    ),
    (
        {"continue_final_message": True, "add_generation_prompt": True},
        "'continue_final_message' and 'add_generation_prompt' cannot both be true.",
        "continue_final_message",
        None,
    ),
    (
        {"chat_template_kwargs": {"tokenize": True}},
        "Unknown parameter: 'chat_template_kwargs.tokenize'.",
        "chat_template_kwargs.tokenize",
        "unknown_parameter",
    ),
    (
        {"metadata": {str(i): "" for i in range(17)}},
        "Invalid 'metadata': too many properties. Expected an object with at most 16 properties, but got an "
        "object with 17 properties instead.",
        "metadata",
        "object_above_max_properties",
    ),
    (
        {"metadata": {"k": "x" * 513}},
        "Invalid 'metadata.k': string too long. Expected a string with maximum length 512, but got a string "
        "with length 513 instead.",
        "metadata.k",
        "string_above_max_length",
    ),
    ({"user": 5}, wrong_type("user", "a string", "an integer"), "user", "invalid_type"),
    (
        {"service_tier": "gold"},
        "Invalid value: 'gold'. Supported values are: 'auto', 'default', 'flex', 'scale', 'priority', and "
        "'fast'.",
        "service_tier",
        "invalid_value",
    ),
]


@pytest.mark.parametrize(("changes", "message", "param", "code"), TABLE)
def test_a_fault_is_answered_in_the_protocols_words(ask, changes, message, param, code):
    reply = ask(**changes)
    assert reply.status_code == 400
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-request-id"].startswith("req_")
    assert reply.json() == {
        "error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("functions", [{"name": "f"}]),
        ("function_call", "auto"),
        ("prediction", {"type": "content", "content": "x"}),
        ("modalities", ["text", "audio"]),
        ("audio", {}),
        ("web_search_options", {}),
        ("moderation", {}),
        ("best_of", 10**9),
        ("prompt_logprobs", 3),
        ("truncate_prompt_tokens", 5),
        ("chat_template", "{{ x }}"),
        ("documents", [{}]),
        ("prompt_embeds", "x"),
        ("lora", "x"),
        ("mm_processor_kwargs", {}),
    ],
)
def test_what_is_not_honoured_is_refused_by_name(ask, name, value):
    reply = ask(**{name: value})
    assert reply.status_code == 400
    assert reply.json()["error"] == {
        "message": f"Unsupported parameter: '{name}' is not supported with this model.",
        "type": "invalid_request_error",
        "param": name,
        "code": "unsupported_parameter",
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"tools": None, "tool_choice": None, "functions": None, "logit_bias": None},
        {"tool_choice": "none", "function_call": "none"},
        {"response_format": {"type": "text"}},
        {"modalities": ["text"], "logit_bias": {}, "stop": []},
        {"stop": None, "n": None, "temperature": None, "stream": None, "stream_options": None, "seed": None},
        {"user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "auto", "verbosity": "low"},
        {"reasoning_effort": "high", "safety_identifier": "x", "prompt_cache_key": "y"},
        {"repetition_penalty": 1.0, "min_tokens": 0, "skip_special_tokens": True, "best_of": 1},
        {"add_generation_prompt": True, "continue_final_message": False, "top_k": -1, "min_p": 0},
        {"tools": []},
        {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True},
        {"stop": ["a"] * 64},
        {"max_tokens": 20, "max_completion_tokens": 30, "max_new_tokens": 40, "top_p": 0},
    ],
)
def test_what_changes_nothing_passes(ask, changes):
    reply = ask(**changes)
    assert reply.status_code == 200
    assert reply.json()["choices"][0]["message"]["content"] == "Hello, world!"
    assert reply.json()["service_tier"] == "default"


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"model": ..., "messages": ..., "bogus": 1, "n": 0}, None),
        ({"messages": ..., "bogus": 1, "n": 0}, "messages"),
        ({"bogus": 1, "n": 0}, "bogus"),
        ({"messages": user(5), "n": 0}, "messages[0].content"),
        ({"n": 0, "temperature": 3, "stop": 5}, "n"),
        ({"max_tokens": 0, "temperature": 3}, "temperature"),
        ({"stream": 1, "stop": 5, "max_tokens": 0}, "max_tokens"),
        ({"prediction": {}, "stream": 1}, "stream"),
        ({"messages": user(None), "prediction": {}}, "prediction"),
        ({"messages": user(None), "store": 1}, "store"),
    ],
)
def test_of_two_faults_the_first_in_openais_order_is_told(ask_strictly, changes, param):
    assert ask_strictly(**changes).json()["error"]["param"] == param


@pytest.mark.parametrize(
    ("changes", "message", "code"),
    [
        (
            {"tools": []},
            "Invalid 'tools': empty array. Expected an array with minimum length 1, but got an empty array "
            "instead.",
            "empty_array",
        ),
        (
            {"stop": list("abcde")},
            "Invalid 'stop': array too long. Expected an array with maximum length 4, but got an array with "
            "length 5 instead.",
            "array_above_max_length",
        ),
    ],
)
def test_strict_refuses_what_openai_refuses(ask_strictly, changes, message, code):
    reply = ask_strictly(**changes)
    error = reply.json()["error"]
    assert (reply.status_code, error["message"], error["code"]) == (400, message, code)
    assert ask_strictly(stop=list("abcd")).status_code == 200


def test_no_tools_cannot_be_required(ask):
    error = ask(tools=[], tool_choice="required").json()["error"]
    assert error["param"] == "tool_choice"


@pytest.mark.parametrize(
    ("key", "hint"),
    [("stor", " Did you mean 'store'?"), ("temprature", " Did you mean 'temperature'?"), ("zzzzzz", "")],
)
def test_strict_refuses_unknown_parameters(ask_strictly, key, hint):
    error = ask_strictly(**{key: 1}).json()["error"]
    assert error == {
        "message": f"Unknown parameter: '{key}'.{hint}",
        "type": "invalid_request_error",
        "param": key,
        "code": "unknown_parameter",
    }


def unknown_parameters(http) -> float:
    lines = http.get("/metrics").text.splitlines()
    return next(
        float(line.split()[1]) for line in lines if line.startswith("distaff_unknown_parameters_total ")
    )


def test_lenient_ignores_counts_and_logs_unknown_parameters_once(ask, http, caplog):
    before = unknown_parameters(http)
    for _ in range(2):
        assert ask(some_future_key=1).status_code == 200
    lines = [r.getMessage() for r in caplog.records if "some_future_key" in r.getMessage()]
    assert lines == ["ignoring the unknown request parameter 'some_future_key'"]
    assert unknown_parameters(http) == before + 2


def test_unknown_keys_inside_messages_are_ignored(ask_strictly):
    message = {"role": "user", "content": [{"type": "text", "text": "x", "extra": 1}], "prefix": True}
    assert ask_strictly(messages=[message]).status_code == 200


def test_an_unknown_model_is_not_found_and_its_name_is_cut(ask):
    reply = ask(model="x" * 10**6)
    assert reply.status_code == 404
    assert reply.json()["error"] == {
        "message": f"The model `{'x' * 64}` does not exist or you do not have access to it.",
        "type": "invalid_request_error",
        "param": None,
        "code": "model_not_found",
    }


@pytest.mark.parametrize("path", ["/v1/foo", "//v1/chat/completions", "/v1/v1/chat/completions"])
def test_an_unknown_path(http, path):
    reply = http.post(http.base_url.copy_with(raw_path=path.encode()), json={})
    assert reply.status_code == 404
    assert reply.json()["error"] == {
        "message": f"Invalid URL (POST {path})",
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }


def test_a_wrong_method(http):
    reply = http.get("/v1/chat/completions")
    assert reply.status_code == 405
    assert reply.headers["allow"] == "POST"
    assert reply.json()["error"]["message"] == "Only POST requests are accepted."
    assert reply.json()["error"]["code"] == "method_not_supported"


def test_a_wrong_method_of_a_path_with_several_routes_lists_them_all(http):
    reply = http.post("/v1/responses/resp_1")
    assert reply.status_code == 405 and reply.headers["allow"] == "DELETE, GET, HEAD"
    assert reply.json()["error"]["message"] == "Only DELETE and GET requests are accepted."


def test_a_body_that_is_not_declared_as_json(http):
    reply = http.post("/v1/chat/completions", data={"a": "b"})
    kind = "application/x-www-form-urlencoded"
    assert reply.status_code == 400
    assert reply.json()["error"] == {
        "message": f"Unsupported content type: '{kind}'. This API method only accepts 'application/json' "
        f"requests, but you specified the header 'Content-Type: {kind}'.",
        "type": "invalid_request_error",
        "param": None,
        "code": "unsupported_content_type",
    }


def test_json_with_a_charset_is_json(http):
    body = b'{"model": "tgi", "messages": [{"role": "user", "content": "x"}]}'
    kind = {"content-type": "application/json; charset=utf-8"}
    assert http.post("/v1/chat/completions", content=body, headers=kind).status_code == 200


_TOO_MANY = (
    "This model's maximum context length is 20 tokens. However, you requested 21 tokens "
    "(9 in the messages, 12 in the completion). Please reduce the length of the messages or completion."
)


class TestContextLength:
    """The prompt of `ask` is 9 tokens."""

    @pytest.fixture(autouse=True)
    def small(self, engine):
        engine.info = type(engine.info)(context=20, vocabulary=259, slots=4, fingerprint="0123456789")

    def test_a_prompt_beyond_it(self, ask):
        reply = ask(messages=user("x" * 100))
        assert reply.status_code == 400
        assert reply.json()["error"] == {
            "message": "This model's maximum context length is 20 tokens. However, your messages resulted in "
            "107 tokens. Please reduce the length of the messages.",
            "type": "invalid_request_error",
            "param": "messages",
            "code": "context_length_exceeded",
        }

    @pytest.mark.parametrize("most", [12, 32_000, 2**31 - 1])
    def test_a_completion_beyond_it_ends_with_the_context(self, ask, engine, most):
        """At most so many: the reply is what the context holds, and says that it was cut."""
        for name in ("max_tokens", "max_completion_tokens", "max_new_tokens"):
            reply = ask(**{name: most}).json()
            choice, usage = reply["choices"][0], reply["usage"]
            assert (choice["message"]["content"], choice["finish_reason"]) == ("Hello, worl", "length")
            assert (usage["prompt_tokens"], usage["completion_tokens"]) == (9, 11)
            assert engine.requests[-1].params.max_tokens == 11

    def test_least_tokens_beyond_it_are_refused(self, ask):
        """What must be generated must fit."""
        assert ask(min_tokens=11, max_tokens=500).status_code == 200
        error = ask(min_tokens=12, max_tokens=500).json()["error"]
        assert (error["message"], error["param"]) == (_TOO_MANY, "messages")

    def test_a_strict_server_refuses_the_sum(self, ask_strictly, strict_server):
        """As OpenAI does."""
        usual = strict_server.engine.info
        strict_server.engine.info = replace(usual, context=20)
        assert ask_strictly(max_tokens=11).status_code == 200
        reply = ask_strictly(max_tokens=12)
        strict_server.engine.info = usual
        assert reply.status_code == 400
        assert reply.json()["error"] == {
            "message": _TOO_MANY,
            "type": "invalid_request_error",
            "param": "messages",
            "code": "context_length_exceeded",
        }

    def test_exactly_at_it(self, ask):
        choice = ask(max_tokens=11).json()["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("Hello, worl", "length")

    def test_silence_fills_it(self, ask):
        choice = ask().json()["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("Hello, worl", "length")

    def test_a_prompt_longer_than_the_operator_allows(self, ask, http, engine):
        """It is told so where the context would have held it; on the older route, too."""
        engine.info = replace(engine.info, max_input=9)
        assert ask().status_code == 200
        said = "This server's maximum prompt length is {} tokens. However, your {} resulted in 10 tokens."
        error = ask(messages=user("hi!")).json()["error"]
        assert error["message"].startswith(said.format(9, "messages"))
        assert (error["param"], error["code"]) == ("messages", "context_length_exceeded")
        reply = http.post("/v1/completions", json={"model": "tgi", "prompt": "x" * 9, "max_tokens": 1})
        assert reply.status_code == 400
        assert reply.json()["error"]["message"].startswith(said.format(9, "prompt"))
        assert reply.json()["error"]["param"] == "prompt"
