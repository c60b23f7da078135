"""`create_app`: builds the HTTP server from its parts.

Builds no engine and loads no tokenizer: the composition root passes an engine client, and sets
`ServedModel.text` when the tokenizer is loaded. Starts and stops the engine with the server, so that the port
answers before the model is loaded and until the last stream has ended.
"""

import asyncio
import time
from typing import Any, cast

from sanic import HTTPResponse, Sanic
from sanic.exceptions import NotFound
from sanic.response import BaseHTTPResponse

from .answering.authorization import authorize
from .answering.batch_lines import open_batches
from .answering.context import TRACE_PARENT, ApiRequest, App, AppContext
from .answering.cors import cors_headers
from .answering.error_answer import error_answer, speaks_anthropic
from .engine_client import EngineClient
from .errors import ApiError, ApiErrorHandler
from .http import HardenedHttp, check_head, sanic_config
from .quotas.rate_headers import anthropic_headers, openai_headers
from .routes import (
    batches,
    chat,
    completions,
    documents,
    embeddings,
    files,
    invocations,
    messages,
    models,
    operations,
    page,
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
"""The options for running the app: `app.run(host, port, **RUN_OPTIONS)`."""

_ROUTES = (
    *(chat, responses, messages, completions, embeddings, tgi, invocations, tokens, models),
    *(files, batches, documents, operations, page),
)
_LAST_BYTES = 2.0
"""Seconds for handlers to finish their answers after the engine is drained."""


def create_app(settings: ServerSettings, engine: EngineClient, served: ServedModel | None = None) -> App:
    """The web application. A process may have only one (Sanic keeps a registry), except in `Sanic.test_mode`.

    Args:
      settings: the operator's settings.
      engine: runs the model; started, drained and stopped with the server.
      served: tokenizer and template. The caller sets its `text` when the tokenizer is loaded; until then
        completions are answered with 503.

    Raises:
      StoreRefused: the folder of the batches cannot be used. UsageLogRefused: nor can the usage log.
    """
    context = AppContext(settings, engine, served or ServedModel())
    app: App = Sanic(
        "distaff",
        config=sanic_config(settings),
        ctx=context,
        request_class=cast(Any, ApiRequest),
        error_handler=ApiErrorHandler(error_answer),
        configure_logging=False,
    )
    if settings.flags.batches is not None:
        context.batches = open_batches(app, settings.flags.batches)
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
    """Checks the key. Sanic answers an error raised here without the request, so it gets its answer here."""
    try:
        authorize(request)
    except ApiError as error:
        error.answer = error_answer(request, error)
        error.headers |= _headers(request)
        raise


async def _note_failure(request: ApiRequest, exception: BaseException) -> None:
    """Records an early end. Sanic calls this before it answers an exception, also after a disconnect."""
    request.note_failure(exception)


async def _screen(request: ApiRequest) -> HTTPResponse | None:
    """Refuses proxy requests, and answers OPTIONS on every path; `_stamp` adds the CORS headers."""
    if not request.raw_url.startswith((b"/", b"*")):
        raise NotFound
    return HTTPResponse(status=204) if request.method == "OPTIONS" else None


async def _stamp(request: ApiRequest, response: BaseHTTPResponse) -> None:
    """Adds the headers that every response carries."""
    context = request.app.ctx
    response.headers["x-request-id"] = request.reference
    response.headers["openai-processing-ms"] = str(round((time.perf_counter() - request.started) * 1000))
    response.headers["openai-version"] = "2020-10-01"
    response.headers.update(_headers(request) | _rate_headers(request))
    if (span := request.span) is not None:
        response.headers[TRACE_PARENT] = span.header
        if not request.recorded:
            span.end(response.status, str(response.status) if response.status >= 500 else None)
    if context.draining:
        request.close_afterwards()


def _headers(request: ApiRequest) -> dict[str, str]:
    """The headers that depend on the request's: for cross-origin requests, and for Anthropic's clients."""
    allowed, preflight = request.app.ctx.settings.allow_origins, request.method == "OPTIONS"
    named = {"request-id": request.reference} if speaks_anthropic(request) else {}
    return named | cors_headers(allowed, request.headers, preflight=preflight)


def _rate_headers(request: ApiRequest) -> dict[str, str]:
    """What is left of the key's rates, if it has any."""
    standings = request.app.ctx.quotas.standings(request.key_id, request.key_settings)
    if speaks_anthropic(request):
        return anthropic_headers(standings, time.time())
    return openai_headers(standings)


async def _start(app: App) -> None:
    await app.ctx.engine.start()
    if app.ctx.batches is not None:
        app.ctx.batches.runner.start()


async def _drain(app: App) -> None:
    """Drains the engine. Sanic may call this twice when its loop was stopped; both wait for the same task."""
    if app.ctx.stopping is None:
        app.ctx.stopping = asyncio.get_running_loop().create_task(_finish(app.ctx))
    await asyncio.shield(app.ctx.stopping)


async def _finish(context: AppContext) -> None:
    context.draining = True
    await context.engine.drain(context.settings.drain_seconds)
    if context.batches is not None:
        await context.batches.runner.stop()
    deadline = time.monotonic() + _LAST_BYTES
    while not _close_idle(context) and time.monotonic() < deadline:
        await asyncio.sleep(0.02)


def _close_idle(context: AppContext) -> bool:
    """Closes idle connections; True when none is left."""
    # On Python 3.12 and later an idle connection would keep the server open for ever.
    return all([connection.close_if_idle() for connection in list(context.connections)])


async def _stop(app: App) -> None:
    await app.ctx.engine.stop()
    if app.ctx.batches is not None:
        app.ctx.batches.store.close()
    if app.ctx.usage_log is not None:
        await asyncio.to_thread(app.ctx.usage_log.close)
    app.ctx.served.close()
    app.ctx.off_loop.close()
    if app.ctx.settings.traces is not None:
        app.ctx.settings.traces.close()
