"""Calls and their outputs in the `input` of the Responses API -> messages of a conversation.

Clients send back each kind of call in a shape of its own. A model knows only calls of functions, so every
call becomes one: the arguments of a free-form tool are its text, those of a shell are what it was to do.
"""

import json
from collections.abc import Callable
from typing import Any

from ...errors import BadRequest
from ...tool_formats import FREE_TEXT
from ..fields import Fields, wrong_type
from ..kinds import TEXT, Schema, constant, record
from ..messages import Message, parsed_arguments
from .response_text import SENT, read_text, required, text_schema
from .response_tools import flat_name

NamedCall = tuple[str, Any]
"""The name of a function and its arguments, as a template expects them."""


def read_call(item: Fields) -> dict[str, Any]:
    """A call as a message of the assistant holds it. Raises BadRequest."""
    name, arguments = CALLS[str(item.get("type"))](item)
    function = {"name": name, "arguments": arguments}
    return {"id": _call_id(item), "type": "function", "function": function}


def read_output(item: Fields, calls: set[str]) -> Message:
    """The output of one of the calls so far, which are known by their ids. Raises BadRequest."""
    call = _call_id(item)
    if call not in calls:
        kind = str(item.get("type")).removesuffix("_output").replace("_", " ")
        raise BadRequest(f"No tool call found for {kind} output with call_id {call[:64]}.", "input")
    text = read_text(item, "output", SENT) if item.get("type") != _SHELL_OUTPUT else _shell_output(item)
    return {"role": "tool", "content": text, "tool_call_id": call}


def _call_id(item: Fields) -> str:
    """A call's id, which the outputs of `local_shell` have in `id`."""
    if item.get("call_id") is None and item.get("type") == "local_shell_call_output":
        return required(item, "id")
    return required(item, "call_id")


def _function(item: Fields) -> NamedCall:
    arguments = parsed_arguments(required(item, "arguments"))
    return flat_name(item.string("namespace"), required(item, "name")), arguments


def _custom(item: Fields) -> NamedCall:
    name = flat_name(item.string("namespace"), required(item, "name"))
    return name, {FREE_TEXT: required(item, "input")}


def _own(name: str, key: str) -> Callable[[Fields], NamedCall]:
    """A call of one of OpenAI's tools that run at the client; `key` holds what it does."""

    def read(item: Fields) -> NamedCall:
        item.require(key)
        action = item.object(key)
        return name, action.values if action else {}

    return read


def _shell_output(item: Fields) -> str:
    """What several commands wrote, as JSON."""
    value = item.require("output")
    if not isinstance(value, (str, list)):
        raise wrong_type(item.where("output"), "one of a string or array of objects", value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


_SHELL_OUTPUT = "shell_call_output"
CALLS: dict[str, Callable[[Fields], NamedCall]] = {
    "function_call": _function,
    "custom_tool_call": _custom,
    "local_shell_call": _own("local_shell", "action"),
    "shell_call": _own("shell", "action"),
    "apply_patch_call": _own("apply_patch", "operation"),
}
OUTPUTS = tuple(f"{kind}_output" for kind in CALLS)


def schemas() -> list[Schema]:
    """What these items may be."""
    space = {"namespace": TEXT}
    named = {"call_id": TEXT, "name": TEXT}
    done = {"call_id": TEXT, "output": text_schema(SENT)}
    either = {"anyOf": [TEXT, {"type": "array", "items": {"type": "object"}}]}
    return [
        record({"type": constant("function_call"), **named, "arguments": TEXT}, space),
        record({"type": constant("custom_tool_call"), **named, "input": TEXT}, space),
        *(
            record({"type": constant(f"{name}_call"), "call_id": TEXT, key: {"type": "object"}})
            for name, key in (("local_shell", "action"), ("shell", "action"), ("apply_patch", "operation"))
        ),
        *(record({"type": constant(kind), **done}) for kind in OUTPUTS if kind != _SHELL_OUTPUT),
        record({"type": constant(_SHELL_OUTPUT), "call_id": TEXT, "output": either}),
    ]
