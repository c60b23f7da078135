"""Removes the marks from a server's stream and keeps them, so that another replica can continue it.

`answering/resuming.py` writes them (docs/resuming.md): each group of bytes is followed by a comment with what
another server needs to know that the client has had these bytes. So bytes are passed on only when their mark
has come, and what a lost server had sent half is dropped: the next one sends it again. The bytes after the
last mark, or all of a stream without marks, are passed on when the server has ended it.
"""

import re

_BLANK = b"\n\n"
_MARK = re.compile(rb": resume ([A-Za-z0-9+/=]+)\n\n")
"""A block with a mark."""


class MarkedStream:
    """One stream to a client, from however many servers."""

    def __init__(self) -> None:
        self._marks: list[bytes] = []
        self._held = bytearray()
        # Where the last block begins, and up to where its end was looked for.
        self._block = self._searched = 0

    @property
    def marks(self) -> bytes:
        """All marks so far, as another server reads them."""
        return b"\n".join(self._marks)

    def feed(self, data: bytes) -> bytes:
        """The bytes to pass on now that the server has sent `data`. Takes time in proportion to `data`."""
        self._held += data
        passed = bytearray()
        while (blank := self._held.find(_BLANK, self._searched)) >= 0:
            end = blank + len(_BLANK)
            if mark := _MARK.fullmatch(self._held, self._block, end):
                self._marks.append(bytes(mark[1]))
                passed += self._held[: self._block]
                del self._held[:end]
                end = 0
            self._block = self._searched = end
        self._searched = max(self._block, len(self._held) - 1)
        return bytes(passed)

    def finish(self) -> bytes:
        """The bytes that are left when the server has ended the stream."""
        held = self._held
        self.drop()
        return bytes(held)

    def drop(self) -> None:
        """Forgets what a lost server had sent without a mark."""
        self._held = bytearray()
        self._block = self._searched = 0
