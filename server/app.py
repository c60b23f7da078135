"""`create_app`: the HTTP server, put together from its parts.

Builds no engine and loads no tokenizer: the composition root passes an engine client, and fills in
`ServedModel.text` when the tokenizer is there. Starts and stops the engine with the server, so that the port
answers before the model is loaded and until the last stream has ended.
"""

import asyncio
import time
from typing import Any, cast

from sanic import HTTPResponse, Sanic
from sanic.exceptions import NotFound
from sanic.response import BaseHTTPResponse

from .answering.authorization import authorize
from .answering.context import ApiRequest, App, AppContext
from .answering.cors import cors_headers
from .engine_client import EngineClient
from .errors import ApiError, ApiErrorHandler
from .http import HardenedHttp, check_head, sanic_config
from .routes import (
    chat,
    completions,
    documents,
    embeddings,
    invocations,
    models,
    operations,
    responses,
    tgi,
    tokens,
)
from .settings import ServerSettings
from .text.text_model import ServedModel

RUN_OPTIONS: dict[str, Any] = {
    "single_process": True,
    "protocol": HardenedHttp,
    "motd": False,
    "access_log": False,
    "backlog": 2048,
}
"""How the app must be run: `app.run(host, port, **RUN_OPTIONS)`."""

_ROUTES = (chat, responses, completions, embeddings, tgi, invocations, tokens, models, documents, operations)
_LAST_BYTES = 2.0
"""Seconds for handlers to write what they still have to say once the engine is drained."""


def create_app(settings: ServerSettings, engine: EngineClient, served: ServedModel | None = None) -> App:
    """The web application. A process may have one (Sanic keeps a registry), unless in `Sanic.test_mode`.

    Args:
      settings: the operator's decisions.
      engine: who runs the model; started, drained and stopped with the server.
      served: the text side. The caller keeps it and sets its `text` once the tokenizer is loaded; until then
        completions are answered 503.
    """
    context = AppContext(settings, engine, served or ServedModel())
    app: App = Sanic(
        "distaff",
        config=sanic_config(settings),
        ctx=context,
        request_class=cast(Any, ApiRequest),
        error_handler=ApiErrorHandler(),
        configure_logging=False,
    )
    for routes in _ROUTES:
        app.blueprint(routes.blueprint)
    app.register_middleware(_screen, "request")
    app.register_middleware(_stamp, "response")
    app.add_signal(_read_head, "http.lifecycle.read_head")
    app.add_signal(_authorize, "http.lifecycle.request")
    app.add_signal(_note_failure, "http.lifecycle.exception")
    app.register_listener(_start, "after_server_start")
    app.register_listener(_drain, "before_server_stop")
    app.register_listener(_stop, "after_server_stop")
    return app


async def _read_head(head: bytes) -> None:
    check_head(head)


async def _authorize(request: ApiRequest) -> None:
    """Sanic answers what is raised here without the request's head: the page's headers go with the error."""
    try:
        authorize(request)
    except ApiError as error:
        error.headers |= _cors_headers(request)
        raise


async def _note_failure(request: ApiRequest, exception: BaseException) -> None:
    """Sanic says so before it answers the exception, also where nobody is left to be answered."""
    request.note_failure(exception)


async def _screen(request: ApiRequest) -> HTTPResponse | None:
    """We are no proxy. OPTIONS is harmless everywhere; what it grants to a foreign origin is `_stamp`'s."""
    if not request.raw_url.startswith((b"/", b"*")):
        raise NotFound
    return HTTPResponse(status=204) if request.method == "OPTIONS" else None


async def _stamp(request: ApiRequest, response: BaseHTTPResponse) -> None:
    """Headers that every response carries."""
    context = request.app.ctx
    response.headers["x-request-id"] = request.reference
    response.headers["openai-processing-ms"] = str(round((time.perf_counter() - request.started) * 1000))
    response.headers["openai-version"] = "2020-10-01"
    response.headers.update(_cors_headers(request))
    if context.draining:
        request.close_afterwards()


def _cors_headers(request: ApiRequest) -> dict[str, str]:
    allowed, preflight = request.app.ctx.settings.allow_origins, request.method == "OPTIONS"
    return cors_headers(allowed, request.headers, preflight=preflight)


async def _start(app: App) -> None:
    await app.ctx.engine.start()


async def _drain(app: App) -> None:
    """Sanic may run this twice when its loop was stopped: both wait for the same task."""
    if app.ctx.stopping is None:
        app.ctx.stopping = asyncio.get_running_loop().create_task(_finish(app.ctx))
    await asyncio.shield(app.ctx.stopping)


async def _finish(context: AppContext) -> None:
    context.draining = True
    await context.engine.drain(context.settings.drain_seconds)
    deadline = time.monotonic() + _LAST_BYTES
    while not _close_idle(context) and time.monotonic() < deadline:
        await asyncio.sleep(0.02)


def _close_idle(context: AppContext) -> bool:
    """Closes connections that wait for a next request; true when none is left."""
    # An idle connection would keep the server from closing for ever on Python 3.12 and later.
    return all([connection.close_if_idle() for connection in list(context.connections)])


async def _stop(app: App) -> None:
    await app.ctx.engine.stop()
    app.ctx.served.close()
    app.ctx.off_loop.close()
