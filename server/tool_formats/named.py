"""One call with its name before its arguments, `name[ARGS]{…}`, as Mistral's newer models write it.

The counterpart of `envelope` for such calls. Between name and arguments there may be `[CALL_ID]` and an id,
which is dropped: the server generates its own ids.
"""

import re
from collections.abc import Collection, Iterator

import msgspec

from .envelope import LONGEST, Envelope, State, parsed
from .parts import CallArguments, CallStart, Part

_LONGEST_HEAD = 256
_HEAD = re.compile(r"\s*([a-zA-Z0-9_-]+)(?:\[CALL_ID\]\w*)?(?:\[ARGS\])?\s*")


class NamedEnvelope(Envelope):
    """A call that is being parsed; it begins with a name."""

    def __init__(self, names: Collection[str], *, vouched: bool) -> None:
        """An empty call. `vouched`: a grammar constrains the reply to the format."""
        super().__init__(names, ())
        self._vouched = vouched
        self._name = ""
        self._arguments_at = 0

    @staticmethod
    def may_begin(text: str) -> bool:
        """Whether a call may begin with this text."""
        return text[0].isascii() and (text[0].isalnum() or text[0] in "_-")

    def push(self, character: str) -> Iterator[Part]:
        """Adds a character; yields the parts that are certain after it."""
        if not self._name:
            yield from self._read_head(character)
        if not self._name:
            return
        self._raw.append(character)
        self._scan(character)
        if self.started:
            yield CallArguments(character)
        if not self._depth:
            yield from self._finish()
        elif len(self._raw) > LONGEST and not self.started:
            self.state = State.BAD

    def _read_head(self, character: str) -> Iterator[Part]:
        """Parses everything up to the brace."""
        head = _HEAD.fullmatch(self.raw) if character == "{" else None
        if head and head[1] in self._names:
            self._name, self._arguments_at = head[1], len(self._raw)
            if self._vouched:
                self.started = True
                yield CallStart(self._name)
            return
        self._raw.append(character)
        if character == "{" or len(self._raw) > _LONGEST_HEAD:
            self.state = State.BAD

    def _finish(self) -> Iterator[Part]:
        self.state = State.DONE
        if self.started:
            return
        arguments = parsed("".join(self._raw[self._arguments_at :]))
        if not isinstance(arguments, dict):
            self.state = State.BAD
            return
        self.started = True
        yield CallStart(self._name)
        yield CallArguments(msgspec.json.encode(arguments).decode())
