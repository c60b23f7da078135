"""Sanic's HTTP/1.1, hardened: strict heads, absolute deadlines, a limit on connections.

Handles bytes and clocks, no routes. Sanic's timers restart with every byte, so a client that sends one byte
at a time holds a connection for ever. Here a head and a body have absolute deadlines, after which the
connection is aborted.
"""

import asyncio
import logging
import math
import re
from collections.abc import AsyncGenerator
from typing import Any, cast

from sanic.config import Config
from sanic.exceptions import BadRequest, PayloadTooLarge
from sanic.http import Http
from sanic.server.protocols.http_protocol import HttpProtocol

from .endings import CutShort
from .settings import ServerSettings

log = logging.getLogger(__name__)

MOST_CRUMBS = 65_536
"""The most pieces of a body below CRUMB_BYTES bytes; some clients send each JSON token as a chunk."""
CRUMB_BYTES = 32

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_HEAD = re.compile(_TOKEN + rb" [!-~]+ HTTP/1\.[01](?:\r\n" + _TOKEN + rb":[\t -~\x80-\xff]*)*")
_HOST = re.compile(rb"\r\nhost:", re.IGNORECASE)
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([^\r]*?)[ \t]*(?=\r|\Z)", re.IGNORECASE)


def check_head(head: bytes) -> None:
    """Refuses a head that other parsers might read differently.

    Raises:
      BadRequest: a space before a colon, a folded line, a control character, no or several hosts, a length
        that is not plain digits.
    """
    if not _HEAD.fullmatch(head):
        raise BadRequest("malformed head")
    hosts = len(_HOST.findall(head))
    if hosts > 1 or (hosts == 0 and b" HTTP/1.1" in head.split(b"\r\n", 1)[0]):
        raise BadRequest("exactly one host is required")
    if not all(length.isdigit() for length in _LENGTH.findall(head)):
        raise BadRequest("malformed content-length")


class StrictHttp(Http):
    """One connection's parser, with a deadline for each head."""

    async def http1_request_header(self) -> None:
        """Reads a head; disconnects the client if it takes too long from its first byte."""
        seconds = self.protocol.app.ctx.settings.head_seconds
        late = asyncio.get_running_loop().call_later(seconds, cast(HardenedHttp, self.protocol).cut_off)
        try:
            await super().http1_request_header()
        finally:
            late.cancel()

    async def http1_response_header(self, data: bytes, end_stream: bool) -> None:
        """Sends a head and counts it; sends none to a client that has disconnected."""
        await super().http1_response_header(data, end_stream)
        cast(HardenedHttp, self.protocol).answered = cast(Any, self.request).reference
        self.protocol.app.ctx.metrics.responses.labels(self.response.status).inc()

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        """The body's pieces; raises PayloadTooLarge if too many of them are tiny."""
        crumbs = 0
        async for data in super().__aiter__():
            crumbs += len(data) < CRUMB_BYTES
            if crumbs > MOST_CRUMBS:
                self.keep_alive = False
                raise PayloadTooLarge("too many small chunks")
            yield data

    def create_empty_request(self) -> None:
        """Creates a placeholder for an unreadable request, without its URL, which may be the invalid part."""
        self.url = None
        super().create_empty_request()


class HardenedHttp(HttpProtocol):
    """One connection, if the limit allows it.

    Attributes:
      answered: the last request with a started answer. stalled: the client was disconnected.
    """

    HTTP_CLASS = StrictHttp
    __slots__ = ("_next_look", "answered", "stalled")

    def connection_made(self, transport: Any) -> None:
        """Accepts the connection, or refuses it if there are too many."""
        self._next_look: asyncio.TimerHandle | None = None
        self.answered = "-"
        self.stalled = False
        if len(self.connections) >= self.app.ctx.settings.most_connections:
            self.app.ctx.metrics.count_ending("connections")
            transport.abort()
            return
        self.app.ctx.connections = self.connections
        super().connection_made(transport)

    @property
    def lost_by(self) -> CutShort:
        """The reason why a call on this connection is cancelled."""
        if self.stalled:
            return "client_stalled"
        if self.http is not None and self.http.exception is not None:
            return "timeout"
        return "shutdown" if self.transport is None else "client_gone"

    def cut_off(self) -> None:
        """Closes the connection of a client that blocks others or occupies memory."""
        self.stalled = True
        if self.transport is not None:
            self.transport.abort()

    def pause_writing(self) -> None:
        """Called by the transport when much data is unread."""
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        """Called by the transport when most of the data has been read."""
        self._stop_watching()
        super().resume_writing()

    def _watch_reader(self, unread: float = math.inf) -> None:
        """Disconnects the client if it has read no byte since the last check, which found `unread` bytes."""
        transport = self.transport
        assert transport is not None
        left = transport.get_write_buffer_size()
        if left >= unread:
            self.cut_off()
            return
        seconds = self.app.ctx.settings.read_seconds
        self._next_look = asyncio.get_running_loop().call_later(seconds, self._watch_reader, left)

    def _stop_watching(self) -> None:
        if self._next_look:
            self._next_look.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        """Releases the connection, unless it was refused."""
        self._stop_watching()
        if self.conn_info is not None:
            self._note_unread()
            super().connection_lost(exc)

    def _note_unread(self) -> None:
        """Counts an answer that was written completely but not read completely."""
        if self._can_write.is_set() or self.http:
            return  # during an answer its handler is cancelled and counts it
        reason = "client_gone" if self.transport is not None and not self.stalled else "client_stalled"
        self.app.ctx.metrics.count_ending(reason)
        log.info("%s was not read completely, %s", self.answered, reason)


def sanic_config(settings: ServerSettings) -> Config:
    """Sanic's settings. Request deadlines are our own; RESPONSE_TIMEOUT ends calls that hang for an hour."""
    config = Config(env_prefix=None)
    config.update(
        AUTO_EXTEND=False,
        FALLBACK_ERROR_FORMAT="json",
        GRACEFUL_SHUTDOWN_TIMEOUT=5.0,
        KEEP_ALIVE_TIMEOUT=75,
        MOTD=False,
        REQUEST_MAX_SIZE=settings.most_body_bytes,
        REQUEST_TIMEOUT=max(60, int(settings.head_seconds) * 2),
        RESPONSE_TIMEOUT=3600,
    )
    return config
