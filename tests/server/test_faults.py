"""The whole server in real processes, and what is done to it: killed, stopped, terminated, looked into."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from ..processes import wait_ended

SCRIPT = Path(__file__).with_name("web_over_fake_engine.py")
MESSAGES = [{"role": "user", "content": "Hi"}]


class Web:
    """A running server."""

    def __init__(self, folder: Path, mode: str, drain: float, pause: float) -> None:
        self._out, self._log = folder / "out", folder / "log"
        with self._out.open("w") as out, self._log.open("w") as log:
            command = [sys.executable, str(SCRIPT), mode, str(drain), str(pause)]
            self.process = psutil.Popen(command, stdout=out, stderr=log, stdin=subprocess.DEVNULL)
        self.url = self.wait_for_line(r"listening on (\S+);")

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def engine(self) -> psutil.Process:
        (engine,) = self.process.children()
        return engine

    @property
    def engines(self) -> list[psutil.Process]:
        """By age; the replicas' order until one is restarted."""
        return sorted(self.process.children(), key=lambda engine: engine.create_time())

    def metric(self, name: str, replica: int) -> float:
        text = httpx.get(f"{self.url}/metrics").text
        found = re.search(rf'^{name}{{replica="{replica}"}} (\S+)', text, re.MULTILINE)
        assert found, name
        return float(found[1])

    def wait_for_line(self, pattern: str) -> str:
        found = wait_for(lambda: re.search(pattern, self.log + self.out))
        return found.group(found.re.groups)

    def ready(self) -> int:
        return httpx.get(f"{self.url}/ready").status_code

    def wait_until_ready(self) -> "Web":
        wait_for(lambda: self.ready() == 200)
        return self

    def stream(self, max_tokens: int | None = None) -> "Reader":
        return Reader(self.url, max_tokens)

    def close(self) -> None:
        """Kills what is left of it, and makes sure that the engine does not outlive it."""
        if self.process.poll() is None:
            children = self.process.children(recursive=True)
            self.process.kill()
            self.process.wait(10)
            assert not wait_ended(children, 5)


class Reader:
    """One streamed chat completion, read in a thread: each line with the moment it came."""

    def __init__(self, url: str, max_tokens: int | None) -> None:
        self.lines: list[tuple[float, str]] = []
        self.broken = False
        self._body = {"model": "tgi", "messages": MESSAGES, "stream": True, "max_tokens": max_tokens}
        self._thread = threading.Thread(target=self._read, args=(url,), daemon=True)
        self._thread.start()

    def _read(self, url: str) -> None:
        try:
            with httpx.stream("POST", f"{url}/v1/chat/completions", json=self._body, timeout=60) as response:
                for line in response.iter_lines():
                    self.lines += [(time.monotonic(), line)] if line else []
        except httpx.TransportError:
            self.broken = True

    def started(self) -> "Reader":
        wait_for(lambda: len(self.lines) > 3)
        return self

    def finish(self) -> list[str]:
        self._thread.join(30)
        assert not self._thread.is_alive()
        return [line for _, line in self.lines]

    def text(self) -> str:
        """What was said, to the end that was asked for."""
        *chunks, last, done = (line.removeprefix("data: ") for line in self.finish())
        assert done == "[DONE]" and json.loads(last)["choices"][0]["finish_reason"] == "length"
        return "".join(json.loads(chunk)["choices"][0]["delta"].get("content") or "" for chunk in chunks)

    def error(self) -> str:
        """The code of the error event that ends the stream."""
        *_, last = (line for line in self.finish() if line != "data: [DONE]")
        return json.loads(last.removeprefix("data: "))["error"]["code"]


def wait_for(condition: Callable[[], Any], seconds: float = 15.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return result


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Callable[..., Web]]:
    started: list[Web] = []

    def start(mode: str = "ready", drain: float = 10.0, pause: float = 1.0) -> Web:
        started.append(Web(tmp_path, mode, drain, pause))
        return started[-1]

    yield start
    for each in started:
        each.close()


def test_a_killed_engine_is_a_pause_in_its_streams_and_then_it_serves_again(web: Callable[..., Web]):
    server = web().wait_until_ready()
    readers = [server.stream(max_tokens=60) for _ in range(6)]
    wait_for(lambda: sum(len(reader.lines) > 3 for reader in readers) == 4)
    os.kill(server.engine.pid, signal.SIGKILL)
    wait_for(lambda: server.ready() == 503, 1)
    readers.append(server.stream(max_tokens=60))  # waits for the next engine
    assert httpx.get(f"{server.url}/health").status_code == 200
    server.wait_until_ready()
    assert {reader.text() for reader in readers} == {server.stream(max_tokens=60).text()}
    assert "Traceback" not in server.log


def test_an_engine_killed_while_it_loads_is_replaced(web: Callable[..., Web]):
    server = web("load")
    server.wait_for_line("load:")
    first = server.engine.pid
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: [child for child in server.process.children() if child.pid != first])
    assert httpx.get(f"{server.url}/health").status_code == 200
    assert server.ready() == 503


def test_a_killed_web_process_takes_the_engine_with_it(web: Callable[..., Web]):
    server = web().wait_until_ready()
    server.stream().started()
    engine = server.engine
    server.process.kill()
    assert not wait_ended([engine], 5)


def test_sigterm_lets_a_short_stream_finish_and_exits_0(web: Callable[..., Web]):
    server = web(drain=30).wait_until_ready()
    reader = server.stream(max_tokens=60).started()
    engine = server.engine
    server.process.terminate()
    wait_for(lambda: server.ready() == 503)
    assert reader.finish()[-1] == "data: [DONE]"
    assert server.process.wait(10) == 0
    assert not engine.is_running()
    assert "SIGTERM: finishing running requests" in server.log


def test_a_stream_longer_than_the_drain_ends_with_an_error_event(web: Callable[..., Web]):
    server = web(drain=0.5).wait_until_ready()
    reader = server.stream().started()
    server.process.terminate()
    assert reader.error() == "server_shutting_down"
    assert server.process.wait(10) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(web: Callable[..., Web], number: signal.Signals):
    server = web(drain=60).wait_until_ready()
    server.stream().started()
    engine = server.engine
    server.process.send_signal(number)
    wait_for(lambda: server.ready() == 503)
    server.process.send_signal(number)
    assert server.process.wait(2) == 128 + number
    assert not wait_ended([engine], 2)


@pytest.mark.parametrize("mode", ["load", "ready"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_server_ends_quickly(web: Callable[..., Web], mode: str, number: signal.Signals):
    server = web(mode)
    server.wait_for_line("load:")
    engine = server.engine
    server.process.send_signal(number)
    assert server.process.wait(5) == 0
    assert not engine.is_running()
    assert "Traceback" not in server.log


def test_sigterm_while_the_engine_is_between_two_lives(web: Callable[..., Web]):
    server = web("crash")
    server.wait_for_line("the next one starts in 2 s")
    server.process.terminate()
    assert server.process.wait(5) == 0


@pytest.mark.parametrize(
    ("mode", "code", "line"),
    [
        ("fatal", 65, "distaff: model.safetensors: damaged"),
        ("crash", 70, "distaff: the engine process ended"),
        ("ready,fatal", 65, "distaff: model.safetensors: damaged"),
        ("ready,other", 78, "distaff: replica "),
    ],
)
def test_an_engine_that_will_not_come_up_ends_the_server(
    web: Callable[..., Web], mode: str, code: int, line: str
):
    server = web(mode, pause=0.1)
    assert server.process.wait(15) == code
    assert server.log.splitlines()[-1].startswith(line)
    assert "Traceback" not in server.log


def test_the_web_process_imports_no_jax_and_listens_on_one_port(web: Callable[..., Web]):
    server = web().wait_until_ready()
    assert server.stream(max_tokens=3).finish()[-1] == "data: [DONE]"
    server.process.send_signal(signal.SIGUSR1)
    assert server.wait_for_line("modules: (.*)") == "[]"
    processes = [server.process, server.engine]
    listening = [c for p in processes for c in p.net_connections() if c.status == psutil.CONN_LISTEN]
    assert [f"http://{c.laddr.ip}:{c.laddr.port}" for c in listening] == [server.url]


def test_it_says_how_to_use_it_when_it_can_be_used(web: Callable[..., Web]):
    server = web().wait_until_ready()
    wait_for(lambda: "OpenAI(" in server.out)
    assert f"curl -N {server.url}/v1/chat/completions" in server.out
    assert f'base_url="{server.url}/v1"' in server.out


def test_a_client_that_goes_away_frees_its_row(web: Callable[..., Web]):
    server = web().wait_until_ready()
    body = {"model": "tgi", "messages": MESSAGES, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body) as response:
        next(response.iter_lines())
        assert _running(server) == 1
    wait_for(lambda: _running(server) == 0, 2)


def _running(server: Web, replica: int = 0) -> float:
    return server.metric("distaff_engine_running", replica)


def test_one_of_two_engines_is_killed_and_nobody_else_notices(web: Callable[..., Web]):
    server = web("ready,ready").wait_until_ready()
    server.wait_for_line("replica 1 is ready: 2 of 2 serve|replica 0 is ready: 2 of 2 serve")
    readers = [server.stream(max_tokens=60).started() for _ in range(2)]
    assert (_running(server, 0), _running(server, 1)) == (1, 1)
    server.engines[1].kill()
    wait_for(lambda: server.metric("distaff_engine_ready", 1) == 0, 1)
    back = False
    while not back:
        assert server.ready() == 200
        assert server.stream(max_tokens=3).finish()[-1] == "data: [DONE]"
        back = server.metric("distaff_engine_ready", 1) == 1
    assert {reader.text() for reader in readers} == {server.stream(max_tokens=60).text()}
    assert "Traceback" not in server.log


def test_a_replica_that_keeps_failing_is_given_up_alone(web: Callable[..., Web]):
    server = web("ready,crash", pause=0.1).wait_until_ready()
    server.wait_for_line("replica 1 ended with exit code 3; it failed too often and is given up; 1 of 2")
    assert server.metric("distaff_engine_given_up", 0) == 0
    assert server.metric("distaff_engine_given_up", 1) == 1
    assert (server.ready(), httpx.get(f"{server.url}/health").status_code) == (200, 200)
    assert server.stream(max_tokens=3).finish()[-1] == "data: [DONE]"


def test_sigterm_drains_all_replicas(web: Callable[..., Web]):
    server = web("ready,ready", drain=30).wait_until_ready()
    wait_for(
        lambda: server.metric("distaff_engine_ready", 0) == server.metric("distaff_engine_ready", 1) == 1
    )
    readers = [server.stream(max_tokens=60).started() for _ in range(4)]
    assert (_running(server, 0), _running(server, 1)) == (2, 2)
    engines = server.engines
    server.process.terminate()
    assert [reader.finish()[-1] for reader in readers] == ["data: [DONE]"] * 4
    assert server.process.wait(10) == 0
    assert not [engine for engine in engines if engine.is_running()]
