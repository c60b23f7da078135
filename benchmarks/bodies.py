"""How one request's body affects other requests: `python -m benchmarks.bodies`.

The rule: `/health` is answered within 100 ms at p99 during any single request. Each body here is the worst of
its kind that HTTP accepts (8 MiB), and is sent several times while `/health` is requested continuously.
Prints its status, how long it took, and the 99th percentile of `/health` meanwhile. The web process has a
fake engine, and the bundled model's tokenizer and chat template.
"""

import argparse
import http.client
import json
import os
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlsplit

from distaff.checkpoints import resolve
from distaff.server.app import RUN_OPTIONS, create_app
from distaff.server.command.serve import text_loader
from distaff.server.settings import ServerSettings
from distaff.server.testing import FakeEngine

from .server import Contender, running

TIMES = 3
LIMIT_SECONDS = 0.1
_ROOM = (8 << 20) - 512
"""Bytes of a body without the text around its contents."""
_CHAT = "/v1/chat/completions"
_HELLO = [{"role": "user", "content": "Hello!"}]
_DOCUMENT = "All human beings are born free, and equal in dignity; so says the declaration of 1948.\n"


@dataclass(frozen=True, slots=True)
class Case:
    """One hostile request. `body` is made when it is needed, because it is large."""

    name: str
    path: str
    body: Callable[[], bytes]
    chunk: int | None = None


def _chat(**more: object) -> bytes:
    return json.dumps({"model": "tgi", "messages": _HELLO, "max_tokens": 1} | more).encode()


def _filled(before: str, item: str, after: str, room: int = _ROOM) -> bytes:
    """`item` repeated to fill the room, separated by commas."""
    return (before + ",".join([item] * (room // (len(item) + 1))) + after).encode()


def _in_chat(key: str, opening: str, item: str, closing: str) -> bytes:
    return _filled(f'{{"model":"tgi","messages":{json.dumps(_HELLO)},"{key}":{opening}', item, closing + "}")


def _numbered(count: int, key: str | None = None) -> bytes:
    pairs = ",".join([f'"{number}":1' for number in range(count)])
    return (
        f'{{"model":"tgi","messages":{json.dumps(_HELLO)},'
        + (f'"{key}":{{{pairs}}}}}' if key else f"{pairs}}}")
    ).encode()


def _of_text(text: str) -> bytes:
    content = text * (_ROOM // len(json.dumps(text)))
    return _chat(messages=[{"role": "user", "content": content}])


CASES = (
    Case("unknown keys, 700,000", _CHAT, partial(_numbered, 700_000)),
    Case("keys of metadata, 600,000", _CHAT, partial(_numbered, 600_000, "metadata")),
    Case("keys of logit_bias, 600,000", _CHAT, lambda: _chat(logit_bias={str(n): 1 for n in range(600_000)})),
    Case(
        "messages, 160,000",
        _CHAT,
        lambda: _filled('{"model":"tgi","messages":[', json.dumps(_HELLO[0]), "]}"),
    ),
    Case("messages, 60,000", _CHAT, lambda: _chat(messages=_HELLO * 60_000)),
    Case("empty arrays", _CHAT, lambda: _in_chat("x", "[", "[]", "]")),
    Case("empty objects", _CHAT, lambda: _in_chat("x", "[", "{}", "]")),
    Case("stop strings", _CHAT, lambda: _in_chat("stop", "[", '"x"', "]")),
    Case("stop_token_ids, a million", _CHAT, lambda: _chat(stop_token_ids=list(range(1_000_000)))),
    Case("allowed_token_ids, a million", _CHAT, lambda: _chat(allowed_token_ids=[7] * 1_000_000)),
    Case("one-byte numbers", _CHAT, lambda: _in_chat("x", "[", "1", "]")),
    Case("prompt of ids", "/v1/completions", lambda: _filled('{"model":"tgi","prompt":[', "12345", "]}")),
    Case("one letter", _CHAT, lambda: _of_text("a")),
    Case("a document", _CHAT, lambda: _of_text(_DOCUMENT)),
    Case("a document, /v1/completions", "/v1/completions", lambda: _completion(_DOCUMENT)),
    Case("a document, /tokenize", "/tokenize", lambda: _tokenize(_DOCUMENT)),
    Case("escapes", _CHAT, lambda: _of_text("\n")),
    Case("emoji", _CHAT, lambda: _of_text("🙂")),
    Case("special tokens", _CHAT, lambda: _of_text("<|im_start|>")),
    Case("quotes and brackets in a text", _CHAT, lambda: _of_text('{"[:')),
    Case("nesting in a tool's schema", _CHAT, lambda: _chat(tools=[_tool(_nested(190))])),
    Case("a tool's schema of 100,000 properties", _CHAT, lambda: _chat(tools=[_tool(_wide(100_000))])),
    Case("one-byte chunks, 3 MB", _CHAT, lambda: _of_text("a")[-3_000_000:], chunk=1),
    Case("16-byte chunks, 8 MB", _CHAT, lambda: _of_text("a"), chunk=16),
    Case("log-probabilities, 4 x 2,000 x 20", _CHAT, lambda: _chat(**_WORDY)),
)
_WORDY = {"n": 4, "max_tokens": 2000, "logprobs": True, "top_logprobs": 20}


def _completion(text: str) -> bytes:
    return json.dumps({"model": "tgi", "prompt": text * (_ROOM // len(json.dumps(text)))}).encode()


def _tokenize(text: str) -> bytes:
    return json.dumps({"prompt": text * (_ROOM // len(json.dumps(text))), "return_token_strs": True}).encode()


def _tool(schema: dict) -> dict:
    return {"type": "function", "function": {"name": "f", "parameters": schema, "strict": True}}


def _nested(depth: int) -> dict:
    schema: dict = {"type": "string"}
    for _ in range(depth // 2):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def _wide(count: int) -> dict:
    return {"type": "object", "properties": {f"p{number}": {"type": "integer"} for number in range(count)}}


def _framed(case: Case) -> bytes:
    """The whole request."""
    body = case.body()
    head = f"POST {case.path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
    if case.chunk is None:
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    pieces = (body[at : at + case.chunk] for at in range(0, len(body), case.chunk))
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + chunks + b"0\r\n\r\n"


def _send(address: tuple[str, int], data: bytes, seconds: list[float], statuses: list[str]) -> None:
    """Sends a request several times, each on a new connection."""
    for _ in range(TIMES):
        begun, received = time.perf_counter(), b""
        with socket.create_connection(address, timeout=120) as connection:
            try:
                connection.sendall(data)
            except ConnectionError:
                pass
            try:
                while data_received := connection.recv(1 << 20):
                    received = received or data_received
            except ConnectionError:
                pass
        seconds.append(time.perf_counter() - begun)
        statuses.append(received[9:12].decode() or "none")


def _pings(address: tuple[str, int], going: Callable[[], bool]) -> Iterator[float]:
    """Seconds of each request of `/health`, sent repeatedly on one connection."""
    connection = http.client.HTTPConnection(*address, timeout=120)
    while going():
        begun = time.perf_counter()
        connection.request("GET", "/health")
        connection.getresponse().read()
        yield time.perf_counter() - begun
        time.sleep(0.002)
    connection.close()


def measure(address: tuple[str, int], case: Case) -> tuple[str, float, list[float]]:
    """The status of a case, its seconds, and those of `/health` meanwhile."""
    data, seconds, statuses = _framed(case), [], []
    sender = threading.Thread(target=_send, args=(address, data, seconds, statuses))
    sender.start()
    pings = list(_pings(address, sender.is_alive))
    sender.join()
    return statuses[-1], statistics.median(seconds), sorted(pings)


def main(only: str) -> None:
    """Measures and prints every case."""
    with running(
        Contender(lambda port: [sys.executable, "-m", "benchmarks.bodies", "--serve", str(port)], "/ready")
    ) as served:
        parts = urlsplit(served.url)
        address = (str(parts.hostname), int(parts.port or 0))
        failed = 0
        for case in (case for case in CASES if only in case.name):
            status, seconds, pings = measure(address, case)
            slow = pings[int(len(pings) * 0.99)]
            failed += slow > LIMIT_SECONDS
            print(
                f"{case.name:40} {status:>4} after {seconds:6.2f} s; /health p99 {1000 * slow:7.1f} ms, "
                f"slowest {1000 * pings[-1]:7.1f} of {len(pings)}",
                flush=True,
            )
        print(f"{failed} cases delay /health by more than {1000 * LIMIT_SECONDS:.0f} ms at p99")


def serve(port: int) -> None:
    """Serves fake answers with the bundled model's text side."""
    engine = FakeEngine("x" * 4000)
    app = create_app(ServerSettings(model="fake"), engine, text_loader(None)(resolve(None)))
    app.run("127.0.0.1", port, **RUN_OPTIONS)
    os._exit(0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", type=int, metavar="PORT")
    parser.add_argument("--only", default="", help="only cases with names that contain this")
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
    else:
        main(arguments.only)
