"""A real server on a real socket, in a thread of its own, with an engine that says what it is told."""

import asyncio
import functools
import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import httpx
import openai
import pytest
import uvloop
from sanic import Sanic

from distaff.server.app import create_app
from distaff.server.flags import ServeFlags
from distaff.server.http import HardenedHttp
from distaff.server.settings import ServerSettings
from distaff.server.testing import FakeEngine, FakeText
from distaff.server.text.text_model import ServedModel

MODEL = "org/fake-model"


class Server:
    """The app, listening on a free port until `close`; settings are also fields of `ServeFlags`."""

    def __init__(self, **settings: Any) -> None:
        self.engine = FakeEngine()
        self.served = ServedModel(text=FakeText())
        names = set(ServeFlags.__struct_fields__) & set(settings)
        flags = ServeFlags(**{name: settings.pop(name) for name in names})
        self.settings = ServerSettings(**({"model": MODEL, "drain_seconds": 0.2} | settings), flags=flags)
        self.loop = uvloop.new_event_loop()
        self.port = 0
        self._started: Future[None] = Future()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._started.result(30)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def reset(self) -> None:
        """Restores the engine, the text and the unknown parameters that were logged to those at first."""
        fresh = FakeEngine()
        fresh.state = "ready"
        for name, value in vars(fresh).items():
            setattr(self.engine, name, value)
        self.served.text = FakeText()
        self.app.ctx.seen_unknown.clear()

    def close(self) -> None:
        """Ends the server. Idempotent."""
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(30)

    def connect(self) -> socket.socket:
        """A raw connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(self._serve())
        self.loop.close()

    async def _serve(self) -> None:
        try:
            Sanic.test_mode = True
            self.app = create_app(self.settings, self.engine, self.served)
            listener = socket.create_server(("127.0.0.1", 0), backlog=512)
            self.port = listener.getsockname()[1]
            server = await self.app.create_server(
                sock=listener, protocol=HardenedHttp, return_asyncio_server=True
            )
            assert server is not None
            await server.startup()
            await server.before_start()
            await server.after_start()
            self._started.set_result(None)
        except BaseException as error:
            self._started.set_exception(error)
            raise
        await self._stop.wait()
        await server.before_stop()
        await server.close()
        await server.after_stop()


@pytest.fixture(autouse=True)
def no_error_on_the_loop(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """What a callback raises reaches nobody: asyncio only logs it."""
    yield
    errors = [r for r in caplog.get_records("call") if r.name == "asyncio" and r.levelno >= logging.ERROR]
    assert not errors, errors[0].getMessage()


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """A command that runs in this process configures logging; later tests do not inherit that."""
    loggers = [logging.getLogger(name) for name in (None, "distaff", "sanic.error")]
    levels, handlers = [logger.level for logger in loggers], list(loggers[0].handlers)
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
    for handler in set(loggers[0].handlers) - set(handlers):
        loggers[0].removeHandler(handler)


@pytest.fixture(scope="session")
def shared_server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def server(shared_server: Server) -> Server:
    """The usual server, its engine as new."""
    shared_server.reset()
    return shared_server


@pytest.fixture
def make_server() -> Iterator[Callable[..., Server]]:
    """Servers with settings of their own."""
    made: list[Server] = []

    def make(**settings: Any) -> Server:
        made.append(Server(**settings))
        return made[-1]

    yield make
    for server in made:
        server.close()


@pytest.fixture
def engine(server: Server) -> FakeEngine:
    return server.engine


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=20) as client:
        yield client


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    """The official client, which takes no answer that departs from its types."""
    with openai.OpenAI(
        base_url=f"{server.url}/v1",
        api_key="none",
        max_retries=0,
        timeout=20,
        _strict_response_validation=True,
    ) as client:
        yield client


Ask = Callable[..., httpx.Response]


def post_chat(http: httpx.Client, **changes: Any) -> httpx.Response:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]} | changes
    kept = {key: value for key, value in body.items() if value is not ...}
    return http.post("/v1/chat/completions", json=kept)


@pytest.fixture
def ask(http: httpx.Client) -> Ask:
    """Posts a chat completion: a usual body with some keys changed (`...` drops one)."""
    return functools.partial(post_chat, http)


@pytest.fixture(scope="session")
def strict_server() -> Iterator[Server]:
    server = Server(strict=True)
    server.reset()
    yield server
    server.close()


@pytest.fixture
def ask_strictly(strict_server: Server) -> Iterator[Ask]:
    """The same of a server that refuses unknown parameters."""
    with httpx.Client(base_url=strict_server.url, timeout=20) as client:
        yield functools.partial(post_chat, client)


@pytest.fixture
def stream(ask: Ask) -> Callable[..., list[dict[str, Any]]]:
    """The chunks of a streamed completion; the framing around them is checked."""

    def chunks(**changes: Any) -> list[dict[str, Any]]:
        text = ask(stream=True, **changes).content
        *events, done, nothing = text.split(b"\n\n")
        assert (done, nothing) == (b"data: [DONE]", b"")
        assert all(event.startswith(b"data: {") for event in events)
        return [json.loads(event[6:]) for event in events]

    return chunks
