"""Log-probabilities of tokens, aligned with the text that has been sent.

Two invariants: there is one entry for each generated token of the answer, and the joined `bytes` of a
choice's entries are the UTF-8 of its content. Tokens of reasoning before the answer have no entries
(`skip`). A token that is not in the content (a special token, the end token, a token of the stop string) has
an entry without bytes. Text is emitted later than tokens arrive (unfinished characters, possible stop
strings) and may end inside a token (a stop string). Therefore each token stores its end
position in the text, in characters, and its entry is released when the text has been sent up to there.
"""

import codecs
from collections import deque
from dataclasses import dataclass
from typing import Any

import msgspec

from ...runtime.request import TokenLogprobs
from .text_model import TokenTexts

FLOOR = -9999.0
"""Stands for minus infinity, which JSON lacks."""

_decoder_of = codecs.getincrementaldecoder("utf-8")


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A token as clients see it. A reply may hold 100,000s of them; they contain no reference cycles, and
    `gc=False` keeps the garbage collector, which stops every thread, from traversing them.

    Attributes:
      token: its text, or the name of a token without text. raw: its bytes, as far as they are in the content;
        None for a special token.
      logprob: None for the first token of a prompt. top: the most likely tokens at its position, descending.
    """

    id: int
    token: str
    logprob: float | None
    raw: bytes | None
    top: tuple["Entry", ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """In OpenAI's keys."""
        return {**self._brief(), "top_logprobs": [entry._brief() for entry in self.top]}

    def _brief(self) -> dict[str, Any]:
        raw = None if self.raw is None else list(self.raw)
        return {"token": self.token, "logprob": self.logprob, "bytes": raw}


@dataclass(slots=True)
class _Pending:
    """A token with text that is not completely sent: its start and end position in the text.

    `state` is the decoder's state before the token, which may hold an unfinished character.
    """

    token: int
    logprobs: TokenLogprobs
    raw: bytes
    state: tuple[bytes, int]
    begin: int
    end: int


class LogprobAligner:
    """The entries of one choice, released together with its text."""

    def __init__(self, text: TokenTexts) -> None:
        self._text = text
        self._decoder = _decoder_of("replace")
        self._pending: deque[_Pending] = deque()
        self._decoded = 0
        self._sent = 0

    def add(self, token: int, logprobs: TokenLogprobs, text: str) -> None:
        """Adds a token, with the `text` that became certain after it."""
        raw = self._text.token_bytes(token) or b""
        state = self._decoder.getstate()
        characters = self._decoder.decode(raw)
        if self._decoded == 0 and characters == f" {text}":
            # SentencePiece adds a space before the first word of a sequence and removes it again.
            raw, characters = raw[1:], text
        begin, self._decoded = self._decoded, self._decoded + len(characters)
        unfinished = bool(self._decoder.getstate()[0])
        end = self._decoded + unfinished
        self._pending.append(_Pending(token, logprobs, raw, state, begin, end))

    def skip(self, length: int) -> None:
        """Drops the next `length` characters, which are not content: no entry is released for them, and the
        entry of a token that reaches into the content begins there."""
        self._sent += length
        while length and self._pending and self._pending[0].end <= self._sent:
            self._pending.popleft()
        if self._pending and self._pending[0].begin < self._sent:
            pending = self._pending[0]
            pending.raw = pending.raw[self._bytes_sent(pending) :]
            pending.state, pending.begin = _decoder_of("replace").getstate(), self._sent

    def reach(self, length: int) -> int:
        """How many of the next `length` characters end at the end of a token, with no other token open."""
        limit, place = self._sent + length, self._sent
        begins = [pending.begin for pending in self._pending][1:] + [limit]
        for pending, following in zip(self._pending, begins, strict=False):
            if pending.end <= min(limit, following):
                place = pending.end
        return place - self._sent

    def release(self, text: str) -> list[Entry]:
        """The entries that are complete when `text` is sent."""
        self._sent += len(text)
        entries = []
        while self._pending and self._pending[0].end <= self._sent:
            entries.append(self._entry(self._pending.popleft()))
        return entries

    def cut(self) -> list[Entry]:
        """After a stop string ended the text: the entry of the token that it cut, with the sent bytes."""
        if not self._pending or self._pending[0].begin >= self._sent:
            return []
        pending = self._pending.popleft()
        pending.raw = pending.raw[: self._bytes_sent(pending)]
        return [self._entry(pending)]

    def _bytes_sent(self, pending: _Pending) -> int:
        """How many of a token's bytes are in the text so far."""
        decoder = _decoder_of("replace")
        decoder.setstate(pending.state)
        kept, length = pending.begin, 0
        while kept < self._sent:
            kept += len(decoder.decode(pending.raw[length : length + 1]))
            length += 1
        return length

    def rest(self) -> list[Entry]:
        """At the end of the text: the entries of tokens without text after the last sent character."""
        entries = self.release("")
        entries += [unwritten(self._text, pending.token, pending.logprobs) for pending in self._pending]
        self._pending.clear()
        return entries

    def _entry(self, pending: _Pending) -> Entry:
        special = self._text.token_bytes(pending.token) is None
        return entry_of(self._text, pending.token, None if special else pending.raw, pending.logprobs)


def unwritten(text: TokenTexts, token: int, logprobs: TokenLogprobs | None) -> Entry:
    """The entry of a token that is not part of the content, although it may have text."""
    return entry_of(text, token, None if text.token_bytes(token) is None else b"", logprobs)


def entry_of(text: TokenTexts, token: int, raw: bytes | None, logprobs: TokenLogprobs | None) -> Entry:
    """The entry of a token with its bytes and alternatives; no logprob for a prompt's first token."""
    if logprobs is None:
        return _describe(text, token, raw, None)
    top = tuple(_describe(text, id, text.token_bytes(id), logprob) for id, logprob in logprobs.top)
    return _describe(text, token, raw, logprobs.chosen, top)


def _describe(
    text: TokenTexts, token: int, raw: bytes | None, logprob: float | None, top: tuple[Entry, ...] = ()
) -> Entry:
    own = raw or text.token_bytes(token)
    name = own.decode(errors="backslashreplace") if own else text.token_name(token)
    if logprob is not None:
        logprob = max(logprob, FLOOR) if logprob == logprob else FLOOR
    return Entry(token, name, logprob, raw, top)
