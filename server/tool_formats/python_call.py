"""One call as Llama 3.1 writes calls of its built-in tools, `name.call(key=value, …)`, or as one object.

The counterpart of `envelope` for such calls. Values are JSON, or Python's `True`, `False` and `None`; nothing
is evaluated.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from .envelope import LONGEST, Envelope, State
from .parts import CallArguments, CallStart, Part

_LONGEST_HEAD = 128
_HEAD = re.compile(r"([a-zA-Z0-9_-]+)\.call\(")
_KEY = re.compile(r"\s*([A-Za-z_]\w*)\s*=\s*")
_WORD = re.compile(r"(True|False|None)\b")
_NEXT = re.compile(r"\s*(,|\Z)")
_WORDS = {"True": True, "False": False, "None": None}


class PythonEnvelope(Envelope):
    """A call that is being parsed; it begins with `{` or with a name."""

    _arguments_at = 0

    @staticmethod
    def may_begin(text: str) -> bool:
        """Whether a call may begin with this text."""
        return text[0] == "{" or (text[0].isascii() and (text[0].isalnum() or text[0] in "_-"))

    def push(self, character: str) -> Iterator[Part]:
        """Adds a character; yields the parts that are certain after it."""
        if (self._raw or character)[0] == "{":
            yield from super().push(character)
            return
        self._raw.append(character)
        if not self._arguments_at:
            self._read_head(character)
        elif character == ")" and not self._in_string and not self._depth:
            yield from self._finish()
        else:
            self._scan(character)
            if self._depth < 0 or len(self._raw) > LONGEST:
                self.state = State.BAD

    def _read_head(self, character: str) -> None:
        """Parses everything up to the parenthesis."""
        if character == "(":
            head = _HEAD.fullmatch(self.raw)
            self._arguments_at = len(self._raw) if head and head[1] in self._names else 0
            self.state = State.OPEN if self._arguments_at else State.BAD
        elif not character.isascii() or not (character.isalnum() or character in "_-."):
            self.state = State.BAD
        elif len(self._raw) > _LONGEST_HEAD:
            self.state = State.BAD

    def _finish(self) -> Iterator[Part]:
        if not self._arguments_at:
            yield from super()._finish()
            return
        arguments = _keywords("".join(self._raw[self._arguments_at : -1]))
        if arguments is None:
            self.state = State.BAD
            return
        self.state, self.started = State.DONE, True
        yield CallStart(self.raw.partition(".")[0])
        yield CallArguments(arguments)


def _refused(constant: str) -> Any:
    raise ValueError(constant)


_DECODER = json.JSONDecoder(parse_constant=_refused)


def _keywords(text: str) -> str | None:
    """The text between the parentheses as a JSON object; None if it is something else."""
    found: dict[str, Any] = {}
    place = 0 if text.strip() else len(text)
    try:
        while place < len(text):
            key = _KEY.match(text, place)
            if key is None or key[1] in found:
                return None
            word = _WORD.match(text, key.end())
            value, place = (_WORDS[word[0]], word.end()) if word else _DECODER.raw_decode(text, key.end())
            found[key[1]] = value
            follows = _NEXT.match(text, place)
            if follows is None:
                return None
            place = follows.end()
        return msgspec.json.encode(found).decode()
    except (ValueError, RecursionError, OverflowError):
        return None
