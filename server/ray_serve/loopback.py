"""`Loopback`: sends calls to the server beside it, and yields the answer's head and its body as it comes.

Bytes are passed as they are and as soon as they come; `marks.py` finds where events end. Cancelling an answer
closes its connection, by which the server notices that nobody waits for it any more.
"""

from collections.abc import AsyncIterator

import aiohttp
from yarl import URL

from ..answering.resuming import KEY_HEADER, LENGTH_HEADER
from .call import Call, Head, Headers, ReplicaLost

_CONNECTION = {
    *("connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"),
    *("host", "content-length", "expect"),
}
"""Headers of one connection (RFC 9110, 7.6.1), and those that the client library sets."""
_OURS = (KEY_HEADER, LENGTH_HEADER)
"""Headers between proxy and server; a client's are dropped."""
_KEEP_ALIVE_SECONDS = 30.0
"""Less than the server's, so that it never closes a connection that is about to be used."""


class Loopback:
    """The way to one server."""

    def __init__(self, port: int, resume_key: str) -> None:
        """Opens no connection yet.

        Args:
          resume_key: lets us ask for marks and continue streams.
        """
        self._port = port
        self._resume_key = resume_key
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_SECONDS)
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("accept", "accept-encoding", "user-agent", "content-type"),
        )

    async def status(self, path: str, seconds: float) -> int:
        """The status of a GET; 0 if there is no answer in time."""
        try:
            timeout = aiohttp.ClientTimeout(total=seconds)
            async with self._session.get(self._url(path), timeout=timeout) as answer:
                return answer.status
        except (aiohttp.ClientError, TimeoutError):
            return 0

    async def metrics(self, headers: Headers) -> tuple[int, bytes]:
        """The status and the body of GET /metrics."""
        async with self._session.get(self._url("/metrics"), headers=own(headers)) as answer:
            return answer.status, await answer.read()

    async def ask(self, call: Call) -> AsyncIterator[Head | bytes]:
        """The answer's head, then its body.

        Raises:
          ReplicaLost: the connection ended before the answer did.
        """
        headers = [*own(call.headers), (KEY_HEADER, self._resume_key)]
        if call.marks:
            headers.append((LENGTH_HEADER, str(len(call.marks))))
        url, body = self._url(call.target), call.marks + call.body
        try:
            async with self._session.request(
                call.method, url, headers=headers, data=body or None, allow_redirects=False
            ) as answer:
                yield Head(answer.status, _received(answer))
                async for piece in answer.content.iter_any():
                    yield piece
        except (aiohttp.ClientError, ConnectionError) as error:
            raise ReplicaLost(f"the server's answer broke off: {error}") from error

    def _url(self, target: str) -> URL:
        """The server's URL with this path and query, as they are; no target can name another host."""
        path, _, query = target.partition("?")
        return URL.build(
            scheme="http", host="127.0.0.1", port=self._port, path=path, query_string=query, encoded=True
        )

    async def close(self) -> None:
        """Closes all connections."""
        await self._session.close()


def own(headers: Headers) -> list[tuple[str, str]]:
    """A client's headers for the server."""
    lower = ((name, value, name.lower()) for name, value in headers)
    return [(n, _to_send(v)) for n, v, low in lower if low not in _CONNECTION and low not in _OURS]


def _to_send(value: str) -> str:
    """The text that aiohttp, which writes UTF-8, sends as the value's bytes.

    It cannot write bytes that are not UTF-8: those become the UTF-8 of the same letters in Latin-1.
    """
    try:
        return value.encode("latin-1").decode()
    except UnicodeDecodeError:
        return value


def _received(answer: aiohttp.ClientResponse) -> Headers:
    pairs = ((name.decode("latin-1"), value.decode("latin-1")) for name, value in answer.raw_headers)
    return [(name, value) for name, value in pairs if name.lower() not in _CONNECTION]
