"""A server on a loopback port whose answers are given bytes, for what no good server sends."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence

from distaff.server.bench.http_client import HttpClient

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
CLOSE = b"close"
"""In a script: the server closes the connection here."""


def chunked(*events: bytes) -> bytes:
    """A whole streamed answer with these events."""
    body = b"".join(b"data: %s\n\n" % event for event in events)
    return HEAD + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)


class RawServer:
    """Answers each request with the next script, and the last one again and again.

    Attributes:
      url: of the server. connections: how many were opened. requests: the bytes of each.
      clients: those that `client` made. tasks: one for each connection.
    """

    def __init__(self, scripts: Sequence[Sequence[bytes]]) -> None:
        self.url, self.connections = "", 0
        self.requests: list[bytes] = []
        self.clients: list[HttpClient] = []
        self.tasks: list[asyncio.Task[None] | None] = []
        self._scripts = list(scripts)

    def client(self, path: str = "", headers: Mapping[str, str] | None = None) -> HttpClient:
        """A client, which is closed at the end."""
        self.clients.append(HttpClient(self.url + path, headers))
        return self.clients[-1]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.tasks.append(asyncio.current_task())
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError), contextlib.closing(writer):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
                self.requests.append(head + await reader.readexactly(int(length or 0)))
                for part in self._scripts.pop(0) if len(self._scripts) > 1 else self._scripts[0]:
                    if part == CLOSE:
                        return
                    writer.write(part)
                    await writer.drain()


@contextlib.asynccontextmanager
async def raw_server(
    *scripts: Sequence[bytes], tls: ssl.SSLContext | None = None
) -> AsyncIterator[RawServer]:
    """Serves the scripts during the context."""
    made = RawServer(scripts)
    async with await asyncio.start_server(made.serve, "127.0.0.1", 0, ssl=tls) as server:
        made.url = f"http{'s' * bool(tls)}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield made
        for client in made.clients:
            client.close()
        await asyncio.gather(*made.tasks, return_exceptions=True)
