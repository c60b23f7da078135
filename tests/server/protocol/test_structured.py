"""Structured output over HTTP: which grammar the engine gets, and which requests are refused before that."""

import pytest

from distaff.checkpoints.grammars.grammar import (
    choice_grammar,
    json_object_grammar,
    json_schema_grammar,
    lark_grammar,
    regex_grammar,
)

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
LARK = 'start: "yes" | "no"'


def described(schema, **more):
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, **more}}


@pytest.mark.parametrize(
    ("changes", "grammar"),
    [
        ({}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, json_object_grammar()),
        ({"response_format": described(SCHEMA)}, json_schema_grammar(SCHEMA)),
        ({"response_format": described(SCHEMA, strict=True)}, json_schema_grammar(SCHEMA, closed=True)),
        ({"guided_json": SCHEMA}, json_schema_grammar(SCHEMA)),
        ({"guided_json": '{"type": "integer"}'}, json_schema_grammar({"type": "integer"})),
        ({"guided_regex": "a+"}, regex_grammar("a+")),
        ({"guided_choice": ["a", "b"]}, choice_grammar(["a", "b"])),
        ({"guided_grammar": LARK}, lark_grammar(LARK)),
        ({"structured_outputs": {"regex": "a+"}}, regex_grammar("a+")),
        ({"structured_outputs": {"choice": ["a"]}}, choice_grammar(["a"])),
        ({"structured_outputs": {"json": SCHEMA}}, json_schema_grammar(SCHEMA)),
        ({"structured_outputs": {"json_object": True}}, json_object_grammar()),
        ({"structured_outputs": {"json_object": False}}, None),
    ],
)
def test_the_engine_gets_the_grammar(ask, engine, changes, grammar):
    """Every choice the same, whole or streamed."""
    for streamed in (False, True):
        assert ask(n=2, stream=streamed, **changes).status_code == 200
    assert [request.params.grammar for request in engine.requests] == [grammar] * 4


@pytest.mark.parametrize(
    ("changes", "param", "said"),
    [
        ({"response_format": described({"type": "nonsense"})}, "response_format", "nonsense"),
        ({"response_format": described({"not": {"type": "null"}})}, "response_format", "not"),
        ({"response_format": described({"$ref": "#/$defs/x"})}, "response_format", "'answer'"),
        ({"response_format": described([])}, "response_format.json_schema.schema", "an object"),
        ({"guided_regex": "("}, "guided_regex", "regex"),
        ({"guided_regex": 5}, "guided_regex", "a string"),
        ({"guided_choice": []}, "guided_choice", "empty array"),
        ({"guided_choice": ["a", 5]}, "guided_choice", "an array of strings"),
        ({"guided_grammar": "root ::= ((("}, "guided_grammar", "Expected"),
        ({"guided_grammar": "start: nothing"}, "guided_grammar", "nothing"),
        ({"guided_json": "{"}, "guided_json", "an object"),
        ({"structured_outputs": {"bogus": 1}}, "structured_outputs.bogus", "Unknown parameter"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex", "regex"),
        ({"guided_regex": "a" * 300_000}, "guided_regex", "262144"),
    ],
)
def test_what_cannot_be_followed_is_refused(ask, engine, changes, param, said):
    """400 by name; the engine never hears of it, and the server serves on."""
    reply = ask(**changes)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == param and said in reply.json()["error"]["message"]
    assert not engine.requests
    assert ask().status_code == 200


def test_gbnf_is_understood(ask, engine):
    """llama.cpp's grammars are translated."""
    assert ask(guided_grammar='root ::= "yes" | "no"').status_code == 200
    assert "start:" in engine.requests[0].params.grammar


def test_the_stop_string_can_be_kept(ask, stream):
    """`include_stop_str_in_output`: whole and streamed."""
    kept = ask(stop="lo, ", include_stop_str_in_output=True).json()["choices"][0]
    assert (kept["message"]["content"], kept["finish_reason"]) == ("Hello, ", "stop")
    chunks = stream(stop=["lo, ", "o, w"], include_stop_str_in_output=True)
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "Hello, "


def test_special_tokens_can_be_shown(ask, engine):
    """By their names, with their names' bytes among the entries."""
    engine.reply = [72, 258, 105]
    assert ask().json()["choices"][0]["message"]["content"] == "Hi"
    choice = ask(skip_special_tokens=False, logprobs=True).json()["choices"][0]
    assert choice["message"]["content"] == "H<|258|>i"
    assert b"".join(bytes(e["bytes"]) for e in choice["logprobs"]["content"]) == b"H<|258|>i"


def test_an_id_without_a_token_says_nothing(ask, engine, server):
    """Embeddings are often longer than vocabularies. Its entry is there."""
    engine.reply = [72, 400, 105]
    for shown in (True, False):
        choice = ask(skip_special_tokens=shown, logprobs=True).json()["choices"][0]
        assert choice["message"]["content"] == "Hi"
        assert [entry["token"] for entry in choice["logprobs"]["content"]] == ["H", "<|400|>", "i", "<|257|>"]


def test_how_the_template_is_asked(ask, server):
    """Continuing, without a generation prompt, with options: what was asked arrives."""
    ask(continue_final_message=True, chat_template_kwargs={"style": "old"})
    rendered = server.served.text.rendered
    assert rendered["continue_final_message"] and not rendered["add_generation_prompt"]
    assert rendered["options"] == {"style": "old"}
    ask(add_generation_prompt=False)
    assert not server.served.text.rendered["add_generation_prompt"]
    ask()
    assert server.served.text.rendered["add_generation_prompt"]
