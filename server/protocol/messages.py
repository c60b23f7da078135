"""The conversation of a request: checked, and converted to the form that templates read.

Two passes, in OpenAI's order: `read_messages` checks types and builds fresh dicts (the caller's own are
never changed), `check_contents` looks for missing contents at the very end. Templates, token ids
and the rule that roles alternate belong to the tokenizer.
"""

from typing import Any

from ..errors import BadRequest
from .body import parse_inner
from .fields import Fields, check_array, missing, objects, wrong_type, wrong_value
from .kinds import TEXT, Schema, Shape, array, constant, record

MOST_MESSAGES = 32_768
"""The context is the real limit; this one only bounds the work of counting."""

ROLES = ("system", "assistant", "user", "function", "tool", "developer")

_RENDERED_AS = {"developer": "system", "function": "tool"}
REASONING = ("reasoning_content", "reasoning")
"""The names of reasoning in an assistant's message; templates read the first one."""
_MAY_STAND_FOR_CONTENT = ("tool_calls", "function_call", "refusal", "audio", *REASONING)
_ORPHAN = (
    "Invalid parameter: messages with role 'tool' must be a response to a preceeding message with "
    "'tool_calls'."
)

Message = dict[str, Any]


def read_messages(value: Any) -> list[Message]:
    """Checks `messages` and rewrites them for the template.

    Content parts are joined, `developer` becomes `system`, `function` becomes `tool`, `reasoning` becomes
    `reasoning_content`, the arguments of a tool call become an object if they parse as one.

    Raises:
      BadRequest: a message is malformed; the error names its place.
    """
    items = objects("messages", value, MOST_MESSAGES)
    messages = [_message(item) for item in items]
    _check_tool_order(messages, items)
    return messages


def check_contents(value: list[Message]) -> None:
    """Raises BadRequest for the first message that needs content and has none."""
    for index, message in enumerate(value):
        if message.get("content") is not None or message["role"] == "function":
            continue
        if message["role"] == "assistant" and any(message.get(k) is not None for k in _MAY_STAND_FOR_CONTENT):
            continue
        text = "Invalid value for 'content': expected a string, got null."
        raise BadRequest(text, f"messages.[{index}].content")


def _message(fields: Fields) -> Message:
    role = fields.require("role")
    if not isinstance(role, str):
        raise wrong_type(fields.where("role"), "a string", role)
    if role not in ROLES:
        raise wrong_value(fields.where("role"), role, ROLES)
    message: Message = {"role": _RENDERED_AS.get(role, role), "content": _content(fields, role)}
    if name := fields.string("name"):
        message["name"] = name
    if role == "assistant":
        message["content"] = message["content"] or fields.string("refusal") or ""
        given = [fields.string(each) for each in REASONING]
        if reasoning := next(filter(None, given), None):
            message[REASONING[0]] = reasoning
        if calls := _tool_calls(fields):
            message["tool_calls"] = calls
    if role == "tool":
        fields.require("tool_call_id")
        message["tool_call_id"] = fields.string("tool_call_id")
    return message


def _content(fields: Fields, role: str) -> str:
    value, path = fields.get("content"), fields.where("content")
    match value:
        case None:
            return ""
        case str():
            return value
        case list():
            check_array(path, value, MOST_MESSAGES)
            return "".join(_part(item, f"{path}[{index}]", role) for index, item in enumerate(value))
    raise wrong_type(path, "one of a string or array of objects", value)


def _part(value: Any, path: str, role: str) -> str:
    if not isinstance(value, dict):
        raise wrong_type(path, "an object", value)
    fields = Fields(value, path)
    fields.require("type")
    kinds = ("text", "refusal") if role == "assistant" else ("text",)
    kind = fields.one_of("type", kinds) or "text"
    fields.require(kind)
    return fields.string(kind) or ""


def _tool_calls(fields: Fields) -> list[dict[str, Any]]:
    value = fields.get("tool_calls")
    if value is None or value == []:
        return []
    return [_tool_call(call) for call in objects(fields.where("tool_calls"), value, MOST_MESSAGES)]


def _tool_call(fields: Fields) -> dict[str, Any]:
    for name in ("id", "type"):
        fields.require(name)
    fields.one_of("type", ("function",))
    function = fields.object("function")
    if function is None:
        raise missing(fields.where("function"))
    for name in ("name", "arguments"):
        function.require(name)
    arguments = parsed_arguments(function.string("arguments") or "")
    return {
        "id": fields.string("id"),
        "type": "function",
        "function": {"name": function.string("name"), "arguments": arguments},
    }


def parsed_arguments(text: str) -> Any:
    """Most templates expect the object that the string holds; a string without one is unchanged."""
    try:
        value = parse_inner(text)
    except ValueError:
        return text
    return value if isinstance(value, dict) else text


def _check_tool_order(messages: list[Message], items: list[Fields]) -> None:
    answers = False
    for index, (message, fields) in enumerate(zip(messages, items, strict=True)):
        if fields.get("role") == "tool" and not answers:
            raise BadRequest(_ORPHAN, f"messages.[{index}].role")
        answers = message["role"] == "tool" or bool(message.get("tool_calls"))


def _content_schema(kinds: tuple[str, ...]) -> Schema:
    """A string, or its parts."""
    parts: list[Schema] = [record({"type": constant(kind), kind: TEXT}) for kind in kinds]
    return {"anyOf": [TEXT, array({"anyOf": parts}, MOST_MESSAGES)]}


def _assistant_schema() -> Schema:
    """The schema of the assistant's messages: without content, another field must replace it."""
    content = _content_schema(("text", "refusal"))
    function = record({"name": TEXT, "arguments": TEXT})
    calls = array(record({"id": TEXT, "type": constant("function"), "function": function}), MOST_MESSAGES, 0)
    role = {"role": constant("assistant")}
    reasoning = dict.fromkeys(REASONING, TEXT)
    others = {"name": TEXT, "content": content, "refusal": TEXT, "tool_calls": calls, **reasoning}
    alternatives = {
        "content": content,
        "refusal": TEXT,
        "tool_calls": calls,
        "function_call": {"type": "object"},
        "audio": {"type": "object"},
        **reasoning,
    }
    return {"anyOf": [record(role | {name: each}, others) for name, each in alternatives.items()]}


def _schema() -> Schema:
    plain, name = _content_schema(("text",)), {"name": TEXT}
    asking: Schema = {"type": "string", "enum": ["system", "developer", "user"]}
    tool = record({"role": constant("tool"), "content": plain, "tool_call_id": TEXT}, name)
    function = record({"role": constant("function")}, {"content": plain, **name})
    spoken = record({"role": asking, "content": plain}, name)
    return array({"anyOf": [spoken, *_assistant_schema()["anyOf"], tool, function]}, MOST_MESSAGES)


MESSAGES = Shape(_schema())
