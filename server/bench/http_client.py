"""An HTTP/1.1 client for streamed answers that costs little for each piece.

A load generator must be cheaper than the server that it measures, often on the same machine. So this client
does only what such a load needs: plain HTTP or TLS, connections that are used again, bodies in each of
HTTP/1.1's three framings (RFC 9112, 6), handed on as they arrive. No redirects, proxies, cookies or
compression. docs/decisions.md compares its cost with that of two libraries.
"""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Mapping
from urllib.parse import urlsplit

from ...model.errors import DistaffError
from .. import exit_codes
from ..exit_codes import Failed
from .framing import Framing, framing_of

_CONNECT_SECONDS = 30.0
_READ_BYTES = 1 << 16
_CLIENT = "distaff-bench"


class ConnectionFailed(DistaffError):
    """No connection to the server could be opened."""


class AnswerBroken(DistaffError):
    """The connection ended before the answer did, or what arrived is not HTTP/1.1."""


class Address:
    """Where a URL leads.

    Attributes:
      host, port: of the server. tls: how to encrypt; None for plain HTTP.
      name: the value of the header `Host`. path: of the URL, without a slash at its end.
    """

    def __init__(self, url: str) -> None:
        """Args:
          url: such as http://127.0.0.1:8000.

        Raises:
          Failed: it is not a URL of HTTP.
        """
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            parts, host, port = urlsplit(""), None, None
        if parts.scheme not in ("http", "https") or not host:
            raise Failed(
                f"{url!r} is not a URL; expected one such as http://127.0.0.1:8000", exit_codes.USAGE
            )
        self.tls = ssl.create_default_context() if parts.scheme == "https" else None
        self.host, self.port = host, port or (443 if self.tls else 80)
        self.name = parts.netloc.rpartition("@")[2]
        self.path = parts.path.rstrip("/")


class HttpClient:
    """Sends requests to one server, each over an idle connection or a new one.

    Attributes:
      url: of the server, as given.
    """

    def __init__(self, url: str, headers: Mapping[str, str] | None = None) -> None:
        """Opens no connection yet.

        Args:
          url: of the server; its path precedes that of every request.
          headers: sent with every request; they replace those of the same name.

        Raises:
          Failed: not a URL of HTTP.
        """
        self.url = url
        self._address = Address(url)
        self._idle: list[_Connection] = []
        base = {"Host": self._address.name, "User-Agent": _CLIENT, "Content-Type": "application/json"}
        given = {name.title(): value for name, value in (headers or {}).items()}
        self._head = "".join(f"{name}: {value}\r\n" for name, value in (base | given).items()).encode()

    @contextlib.asynccontextmanager
    async def ask(self, path: str, body: bytes | None = None) -> AsyncIterator["Answer"]:
        """Sends a request, a GET without a body, and yields the answer once its head has arrived.

        Raises:
          ConnectionFailed: no connection. AnswerBroken: it ended before the answer's head was complete.
        """
        connection, answer = await self._answered(self._request(path, body))
        try:
            yield answer
        finally:
            if answer.leaves_connection:
                self._idle.append(connection)
            else:
                connection.close()

    def close(self) -> None:
        """Closes the idle connections."""
        while self._idle:
            self._idle.pop().close()

    def _request(self, path: str, body: bytes | None) -> bytes:
        line = f"{'GET' if body is None else 'POST'} {self._address.path}{path} HTTP/1.1\r\n".encode()
        length = b"" if body is None else b"Content-Length: %d\r\n" % len(body)
        return b"".join((line, self._head, length, b"\r\n", body or b""))

    async def _answered(self, request: bytes) -> tuple["_Connection", "Answer"]:
        while self._idle:
            connection = self._idle.pop()
            try:
                return connection, await connection.exchange(request)
            except _Unanswered:
                pass  # the server has closed the idle connection: the request goes over another one
        connection = await _connect(self._address)
        return connection, await connection.exchange(request)


class Answer:
    """An answer whose head has arrived.

    Attributes:
      status: of the head. headers: by lower-case name.
    """

    def __init__(self, status: int, headers: Mapping[str, str], reader: asyncio.StreamReader) -> None:
        self.status, self.headers = status, headers
        self._reader = reader
        self._framing: Framing = framing_of(status, headers)

    @property
    def leaves_connection(self) -> bool:
        """Whether the body has been read to its end and the connection can carry another request."""
        return self._framing.ended and self.headers.get("connection", "").lower() != "close"

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body's bytes as they arrive.

        Raises:
          AnswerBroken: the connection ended first, or the body is not framed as HTTP/1.1 requires.
        """
        while not self._framing.ended:
            try:
                data = await self._reader.read(_READ_BYTES)
                piece = self._framing.feed(data)
            except (OSError, ValueError) as error:
                raise AnswerBroken(f"the answer broke off: {error}") from None
            if piece:
                yield piece
            if not data and not self._framing.ended:
                raise AnswerBroken("the answer broke off: the server closed the connection")

    async def body(self) -> bytes:
        """The whole body.

        Raises:
          AnswerBroken: as for `pieces`.
        """
        return b"".join([piece async for piece in self.pieces()])


class _Unanswered(AnswerBroken):
    """The connection ended before the first byte of an answer."""


class _Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def exchange(self, request: bytes) -> Answer:
        """Sends a request and reads the head of its answer; closes the connection if that fails."""
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self.close)
            self._writer.write(request)
            answer = await self._answer()
            on_failure.pop_all()
        return answer

    async def _answer(self) -> Answer:
        try:
            status, headers = 100, {}
            while status < 200:
                status, headers = _parsed(await self._reader.readuntil(b"\r\n\r\n"))
            return Answer(status, headers, self._reader)
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise AnswerBroken(f"no HTTP/1.1 answer: {error.partial[:40]!r} and no more") from None
            raise _Unanswered("the server closed the connection without an answer") from None
        except ConnectionError as error:
            raise _Unanswered(f"the connection ended without an answer: {error}") from None
        except (OSError, ValueError, asyncio.LimitOverrunError) as error:
            raise AnswerBroken(f"no HTTP/1.1 answer: {error}") from None

    def close(self) -> None:
        self._writer.close()


async def _connect(address: Address) -> _Connection:
    try:
        async with asyncio.timeout(_CONNECT_SECONDS):
            return _Connection(*await asyncio.open_connection(address.host, address.port, ssl=address.tls))
    except TimeoutError:
        raise ConnectionFailed(f"no connection within {_CONNECT_SECONDS:.0f} s") from None
    except OSError as error:
        raise ConnectionFailed(str(error)) from None


def _parsed(head: bytes) -> tuple[int, dict[str, str]]:
    """The status and the headers of a head; ValueError if it is none."""
    first, *lines = head.decode("latin-1").split("\r\n")
    version, _, rest = first.partition(" ")
    if not version.startswith("HTTP/1."):
        raise ValueError(f"it begins with {first[:40]!r}")
    pairs = (line.partition(":") for line in lines if line)
    return int(rest[:3]), {name.strip().lower(): value.strip() for name, _, value in pairs}
