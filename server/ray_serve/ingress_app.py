"""`IngressApp`: the ASGI application that holds the clients' connections. Knows no Ray.

Reads a request, asks replicas through a `Relay`, and passes the answer on as it comes. What only the ingress
knows, such as that there is no replica, is an error in the shape that the client expects.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import quote

from ...model.errors import DistaffError
from ..errors import SORRY, ApiError
from ..settings import ServerSettings
from .call import Call, Headers
from .connection import Connection, Receive, Send
from .relay import Ask, Patience, Relay
from .routing_key import routing_key

log = logging.getLogger(__name__)

Metrics = Callable[[Headers], Awaitable[bytes]]
"""The metrics of all replicas that give them to a client with these headers; empty if none does."""

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_MOST_BODY_BYTES = ServerSettings(model="").most_body_bytes


class IngressApp:
    """The application of one ingress."""

    def __init__(self, ask: Ask, metrics: Metrics, patience: Patience) -> None:
        """Args:
        ask: sends a call to a replica.
        """
        self._ask, self._metrics, self._patience = ask, metrics, patience

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Serves one request, or takes part in the start and the end of the application."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] == "http":
            await self._serve(scope, receive, send)
        else:
            await send({"type": "websocket.close"})

    async def _serve(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        path, method = _path(scope), scope["method"]
        client = Connection(send, method, path)
        try:
            if not path.startswith("/"):
                raise ApiError(404, f"Invalid URL ({method} {path[:256]})")
            headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
            if method == "GET" and path == "/metrics" and (text := await self._metrics(headers)):
                await client.whole(200, [("content-type", METRICS_TYPE)], text)
            else:
                body = await _body(receive)
                key = routing_key(dict(headers), body)
                call = Call(method, _target(path, scope), headers, body, key)
                await Relay(self._ask, call, client, self._patience).run()
        except _Disconnected:
            return
        except ApiError as error:
            await client.fail(error)
        except Exception:
            log.exception("the ingress failed a request")
            await client.fail(ApiError(500, SORRY, type="server_error"))
        await client.end()


def _path(scope: Mapping[str, Any]) -> str:
    """The path as it was sent, without the prefix under which the application is mounted.

    `*` (RFC 9112, 3.2.4) asks about the whole server, which answers it as `/`. Ray Serve looks for the prefix
    in the decoded path, so the rest may begin with `%2F`: then it is not a path of ours.
    """
    raw = (scope.get("raw_path") or quote(scope["path"]).encode()).decode("latin-1").partition("?")[0]
    path = raw.removeprefix(scope.get("root_path", "").rstrip("/"))
    return "/" if path in ("", "*") else path


def _target(path: str, scope: Mapping[str, Any]) -> str:
    query = scope.get("query_string", b"").decode("latin-1")
    return f"{path}?{query}" if query else path


class _Disconnected(DistaffError):
    """The client has gone before its request was complete."""


async def _body(receive: Receive) -> bytes:
    """A request's whole body; raises ApiError, a 413, and `_Disconnected`."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Disconnected
        body += message.get("body", b"")
        if len(body) > _MOST_BODY_BYTES:
            raise ApiError(413, "The request is too large.", code="request_too_large")
        if not message.get("more_body"):
            return bytes(body)


async def _lifespan(receive: Receive, send: Send) -> None:
    """There is nothing to start or to end."""
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})
