"""A client that goes away frees what it held: streaming or not, whatever the size of its body."""

import json
import re
import socket
import struct
from contextlib import contextmanager
from dataclasses import replace

import httpx
import pytest

from distaff.server.text import generation

from ...patience import wait_until


@pytest.fixture
def begin(server, engine):
    """Sends a request that will not end by itself, and waits until the engine has it."""

    def send(*, padding: int = 0, **changes) -> socket.socket:
        engine.delay = 0.01
        engine.reply = "x" * 4000
        body = {"model": "tgi", "messages": [{"role": "user", "content": "hi"}], "pad": "x" * padding}
        data = json.dumps(body | changes).encode()
        connection = server.connect()
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(data) + data
        )
        wait_until(lambda: len(engine.requests) == changes.get("n", 1))
        return connection

    return send


@pytest.mark.parametrize("padding", [0, 66_000, 300_000, 5_000_000])
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("how", ["close", "reset", "half-close"])
def test_a_disconnect_frees_the_sequence(begin, engine, caplog, http, streaming, padding, how):
    connection = begin(stream=streaming, padding=padding)
    if how == "reset":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if how == "half-close":
        connection.shutdown(socket.SHUT_WR)
    else:
        connection.close()
    wait_until(lambda: engine.running == {}, 2.0)
    assert engine.aborted == [engine.requests[0].id]
    assert "Traceback" not in caplog.text
    wait_until(lambda: "distaff_requests_in_flight 0.0" in http.get("/metrics").text)
    connection.close()


@pytest.mark.parametrize("streaming", [False, True])
def test_a_disconnect_frees_every_choice(begin, engine, streaming):
    begin(stream=streaming, n=5).close()
    wait_until(lambda: engine.running == {}, 2.0)
    assert len(engine.aborted) == 5


def test_a_hundred_resets_at_once(server, engine, http, caplog):
    engine.capacity = 1000
    engine.gate.clear()
    body = {"model": "tgi", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    data = json.dumps(body).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(data)
    connections = [server.connect() for _ in range(100)]
    for connection in connections:
        connection.sendall(head + data)
    wait_until(lambda: len(engine.running) == 100)
    for connection in connections:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
    wait_until(lambda: engine.running == {})
    assert "Traceback" not in caplog.text
    wait_until(lambda: "distaff_requests_in_flight 0.0" in http.get("/metrics").text)


def test_a_timeout_of_the_client_is_a_disconnect(server, engine):
    engine.gate.clear()
    body = {"model": "tgi", "messages": [{"role": "user", "content": "hi"}]}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=0.2)
    wait_until(lambda: engine.running == {}, 2.0)


def test_an_abandoned_request_is_accounted_for(begin, engine, caplog):
    with caplog.at_level("INFO", "distaff.server.call_record"):
        begin(stream=True, n=2).close()
        wait_until(lambda: any("finish=client_gone,client_gone" in line for line in caplog.messages))


def test_a_slow_reader_does_not_slow_the_engine(begin, engine, ask):
    connection = begin(stream=True)
    assert ask(max_tokens=3).status_code == 200
    connection.close()
    wait_until(lambda: engine.running == {}, 2.0)


@contextmanager
def slow_reader(server, **changes):
    """A client with a small buffer that asks for much, and reads nothing of it."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(20)
        connection.connect(("127.0.0.1", server.port))
        body = {"model": "tgi", "messages": [{"role": "user", "content": "hi"}]}
        data = json.dumps(body | {"logprobs": True, "top_logprobs": 20} | changes).encode()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
        connection.sendall(head % len(data) + data)
        wait_until(lambda: server.engine.requests)
        yield connection


def received(connection) -> bytes:
    """All that still comes before the connection ends."""
    pieces = []
    try:
        while piece := connection.recv(1 << 20):
            pieces.append(piece)
    except ConnectionResetError:
        pass
    return b"".join(pieces)


def test_a_client_that_leaves_too_many_events_unread_is_cut_off(server, engine, http, caplog, monkeypatch):
    monkeypatch.setattr(generation, "MOST_UNREAD", 50)
    engine.info = replace(engine.info, context=100_000)
    engine.reply = "x" * 90_000
    with slow_reader(server, stream=True) as connection:
        wait_until(lambda: engine.running == {}, 20)
        assert engine.aborted == [engine.requests[0].id]
        assert (
            "a client left 9 events unread and is disconnected" in caplog.text
        )  # each as large as 6 plain ones
        assert "Traceback" not in caplog.text
        assert b"[DONE]" not in received(connection)
    wait_until(lambda: "distaff_requests_in_flight 0.0" in http.get("/metrics").text)


def test_a_client_that_reads_nothing_for_too_long_is_cut_off(make_server):
    """Of an answer in one piece, behind which no event waits."""
    server = make_server(read_seconds=0.5)
    server.reset()
    server.engine.reply = "x" * 3000
    with slow_reader(server) as connection:
        wait_until(lambda: server.engine.running == {}, 20)
        assert server.engine.aborted == []
        wait_until(lambda: not server.app.ctx.connections, 20)
        head, _, body = received(connection).partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        assert length and len(body) < int(length[1])
