"""The `input` of the Responses API -> the messages of a conversation, as `messages` makes them.

A list of items, each a message, a call, the output of a call (`response_past_calls`), or reasoning.
Neighbouring calls and the text around them become one message of the assistant, as templates expect. Items
of tools that OpenAI runs itself are ignored, and so is what another server has encrypted. References to items
are refused: only whole answers are stored. Reasoning becomes `reasoning_content` of the message after it.
"""

from collections.abc import Sequence
from typing import Any

from ...errors import BadRequest
from ..fields import Fields, check_array, objects, wrong_type, wrong_value
from ..kinds import TEXT, Schema, Shape, array, constant, record
from ..messages import MOST_MESSAGES, REASONING, Message
from .response_items import PLAIN
from .response_past_calls import CALLS, OUTPUTS, read_call, read_output, schemas
from .response_text import ANSWERED, SENT, THOUGHT, read_text, required, text_schema

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
_KINDS = ("message", "agent_message", "reasoning", *CALLS, *OUTPUTS)
_IGNORED = (
    "additional_tools",
    "code_interpreter_call",
    "compaction",
    "compaction_summary",
    "compaction_trigger",
    "computer_call",
    "computer_call_output",
    "context_compaction",
    "file_search_call",
    "image_generation_call",
    "mcp_approval_request",
    "mcp_approval_response",
    "mcp_call",
    "mcp_list_tools",
    "tool_search_call",
    "tool_search_output",
    "web_search_call",
)
"""Items of what OpenAI runs itself, or has encrypted, which says nothing to another model."""
_ROLES = ("assistant", "system", "developer", "user")


def input_items(value: Any) -> list[dict[str, Any]]:
    """The items of a request; a string is a message of the user. Raises BadRequest."""
    if isinstance(value, str):
        return [_message("user", value)]
    if not isinstance(value, list):
        raise wrong_type("input", "one of a string or array of input items", value)
    return [item.values for item in objects("input", value, MOST_MESSAGES)]


def read_input(
    items: Sequence[dict[str, Any]], instructions: str | None, earlier: Sequence[dict[str, Any]] = ()
) -> list[Message]:
    """The conversation; it begins with the instructions.

    Args:
      items: of the request. earlier: those of the response that it continues.

    Raises:
      BadRequest: an item is malformed or not supported; the error names its place.
    """
    messages: list[Message] = [_message("system", instructions)] if instructions else []
    calls: set[str] = set()
    for path, several in (("previous_response_id", earlier), ("input", items)):
        for index, item in enumerate(several):
            _add(Fields(item, f"{path}[{index}]"), messages, calls)
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
    kind = _kind(item)
    if kind in CALLS:
        call = read_call(item)
        calls.add(call["id"])
        _assistant_message(messages).setdefault("tool_calls", []).append(call)
    elif kind in OUTPUTS:
        messages.append(read_output(item, calls))
    elif kind == "reasoning":
        _add_reasoning(item, messages)
    elif kind == "agent_message":
        messages.append(_message("user", read_text(item, "content", SENT)))
    elif kind == "message":
        _add_message(item, messages)


def _kind(item: Fields) -> str:
    kind = item.string("type")
    if kind is None:
        return "message"
    if kind == "item_reference":
        raise BadRequest(f"Item with id '{required(item, 'id')}' not found. No items are stored.", "input")
    if kind not in _KINDS and kind not in _IGNORED:
        raise wrong_value(item.where("type"), kind, _KINDS)
    return kind


def _add_message(item: Fields, messages: list[Message]) -> None:
    item.require("role")
    role = item.one_of("role", _ROLES) or "user"
    text = read_text(item, "content", ANSWERED if role == "assistant" else SENT)
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
    text = read_text(item, "content", THOUGHT) if item.get("content") is not None else ""
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


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _schema() -> Schema:
    others = {"type": "string", "enum": [role for role in _ROLES if role != "assistant"]}
    kind, sent, answered = {"type": constant("message")}, text_schema(SENT), text_schema(ANSWERED)
    thought = {"content": text_schema(THOUGHT), "encrypted_content": TEXT}
    items = [
        record({"role": others, "content": sent}, kind),
        record({"role": constant("assistant"), "content": answered}, kind),
        record({"type": constant("agent_message"), "content": sent}),
        record({"type": constant("reasoning")}, thought),
        record({"type": {"type": "string", "enum": list(_IGNORED)}}),
        *schemas(),
    ]
    return {"anyOf": [TEXT, array({"anyOf": items}, MOST_MESSAGES)]}


INPUT = Shape(_schema())
INCLUDE = Shape(array({"type": "string", "enum": list(_INCLUDABLE)}, len(_INCLUDABLE), 0))
