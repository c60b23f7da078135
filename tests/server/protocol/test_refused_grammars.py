"""What a reply is to be held to, in every spelling: held to it, or refused by name, however late."""

import json

import httpx
import pytest

from distaff.checkpoints.grammars.grammar import json_object_grammar, json_schema_grammar, regex_grammar

from ..conftest import post_chat
from .test_tools import NOW, WEATHER

SCHEMA = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^[a-f]+$"}}, "required": ["a"]}
LOOP = {"$defs": {"n": {"$ref": "#/$defs/n"}}}
DEEP = json.loads('{"type": "object", "properties": {"a": ' * 70 + "{}" + "}}" * 70)
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'


def described(schema, **more):
    return {
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, **more}}
    }


def tool(parameters, **more):
    return {"type": "function", "function": {"name": "f", "parameters": parameters, **more}}


@pytest.mark.parametrize(
    ("changes", "grammar"),
    [
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, json_schema_grammar(SCHEMA)),
        ({"response_format": {"type": "json_object", "value": SCHEMA}}, json_schema_grammar(SCHEMA)),
        ({"json_schema": SCHEMA}, json_schema_grammar(SCHEMA)),
        ({"json_schema": json.dumps(SCHEMA)}, json_schema_grammar(SCHEMA)),
        (described(None, strict=True), json_object_grammar()),
        (described(SCHEMA, strict=True), json_schema_grammar(SCHEMA, closed=True)),
        (
            {"structured_outputs": {"json": SCHEMA, "disable_additional_properties": True}},
            json_schema_grammar(SCHEMA, closed=True),
        ),
        (
            {"structured_outputs": {"regex": "a", "disable_fallback": True, "disable_any_whitespace": True}},
            regex_grammar("a"),
        ),
    ],
)
def test_every_spelling_holds_the_answer(ask, engine, changes, grammar):
    assert ask(**changes).status_code == 200
    assert engine.requests[0].params.grammar == grammar


@pytest.mark.parametrize("route", ["completions", "responses"])
def test_llama_cpps_word_is_known_on_the_other_routes(http, engine, route):
    said = {"prompt": "x"} if route == "completions" else {"input": "x"}
    reply = http.post(f"/v1/{route}", json={"model": "tgi", "json_schema": SCHEMA, **said})
    assert reply.status_code == 200
    assert engine.requests[0].params.grammar == json_schema_grammar(SCHEMA)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"response_format": {"type": "json_object", "schema": {}, "value": {}}}, "response_format.value"),
        ({"response_format": {"type": "json_object", "json_schema": {}}}, "response_format.json_schema"),
        ({"response_format": {"type": "text", "schema": SCHEMA}}, "response_format.schema"),
        ({"response_format": {"type": "regex", "value": "a"}}, "response_format.type"),
        ({"response_format": {"type": "structural_tag", "structures": []}}, "response_format.type"),
        ({"json_schema": SCHEMA, "guided_regex": "a"}, "json_schema"),
        ({"json_schema": "nonsense"}, "json_schema"),
        ({"grammar": 'root ::= "a"'}, "grammar"),
        ({"ebnf": 'root ::= "a"'}, "ebnf"),
        ({"regex": "a"}, "regex"),
        ({"structural_tag": "{}"}, "structural_tag"),
        ({"guided_whitespace_pattern": " "}, "guided_whitespace_pattern"),
        (
            {"structured_outputs": {"json": {}, "whitespace_pattern": " "}},
            "structured_outputs.whitespace_pattern",
        ),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag"),
    ],
)
def test_what_is_not_honoured_is_refused_by_name(ask, engine, changes, param):
    reply = ask(**changes)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
    assert not engine.requests


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (described({"$ref": "#/$defs/n", **LOOP}), "'x'"),
        (described({"type": "object", "properties": {"a": {"$ref": "#/$defs/n"}}, **LOOP}), "'x'"),
        (described({"type": "object", "properties": {"c": {"$ref": "#"}}, "required": ["c"]}), "'x'"),
        (described({"type": None}), "'x'"),
        (described(DEEP), "nested"),
        ({"guided_regex": r"[^\s\S]"}, "guided_regex"),
        ({"guided_regex": "a{1000000000}"}, "'a{1000000000}'"),
        ({"guided_grammar": "start: start"}, "guided_grammar"),
        ({"guided_grammar": 'start: "a" start'}, "guided_grammar"),
        ({"guided_grammar": 'root ::= "a" root'}, "guided_grammar"),
        ({"guided_json": {"type": "string", "pattern": "^a{1000000000}$"}}, "'^a{1000000000}$'"),
        (
            {"tools": [tool({"type": "object", "properties": {"x": {"not": {"type": "null"}}}})]},
            "function 'f'",
        ),
        (
            {"tools": [tool({"type": "object", "properties": {"x": {"$ref": "#/$defs/n"}}, **LOOP})]},
            "function 'f'",
        ),
    ],
)
def test_what_nothing_satisfies_or_costs_too_much_is_refused(ask, engine, changes, said):
    """Before the engine, with the name of what is at fault."""
    reply = ask(**({"tool_choice": "required"} if "tools" in changes else {}), **changes)
    assert reply.status_code == 400 and said in reply.json()["error"]["message"]
    assert not engine.requests
    assert ask().status_code == 200


@pytest.mark.parametrize(
    ("parameters", "got"),
    [
        ({"type": "string", "maxLength": 5}, "string"),
        ({"type": "array"}, "array"),
        ({"anyOf": [{"type": "object"}]}, "None"),
        ({}, "None"),
    ],
)
@pytest.mark.parametrize("choice", ["auto", "required", "none"])
def test_arguments_are_an_object(ask, parameters, got, choice):
    """In OpenAI's words, whether a call must be made or not."""
    reply = ask(tools=[WEATHER, tool(parameters)], tool_choice=choice)
    assert (reply.status_code, reply.json()["error"]) == (
        400,
        {
            "message": "Invalid schema for function 'f': schema must be a JSON Schema of 'type: \"object\"', "
            f"got 'type: \"{got}\"'.",
            "type": "invalid_request_error",
            "param": "tools[1].function.parameters",
            "code": "invalid_function_parameters",
        },
    )


def test_a_strict_tool_is_closed(ask, engine):
    """Where its schema does not say; one that is not strict is held as it stands."""
    parameters = {"type": "object", "properties": {"a": {"type": "null"}}}
    for strict in (True, False):
        ask(tools=[tool(parameters, strict=strict)], tool_choice="required")
    closed, open_ = (request.params.grammar for request in engine.requests)
    assert '"additionalProperties": false' in closed and "additionalProperties" not in open_


def test_a_budget_spent_while_it_is_followed_is_the_requests_fault(ask, server, engine):
    """400 that names what was asked for; in a stream, whose status is long sent, the last event says it."""
    engine.error_after, engine.error_param = 2, "grammar"
    for changes, said in [
        ({"guided_regex": "[a-f]+"}, "Invalid value for 'guided_regex': a bad row; pattern: '[a-f]+'"),
        (described(SCHEMA), "Invalid schema for response_format 'x': a bad row; pattern: '^[a-f]+$'"),
        ({"tools": [WEATHER], "tool_choice": "required"}, "Invalid value for 'tools': a bad row"),
    ]:
        reply = ask(**changes)
        error = reply.json()["error"]
        assert (reply.status_code, error["message"], error["type"]) == (400, said, "invalid_request_error")
        with httpx.Client(base_url=server.url) as once:  # the server closes the connection behind the error
            *_, last, done, nothing = post_chat(once, stream=True, **changes).text.split("\n\n")
        assert (done, nothing) == ("data: [DONE]", "") and json.loads(last.removeprefix("data: ")) == {
            "error": error
        }
    engine.error_param = None
    assert ask(guided_regex="[a-f]+").status_code == 500
    engine.error_after = None
    assert ask().status_code == 200


@pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
def test_tgis_grammar_is_blamed_too(server, engine, path):
    """422 as TGI's, before the engine or at the end."""
    for pattern, after in [("a{1000000000}", None), ("[a-f]+", 1)]:
        engine.error_after, engine.error_param = after, "grammar"
        grammar = {"type": "regex", "value": pattern}
        body = {"inputs": "x", "parameters": {"grammar": grammar}}
        reply = httpx.post(server.url + path, json=body)
        assert reply.status_code == (200 if after and path == "/generate_stream" else 422)
        assert f"pattern: '{pattern}'" in reply.text


def test_a_call_cut_short_leaves_no_text(ask, engine):
    """Where the reply can be nothing but calls: its mark, or the beginning of one more, is no content."""
    for size in range(1, 2 * len(CALL), 9):
        engine.reply = f"{CALL}\n{CALL}"[:size]
        reply = ask(tools=[WEATHER, NOW], tool_choice="required", max_tokens=size).json()
        choice = reply["choices"][0]
        assert not choice["message"]["content"] and choice["finish_reason"] == "length"


def test_a_call_cut_short_leaves_no_text_in_a_stream(stream, engine):
    engine.reply = f"{CALL}\n<"
    chunks = stream(tools=[WEATHER], tool_choice="required", max_tokens=len(engine.reply))
    assert not any(chunk["choices"][0]["delta"].get("content") for chunk in chunks)
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


def test_text_before_a_call_stays_where_it_may_stand(ask, engine):
    """The model is free: what looks like the beginning of a call at the end is text."""
    engine.reply = "a <"
    reply = ask(tools=[WEATHER], max_tokens=3).json()
    assert reply["choices"][0]["message"]["content"] == "a <"
