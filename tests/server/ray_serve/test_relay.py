"""Relays over scripted replicas: what a client receives when replicas are lost at any point."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence

import httpx
import pytest

from distaff.server.ray_serve import relay
from distaff.server.ray_serve.call import Accepted, Call, Head, NoReplica, Piece, ReplicaLost
from distaff.server.ray_serve.ingress_app import IngressApp
from distaff.server.ray_serve.merged_metrics import merged
from distaff.server.ray_serve.relay import Patience

STREAM = Head(200, [("content-type", "text/event-stream; charset=utf-8"), ("x-request-id", "1")])
WHOLE = Head(200, [("content-type", "application/json")])
LOST = ReplicaLost("gone")
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
Script = Sequence[Piece | Exception]


class Replicas:
    """Answers each call as the next script says; the last script is for all further calls."""

    def __init__(self, *scripts: Script) -> None:
        self.scripts = list(scripts)
        self.calls: list[Call] = []
        self.seconds: list[float] = []
        self.closed = 0

    async def ask(self, call: Call, seconds: float) -> AsyncIterator[Piece]:
        self.calls.append(call)
        self.seconds.append(seconds)
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        try:
            for piece in script:
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            self.closed += 1


async def metrics(headers) -> bytes:
    return b""


async def post(replicas: Replicas, path: str = "/v1/chat/completions", **more) -> httpx.Response:
    app = IngressApp(replicas.ask, metrics, Patience(1.0, 1.0))
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://ingress") as client:
        return await client.post(path, json=CHAT, **more)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(relay, "_LEAST_SECONDS", 0.2)


async def test_an_answer_passes_with_its_status_and_headers() -> None:
    replicas = Replicas([Accepted("a"), Head(418, [("content-type", "x/y"), ("x-a", "1")]), b"te", b"a"])
    answer = await post(replicas, "/v1/chat/completions?a=%20b", headers={"X-Own": "1"})
    assert (answer.status_code, answer.content) == (418, b"tea")
    assert dict(answer.headers) == {"content-type": "x/y", "x-a": "1", "content-length": "3"}
    (call,) = replicas.calls
    assert (call.method, call.target) == ("POST", "/v1/chat/completions?a=%20b")
    assert json.loads(call.body) == CHAT and ("x-own", "1") in call.headers


async def test_a_stream_goes_on_where_its_marks_end() -> None:
    replicas = Replicas(
        [Accepted("a"), STREAM, b"data: 1\n\n: resume AA==\n\n", b"data: 2\n\n: resu", LOST],
        [Accepted("b"), STREAM, b"data: 2\n\n: resume BB==\n\ndata: 3\n\n"],
    )
    answer = await post(replicas)
    assert answer.content == b"data: 1\n\ndata: 2\n\ndata: 3\n\n"
    assert answer.headers["x-request-id"] == "1"
    again = replicas.calls[1]
    assert (again.marks, again.avoid, again.body) == (b"AA==", ("a",), replicas.calls[0].body)


@pytest.mark.parametrize("begun", [[], [WHOLE], [WHOLE, b'{"half'], [STREAM], [STREAM, b"data: "]])
async def test_what_the_client_has_nothing_of_is_asked_again(begun: Script) -> None:
    replicas = Replicas([Accepted("a"), *begun, LOST], [Accepted("b"), WHOLE, b"{}"])
    if STREAM in begun:
        replicas.scripts[1] = [Accepted("b"), STREAM, b"data: 1\n\n"]
    answer = await post(replicas)
    assert answer.content == (b"data: 1\n\n" if STREAM in begun else b"{}")
    assert replicas.calls[1].marks == b""


async def test_a_replica_may_take_its_time_to_accept_a_request_that_may_not_wait() -> None:
    """`--max-wait 0` refuses a request that would wait in a server's queue."""
    replicas = Replicas([LOST], [Accepted("a"), WHOLE, b"{}"])
    app = IngressApp(replicas.ask, metrics, Patience(0.0, 0.0))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://i") as client:
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
    assert min(replicas.seconds) > 0


async def test_a_request_ends_with_an_error_after_two_lost_replicas() -> None:
    replicas = Replicas([Accepted("a"), LOST])
    answer = await post(replicas)
    assert answer.status_code == 500 and answer.json()["error"]["code"] == "engine_error"
    assert len(replicas.calls) == 2


@pytest.mark.parametrize(
    "further",
    [
        [Accepted("b"), Head(409, []), b"{}"],
        [Accepted("b"), STREAM, LOST],
        [NoReplica("none")],
        [LOST],
        [Accepted("b"), Head(503, []), b"{}"],
    ],
    ids=["other weights", "lost again", "no replica", "never accepted", "never continued"],
)
async def test_a_stream_that_cannot_go_on_ends_with_an_error_event(further: Script) -> None:
    begun = [Accepted("a"), STREAM, b"data: 1\n\n: resume AA==\n\n", LOST]
    answer = await post(Replicas(begun, further))
    first, error, done = answer.content.split(b"\n\n", 2)
    assert first == b"data: 1" and done == b"data: [DONE]\n\n"
    assert json.loads(error.removeprefix(b"data: "))["error"]["type"] == "server_error"


async def test_a_stream_that_is_lost_before_its_first_mark_is_asked_again() -> None:
    replicas = Replicas(
        [Accepted("a"), STREAM, b"data: 1\n\n", LOST],
        [Accepted("b"), STREAM, b"data: 1\n\n: resume AA==\n\ndata: 2\n\n"],
    )
    answer = await post(replicas)
    assert answer.content == b"data: 1\n\ndata: 2\n\n"
    assert replicas.calls[1].marks == b""


@pytest.mark.parametrize("reason", [NoReplica("none"), LOST])
async def test_without_a_replica_the_answer_is_a_503_in_the_clients_shape(reason: Exception) -> None:
    answer = await post(Replicas([reason]))
    assert answer.status_code == 503 and int(answer.headers["retry-after"]) > 0
    assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
    answer = await post(Replicas([reason]), "/v1/messages")
    assert answer.status_code == 529 and answer.json()["type"] == "error"
    answer = await post(Replicas([reason]), "/generate")
    assert answer.json()["error_type"]


@pytest.mark.parametrize(
    ("path", "event"),
    [
        ("/v1/messages", b"event: error\ndata: "),
        ("/v1/responses", b"event: error\ndata: "),
        ("/generate_stream", b"data: "),
    ],
)
async def test_error_events_have_the_shape_of_their_protocol(path: str, event: bytes) -> None:
    replicas = Replicas([Accepted("a"), STREAM, b"event: x\n\n", LOST])
    answer = await post(replicas, path)
    last = answer.content.removeprefix(b"event: x\n\n")
    assert last.startswith(event) and json.loads(last.removeprefix(event))


async def test_a_large_body_is_refused_and_a_defect_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    replicas = Replicas([KeyError("a defect")])
    app = IngressApp(replicas.ask, metrics, Patience())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://i") as client:
        answer = await client.post("/v1/completions", content=b" " * (8 * 2**20 + 1))
        assert answer.status_code == 413 and answer.json()["error"]["code"] == "request_too_large"
        assert not replicas.calls
        answer = await client.get("/v1/models")
        assert answer.status_code == 500 and "a defect" not in answer.text


async def test_a_client_that_goes_away_closes_the_call() -> None:
    """Serve cancels the application's task, and the relay the call."""
    waiting = asyncio.Event()

    class Endless(Replicas):
        async def ask(self, call: Call, seconds: float) -> AsyncIterator[Piece]:
            try:
                yield Accepted("a")
                yield STREAM
                waiting.set()
                await asyncio.sleep(3600)
            finally:
                self.closed += 1

    replicas = Endless()
    task = asyncio.create_task(post(replicas))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert replicas.closed == 1


async def test_metrics_are_the_servers_own_with_a_label_more() -> None:
    counter = '# HELP a_total All.\n# TYPE a_total counter\na_total{replica="%d"} %d.0\n'
    text = counter + "# HELP b Some.\n# TYPE b gauge\nb %d.0\n"
    lines = merged({"x": text % (0, 1, 2), "y": text % (1, 3, 4)}).decode().splitlines()
    assert lines == [
        "# HELP a_total All.",
        "# TYPE a_total counter",
        'a_total{replica="0",server="x"} 1.0',
        'a_total{replica="1",server="y"} 3.0',
        "# HELP b Some.",
        "# TYPE b gauge",
        'b{server="x"} 2.0',
        'b{server="y"} 4.0',
    ]
    assert merged({}) == b""
