"""vLLM's and SGLang's routers, unmodified, in front of servers of a tiny model; as docs/routers.md has it."""

import asyncio
import contextlib
import json
import random
import re
import signal
import string
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ..checkpoints.making import save_random_folder
from ..programs import PYTHON_PROGRAMS, ROOT, environment
from .conftest import Server, free_port, running

pytestmark = pytest.mark.clients
BIN = PYTHON_PROGRAMS / "routers" / "bin"
ROUTERS = {"vllm-router": [BIN / "vllm-router"], "sglang-router": [BIN / "sglang-router", "launch"]}
FLAGS = ("--cb-failure-threshold", "2", "--health-check-interval-secs", "5")
PAGE = 16
STREAMS = 8
LONG = 400
"""Tokens of an answer, so that it is running when its server ends."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_folder(tmp_path_factory.mktemp("model") / "tiny", max_position_embeddings=4096)


def test_the_flags_are_those_of_the_page() -> None:
    page = (ROOT / "docs" / "routers.md").read_text()
    assert page.count(f"\n  {' '.join(FLAGS)}\n") == len(ROUTERS)
    for name in ROUTERS:
        assert f"`{name}` {version(name)}" in page


@contextlib.contextmanager
def serving(model: Path) -> Iterator[Server]:
    """A server that has no copies of pages in host memory, and is ready by the list of its models.

    It logs warnings only: nobody reads its pipe before it ends, and a line for each request would fill it.
    """
    flags = ("--slots", "16", "--kv-tokens", "32768", "--host-kv-tokens", "0", "--log-level", "warning")
    with running(str(model), *flags) as server:
        server.wait_ready(path="/v1/models")
        yield server


@pytest.fixture(scope="module")
def pair(model: Path) -> Iterator[list[Server]]:
    with serving(model) as one, serving(model) as other:
        yield [one, other]


@contextlib.contextmanager
def routed(name: str, folder: Path, servers: list[Server]) -> Iterator[str]:
    """The address of a router in front of these servers."""
    port = free_port()
    command = [
        *ROUTERS[name],
        *FLAGS,
        "--host",
        "127.0.0.1",
        "--port",
        port,
        "--prometheus-port",
        free_port(),
    ]
    command += ["--worker-urls", *(server.url for server in servers)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            list(map(str, command)), env=environment(folder), cwd=folder, stdout=log, stderr=log
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for_workers(url, len(servers), process)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def wait_for_workers(url: str, number: int, process: subprocess.Popen | None = None) -> None:
    """Waits until the router has this many healthy servers."""
    limit = time.monotonic() + 60
    while True:
        with contextlib.suppress(httpx.TransportError, ValueError, KeyError):
            workers = httpx.get(f"{url}/workers").json()["workers"]
            if sum(worker["is_healthy"] for worker in workers) == number:
                return
        assert process is None or process.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.1)


def figure(server: Server, name: str) -> int:
    found = re.search(rf"^vllm:{name}{{.*}} (\S+)$", httpx.get(f"{server.url}/metrics").text, re.MULTILINE)
    assert found, name
    return int(float(found[1]))


def version(name: str) -> str:
    """The version that is installed."""
    (lock,) = re.findall(
        rf"^{name}==(\S+)$", (ROOT / "tests/clients/python/routers.in").read_text(), re.MULTILINE
    )
    return lock


def words(count: int) -> str:
    """Words that no other prompt has."""
    return " ".join("".join(random.choices(string.ascii_lowercase, k=6)) for _ in range(count))


def said(text: str, role: str = "user") -> dict[str, str]:
    return {"role": role, "content": text}


def body(messages: list[dict[str, str]], max_tokens: int, **options: Any) -> dict[str, Any]:
    return {
        "model": "tgi",
        "messages": messages,
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "temperature": 0,
        **options,
    }


async def ask(client: httpx.AsyncClient, messages: list[dict[str, str]], max_tokens: int) -> dict[str, Any]:
    reply = await client.post("/v1/chat/completions", json=body(messages, max_tokens))
    assert reply.status_code == 200, reply.text
    return reply.json()["usage"]


@pytest.mark.parametrize("name", ROUTERS)
async def test_each_turn_goes_to_the_server_that_has_the_conversation(
    name: str, pair: list[Server], tmp_path: Path
) -> None:
    """Six conversations begin at once, so both servers have some; all later turns find what was computed."""
    talks = [[said(words(60))] for _ in range(6)]
    before = [figure(server, "prompt_tokens_total") for server in pair]
    with routed(name, tmp_path, pair) as url:
        async with httpx.AsyncClient(base_url=url, timeout=240) as client:
            told = await asyncio.gather(*(ask(client, talk, 60) for talk in talks))
            homes = [figure(server, "prompt_tokens_total") for server in pair]
            assert all(after > was for after, was in zip(homes, before, strict=True))
            prompts = [usage["prompt_tokens"] for usage in told]
            for _ in range(2):
                for place, talk in enumerate(talks):
                    talk += [said("It is so.", "assistant"), said(words(8))]
                    usage = await ask(client, talk, 2)
                    # All but the opening of the answer, which the next turn does not begin with.
                    found = usage["prompt_tokens_details"]["cached_tokens"]
                    assert found >= prompts[place] - 2 * PAGE, (place, usage)
                    prompts[place] = usage["prompt_tokens"]
            listed = (await client.get("/v1/models")).json()["data"][0]["id"]
            assert listed == httpx.get(f"{pair[0].url}/v1/models").json()["data"][0]["id"]


class Load:
    """Clients of a router, and what they saw: whole answers by status, and how many streams broke off."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.statuses: list[int] = []
        self.begun = self.broken = 0
        self._client = client

    async def stream(self, max_tokens: int) -> None:
        asked = body([said(words(20))], max_tokens, stream=True)
        last, begun = "", False
        with contextlib.suppress(httpx.RemoteProtocolError):
            async with self._client.stream("POST", "/v1/chat/completions", json=asked) as reply:
                assert reply.status_code == 200
                async for line in reply.aiter_lines():
                    last = line or last
                    self.begun += not begun and line.startswith("data:")
                    begun = begun or line.startswith("data:")
                    assert not line.startswith("data: {") or "error" not in json.loads(line[6:])
        self.broken += last != "data: [DONE]"

    async def ask_on(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            asked = body([said(words(20))], 20)
            self.statuses.append((await self._client.post("/v1/chat/completions", json=asked)).status_code)


async def until(condition: Any, seconds: float = 120) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "drained"])
@pytest.mark.parametrize("name", ROUTERS)
async def test_one_server_ends_under_load_and_one_is_added(
    name: str, end: signal.Signals, model: Path, pair: list[Server], tmp_path: Path
) -> None:
    """Whole answers are asked for again from the other server. Streams of a killed server break off; one that
    drains ends them. A server that is added gets its share."""
    first, added = pair
    with serving(model) as ending, routed(name, tmp_path, [first, ending]) as url:
        async with httpx.AsyncClient(base_url=url, timeout=240, limits=httpx.Limits()) as client:
            load = Load(client)
            stop = asyncio.Event()
            others = [asyncio.create_task(load.ask_on(stop)) for _ in range(4)]
            await until(lambda: len(load.statuses) > 4)
            streams = [asyncio.create_task(load.stream(LONG)) for _ in range(STREAMS)]
            await until(lambda: load.begun == STREAMS)
            ending.process.send_signal(end)
            await asyncio.gather(*streams)
            broken, answered = load.broken, len(load.statuses)
            assert broken == 0 if end == signal.SIGTERM else 0 < broken < STREAMS
            await until(lambda: len(load.statuses) > answered + 8)
            await asyncio.gather(*(load.stream(20) for _ in range(STREAMS)))
            stop.set()
            await asyncio.gather(*others)
            assert load.broken == broken and set(load.statuses) == {200}
            before = figure(added, "prompt_tokens_total")
            assert (await client.post("/workers", json={"url": added.url})).is_success
            await asyncio.to_thread(until_listed, url, added.url)
            await asyncio.gather(*(load.stream(200) for _ in range(STREAMS)))
            assert load.broken == broken and figure(added, "prompt_tokens_total") > before


def until_listed(url: str, worker: str) -> None:
    """Waits until the router has this server, and it is healthy."""
    limit = time.monotonic() + 30
    while not any(
        each["url"] == worker and each["is_healthy"] for each in httpx.get(f"{url}/workers").json()["workers"]
    ):
        assert time.monotonic() < limit
        time.sleep(0.1)
