"""SIGTERM to a real process: what runs ends well, nothing new begins, nothing hangs."""

import re
import signal
import subprocess
import sys
import textwrap
import threading
import time

import httpx
import pytest

PROGRAM = """
    import logging, socket, sys
    from distaff.server.app import RUN_OPTIONS, create_app
    from distaff.server.settings import ServerSettings
    from distaff.server.testing import FakeEngine, FakeText
    from distaff.server.text.text_model import ServedModel

    logging.basicConfig(level=logging.WARNING)
    engine = FakeEngine("x" * 200)
    engine.delay = 0.005
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    print(listener.getsockname()[1], flush=True)
    settings = ServerSettings(model="m", drain_seconds={drain})
    app = create_app(settings, engine, ServedModel(text=FakeText()))
    app.run(sock=listener, **RUN_OPTIONS)
"""


@pytest.fixture
def start():
    """Starts the program; returns its process and URL."""
    started = []

    def run(drain: float):
        code = textwrap.dedent(PROGRAM.format(drain=drain))
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        url = f"http://127.0.0.1:{process.stdout.readline().strip()}"
        deadline = time.monotonic() + 30
        while True:
            try:
                if httpx.get(f"{url}/ready", timeout=1).status_code == 200:
                    return process, url
            except httpx.TransportError:
                pass
            assert time.monotonic() < deadline
            time.sleep(0.05)

    yield run
    for process in started:
        process.kill()
        process.communicate()


def open_stream(url):
    """Streams in a thread; the lines that came are in the list."""
    lines = []
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "hi"}]}

    def read():
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=20) as reply:
            lines.extend(reply.iter_lines())

    thread = threading.Thread(target=read)
    thread.start()
    time.sleep(0.3)
    return thread, lines


def test_open_streams_end_well_and_idle_connections_do_not_keep_it(start):
    process, url = start(drain=20)
    idle = httpx.Client(base_url=url)
    headers = idle.get("/health").headers
    assert "alt-svc" not in headers
    thread, lines = open_stream(url)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    with httpx.Client(base_url=url) as late:
        ready = late.get("/ready")
        assert (ready.status_code, ready.headers["connection"]) == (503, "close")
        assert late.get("/health").status_code == 200
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
        refused = late.post("/v1/chat/completions", json=body)
        assert refused.status_code == 503
        assert re.fullmatch(r"\d+", refused.headers["retry-after"])
    thread.join(10)
    assert lines[-2] == "data: [DONE]"
    assert '"finish_reason":"stop"' in lines[-4]
    assert process.wait(10) == 0
    assert process.stderr.read() == ""
    idle.close()


def test_what_outlasts_the_drain_is_told_so(start):
    process, url = start(drain=0.2)
    thread, lines = open_stream(url)
    process.send_signal(signal.SIGTERM)
    thread.join(10)
    assert '"code":"server_shutting_down"' in lines[-4]
    assert lines[-2] == "data: [DONE]"
    assert process.wait(10) == 0
    assert "Traceback" not in process.stderr.read()
