"""Two replicas of a tiny model, as an operator runs them; one of them is killed."""

import asyncio
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from ..checkpoints.making import make_model, save_folder
from .conftest import Server, running

pytestmark = pytest.mark.serial
LONG = 600
"""Tokens of an answer, so that it is running when an engine is killed."""


def _body(topic: str, **options) -> dict:
    """A prompt whose beginning, of several blocks, is the topic's own."""
    system = f"You know everything about {topic}. You never speak of anything but {topic}. " * 8
    messages = [{"role": "system", "content": system}, {"role": "user", "content": "Tell me something."}]
    return {"model": "tgi", "messages": messages, "temperature": 0, "ignore_eos": True} | options


async def _until(condition: Callable[[], bool], seconds: float) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        await asyncio.sleep(0.05)


def _counts(server: Server) -> list[float]:
    """Prompt tokens that each replica has processed, or found in its cache."""
    names = ("distaff_engine_prompt_tokens_total", "distaff_engine_cached_tokens_total")
    return [sum(server.metric(name, replica) for name in names) for replica in (0, 1)]


def _all_ready(server: Server) -> bool:
    return all(server.metric("distaff_engine_ready", replica) for replica in (0, 1))


async def _home(client: httpx.AsyncClient, server: Server, topic: str) -> int:
    """Asks once; the replica that worked for it."""
    before = _counts(server)
    reply = await client.post("/v1/chat/completions", json=_body(topic, max_tokens=2))
    assert reply.status_code == 200, reply.text
    prompt = reply.json()["usage"]["prompt_tokens"]
    gained = [after - was for after, was in zip(_counts(server), before, strict=True)]
    assert sorted(gained) == [0, prompt]
    return gained.index(prompt)


async def _stream(client: httpx.AsyncClient, body: dict, heard: list[str]) -> None:
    """Collects what a stream says, an error as its code."""
    async with client.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as reply:
        async for line in reply.aiter_lines():
            if line.startswith("data: {"):
                event = json.loads(line[6:])
                failed = event.get("error")
                heard.append(failed["code"] if failed else event["choices"][0]["delta"].get("content") or "")


async def test_beginnings_stick_to_replicas_and_a_killed_one_leaves_the_other_alone(tmp_path: Path) -> None:
    """Each of two long beginnings has its home; when the engine of one is killed, its stream goes on with the
    other, and both texts are those of an undisturbed run; meanwhile everybody is served, afterwards both
    serve again."""
    folder = save_folder(tmp_path / "tiny", make_model(max_position_embeddings=4096))
    with running(str(folder), "--replicas", "2", "--slots", "8", "--kv-tokens", "16384") as server:
        server.wait_ready()
        await _until(lambda: _all_ready(server), 180)
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            homes = [
                (await _home(client, server, "cats"), await _home(client, server, "dogs")) for _ in "abc"
            ]
            assert len(set(homes)) == 1 and set(homes[0]) == {0, 1}
            cats, dogs = homes[0]
            whole: list[str] = []
            moved: list[str] = []
            readers = [
                asyncio.create_task(_stream(client, _body("cats", max_tokens=LONG), whole)),
                asyncio.create_task(_stream(client, _body("dogs", max_tokens=LONG), moved)),
            ]
            await _until(lambda: min(len(whole), len(moved)) > 3, 20)
            server.engine(dogs).send_signal(signal.SIGKILL)
            await _until(lambda: not server.metric("distaff_engine_ready", dogs), 20)
            assert server.ready()
            await asyncio.gather(*readers)
            assert await _home(client, server, "dogs") == cats
            for topic, told in (("cats", whole), ("dogs", moved)):
                again: list[str] = []
                await _stream(client, _body(topic, max_tokens=LONG), again)
                assert "".join(told) == "".join(again) and "engine_error" not in told
            while not _all_ready(server):
                assert server.ready()
                await asyncio.sleep(0.2)
            assert {await _home(client, server, topic) for topic in ("birds", "fish")} == {0, 1}
