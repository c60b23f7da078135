"""The state that routes share, `app.ctx`, built by the composition root; there are no global variables."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from ipaddress import ip_address, ip_network
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from sanic import Request, Sanic
from sanic.config import Config
from sanic.exceptions import RequestTimeout
from sanic.http import Http

from ...runtime.request import NotReady
from ..batches.service import Batches
from ..endings import Ending, ending_of, log_ending
from ..engine_client import EngineClient, EngineInfo
from ..errors import ApiError, ModelNotFound, as_api_error
from ..metrics import Metrics
from ..protocol.heading import Identity
from ..protocol.marks import Resumption
from ..quotas.key_settings import NO_SETTINGS, KeySettings
from ..quotas.quotas import Quotas
from ..settings import ServerSettings
from ..text.text_model import ServedModel
from ..usage.usage_log import UsageLog
from ..usage.usage_metrics import UsageMetrics
from .off_loop import ClientWork, OffLoop
from .response_store import ResponseStore

if TYPE_CHECKING:
    from ..http import HardenedHttp
    from ..tracing import RequestSpan


TRACE_PARENT = "traceparent"
"""The header of W3C's Trace Context (https://www.w3.org/TR/trace-context/), in requests and in answers."""
_TRACE_ID = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")

LONGEST_NAME = 256
"""The most characters of a model's id that are repeated in every chunk of an answer."""


class AppContext:
    """The shared state of one web process.

    Attributes:
      created: the start of the server, in Unix seconds.
      draining: no new requests are accepted.
      connections: all open connections, maintained by the HTTP protocol.
      seen_unknown: unknown parameters, and types of tools, that have been logged.
      responses: those that can be read again.
      batches: the files and batches; None without --batches.
      quotas: what the keys may use. usage: what they have used; usage_log: the same by call, in a file.
    """

    def __init__(self, settings: ServerSettings, engine: EngineClient, served: ServedModel) -> None:
        self.settings = settings
        self.engine = engine
        self.served = served
        self.metrics = Metrics(engine, settings.model)
        self.off_loop = OffLoop()
        self.created = int(time.time())
        self.draining = False
        self.connections: set[HardenedHttp] = set()
        self.seen_unknown: set[str] = set()
        self.responses = ResponseStore(settings.flags.store_responses)
        self.stopping: asyncio.Task[None] | None = None
        self.batches: Batches | None = None
        self.quotas = Quotas(time.monotonic)
        self.usage = UsageMetrics(self.metrics.registry)
        path = settings.flags.usage_log
        self.usage_log = None if path is None else UsageLog(path)

    def check_model(self, name: str) -> None:
        """Raises ModelNotFound unless `name` is served here."""
        if self.settings.flags.any_model and len(name) <= LONGEST_NAME:
            return
        if name not in self.settings.names:
            raise ModelNotFound(name)

    def answering_as(self, name: str) -> str:
        """The model's id in an answer to a request for `name`: its own, or `name` if that is an adapter, or
        if any name is served."""
        if self.settings.flags.any_model or self.adapter_of(name):
            return name
        return self.settings.model

    def adapter_of(self, name: str) -> str:
        """The adapter that a model's id names; empty for the model itself."""
        return name if name in self.settings.adapters else ""

    def engine_info(self) -> EngineInfo:
        """The engine's properties; raises NotReady while it accepts no requests."""
        info = self.engine.info
        if self.draining or info is None or not self.engine.takes:
            raise NotReady(f"the engine is {self.engine.state}", self.engine.ready_in)
        return info


App = Sanic[Config, AppContext]

_IPV6_CLIENT = 64
"""Bits of an IPv6 address that identify a network (RFC 4291, 2.5.1)."""


def network_of(address: str) -> str:
    """An IPv4 address, or the network of an IPv6 address; anything else unchanged."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4:
        return address
    return str(ip_network((parsed.packed[: _IPV6_CLIENT // 8] + bytes(8), _IPV6_CLIENT)))


class ApiRequest(Request[App, SimpleNamespace]):
    """A request with a server-generated id and the time of its arrival.

    Attributes:
      key_id: the id of its API key from `Keys.identify`; empty if none was needed.
      ending: why it ended before its answer was complete; None if it did not, or not yet.
      background: whether its sequences make way for those of other requests.
      recorded: it is a call with a record, which ends its span.
      marked: its stream carries marks (see `resuming.py`). resumption: the stream that it continues, if any.
      priority: that of its sequences, once it is known. adapter: computes them; empty for none.
    """

    background = False
    adapter = ""
    priority = 0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.started = time.perf_counter()
        self.reference = "req_" + secrets.token_hex(16)
        self.key_id = ""
        self.ending: Ending | None = None
        self.marked = False
        self.resumption: Resumption | None = None
        self._identity: Identity | None = None
        self._span: RequestSpan | None = None
        self.recorded = False

    async def receive_body(self) -> None:
        """Reads the body; raises RequestTimeout, a 408, if it does not arrive in time."""
        try:
            async with asyncio.timeout(self.app.ctx.settings.body_seconds):
                await super().receive_body()
        except TimeoutError:
            raise RequestTimeout from None

    @property
    def identity(self) -> Identity:
        """What is drawn once for its answer."""
        self._identity = self._identity or Identity()
        return self._identity

    @identity.setter
    def identity(self, identity: Identity) -> None:
        self._identity = identity

    @property
    def span(self) -> RequestSpan | None:
        """Its span, where requests are traced: of POST, once its route is known."""
        traces = self.app.ctx.settings.traces
        if self._span is None and traces is not None and self.method == "POST":
            parent = self.headers.getone(TRACE_PARENT, "")
            self._span = traces.begin(parent, self.method, self.uri_template, self.started)
        return self._span

    @property
    def trace_id(self) -> str:
        """The trace that it belongs to, ours or the client's; empty if there is none."""
        if self.span is not None:
            return self.span.trace_id
        found = _TRACE_ID.fullmatch(self.headers.getone(TRACE_PARENT, ""))
        return found[1] if found else ""

    @property
    def client(self) -> str:
        """The client for fair sharing of the engines: the owner of a key, or a network address.

        Of an IPv6 address only the first 64 bits count, because the client chooses the others.
        """
        return self.key_id or network_of(self.ip)

    @property
    def key_settings(self) -> KeySettings:
        """The settings of its API key."""
        keys = self.app.ctx.settings.keys
        return NO_SETTINGS if keys is None or not self.key_id else keys.settings(self.key_id)

    @property
    def off_loop(self) -> ClientWork:
        """Runs work in other threads instead of the event loop, in turn with other clients' work."""
        return self.app.ctx.off_loop.of(self.client)

    @property
    def connection(self) -> HardenedHttp:
        """The connection while the request is answered."""
        return cast(Any, self.stream).protocol

    def watch_for_disconnect(self) -> None:
        """Resumes reading, which stops while a large body is buffered; else a disconnect goes unnoticed."""
        cast(asyncio.Transport, self.transport).resume_reading()

    def end_early(self, error: BaseException) -> None:
        """Counts and logs that the call ended with `error` before its answer was complete.

        The first error is the cause; later ones are ignored.
        """
        if self.ending is not None:
            return
        context = self.app.ctx
        if isinstance(error, Exception):
            self.ending = ending_of(error, draining=context.draining)
        else:
            self.ending = self.connection.lost_by
        context.metrics.count_ending(self.ending)
        log_ending(self.reference, self.trace_id, self.ending, error)

    def note_failure(self, error: BaseException) -> None:
        """Records an early end, unless `error` is the regular answer to an invalid request."""
        if not isinstance(error, ApiError) and as_api_error(error).status >= 500:
            self.end_early(error)

    def close_afterwards(self) -> None:
        """Closes the connection after this response."""
        if self.stream is not None:
            cast(Http, self.stream).keep_alive = False
