"""Log-probabilities of tokens, lined up with the text that has been sent.

The law: joined, the `bytes` of all entries of a choice are the UTF-8 of its content. Text is emitted later
than tokens arrive (unfinished characters, possible stop strings) and may end inside a token (a stop string),
so each token is given its span of bytes of the text, and its entry is released when that span has been sent.
"""

from collections import deque
from dataclasses import dataclass
from typing import Any

from ..runtime.request import TokenLogprobs
from .text import TextModel

FLOOR = -9999.0
"""JSON has no infinity: what is impossible is as unlikely as this."""


@dataclass(slots=True)
class _Pending:
    """A token whose text has not been sent yet, or not wholly."""

    token: int
    logprobs: TokenLogprobs
    raw: bytes
    span: int


class LogprobAligner:
    """The entries of one choice, released as its text is."""

    def __init__(self, text: TextModel) -> None:
        self._text = text
        self._pending: deque[_Pending] = deque()
        self._unmatched = b""
        self._unmatched_tokens: list[_Pending] = []
        self._sent = 0

    def add(self, token: int, logprobs: TokenLogprobs, text: str) -> None:
        """A token arrived, and with it `text` became certain."""
        raw = self._text.token_bytes(token) or b""
        pending = _Pending(token, logprobs, raw, len(raw))
        self._pending.append(pending)
        self._unmatched += raw
        self._unmatched_tokens.append(pending)
        self.match(text)

    def match(self, text: str) -> None:
        """`text` became certain without a further token. Settles the spans of the tokens behind it."""
        data = text.encode()
        if not data:
            return
        if self._unmatched.startswith(data):
            self._unmatched = self._unmatched[len(data) :]
        else:
            self._reconcile(data)
        if not self._unmatched:
            self._unmatched_tokens.clear()
        else:
            self._unmatched_tokens = self._unmatched_tokens[-1:]

    def release(self, text: str) -> list[dict[str, Any]]:
        """`text` is being sent: the entries that it completes."""
        self._sent += len(text.encode())
        entries = []
        while self._pending and self._pending[0].span <= self._sent:
            pending = self._pending.popleft()
            self._sent -= pending.span
            entries.append(self._entry(pending))
        return entries

    def finish(self, *, cut: bool) -> list[dict[str, Any]]:
        """Nothing more will be sent: a token cut by a stop string is reported as far as it was sent."""
        if not cut or not self._pending or not self._sent:
            return []
        pending = self._pending.popleft()
        pending.raw = pending.raw[: self._sent]
        return [self._entry(pending)]

    def _reconcile(self, data: bytes) -> None:
        """The text is not what the tokens' bytes say: a tokenizer dropped a leading space, or the bytes were
        no UTF-8 and became U+FFFD."""
        tokens = self._unmatched_tokens
        if self._unmatched[:1] == b" " and self._unmatched[1:].startswith(data):
            tokens[0].raw = tokens[0].raw[1:]
            tokens[0].span -= 1
            self._unmatched = self._unmatched[1 + len(data) :]
            return
        already = sum(len(pending.raw) for pending in tokens) - len(self._unmatched)
        for pending in tokens:
            pending.span = 0
        tokens[0].span = max(already, 0)
        tokens[-1].span += len(data)
        self._unmatched = b""

    def _entry(self, pending: _Pending) -> dict[str, Any]:
        chosen, top = pending.logprobs.chosen, pending.logprobs.top
        special = self._text.token_bytes(pending.token) is None
        entry = self._describe(pending.token, None if special else pending.raw, chosen)
        entry["top_logprobs"] = [
            self._describe(token, self._text.token_bytes(token), logprob) for token, logprob in top
        ]
        return entry

    def _describe(self, token: int, raw: bytes | None, logprob: float) -> dict[str, Any]:
        name = self._text.token_name(token) if raw is None else raw.decode(errors="backslashreplace")
        logprob = max(logprob, FLOOR) if logprob == logprob else FLOOR
        return {"token": name, "logprob": logprob, "bytes": None if raw is None else list(raw)}
