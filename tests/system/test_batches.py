"""Batches of the bundled model: beside a chat, over a kill of the whole server, and by the command."""

import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import psutil
import pytest
from openai import OpenAI

from ..patience import patient
from .conftest import DISTAFF, SMALL, Server, running

pytestmark = pytest.mark.serial
LINES = 24


def line(number: int, tokens: int = 24) -> dict:
    messages = [{"role": "user", "content": f"What is special about the number {number}?"}]
    body = {"model": "tgi", "messages": messages, "max_tokens": tokens, "min_tokens": tokens}
    return {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body}


def written(lines: list[dict]) -> bytes:
    return "\n".join(map(json.dumps, lines)).encode()


def client_of(server: Server) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1/", api_key="-", max_retries=0, _strict_response_validation=True)


def texts(results: bytes) -> dict[str, str]:
    """The text for each custom id; every result is one."""
    found = [json.loads(raw) for raw in results.splitlines()]
    assert len({each["custom_id"] for each in found}) == len(found)
    return {each["custom_id"]: each["response"]["body"]["choices"][0]["message"]["content"] for each in found}


def test_a_batch_survives_a_kill_and_delays_no_chat(tmp_path: Path):
    """Lines that had a result before the kill keep it; a chat begins at once beside any number of lines."""
    folder = tmp_path / "batches"
    with running(*SMALL, "--batches", str(folder)) as server, client_of(server) as client:
        server.wait_ready()
        source = client.files.create(
            file=("in.jsonl", written([line(n) for n in range(LINES)])), purpose="batch"
        )
        batch = client.batches.create(
            input_file_id=source.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        results = folder / "batches" / f"{batch.id}.jsonl"
        deadline = time.monotonic() + patient(60)
        while not results.exists() or results.read_bytes().count(b"\n") < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        threads = [threading.Thread(target=chat, args=(client,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert server.labelled("distaff_sequences_moved_total", "preempted") > 0
        for process in (psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children()):
            process.send_signal(signal.SIGKILL)
        server.process.wait(10)
        kept = texts(results.read_bytes())
    assert 3 <= len(kept) < LINES
    with running(*SMALL, "--batches", str(folder)) as server, client_of(server) as client:
        server.wait_ready()
        deadline = time.monotonic() + patient(120)
        while (found := client.batches.retrieve(batch.id)).status != "completed":
            assert time.monotonic() < deadline, found
            time.sleep(0.1)
        assert found.output_file_id and found.error_file_id is None
        whole = texts(client.files.content(found.output_file_id).content)
        assert server.labelled("distaff_batch_lines_total", "completed") == LINES - len(kept)
    assert whole.keys() == {str(n) for n in range(LINES)} and all(whole.values())
    assert {name: whole[name] for name in kept} == kept


def chat(client: OpenAI) -> None:
    reply = client.chat.completions.create(
        model="tgi", messages=[{"role": "user", "content": "Hello!"}], max_tokens=8
    )
    assert reply.choices[0].message.content


def test_the_command_answers_a_file_with_a_server_of_its_own(tmp_path: Path):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(written([line(n) for n in range(6)]))
    command = [str(DISTAFF), "batch", "-i", str(source), "-o", str(target), "--ordered", "--", *SMALL]
    done = subprocess.run(command, capture_output=True, text=True, timeout=patient(200), env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    assert list(texts(target.read_bytes())) == [str(n) for n in range(6)]
    assert "6 lines succeeded, 0 failed" in done.stderr
