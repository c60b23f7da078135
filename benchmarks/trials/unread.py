"""What clients that do not read cost: `python -m benchmarks.trials.unread`.

Fifty clients request long streams with log-probabilities and read nothing, three times. Prints the resident
memory of the web process before each fifty, its maximum meanwhile, and after the last one is disconnected;
and how many were disconnected. The web process has a fake engine in its own process, which generates as fast
as possible.
"""

import argparse
import json
import os
import socket
import sys
import time
from urllib.parse import urlsplit

import psutil

from distaff.server.answering.context import ServedModel
from distaff.server.app import RUN_OPTIONS, create_app
from distaff.server.settings import ServerSettings
from distaff.server.testing import FakeEngine, FakeText

from ..server import Contender, running

CLIENTS = 50
WAVES = 3
SECONDS = 300.0
"""The maximum wait until all of them are disconnected."""
_TOKENS = 200_000


def _ask(address: tuple[str, int]) -> socket.socket:
    """Opens a client that sends a request and does not read."""
    call = {
        "model": "tgi", "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": _TOKENS,
        "ignore_eos": True, "stream": True, "logprobs": True, "top_logprobs": 20,
    }  # fmt: skip
    body = json.dumps(call).encode()
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
    connection.connect(address)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


def _open(web: psutil.Process, port: int) -> int:
    """The number of clients that the web process has not disconnected."""
    return sum(
        each.status == psutil.CONN_ESTABLISHED and each.laddr.port == port for each in web.net_connections()
    )


def main() -> None:
    """Measures and prints."""
    words = [sys.executable, "-m", "benchmarks.trials.unread", "--serve"]
    with running(Contender(lambda port: [*words, str(port)], "/ready")) as served:
        parts = urlsplit(served.url)
        for _ in range(WAVES):
            print(_wave(served.process, (str(parts.hostname), int(parts.port or 0))), flush=True)


def _wave(web: psutil.Process, address: tuple[str, int]) -> str:
    """Measures one wave of clients."""
    before = most = web.memory_info().rss
    clients = [_ask(address) for _ in range(CLIENTS)]
    time.sleep(1)
    deadline = time.monotonic() + SECONDS
    while (left := _open(web, address[1])) and time.monotonic() < deadline:
        most = max(most, web.memory_info().rss)
        time.sleep(0.2)
    after = web.memory_info().rss
    for client in clients:
        client.close()
    figures = f"{before >> 20} before, {most >> 20} at most, {after >> 20} after"
    return f"{CLIENTS - left} of {CLIENTS} disconnected; MiB resident: {figures}"


def serve(port: int) -> None:
    """Serves fake answers of any length."""
    engine = FakeEngine("x", context=2 * _TOKENS)
    app = create_app(ServerSettings(model="fake"), engine, ServedModel(FakeText()))
    app.run("127.0.0.1", port, **RUN_OPTIONS)
    os._exit(0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", type=int, metavar="PORT")
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
    else:
        main()
