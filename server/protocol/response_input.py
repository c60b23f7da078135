"""The `input` of the Responses API -> the messages of a conversation, as `messages` makes them.

A list of items, each a message, a call of a function, or what a call returned; neighbouring calls, and the
text around them, are one assistant's message, as templates want it. Items of tools that OpenAI runs itself
are refused, and so are references to what was stored: nothing is. Reasoning of other models is left out.
"""

from typing import Any

from ..errors import BadRequest
from .fields import Fields, check_array, objects, wrong_type, wrong_value
from .messages import MOST_MESSAGES, Message, parsed_arguments

_KINDS = ("message", "function_call", "function_call_output", "reasoning")
_ROLES = ("assistant", "system", "developer", "user")


def read_input(value: Any, instructions: str | None) -> list[Message]:
    """The conversation, begun by the instructions.

    Raises:
      BadRequest: an item is malformed or cannot be served; the error names its place.
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


def _add(item: Fields, messages: list[Message], calls: set[str]) -> None:
    """Adds one item; `calls` are the ids of the calls so far."""
    match _kind(item):
        case "message":
            _add_message(item, messages)
        case "function_call":
            calls.add(_required(item, "call_id"))
            _spoken(messages).setdefault("tool_calls", []).append(_call(item))
        case "function_call_output":
            messages.append(_output(item, calls))


def _kind(item: Fields) -> str:
    kind = item.string("type") or "message"
    if kind == "item_reference":
        raise BadRequest(f"Item with id '{_required(item, 'id')}' not found. Nothing is stored.", "input")
    if kind not in _KINDS:
        raise wrong_value(item.where("type"), kind, _KINDS)
    return kind


def _add_message(item: Fields, messages: list[Message]) -> None:
    item.require("role")
    role = item.one_of("role", _ROLES) or "user"
    text = _text(item, "content", ("output_text", "refusal") if role == "assistant" else ("input_text",))
    if role == "assistant" and messages and messages[-1].get("tool_calls"):
        messages[-1]["content"] += text
    else:
        messages.append(_message("system" if role == "developer" else role, text))


def _spoken(messages: list[Message]) -> Message:
    """The assistant's message that is being told, or a new one."""
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
    return {**_message("tool", _text(item, "output", ("input_text",))), "tool_call_id": call}


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
