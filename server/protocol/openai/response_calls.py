"""A call as an item of a Responses answer: of a function, or of a free-form tool.

The model calls both in the same way. What it writes for a free-form tool is JSON with one text (`FreeText`),
and the client gets the text. A tool of a namespace gets its own name back, beside that of the namespace.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from ...tool_formats import FREE_TEXT, Tool
from ..heading import fresh_id

Event = tuple[str, dict[str, Any]]
"""The type of an event, and its fields."""


class CallItem:
    """One call while it is written.

    Attributes:
      item: in OpenAI's keys, as far as it is known.
    """

    def __init__(self, id: str, name: str, tool: Tool | None) -> None:
        """A call without arguments.

        Args:
          id: of the call. name: the model's for the tool. tool: what is called.
        """
        free = tool is not None and tool.free_form
        self._text = FreeText() if free else None
        self._key = "input" if free else "arguments"
        kind, prefix = ("custom_tool_call", "ctc_") if free else ("function_call", "fc_")
        self.item = {"id": fresh_id(prefix), "type": kind, "status": "in_progress", self._key: ""}
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


class FreeText:
    """Reads the text in the arguments of a free-form tool as they arrive.

    A model that no grammar constrains may write another object. Then the text is its only string, or else the
    JSON itself, so that the client sees what was written.
    """

    _BEGIN = re.compile(rf'\s*\{{\s*"{FREE_TEXT}"\s*:\s*"')
    _WHOLE = re.compile(r'(?:[^"\\]|\\u[0-9a-fA-F]{4}|\\[^u])*')
    _HALF = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}\Z")
    """The first half of a surrogate pair, which is one character together with the second."""

    def __init__(self) -> None:
        self._buffer = ""
        self._inside = self._found = False

    def push(self, arguments: str) -> str:
        """The text that is certain after a piece of JSON."""
        self._buffer += arguments
        if not self._found and (begin := self._BEGIN.match(self._buffer)):
            self._buffer = self._buffer[begin.end() :]
            self._inside = self._found = True
        if not self._inside:
            return ""
        size = self._certain()
        said, self._buffer = self._buffer[:size], self._buffer[size:]
        self._inside = not self._buffer.startswith('"')
        text = json.loads(f'"{said}"', strict=False)
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

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

    def _certain(self) -> int:
        """How many characters of the buffer are whole characters of the text."""
        whole = self._WHOLE.match(self._buffer)
        size = whole.end() if whole else 0
        half = self._HALF.search(self._buffer, 0, size)
        return half.start() if half and self._buffer[size : size + 1] != '"' else size
