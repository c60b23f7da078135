"""The content of a message: a string or a list of typed blocks -> blocks of the kinds that are read here.

Knows the forms of blocks, not what a conversation makes of them. A string is one block of text, so both forms
of a text come to the same. Blocks of other kinds, such as images and documents, are refused by name: models
here read text. `cache_control` is ignored: all prompts are cached, and marks that come and go change nothing.
"""

from collections.abc import Callable, Iterable
from typing import Any

from ..fields import Fields, check_array, wrong_type, wrong_value
from ..kinds import TEXT, Schema, array, constant, record
from ..messages import MOST_MESSAGES

SYSTEM = ("text",)
USER = ("text", "tool_result")
ASSISTANT = ("text", "thinking", "redacted_thinking", "tool_use")
RESULT = ("text", "tool_reference")


def read_blocks(item: Fields, name: str, kinds: tuple[str, ...]) -> list[Fields]:
    """The blocks of a field.

    Raises:
      BadRequest: the field is missing, or a block is malformed or not of these kinds; the error has its path.
    """
    value, path = item.require(name), item.where(name)
    if isinstance(value, str):
        return [Fields({"type": "text", "text": value}, path)]
    if not isinstance(value, list):
        raise wrong_type(path, "one of a string or array of objects", value)
    check_array(path, value, MOST_MESSAGES, empty=True)
    return [_block(each, f"{path}[{index}]", kinds) for index, each in enumerate(value)]


def _block(value: Any, path: str, kinds: tuple[str, ...]) -> Fields:
    if not isinstance(value, dict):
        raise wrong_type(path, "an object", value)
    block = Fields(value, path)
    block.require("type")
    kind = block.string("type") or ""
    if kind not in kinds:
        raise wrong_value(block.where("type"), kind, kinds)
    return block


def required(block: Fields, name: str) -> str:
    """A string that a block must have. Raises BadRequest."""
    block.require(name)
    return block.string(name) or ""


def joined(texts: Iterable[str]) -> str:
    """The texts of separate blocks as paragraphs; empty ones are left out."""
    return "\n\n".join(filter(None, texts))


def read_text(item: Fields, name: str, stable: Callable[[str], str]) -> str:
    """A field of text blocks as one text; `stable` removes what changes with every request."""
    return joined(stable(required(block, "text")) for block in read_blocks(item, name, SYSTEM))


def content_schema(kinds: tuple[str, ...]) -> Schema:
    """The schema of a string or blocks of these kinds."""
    blocks = [_SCHEMAS[kind] for kind in kinds]
    return {"anyOf": [TEXT, array({"anyOf": blocks}, MOST_MESSAGES, 0)]}


def _of(kind: str, required: Schema | None = None, optional: Schema | None = None) -> Schema:
    return record({"type": constant(kind)} | (required or {}), optional)


_SCHEMAS: dict[str, Schema] = {
    "text": _of("text", {"text": TEXT}),
    "thinking": _of("thinking", {"thinking": TEXT}),
    "redacted_thinking": _of("redacted_thinking"),
    "tool_use": _of("tool_use", {"id": TEXT, "name": TEXT, "input": {"type": "object"}}),
    "tool_reference": _of("tool_reference", {"tool_name": TEXT}),
}
_SCHEMAS["tool_result"] = _of(
    "tool_result", {"tool_use_id": TEXT}, {"content": content_schema(RESULT), "is_error": {"type": "boolean"}}
)
