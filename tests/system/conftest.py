"""The whole thing, as a user runs it: `distaff serve` in its own process, the bundled model, real sockets."""

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
from openai import OpenAI

from benchmarks.trials.trial import engines

from ..processes import wait_ended

DISTAFF = Path(sys.executable).with_name("distaff")
SMALL = ("--slots", "8", "--context", "1024")
"""How the bundled model is served where the sizes do not matter: the first server of all compiles its steps,
and the others read them from the cache of compiled programs."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running `distaff serve`."""

    process: subprocess.Popen
    url: str

    def ready(self, path: str = "/ready") -> bool:
        """Whether this route says yes."""
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.url}{path}", timeout=5).status_code == 200
        return False

    def wait_ready(self, patience: float = 180.0, path: str = "/ready") -> None:
        """Waits until it takes requests, by the word of this route."""
        limit = time.monotonic() + patience
        while not self.ready(path):
            assert self.process.poll() is None, f"the server ended with {self.process.returncode}"
            assert time.monotonic() < limit, f"not ready within {patience} s"
            time.sleep(0.1)

    def engine(self, replica: int = 0) -> psutil.Process:
        """A replica's engine process."""
        return engines(psutil.Process(self.process.pid))[replica]

    def metric(self, name: str, replica: int = 0) -> float:
        """One replica's sample of `/metrics`."""
        lines = httpx.get(f"{self.url}/metrics", timeout=5).text.splitlines()
        label = f'{name}{{replica="{replica}"}} '
        return next(float(line.split()[1]) for line in lines if line.startswith(label))

    def labelled(self, name: str, label: str) -> float:
        """The sample of `/metrics` with this value of its only label."""
        lines = httpx.get(f"{self.url}/metrics", timeout=5).text.splitlines()
        return next(
            float(line.split()[1]) for line in lines if line.startswith(f"{name}{{") and f'"{label}"' in line
        )


def free_port() -> int:
    """One that nobody listened on a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@contextlib.contextmanager
def running(*arguments: str) -> Iterator[Server]:
    """Starts a server on a free port; ends it, and sees that nothing of it is left."""
    port = free_port()
    process = subprocess.Popen(
        [str(DISTAFF), "serve", "--port", str(port), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield Server(process, f"http://127.0.0.1:{port}")
    finally:
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.terminate()
        process.communicate(timeout=90)
        assert not wait_ended(children, 10), "a child outlived the server"


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The bundled model, served with defaults but for fewer slots, a shorter context and longer waits."""
    with running(*SMALL, "--max-wait", "300") as server:
        server.wait_ready()
        yield server


@pytest.fixture(scope="session")
def f32_server() -> Iterator[Server]:
    """The bundled model in f32, for what it is known to say and what differs by rounding alone."""
    with running(*SMALL, "--max-wait", "300", "--quantize", "none") as server:
        server.wait_ready()
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[OpenAI]:
    """The official client, which takes no answer that departs from its types."""
    with OpenAI(
        base_url=f"{server.url}/v1/", api_key="-", max_retries=0, _strict_response_validation=True
    ) as client:
        yield client
