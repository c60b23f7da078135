"""A call as an item of a Responses answer: of a function, or of a free-form tool.

The model calls both in the same way. What it writes for a free-form tool is JSON with one text (`FreeText`),
and the client gets the text. A tool of a namespace gets its own name back, beside that of the namespace.
"""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from ...tool_formats import FREE_TEXT, Tool

Event = tuple[str, dict[str, Any]]
"""The type of an event, and its fields."""


class CallItem:
    """One call while it is written.

    Attributes:
      item: in OpenAI's keys, as far as it is known.
    """

    def __init__(self, item_id: Callable[[str], str], id: str, name: str, tool: Tool | None) -> None:
        """A call without arguments.

        Args:
          item_id: the id of the item, from its prefix. id: of the call.
          name: the model's for the tool. tool: what is called.
        """
        free = tool is not None and tool.free_form
        self._text = FreeText() if free else None
        self._key = "input" if free else "arguments"
        kind, prefix = ("custom_tool_call", "ctc_") if free else ("function_call", "fc_")
        self.item = {"id": item_id(prefix), "type": kind, "status": "in_progress", self._key: ""}
        self.item |= {"call_id": id, "name": (tool and tool.own_name) or name}
        if tool is not None and tool.namespace:
            self.item["namespace"] = tool.namespace

    def advance(self, arguments: str) -> Iterator[Event]:
        """Adds a piece of the arguments; yields the events about it."""
        yield from self._add(arguments if self._text is None else self._text.push(arguments))

    def end(self) -> Iterator[Event]:
        """The events at the end of the call."""
        if self._text is None:
            done = {"name": self.item["name"], "arguments": self.item["arguments"]}
            yield "response.function_call_arguments.done", done
            return
        yield from self._add(self._text.flush())
        yield "response.custom_tool_call_input.done", {"input": self.item["input"]}

    def _add(self, text: str) -> Iterator[Event]:
        self.item[self._key] += text
        kind = "function_call_arguments" if self._text is None else "custom_tool_call_input"
        if text:
            yield f"response.{kind}.delta", {"delta": text}


_BEGIN = re.compile(rf'\s{{0,64}}\{{\s{{0,64}}"{FREE_TEXT}"\s{{0,64}}:\s{{0,64}}"')
_LONGEST_BEGIN = 512
_UNIT = re.compile(r'[^"\\]+|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4}')
_HIGH = re.compile(r"\\u[dD][89abAB]")
"""The first half of a surrogate pair, which is one character together with the second."""
_NO_ESCAPE = re.compile(r'\\(?:[^"\\/bfnrtu]|u[0-9a-fA-F]{0,3}[^0-9a-fA-F])')
_LONGEST_ESCAPE = 6


class FreeText:
    """Reads the text in the arguments of a free-form tool as they arrive.

    A model that no grammar constrains may write another object. Then the text is its only string, or else the
    JSON itself, so that the client sees what was written. A backslash that escapes nothing is text.
    """

    def __init__(self) -> None:
        self._buffer = ""
        self._inside = self._found = False

    def push(self, arguments: str) -> str:
        """The text that is certain after a piece of JSON."""
        self._buffer += arguments
        if not self._found and (begin := _BEGIN.match(self._buffer, 0, _LONGEST_BEGIN)):
            self._buffer = self._buffer[begin.end() :]
            self._inside = self._found = True
        return "".join(self._certain()) if self._inside else ""

    def _certain(self) -> Iterator[str]:
        """Takes the whole characters from the buffer."""
        while self._inside:
            size = _whole(self._buffer)
            yield _unescaped(self._buffer[:size])
            self._buffer = self._buffer[size:]
            self._inside = not self._buffer.startswith('"')
            if not _NO_ESCAPE.match(self._buffer):
                return
            yield self._buffer[0]
            self._buffer = self._buffer[1:]

    def flush(self) -> str:
        """The text of arguments that were another object."""
        if self._found:
            return ""
        try:
            value = json.loads(self._buffer)
        except ValueError:
            return self._buffer
        if not isinstance(value, dict):
            return self._buffer
        texts = [value[FREE_TEXT]] if FREE_TEXT in value else list(value.values())
        return texts[0] if len(texts) == 1 and isinstance(texts[0], str) else self._buffer


def _whole(text: str) -> int:
    """How many characters at the beginning of JSON text are whole characters of a string."""
    at, half = 0, None
    while unit := _UNIT.match(text, at):
        half = at if _HIGH.match(unit[0]) else None
        at = unit.end()
    rest = text[at:]
    waits = len(rest) < _LONGEST_ESCAPE and not rest.startswith('"') and not _NO_ESCAPE.match(rest)
    return half if half is not None and waits else at


def _unescaped(text: str) -> str:
    """The text of a JSON string; half a pair of surrogates is replaced."""
    return json.loads(f'"{text}"', strict=False).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
