"""A call that ends before its answer is complete is counted once, by its reason, and its log line agrees."""

import contextlib
import json
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distaff.server.endings import CUT_SHORT, REFUSALS
from distaff.server.engine_client import MOVE_CAUSES
from distaff.server.errors import RenderingOverloaded
from distaff.server.metrics import Metrics
from distaff.server.testing import FakeEngine, FakeText
from distaff.server.text import generation

from .. import patience
from .conftest import Server

CHAT = {"model": "tgi", "messages": [{"role": "user", "content": "hi"}]}
WHOLE: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"model": "tgi", "prompt": "hi"},
    "/v1/responses": {"model": "tgi", "input": "hi"},
    "/generate": {"inputs": "hi"},
    "/v1/embeddings": {"model": "tgi", "input": "hi"},
}
STREAMS: dict[str, dict[str, Any]] = {
    path: WHOLE[path] | {"stream": True}
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses")
} | {"/generate_stream": {"inputs": "hi"}}
ALL = [*WHOLE.items(), *STREAMS.items()]


class Counts:
    """What a server's counters have gained since this was made, by label."""

    def __init__(self, server: Server) -> None:
        self._metrics = server.app.ctx.metrics
        self._before = self._now()

    @property
    def endings(self) -> dict[str, int]:
        """Calls cut short, and refusals."""
        return self._gained("distaff_calls_cut_short_total") | self._gained("distaff_refusals_total")

    @property
    def responses(self) -> dict[str, int]:
        return self._gained("distaff_responses_total")

    @property
    def choices(self) -> dict[str, int]:
        return self._gained("distaff_choices_total")

    def _gained(self, name: str) -> dict[str, int]:
        gained = {key: value - self._before.get(key, 0) for key, value in self._now().items()}
        return {label: int(value) for (n, label), value in gained.items() if n == name and value}

    def _now(self) -> dict[tuple[str, str], float]:
        lines = re.findall(r'^(\w+)\{\w+="(\w+)"\} (\S+)$', self._metrics.render().decode(), re.MULTILINE)
        return {(name, label): float(value) for name, label, value in lines}


class GatedText(FakeText):
    """Renders nothing until it may."""

    def __init__(self) -> None:
        self.asked, self.gate = threading.Event(), threading.Event()

    def encode_chat(self, *arguments: Any, **options: Any) -> list[int]:
        self.asked.set()
        self.gate.wait(20)
        return super().encode_chat(*arguments, **options)


class BusyText(FakeText):
    """Has no process to render in."""

    def encode_chat(self, *arguments: Any, **options: Any) -> list[int]:
        raise RenderingOverloaded("no chat template renderer became free")


wait_until = partial(patience.wait_until, seconds=15.0)


@pytest.fixture(scope="module")
def all_routes() -> Iterator[Server]:
    server = Server(embeddings=True)
    yield server
    server.close()


@pytest.fixture
def server(all_routes: Server) -> Server:
    all_routes.reset()
    return all_routes


@pytest.fixture(scope="module")
def impatient() -> Iterator[Server]:
    """Cuts off who reads nothing, or takes its time over a head."""
    server = Server(read_seconds=0.4, head_seconds=0.4)
    yield server
    server.close()


@pytest.fixture
def counts(server: Server) -> Counts:
    return Counts(server)


@pytest.fixture
def finishes(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    """How calls ended, by their lines in the log."""
    with caplog.at_level("INFO", "distaff"):
        yield lambda: [line.rpartition("finish=")[2] for line in caplog.messages if " finish=" in line]


def send(
    server: Server, path: str, body: dict[str, Any], missing: int = 0, buffer: int | None = None
) -> socket.socket:
    """Sends a request, but for the last `missing` bytes of its body; `buffer`: of the client's socket."""
    connection = socket.socket()
    if buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.settimeout(20)
    connection.connect(("127.0.0.1", server.port))
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
    connection.sendall(head.encode() + data[: len(data) - missing])
    return connection


def is_stream(path: str, body: dict[str, Any]) -> bool:
    return path in STREAMS and body == STREAMS[path]


def received(connection: socket.socket) -> bytes:
    """All that comes before the connection ends."""
    with connection:
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def leave(connection: socket.socket, how: str = "reset") -> None:
    if how == "reset":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def post(server: Server, path: str, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(server.url + path, json=body, timeout=20)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged of ends beside the calls' own lines, with the level."""
    records = [record for record in caplog.records if record.name == "distaff.server.endings"]
    return [f"{record.levelname} {record.getMessage().partition(' ')[2]}" for record in records]


@pytest.mark.parametrize("how", ["close", "reset"])
class TestAClientLeaves:
    """Nobody is answered: the only responses counted are streams that have begun."""

    def test_in_its_head_or_its_body(self, server, counts, how):
        connections = [server.connect(), send(server, "/v1/chat/completions", CHAT, missing=5)]
        connections[0].sendall(b"GET /hea")
        wait_until(
            lambda: sum(bool(each.recv_buffer) or bool(each.http) for each in server.app.ctx.connections) == 2
        )
        for connection in connections:
            leave(connection, how)
        wait_until(lambda: counts.endings == {"client_gone": 2})
        assert (counts.responses, counts.choices) == ({}, {})

    def test_while_its_conversation_is_rendered(self, server, counts, how):
        server.served.text = text = GatedText()
        connection = send(server, "/v1/chat/completions", CHAT)
        assert text.asked.wait(10)
        leave(connection, how)
        wait_until(lambda: counts.endings == {"client_gone": 1})
        text.gate.set()
        assert (counts.responses, counts.choices) == ({}, {})

    @pytest.mark.parametrize(("path", "body"), ALL)
    def test_while_it_waits(self, server, counts, finishes, how, path, body):
        server.engine.gate.clear()
        connection = send(server, path, body)
        wait_until(lambda: server.engine.running)
        begun = {"200": 1} if is_stream(path, body) else {}
        wait_until(lambda: counts.responses == begun)
        leave(connection, how)
        wait_until(finishes)
        wait_until(lambda: counts.endings)
        assert finishes() == ["client_gone"]
        assert (counts.endings, counts.choices) == ({"client_gone": 1}, {"client_gone": 1})
        assert counts.responses == begun

    @pytest.mark.parametrize(("path", "body"), STREAMS.items())
    def test_in_mid_stream(self, server, counts, finishes, how, path, body):
        server.engine.delay, server.engine.reply = 0.01, "x" * 4000
        connection = send(server, path, body)
        while b"data:" not in connection.recv(1 << 16):
            pass
        leave(connection, how)
        wait_until(finishes)
        assert finishes() == ["client_gone"]
        assert (counts.endings, counts.choices) == ({"client_gone": 1}, {"client_gone": 1})
        assert counts.responses == {"200": 1}


class TestAClientIsCutOff:
    LONG = CHAT | {"logprobs": True, "top_logprobs": 20}

    def test_that_leaves_too_much_unread(self, server, counts, finishes, monkeypatch):
        monkeypatch.setattr(generation, "MOST_UNREAD", 50)
        server.engine.reply = "x" * 4000
        connection = send(server, "/v1/chat/completions", self.LONG | {"stream": True}, buffer=4096)
        wait_until(finishes)
        connection.close()
        assert (finishes(), counts.endings) == (["client_stalled"], {"client_stalled": 1})

    @pytest.mark.parametrize("stream", [False, True])
    def test_that_reads_nothing(self, impatient, finishes, caplog, monkeypatch, stream):
        """Of a stream, which ends so, or of an answer that has been written whole."""
        monkeypatch.setattr(generation, "MOST_UNREAD", 1 << 20)
        impatient.reset()
        counts = Counts(impatient)
        impatient.engine.reply = "x" * 3500
        connection = send(impatient, "/v1/chat/completions", self.LONG | {"stream": stream}, buffer=4096)
        wait_until(lambda: counts.endings)
        connection.close()
        assert counts.endings == {"client_stalled": 1}
        assert counts.responses == {"200": 1}
        wait_until(finishes)
        assert finishes() == ["client_stalled" if stream else "stop"]
        unread = [line for line in caplog.messages if "was not read completely, client_stalled" in line]
        assert len(unread) == (not stream)
        assert all(re.match(r"req_\w{32} ", line) for line in unread)

    def test_that_takes_too_long_over_a_head(self, impatient):
        counts = Counts(impatient)
        with impatient.connect() as connection:
            connection.sendall(b"GET /hea")
            wait_until(lambda: counts.endings)
        assert (counts.endings, counts.responses) == ({"client_stalled": 1}, {})


def test_a_client_that_leaves_an_answer_half_read_has_gone(server, counts, finishes):
    """The answer was written whole, and its call has ended well."""
    server.engine.reply = "x" * 3500
    connection = send(server, "/v1/chat/completions", TestAClientIsCutOff.LONG, buffer=4096)
    wait_until(finishes)
    wait_until(lambda: counts.responses)
    leave(connection)
    wait_until(lambda: counts.endings)
    assert (finishes(), counts.endings, counts.responses) == (["stop"], {"client_gone": 1}, {"200": 1})


def test_who_has_read_everything_or_asked_for_nothing_may_leave(server, counts):
    with httpx.Client(base_url=server.url) as http:
        assert http.post("/v1/chat/completions", json=CHAT).status_code == 200
        assert http.post("/v1/chat/completions", json=CHAT | {"n": 0}).status_code == 400
    server.connect().close()
    wait_until(lambda: not server.app.ctx.connections)
    assert (counts.endings, counts.responses) == ({}, {"200": 1, "400": 1})


def lost(engine: FakeEngine) -> None:
    engine.fail_after = 0


def failed(engine: FakeEngine) -> None:
    engine.error_after = 0


def impossible(engine: FakeEngine) -> None:
    engine.error_after, engine.error_param = 0, "prompt"


def broken(engine: FakeEngine) -> None:
    def divide(request: Any) -> Any:
        raise ZeroDivisionError("planted secret")

    engine.reply = divide


FAILURES = [
    (lost, "engine_lost", 500, "ERROR ended early, engine_lost: the engine was lost"),
    (failed, "request_failed", 500, "ERROR ended early, request_failed: a bad row"),
    (impossible, "request_invalid", 400, "INFO ended early, request_invalid: InvalidRequest"),
    (broken, "internal_error", 500, "ERROR ended early, internal_error: ZeroDivisionError"),
]
TGIS_STATUS = {"engine_lost": 424, "request_failed": 424, "request_invalid": 422}


@pytest.mark.parametrize(("path", "body"), ALL)
@pytest.mark.parametrize(("plant", "ending", "status", "line"), FAILURES)
def test_a_failure_has_its_reason(server, counts, finishes, caplog, path, body, plant, ending, status, line):
    if path == "/v1/embeddings" and plant is impossible:
        return  # nothing that is asked for there turns out to be impossible
    plant(server.engine)
    reply = post(server, path, body)
    if is_stream(path, body):
        status = 200
    elif path == "/generate":
        status = TGIS_STATUS.get(ending, status)
    assert reply.status_code == status
    assert counts.responses == {str(status): 1}
    wait_until(finishes)
    assert (counts.endings, counts.choices, finishes()) == ({ending: 1}, {ending: 1}, [ending])
    assert warnings(caplog) == [line]
    assert "planted" not in caplog.text


def test_choices_that_had_ended_keep_their_reasons(server, counts, finishes, caplog):
    """Of three the first two end well before the engine is lost."""
    server.engine.fail_after = 3
    server.engine.reply = lambda request: list(b"hi") if request.choice < 2 else list(b"hello")
    assert post(server, "/v1/completions", WHOLE["/v1/completions"] | {"n": 3}).status_code == 500
    assert sorted(finishes()[0].split(",")) == ["engine_lost", "stop", "stop"]
    assert counts.choices == {"stop": 2, "engine_lost": 1}
    assert len(warnings(caplog)) == 1


def test_a_shutdown_is_no_loss(finishes, caplog):
    """What outlasts the drain is told so, in a stream as in one piece, and may come back."""
    server = Server(drain_seconds=0.1, embeddings=True)
    server.reset()
    server.engine.gate.clear()
    counts = Counts(server)
    connections = [(path, body, send(server, path, body)) for path, body in ALL]
    wait_until(lambda: len(server.engine.running) == len(ALL))
    server.close()
    for path, body, connection in connections:
        answer = received(connection)
        if "generate" in path:
            assert b'"error_type":"overloaded"' in answer
        else:
            assert b"server_shutting_down" in answer and b"The server is shutting down" in answer
        status = b"200" if is_stream(path, body) else b"429" if path == "/generate" else b"503"
        assert answer.startswith(b"HTTP/1.1 %s " % status)
        assert status == b"200" or re.search(rb"retry-after: \d", answer)
    assert counts.endings == counts.choices == {"shutdown": len(ALL)}
    assert finishes() == ["shutdown"] * len(ALL)
    assert set(warnings(caplog)) == {"WARNING ended early, shutdown: the server is shutting down"}


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_takes_longer_than_any_may(make_server, finishes, stream):
    server = make_server()
    server.reset()
    server.engine.gate.clear()
    counts = Counts(server)
    server.app.config.RESPONSE_TIMEOUT = 0.2
    answer = received(send(server, "/v1/chat/completions", CHAT | {"stream": stream}))
    assert (counts.endings, finishes()) == ({"timeout": 1}, ["timeout"])
    assert counts.responses == {"200" if stream else "503": 1}
    assert answer.startswith(b"HTTP/1.1 200 " if stream else b"HTTP/1.1 503 ")


class TestARefusal:
    """Is no answer cut short, and no choice of anybody ends by it."""

    @pytest.mark.parametrize(("path", "body"), ALL)
    @pytest.mark.parametrize("reason", ["overloaded", "not_ready", "draining"])
    def test_has_its_reason(self, server, counts, finishes, monkeypatch, path, body, reason):
        if reason == "overloaded":
            server.engine.capacity = 0
        elif reason == "not_ready":
            server.engine.state = "loading"
        else:
            monkeypatch.setattr(server.app.ctx, "draining", True)
        reply = post(server, path, body)
        assert reply.status_code == (429 if "generate" in path else 503)
        assert counts.endings == {reason: 1}
        assert (counts.choices, finishes()) == ({}, [])

    def test_for_want_of_a_renderer_has_its_own(self, server, counts):
        server.served.text = BusyText()
        reply = post(server, "/v1/chat/completions", CHAT)
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "server_overloaded")
        assert counts.endings == {"rendering": 1}

    def test_of_a_connection_is_counted(self, make_server):
        server = make_server(most_connections=1)
        counts = Counts(server)
        with server.connect() as first:
            first.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert first.recv(4096).startswith(b"HTTP/1.1 200 ")
            with contextlib.suppress(ConnectionResetError):
                assert received(server.connect()) == b""
            assert counts.endings == {"connections": 1}

    def test_is_none_where_a_probe_is_told_to_wait(self, server, counts):
        server.engine.state = "loading"
        assert httpx.get(f"{server.url}/ready").status_code == 503
        assert counts.endings == {}


CALLS: dict[str, tuple[Callable[[FakeEngine], Any], str | None, str | None]] = {
    "whole": (id, "200", None),
    "stream": (id, "200", None),
    "whole, of a client that leaves": (lambda engine: engine.gate.clear(), None, "client_gone"),
    "stream, of a client that leaves": (lambda engine: engine.gate.clear(), "200", "client_gone"),
    "whole, lost": (lost, "500", "engine_lost"),
    "stream, lost": (lost, "200", "engine_lost"),
    "whole, failed": (failed, "500", "request_failed"),
    "stream, impossible": (impossible, "200", "request_invalid"),
    "stream, too much": (lambda engine: setattr(engine, "capacity", 0), "503", "overloaded"),
    "whole, wrong": (id, "400", None),
}
"""What is done to the engine; the status and the early end that are counted."""


@given(st.lists(st.sampled_from(list(CALLS)), max_size=8))
@settings(max_examples=15, deadline=None)
def test_every_call_is_counted_once(all_routes, calls):
    """As a response, as an early end, or as both; and nothing else is."""
    counts = Counts(all_routes)
    for call in calls:
        all_routes.reset()
        plant, status, _ = CALLS[call]
        plant(all_routes.engine)
        body = CHAT | {"stream": call.startswith("stream"), "n": 0 if "wrong" in call else 1}
        if "leaves" in call:
            connection = send(all_routes, "/v1/chat/completions", body)
            wait_until(lambda: all_routes.engine.requests)
            if status:
                connection.recv(1)
            leave(connection)
            wait_until(lambda: not all_routes.engine.running)
        else:
            assert str(post(all_routes, "/v1/chat/completions", body).status_code) == status
    endings = Counter(ending for _, _, ending in map(CALLS.__getitem__, calls) if ending)
    wait_until(lambda: sum(counts.endings.values()) >= endings.total())
    assert counts.endings == endings
    assert counts.responses == Counter(status for _, status, _ in map(CALLS.__getitem__, calls) if status)


def test_every_series_is_there_from_the_start():
    """Of a closed set; a counter that appears with its first event shows no increase."""
    engine = FakeEngine()
    figures = Metrics(engine, "m").render().decode()
    expected = [
        *(f'distaff_calls_cut_short_total{{reason="{reason}"}} 0.0' for reason in CUT_SHORT),
        *(f'distaff_refusals_total{{reason="{reason}"}} 0.0' for reason in REFUSALS),
        *(f'distaff_sequences_moved_total{{cause="{cause}"}} 0.0' for cause in MOVE_CAUSES),
        "distaff_queue_requests 0.0",
        "distaff_queue_prompt_tokens 0.0",
    ]
    assert [line for line in expected if line not in figures.splitlines()] == []
    assert not set(CUT_SHORT) & set(REFUSALS)


def test_the_queue_and_what_was_moved_are_the_engines_own_figures(server):
    server.engine.queued = (3, 70)
    server.engine.moved = {"engine_lost": 2, "draining": 1}
    figures = server.app.ctx.metrics.render().decode().splitlines()
    assert {"distaff_queue_requests 3.0", "distaff_queue_prompt_tokens 70.0"} <= set(figures)
    moved = [
        line.partition("total")[2] for line in figures if line.startswith("distaff_sequences_moved_total")
    ]
    assert moved == [
        '{cause="engine_lost"} 2.0',
        '{cause="preempted"} 0.0',
        '{cause="draining"} 1.0',
        '{cause="balanced"} 0.0',
    ]
