"""Removes the marks from a server's stream and keeps them, so that another replica can continue it.

`answering/resuming.py` writes them (docs/resuming.md): each group of bytes is followed by a comment with what
another server needs to know that the client has had these bytes. So bytes are passed on only when their mark
has come, and what a lost server had sent half is dropped: the next one sends it again. A stream without marks
passes unchanged, event by event.
"""

import re

_MARK = re.compile(rb"(?:(?<=\n)|\A): resume ([A-Za-z0-9+/=]+)\n\n")

_BLANK = b"\n\n"


class MarkedStream:
    """One stream to a client, from however many servers.

    Attributes:
      started: whether bytes have been passed on.
    """

    def __init__(self) -> None:
        self.started = False
        self._marks: list[bytes] = []
        self._held = b""

    @property
    def marks(self) -> bytes:
        """All marks so far, as another server reads them."""
        return b"\n".join(self._marks)

    def feed(self, data: bytes) -> bytes:
        """The bytes to pass on now that the server has sent `data`."""
        text = self._held + data
        end, passed = 0, []
        for mark in _MARK.finditer(text):
            passed.append(text[end : mark.start()])
            self._marks.append(mark[1])
            end = mark.end()
        if not self._marks:
            end = text.rfind(_BLANK) + len(_BLANK) if _BLANK in text else 0
            passed = [text[:end]]
        self._held = text[end:]
        return self._pass(b"".join(passed))

    def finish(self) -> bytes:
        """The bytes that are left when the server has ended the stream."""
        held, self._held = self._held, b""
        return self._pass(held)

    def drop(self) -> None:
        """Forgets what a lost server had sent without a mark."""
        self._held = b""

    def _pass(self, data: bytes) -> bytes:
        self.started = self.started or bool(data)
        return data
