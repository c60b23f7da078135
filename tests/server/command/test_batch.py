"""`distaff batch`: each line of the input gets one result, whatever interrupts the run and whatever fails."""

import io
import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from distaff.server import exit_codes
from distaff.server.batches.lines import Line, read_lines
from distaff.server.batches.results import answered, failed
from distaff.server.command import batch, line_client
from distaff.server.command.api_address import ApiAddress
from distaff.server.command.batch import check_files, run_batch
from distaff.server.command.line_client import ATTEMPTS, LineClient
from distaff.server.exit_codes import Failed

from ...patience import patient
from ..conftest import MODEL


class Quiet:
    """A display that remembers what it shows."""

    def __init__(self) -> None:
        self.shown: list[tuple[str, int, int]] = []

    def show(self, phase: str, done: int, total: int) -> None:
        self.shown.append((phase, done, total))

    def close(self) -> None:
        pass


class Interrupted(Exception):
    """As Ctrl-C, at any place."""


def chat(name: str, text: str = "hi", **body: object) -> bytes:
    content = {"model": MODEL, "messages": [{"role": "user", "content": text}]} | body
    line = {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": content}
    return json.dumps(line).encode()


def written(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


RAW = st.one_of(st.integers(0, 30).map(lambda n: chat(f"id {n}")), st.sampled_from([b"", b"{", b"[]", b"{}"]))
FATES = st.lists(st.one_of(st.none(), st.integers(0, 8)), max_size=4)


@given(st.lists(RAW, max_size=15), FATES, st.integers(1, 4), st.booleans(), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=150)
def test_every_line_gets_exactly_one_result(
    tmp_path_factory, raws, fates, together, ordered, chance: random.Random
):
    """Each run is interrupted after some results, and may tear the last one; the last run is not."""
    folder = tmp_path_factory.mktemp("run")
    source, target = folder / "in.jsonl", folder / "out.jsonl"
    source.write_bytes(b"\n".join(raws))
    lines = list(read_lines(io.BytesIO(source.read_bytes())))
    asked: list[list[str]] = []  # by run: threads of an interrupted one may ask on for a moment

    def run(interruption: int | None) -> int:
        display, requested = Quiet(), list[str]()
        asked.append(requested)

        def ask(line: Line):
            requested.append(line.id)
            if line.number % 3 == 0:
                return failed(line, "connection_lost", "no answer")
            return answered(line, 200 if line.number % 4 else 400, "req", b"{}")

        def show(phase: str, done: int, total: int) -> None:
            if interruption is not None and done >= interruption:
                raise Interrupted

        display.show = show  # type: ignore[method-assign]

        @contextmanager
        def client():
            yield ask, together

        return run_batch(source, target, client, display, ordered=ordered)

    complete: set[str] = set()
    for interruption in fates:
        try:
            run(interruption)
        except Interrupted:
            pass
        kept = target.read_bytes()
        whole = [json.loads(line)["id"] for line in kept.splitlines()]
        assert len(set(whole)) == len(whole) and complete <= set(whole)
        if kept and chance.random() < 0.5:
            target.write_bytes(kept[: -chance.randint(1, min(20, len(kept)))])
            whole.pop()
        complete = set(whole)
    code, requested = run(None), asked[-1]
    found = written(target)
    assert sorted(each["id"] for each in found) == sorted(line.id for line in lines)
    if ordered:
        assert [each["id"] for each in found] == [line.id for line in lines]
    assert not set(requested) & complete and len(set(requested)) == len(requested)
    good = {line.id for line in lines if line.problem is None and line.number % 3 and line.number % 4}
    assert {
        each["id"] for each in found if each["response"] and each["response"]["status_code"] == 200
    } == good
    assert code == (exit_codes.OK if len(good) == len(lines) else exit_codes.LINES_FAILED)
    before = target.read_bytes()
    assert run(None) == code and not asked[-1] and target.read_bytes() == before


def test_results_of_another_input_are_not_mixed_with_these(tmp_path):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(chat("a"))

    @contextmanager
    def client():
        yield (lambda line: answered(line, 200, "", b"{}")), 1

    run_batch(source, target, client, Quiet(), ordered=False)
    source.write_bytes(chat("a", "changed"))
    with pytest.raises(Failed, match="has results of 1 lines that are not in") as refusal:
        run_batch(source, target, client, Quiet(), ordered=False)
    assert refusal.value.code == exit_codes.USAGE
    source.write_bytes(chat("a") + b"\n" + chat("b"))
    run_batch(source, target, client, Quiet(), ordered=False)
    assert [each["custom_id"] for each in written(target)] == ["a", "b"]


def test_files_that_exclude_each_other_are_refused(tmp_path):
    source = tmp_path / "in.jsonl"
    source.touch()
    for target, ordered, text in [
        (source, False, "both the input and the output"),
        (batch.STANDARD, True, "--ordered sorts the output file"),
        (tmp_path / "none" / "out", False, "its folder does not exist"),
        (tmp_path, False, "it is a folder"),
    ]:
        with pytest.raises(Failed, match=text):
            check_files(source, target, ordered=ordered)
    with pytest.raises(Failed, match=r"no\.jsonl is not a file"):
        check_files(tmp_path / "no.jsonl", tmp_path / "out", ordered=False)


@pytest.fixture
def client_of():
    """Clients of a URL; `pause` is called with the seconds of each pause."""
    made: list[LineClient] = []

    def make(url: str, pause=lambda seconds: None) -> LineClient:
        made.append(LineClient(ApiAddress(url), pause))
        return made[-1]

    yield make
    for client in made:
        client.close()


def the_line(raw: bytes) -> Line:
    (line,) = read_lines(io.BytesIO(raw))
    return line


def test_an_answer_is_recorded_with_its_status_and_id(server, client_of):
    client = client_of(server.url)
    assert client.slots() == 4
    result = client.ask(the_line(chat("a")))
    assert result.succeeded and result.response is not None
    assert result.response.request_id.startswith("req_")
    assert json.loads(bytes(result.response.body))["choices"][0]["message"]["content"] == "Hello, world!"
    refused = client.ask(the_line(chat("b", max_tokens=-1)))
    assert refused.response is not None and refused.response.status_code == 400 and not refused.succeeded


def test_overload_is_waited_for_as_long_as_the_server_says(server, client_of):
    server.engine.capacity, server.engine.retry_after = 0, 7.0
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        server.engine.capacity = 1 if len(pauses) == 3 else 0

    assert client_of(server.url, pause).ask(the_line(chat("a"))).succeeded
    assert pauses == [7.0] * 3


def test_what_does_not_end_is_recorded(server, client_of):
    """The last answer, once there have been enough of them."""
    server.engine.capacity = 0
    pauses: list[float] = []
    result = client_of(server.url, pauses.append).ask(the_line(chat("a")))
    assert result.response is not None and result.response.status_code == 503
    assert len(pauses) == ATTEMPTS - 1


def test_a_lost_connection_is_tried_again_and_then_recorded(client_of):
    """Pauses double up to a minute."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connections = []

        def hang_up() -> None:
            for _ in range(ATTEMPTS):
                connection, _ = listener.accept()
                connection.recv(65536)
                connection.close()
                connections.append(1)

        thread = threading.Thread(target=hang_up)
        thread.start()
        pauses: list[float] = []
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        result = client_of(url, pauses.append).ask(the_line(chat("a")))
        thread.join(10)
    assert (
        result.error is not None and result.error.code == "connection_lost" and len(connections) == ATTEMPTS
    )
    for attempt, seconds in enumerate(pauses):
        assert min(0.5 * 2**attempt, 60) / 2 <= seconds <= min(0.5 * 2**attempt, 60)


@pytest.mark.parametrize("given", ["soon", "-1", "1.5", "", "Wed, 21 Oct 2026 07:28:00 GMT"])
def test_a_retry_after_that_is_not_in_seconds_is_ignored(given):
    assert 0.25 <= line_client._pause(1, given) <= 0.5


def distaff_batch(*words: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "distaff.server.command.cli", "batch", *words]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_ctrl_c_ends_it_at_once_and_the_next_run_continues(server, tmp_path):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(b"\n".join(chat(f"id {number}") for number in range(12)))
    server.engine.delay = 0.05
    words = ("-i", str(source), "-o", str(target), "--url", server.url)
    process = distaff_batch(*words, "--concurrency", "2")
    deadline = time.monotonic() + patient(20)
    while not target.exists() or target.read_bytes().count(b"\n") < 3:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=patient(10))
    assert process.returncode == 130, errors
    done = {each["custom_id"] for each in written(target)}
    assert f"{12 - len(done)} lines are left: start the same command again" in errors.decode()
    while server.engine.running:  # the requests in progress are ended
        assert time.monotonic() < deadline
        time.sleep(0.02)
    server.engine.delay, server.engine.requests = 0.0, []
    process = distaff_batch(*words, "--ordered")
    process.communicate(timeout=patient(20))
    assert process.returncode == 0
    assert [each["custom_id"] for each in written(target)] == [f"id {number}" for number in range(12)]
    assert len(server.engine.requests) == 12 - len(done)


def test_it_works_in_a_pipe_and_says_what_failed(server):
    process = distaff_batch("-i", "-", "-o", "-", "--url", server.url)
    out, errors = process.communicate(chat("a") + b"\n{\n" + chat("b", "refuse me"), timeout=patient(20))
    assert process.returncode == 1
    found = {each["custom_id"]: each for each in map(json.loads, out.splitlines())}
    assert found["a"]["response"]["status_code"] == 200
    assert found["b"]["response"]["status_code"] == 400
    assert found[None]["error"]["code"] == "invalid_json_line"
    assert "1 lines succeeded, 2 failed" in errors.decode()


def test_a_server_that_loads_its_model_is_waited_for(server, http):
    """However often it says so: no line is sent before its models are listed."""
    server.engine.state = "loading"
    process = distaff_batch("-i", "-", "-o", "-", "--url", server.url)
    assert process.stdin is not None and process.stderr is not None
    process.stdin.write(chat("a"))
    process.stdin.close()
    process.stdin = None
    assert b"not ready" in next(line for line in process.stderr if b"waiting for" in line)
    time.sleep(2.5)
    assert process.poll() is None and server.engine.requests == []
    server.engine.state = "ready"
    out, errors = process.communicate(timeout=patient(20))
    assert process.returncode == 0, errors
    assert json.loads(out)["response"]["status_code"] == 200


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("--url", "http://127.0.0.1:9", "--model", "m"), 2, "--url excludes --model and FLAGS"),
        (("--url", "http://127.0.0.1:9"), 69, "no answer from http://127.0.0.1:9"),
        (("--url", "here"), 2, "'here' is not a URL"),
        (("--model", "./no-such-model"), 66, "./no-such-model"),
    ],
)
def test_a_mistake_is_one_line_and_a_code(tmp_path, words, code, text):
    source = tmp_path / "in.jsonl"
    source.write_bytes(chat("a"))
    process = distaff_batch("-i", str(source), "-o", str(tmp_path / "out.jsonl"), *words)
    _, errors = process.communicate(timeout=patient(10))
    assert process.returncode == code
    assert text in errors.decode().splitlines()[-1]


def test_a_file_of_something_else_is_not_touched(tmp_path):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(chat("a"))
    target.write_bytes(chat("b"))
    process = distaff_batch("-i", str(source), "-o", str(target), "--url", "http://127.0.0.1:9")
    _, errors = process.communicate(timeout=patient(10))
    assert process.returncode == 74 and b"is not the result of a line of a batch" in errors
    assert target.read_bytes() == chat("b")
