"""Texts as `prompt` and `input` hold them: a string, token ids, or a list of either.

Whether an id is in the vocabulary and a text fits the context is checked later, where the model is known.
"""

from typing import Any

from .fields import check_array, integers, whole, wrong_type
from .kinds import TEXT, Limits, Schema, Shape, array
from .token_ids import MOST_IDS, ids_schema

RawPrompt = str | tuple[int, ...]


def read_prompts(path: str, value: Any, most: int) -> tuple[RawPrompt, ...]:
    """A string, a list of strings, a list of ids, or a list of such lists. Absent means the empty string.

    Raises:
      BadRequest: anything else, or more than `most` of them.
    """
    if value is None or isinstance(value, str):
        return (value or "",)
    if not isinstance(value, list):
        raise wrong_type(path, "one of a string or array", value)
    check_array(path, value, MOST_IDS)
    if type(whole(value[0])) is int:
        return (integers(path, value),)
    check_array(path, value, most)
    strings = isinstance(value[0], str)
    return tuple(_one(item, f"{path}[{index}]", strings) for index, item in enumerate(value))


def _one(value: Any, path: str, strings: bool) -> RawPrompt:
    if strings:
        if not isinstance(value, str):
            raise wrong_type(path, "a string", value)
        return value
    if not isinstance(value, list):
        raise wrong_type(path, "an array of integers", value)
    check_array(path, value, MOST_IDS)
    return integers(path, value)


def prompts_kind(most: int, *, empty: bool) -> Shape:
    """The values that `read_prompts` accepts; `empty`: a text can be empty."""

    def schema(limits: Limits) -> Schema:
        ids = ids_schema(limits, 1)
        text = TEXT if empty else TEXT | {"minLength": 1}
        return {"anyOf": [text, ids, array(text, most), array(ids, most)]}

    return Shape(schema)
