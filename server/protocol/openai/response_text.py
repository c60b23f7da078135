"""Texts in the `input` of the Responses API: a string, or the parts of one. Images and files are refused."""

from typing import Any

from ..fields import Fields, check_array, wrong_type
from ..kinds import TEXT, Schema, array, constant, record
from ..messages import MOST_MESSAGES

SENT = ("input_text",)
ANSWERED = ("output_text", "refusal")
THOUGHT = ("reasoning_text",)


def read_text(item: Fields, name: str, kinds: tuple[str, ...]) -> str:
    """A string, or the parts of one, each of which has one of these types. Raises BadRequest."""
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
    return required(part, "refusal" if kind == "refusal" else "text")


def required(fields: Fields, name: str) -> str:
    """A string that must be there. Raises BadRequest."""
    fields.require(name)
    return fields.string(name) or ""


def text_schema(kinds: tuple[str, ...]) -> Schema:
    """What such a text may be."""
    parts: list[Schema] = [
        record({"type": constant(kind), "refusal" if kind == "refusal" else "text": TEXT})
        for kind in (*kinds, "text")
    ]
    return {"anyOf": [TEXT, array({"anyOf": parts}, MOST_MESSAGES, 0)]}
