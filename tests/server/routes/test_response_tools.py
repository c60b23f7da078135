"""Tools of the Responses API beside functions: free-form tools, namespaces, and their calls sent back."""

import functools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distaff.server.protocol.openai.response_calls import FreeText

from .response_events import events_of, kinds, post_response

WEATHER = {
    "type": "function",
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
PATCH = {"type": "custom", "name": "apply_patch", "description": "Edits files."}
LARK = {"type": "grammar", "syntax": "lark", "definition": 'start: "+" /.*/ LF\n%import common.LF'}
REGEX = {"type": "grammar", "syntax": "regex", "definition": "[0-9]+"}
MAIL = {"type": "namespace", "name": "mail", "description": "Letters.", "tools": [WEATHER, PATCH]}
TEXT = 'a "b"\n\\é\U0001f9f6'


def called(name: str, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


@pytest.fixture
def post(http):
    return functools.partial(post_response, http)


def test_a_free_form_call_is_a_text(post, engine):
    """The model is told of a function with one text; the client gets the text in events of its own."""
    engine.reply = called("apply_patch", input=TEXT)
    events = events_of(post(stream=True, tools=[PATCH]))
    assert kinds(events) == [
        *("created", "in_progress", "output_item.added"),
        *("custom_tool_call_input.delta", "custom_tool_call_input.done", "output_item.done", "completed"),
    ]
    [item] = events[-1]["response"]["output"]
    assert (item["type"], item["name"], item["input"]) == ("custom_tool_call", "apply_patch", TEXT)
    assert item["id"].startswith("ctc_") and item["call_id"].startswith("call_")
    said = [e["delta"] for e in events if e["type"].endswith("input.delta") and e["item_id"] == item["id"]]
    assert "".join(said) == TEXT
    assert next(e for e in events if e["type"].endswith("input.done"))["input"] == TEXT
    added = next(e for e in events if e["type"].endswith("item.added"))["item"]
    assert added["input"] == "" and added["id"] == item["id"]
    [whole] = post(tools=[PATCH]).json()["output"]
    assert whole["input"] == TEXT
    assert events[-1]["response"]["tools"] == [PATCH]


def test_a_free_form_call_is_streamed_where_it_must_come(post, engine):
    engine.reply = called("apply_patch", input=TEXT)
    events = events_of(
        post(stream=True, tools=[PATCH], tool_choice={"type": "custom", "name": "apply_patch"})
    )
    said = [event["delta"] for event in events if event["type"].endswith("input.delta")]
    assert len(said) > 5 and "".join(said) == TEXT


@pytest.mark.parametrize("format", [LARK, REGEX], ids=lambda format: format["syntax"])
@pytest.mark.parametrize("choice", ["auto", "required"])
def test_a_grammar_is_followed(post, engine, server, format, choice):
    """Also where a call is not demanded; the model is told of it."""
    assert post(tools=[PATCH | {"format": format}, WEATHER], tool_choice=choice).status_code == 200
    grammar = engine.requests[0].params.grammar
    assert ("0-9" if format is REGEX else r"\\\\n") in grammar
    told = server.served.text.rendered["messages"][0]["content"]
    assert json.dumps(format["definition"])[1:-1] in told


@pytest.mark.parametrize("type", [None, "text"])
def test_a_text_without_a_grammar_is_free(post, engine, type):
    assert post(tools=[PATCH | ({"format": {"type": type}} if type else {})]).status_code == 200
    assert engine.requests[0].params.grammar is None


def test_the_tools_of_a_namespace_have_its_name_before_theirs(post, engine, server):
    """The client gets both names, apart."""
    engine.reply = called("mail__get_weather", city="Paris") + called("mail__apply_patch", input="x")
    function, custom = post(tools=[MAIL]).json()["output"]
    assert (function["namespace"], function["name"]) == ("mail", "get_weather")
    assert (custom["namespace"], custom["name"], custom["input"]) == ("mail", "apply_patch", "x")
    assert "mail__get_weather" in server.served.text.rendered["messages"][0]["content"]
    for choice in ({"name": "get_weather"}, {"namespace": "mail", "name": "get_weather"}):
        assert post(tools=[MAIL], tool_choice={"type": "function", **choice}).status_code == 200
        assert "apply_patch" not in engine.requests[-1].params.grammar


def test_what_is_allowed_may_name_tools_that_are_left_out(post, engine):
    allowed = {"type": "allowed_tools", "mode": "required"}
    tools = [{"type": "function", "name": "get_weather"}, {"type": "web_search"}]
    some = post(tools=[WEATHER, PATCH, {"type": "web_search"}], tool_choice=allowed | {"tools": tools})
    assert some.status_code == 200 and "apply_patch" not in engine.requests[0].params.grammar


def test_calls_are_sent_back(post, engine, server):
    """In the shape of each; each becomes a call of a function with its output."""
    server.served.text.knows_calls = server.served.text.knows_tools = True
    shell = {"type": "exec", "command": ["ls"], "env": {}}
    answered = post(
        tools=[PATCH, MAIL],
        input=[
            {"role": "user", "content": "Edit."},
            {"type": "web_search_call", "id": "ws_1", "status": "completed"},
            {"type": "custom_tool_call", "call_id": "c1", "name": "apply_patch", "input": TEXT},
            {"type": "custom_tool_call_output", "call_id": "c1", "output": "done"},
            {"type": "function_call", "call_id": "c2", "namespace": "mail", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c2", "id": "fco_1", "output": "2"},
            {"type": "local_shell_call", "call_id": "c3", "action": shell, "status": "completed"},
            {"type": "local_shell_call_output", "id": "c3", "output": "a.txt"},
            {"type": "shell_call", "call_id": "c4", "action": {"commands": ["ls"]}},
            {"type": "shell_call_output", "call_id": "c4", "output": [{"stdout": "a.txt"}]},
            {"type": "apply_patch_call", "call_id": "c5", "operation": {"type": "delete_file", "path": "a"}},
            {"type": "apply_patch_call_output", "call_id": "c5", "output": "gone"},
            {"type": "compaction", "encrypted_content": "gAAA"},
            {"type": "agent_message", "author": "b", "content": [{"type": "input_text", "text": "Hi."}]},
        ],
    )
    assert answered.status_code == 200, answered.text
    messages = server.served.text.rendered["messages"]
    calls = [call for message in messages for call in message.get("tool_calls", ())]
    assert [call["function"] for call in calls] == [
        {"name": "apply_patch", "arguments": {"input": TEXT}},
        {"name": "mail__f", "arguments": {}},
        {"name": "local_shell", "arguments": shell},
        {"name": "shell", "arguments": {"commands": ["ls"]}},
        {"name": "apply_patch", "arguments": {"type": "delete_file", "path": "a"}},
    ]
    outputs = [m["content"] for m in messages if m["role"] == "tool"]
    assert outputs == ["done", "2", "a.txt", '[{"stdout": "a.txt"}]', "gone"]
    assert messages[-1] == {"role": "user", "content": "Hi."}


@pytest.mark.parametrize(
    ("changes", "param", "message"),
    [
        ({"tools": [{"type": "custom"}]}, "tools[0].name", "Missing"),
        ({"tools": [PATCH | {"format": {"type": "grammar"}}]}, "tools[0].format.syntax", "Missing"),
        ({"tools": [PATCH | {"format": LARK | {"syntax": "gbnf"}}]}, "tools[0].format.syntax", "'lark'"),
        (
            {"tools": [PATCH | {"format": LARK | {"definition": "start: <[3]>"}}]},
            "tools[0].format.definition",
            "Invalid grammar for tool 'apply_patch': '<'",
        ),
        (
            {"tools": [PATCH | {"format": REGEX | {"definition": "["}}]},
            "tools[0].format.definition",
            "Invalid grammar for tool 'apply_patch'",
        ),
        ({"tools": [{"type": "namespace", "name": "mail"}]}, "tools[0].tools", "Missing"),
        ({"tools": [{"type": "a\r\nx: y"}]}, "tools[0].type", "Supported values"),
        ({"tools": [PATCH], "tool_choice": {"type": "custom", "name": "f"}}, "tool_choice", "not found"),
        (
            {"tools": [PATCH, {"type": "mcp"}], "tool_choice": {"type": "mcp"}},
            "tool_choice",
            "Tools of the type 'mcp' cannot be run here",
        ),
        (
            {"input": [{"type": "custom_tool_call_output", "call_id": "c", "output": "x"}]},
            "input",
            "No tool call found for custom tool call output with call_id c.",
        ),
        ({"input": [{"type": "local_shell_call", "call_id": "c"}]}, "input[0].action", "Missing"),
        ({"input": [{"type": "custom_tool_call", "call_id": "c", "name": "f"}]}, "input[0].input", "Missing"),
    ],
)
def test_refusals(post, changes, param, message):
    answered = post(**changes)
    error = answered.json()["error"]
    assert (answered.status_code, error["param"]) == (400, param)
    assert message in error["message"]


PIECES = ['"', "\\", "\\ud83d", "\n", "a", "é", "\U0001f9f6", "/", "u", "d83e"]
JSON_TEXTS = st.lists(st.sampled_from(PIECES), max_size=8).map("".join)


@given(JSON_TEXTS, st.booleans(), st.data())
def test_a_text_is_read_as_it_arrives(text: str, ascii: bool, data: st.DataObject) -> None:
    """However the JSON is cut, and without waiting for its end."""
    arguments = json.dumps({"input": text}, ensure_ascii=ascii)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(arguments)), max_size=4)))
    reader, said = FreeText(), ""
    for begin, end in zip([0, *cuts], [*cuts, len(arguments)], strict=True):
        said += reader.push(arguments[begin:end])
        assert text.startswith(said)
    assert said == text and reader.flush() == ""


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ('{"patch": "x"}', "x"),
        ('{"why": 1, "input": "x"}', "x"),
        ('{"a": "x", "b": "y"}', '{"a": "x", "b": "y"}'),
        ('{"input": 3}', '{"input": 3}'),
        ('{"input": "\\ud800a"}', "\ufffda"),
        ('{"input": "\\ud800', ""),
        ("{}", "{}"),
        (r'{"input": "C:\\ud83d"}', r"C:\ud83d"),
        (r'{"input": "a\qb\uZZZZ c\ud83d\q"}', "a\\qb\\uZZZZ c\ufffd\\q"),
        ('{"input": "a\\', "a"),
    ],
)
def test_other_arguments(arguments: str, text: str) -> None:
    reader = FreeText()
    assert reader.push(arguments) + reader.flush() == text
