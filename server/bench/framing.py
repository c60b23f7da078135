"""Where the body of an HTTP/1.1 answer ends (RFC 9112, 6.3), found in pieces of any size."""

from collections.abc import Mapping
from typing import Protocol


class Framing(Protocol):
    """Takes the bytes of a connection and returns those of the body.

    Attributes:
      ended: the body is complete.
    """

    ended: bool

    def feed(self, data: bytes) -> bytes:
        """The body's bytes within `data`, which is empty at the connection's end.

        Raises:
          ValueError: `data` is not framed as required.
        """
        ...


def framing_of(status: int, headers: Mapping[str, str]) -> Framing:
    """The framing that the head of an answer states.

    Raises:
      ValueError: a length that is not a number.
    """
    if status in (204, 304):
        return Counted(0)
    if "chunked" in headers.get("transfer-encoding", "").lower():
        return Chunked()
    length = headers.get("content-length")
    return UntilClosed() if length is None else Counted(int(length))


class Counted:
    """A body with `Content-Length`."""

    def __init__(self, length: int) -> None:
        self._left = length
        self.ended = not length

    def feed(self, data: bytes) -> bytes:
        self._left -= len(data)
        self.ended = self._left <= 0
        return data


class UntilClosed:
    """A body that ends with its connection."""

    ended = False

    def feed(self, data: bytes) -> bytes:
        self.ended = not data
        return data


class Chunked:
    """A body in chunks: a line with the size in hexadecimal, so many bytes, a line end; size 0 is the last.

    Trailers are skipped.
    """

    def __init__(self) -> None:
        self.ended = False
        self._rest = b""
        self._left = 0
        self._in_trailer = False

    def feed(self, data: bytes) -> bytes:
        data, found, place = self._rest + data, [], 0
        while not self.ended:
            if self._left > 2:
                piece = data[place : place + self._left - 2]
                found.append(piece)
                self._left -= len(piece)
                place += len(piece)
            line_end = data.find(b"\r\n", place)
            if self._left > 2 or line_end < 0:
                break
            self._take_line(data[place:line_end])
            place = line_end + 2
        self._rest = data[place:]
        return b"".join(found)

    def _take_line(self, line: bytes) -> None:
        """The end of a chunk's bytes, the size of the next one, or a trailer."""
        if self._left:
            if line:
                raise ValueError(f"a chunk is longer than its size: {line[:20]!r}")
            self._left = 0
        elif self._in_trailer:
            self.ended = not line
        else:
            size = int(line.partition(b";")[0], 16)
            self._in_trailer = not size
            self._left = size + 2 if size else 0
