"""The `input` of the Responses API -> the messages of a conversation, as `messages` makes them.

A list of items, each a message, a function call, or the result of a call. Neighbouring calls and the text
around them become one message of the assistant, as templates expect. Items of tools that OpenAI runs itself
are refused, and so are references to stored items: nothing is stored. Reasoning becomes the
`reasoning_content` of the message after it; what another server has encrypted is left out.
"""

from typing import Any

from ...errors import BadRequest
from ..fields import Fields, check_array, objects, wrong_type, wrong_value
from ..kinds import TEXT, Schema, Shape, array, constant, record
from ..messages import MOST_MESSAGES, REASONING, Message, parsed_arguments
from .response_items import PLAIN

LOGPROBS = "message.output_text.logprobs"
ENCRYPTED = "reasoning.encrypted_content"
_INCLUDABLE = (
    LOGPROBS,
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    ENCRYPTED,
    "web_search_call.action.sources",
    "web_search_call.results",
)
_KINDS = ("message", "function_call", "function_call_output", "reasoning")
_ROLES = ("assistant", "system", "developer", "user")
_OUTPUT, _INPUT, _THOUGHT = ("output_text", "refusal"), ("input_text",), ("reasoning_text",)


def read_input(value: Any, instructions: str | None) -> list[Message]:
    """The conversation; it begins with the instructions.

    Raises:
      BadRequest: an item is malformed or not supported; the error names its place.
    """
    messages: list[Message] = [_message("system", instructions)] if instructions else []
    if isinstance(value, str):
        return [*messages, _message("user", value)]
    if not isinstance(value, list):
        raise wrong_type("input", "one of a string or array of input items", value)
    calls: set[str] = set()
    for item in objects("input", value, MOST_MESSAGES):
        _add(item, messages, calls)
    return messages


def read_included(value: Any) -> list[str]:
    """The additional fields that `include` requests. Raises BadRequest."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise wrong_type("include", "an array of strings", value)
    check_array("include", value, len(_INCLUDABLE), empty=True)
    for index, name in enumerate(value):
        if name not in _INCLUDABLE:
            raise wrong_value(f"include[{index}]", str(name), _INCLUDABLE)
    return value


def _add(item: Fields, messages: list[Message], calls: set[str]) -> None:
    """Adds one item; `calls` are the ids of the calls so far."""
    match _kind(item):
        case "message":
            _add_message(item, messages)
        case "function_call":
            calls.add(_required(item, "call_id"))
            _assistant_message(messages).setdefault("tool_calls", []).append(_call(item))
        case "function_call_output":
            messages.append(_output(item, calls))
        case "reasoning":
            _add_reasoning(item, messages)


def _kind(item: Fields) -> str:
    kind = item.string("type")
    if kind is None:
        return "message"
    if kind == "item_reference":
        raise BadRequest(f"Item with id '{_required(item, 'id')}' not found. Nothing is stored.", "input")
    if kind not in _KINDS:
        raise wrong_value(item.where("type"), kind, _KINDS)
    return kind


def _add_message(item: Fields, messages: list[Message]) -> None:
    item.require("role")
    role = item.one_of("role", _ROLES) or "user"
    text = _text(item, "content", _OUTPUT if role == "assistant" else _INPUT)
    if role == "assistant" and _is_open(messages):
        messages[-1]["content"] += text
    else:
        messages.append(_message("system" if role == "developer" else role, text))


def _is_open(messages: list[Message]) -> bool:
    """Whether the last message is the assistant's and may still receive text: it has calls or reasoning."""
    last = messages[-1] if messages else {}
    return bool(last.get("tool_calls") or (last.get(REASONING[0]) and not last["content"]))


def _add_reasoning(item: Fields, messages: list[Message]) -> None:
    """Adds the text of reasoning, which this server has written in two places."""
    text = _text(item, "content", _THOUGHT) if item.get("content") is not None else ""
    portable = item.string("encrypted_content") or ""
    text = text or (portable.removeprefix(PLAIN) if portable.startswith(PLAIN) else "")
    if not text:
        return
    if not _is_open(messages):
        messages.append(_message("assistant", ""))
    messages[-1][REASONING[0]] = messages[-1].get(REASONING[0], "") + text


def _assistant_message(messages: list[Message]) -> Message:
    """The last message if it is the assistant's, else a new one."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append(_message("assistant", ""))
    return messages[-1]


def _call(item: Fields) -> dict[str, Any]:
    arguments = parsed_arguments(_required(item, "arguments"))
    function = {"name": _required(item, "name"), "arguments": arguments}
    return {"id": item.get("call_id"), "type": "function", "function": function}


def _output(item: Fields, calls: set[str]) -> Message:
    call = _required(item, "call_id")
    if call not in calls:
        message = f"No tool call found for function call output with call_id {call[:64]}."
        raise BadRequest(message, "input")
    return {**_message("tool", _text(item, "output", _INPUT)), "tool_call_id": call}


def _text(item: Fields, name: str, kinds: tuple[str, ...]) -> str:
    """A string, or the parts of one."""
    value, path = item.require(name), item.where(name)
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise wrong_type(path, "one of a string or array of objects", value)
    check_array(path, value, MOST_MESSAGES, empty=True)
    return "".join(_part(part, f"{path}[{index}]", kinds) for index, part in enumerate(value))


def _part(value: Any, path: str, kinds: tuple[str, ...]) -> str:
    if not isinstance(value, dict):
        raise wrong_type(path, "an object", value)
    part = Fields(value, path)
    part.require("type")
    kind = part.one_of("type", (*kinds, "text")) or "text"
    return _required(part, "refusal" if kind == "refusal" else "text")


def _required(fields: Fields, name: str) -> str:
    fields.require(name)
    return fields.string(name) or ""


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _text_schema(kinds: tuple[str, ...]) -> Schema:
    """A string, or its parts."""
    parts: list[Schema] = [
        record({"type": constant(kind), "refusal" if kind == "refusal" else "text": TEXT})
        for kind in (*kinds, "text")
    ]
    return {"anyOf": [TEXT, array({"anyOf": parts}, MOST_MESSAGES, 0)]}


def _schema() -> Schema:
    others = {"type": "string", "enum": [role for role in _ROLES if role != "assistant"]}
    kind, sent, answered = {"type": constant("message")}, _text_schema(_INPUT), _text_schema(_OUTPUT)
    output = record({"type": constant("function_call_output"), "call_id": TEXT, "output": sent})
    call = {"type": constant("function_call"), "call_id": TEXT, "name": TEXT, "arguments": TEXT}
    thought = {"content": _text_schema(_THOUGHT), "encrypted_content": TEXT}
    items = [
        record({"role": others, "content": sent}, kind),
        record({"role": constant("assistant"), "content": answered}, kind),
        record(call),
        output,
        record({"type": constant("reasoning")}, thought),
    ]
    return {"anyOf": [TEXT, array({"anyOf": items}, MOST_MESSAGES)]}


INPUT = Shape(_schema())
INCLUDE = Shape(array({"type": "string", "enum": list(_INCLUDABLE)}, len(_INCLUDABLE), 0))
