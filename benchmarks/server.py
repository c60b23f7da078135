"""Starts `distaff serve` as a user would, waits until it is ready, and ends it."""

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

DISTAFF = Path(sys.executable).with_name("distaff")


@dataclass(frozen=True, slots=True)
class Served:
    """A ready server: its base URL and the seconds it took to become ready."""

    url: str
    seconds_to_ready: float


@contextlib.contextmanager
def serve(*arguments: str, patience: float = 300.0) -> Iterator[Served]:
    """Runs a server on a free loopback port for as long as the context lasts.

    Raises:
      RuntimeError: it ended, or was not ready within `patience` seconds.
    """
    port = free_port()
    command = [str(DISTAFF), "serve", "--port", str(port), *arguments]
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        yield Served(url, _wait(process, url, patience) - begun)
    finally:
        process.terminate()
        process.wait(timeout=90)


def free_port() -> int:
    """A loopback port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait(process: subprocess.Popen, url: str, patience: float) -> float:
    """Polls `/ready`; the time when it first said yes."""
    limit = time.perf_counter() + patience
    while time.perf_counter() < limit:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with code {process.returncode}")
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/ready").status_code == 200:
                return time.perf_counter()
        time.sleep(0.05)
    raise RuntimeError(f"not ready within {patience} s")
