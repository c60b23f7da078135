"""`system` and `messages` -> the messages that a chat template reads, as `protocol.messages` makes them.

Calls and results of tools, which are blocks here, become calls of the assistant's message and messages of
the role `tool`; thinking becomes `reasoning_content`, which templates of reasoning models read. The one idea:
what a client sends again at its next turn comes to the same messages, in whatever form it sends it, so that
they are found in the prefix cache.
"""

from collections.abc import Iterable
from itertools import groupby
from typing import Any

from ...errors import BadRequest
from ..fields import Fields, missing, objects
from ..kinds import Schema, Shape, array, constant, record
from ..messages import MOST_MESSAGES, Message
from .blocks import ASSISTANT, RESULT, SYSTEM, USER, content_schema, joined, read_blocks, read_text, required
from .volatile import stable_system, stable_user

ROLES = ("user", "assistant", "system")


def read_conversation(fields: Fields) -> list[Message]:
    """The conversation; it begins with the system prompt, if there is one.

    Raises:
      BadRequest: a message is malformed or has content that is not supported; the error names its place.
    """
    messages: list[Message] = []
    if fields.get("system") is not None:
        messages += _system(fields, "system")
    calls: set[str] = set()
    for item in objects("messages", fields.require("messages"), MOST_MESSAGES):
        messages += _message(item, calls)
    if messages and messages[-1].get("tool_calls"):
        raise BadRequest(
            "The last message has 'tool_use' blocks without a 'tool_result' after them.", "messages"
        )
    return messages


def continues(messages: list[Message]) -> bool:
    """Whether the reply continues the last message: one of the assistant, with a text."""
    return bool(messages) and messages[-1]["role"] == "assistant" and bool(messages[-1]["content"])


def _message(item: Fields, calls: set[str]) -> list[Message]:
    """The messages that one entry becomes; `calls` are the ids of the calls so far."""
    item.require("role")
    role = item.one_of("role", ROLES)
    if role == "system":
        return _system(item, "content")
    return [_assistant(item, calls)] if role == "assistant" else _user(item, calls)


def _system(item: Fields, name: str) -> list[Message]:
    text = read_text(item, name, stable_system)
    return [{"role": "system", "content": text}] if text else []


def _user(item: Fields, calls: set[str]) -> list[Message]:
    """Texts and results in their order; neighbouring texts are one message."""
    found: list[Message] = []
    for kind, group in groupby(read_blocks(item, "content", USER), lambda block: block.get("type")):
        if kind == "tool_result":
            found += [_result(block, calls) for block in group]
        elif text := joined(stable_user(required(block, "text")) for block in group):
            found.append({"role": "user", "content": text})
    return found or [{"role": "user", "content": ""}]


def _result(block: Fields, calls: set[str]) -> Message:
    """The result of a call. Raises BadRequest if no call before it has its id."""
    call = required(block, "tool_use_id")
    if call not in calls:
        message = f"No 'tool_use' block before it has the id '{call[:64]}'."
        raise BadRequest(message, block.where("tool_use_id"))
    parts = read_blocks(block, "content", RESULT) if block.get("content") is not None else []
    failed = "Error: " if block.boolean("is_error") else ""
    return {"role": "tool", "content": failed + joined(map(_part, parts)), "tool_call_id": call}


def _part(block: Fields) -> str:
    """The text of a result's part; a reference to a tool is its name, for every tool is in the prompt."""
    return required(block, "tool_name" if block.get("type") == "tool_reference" else "text")


def _assistant(item: Fields, calls: set[str]) -> Message:
    """Text, thinking and calls of one turn; its texts are pieces of one reply."""
    blocks = read_blocks(item, "content", ASSISTANT)
    message: Message = {"role": "assistant", "content": "".join(_all(blocks, "text"))}
    if thinking := "".join(_all(blocks, "thinking")):
        message["reasoning_content"] = thinking
    if uses := [_call(block) for block in blocks if block.get("type") == "tool_use"]:
        message["tool_calls"] = uses
        calls.update(use["id"] for use in uses)
    return message


def _all(blocks: Iterable[Fields], kind: str) -> list[str]:
    """The texts of all blocks of a kind, which name it."""
    return [required(block, kind) for block in blocks if block.get("type") == kind]


def _call(block: Fields) -> dict[str, Any]:
    """A call in the form that templates read."""
    id, name, arguments = required(block, "id"), required(block, "name"), block.object("input")
    if arguments is None:
        raise missing(block.where("input"))
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments.values}}


def _entry(role: str, kinds: tuple[str, ...]) -> Schema:
    return record({"role": constant(role), "content": content_schema(kinds)})


MESSAGES = Shape(
    array(
        {"anyOf": [_entry("user", USER), _entry("assistant", ASSISTANT), _entry("system", SYSTEM)]},
        MOST_MESSAGES,
    )
)
SYSTEM_PROMPT = Shape(content_schema(SYSTEM))
