"""What docs/serving.md promises of a running server, on the real model."""

import asyncio
import json
import signal
import time
from pathlib import Path

import httpx
import psutil
import pytest

from distaff.server.text.rendering import PROCESSES

from .conftest import SMALL, Server, running

pytestmark = pytest.mark.serial


def _body(number: int, **options) -> dict:
    content = f"Tell me {number} facts about the number {number}."
    body = {"model": "tgi", "messages": [{"role": "user", "content": content}], "temperature": 0}
    return body | {"ignore_eos": True} | options


async def _text(client: httpx.AsyncClient, body: dict) -> str:
    reply = await client.post("/v1/chat/completions", json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()["choices"][0]["message"]["content"]


async def _streamed(client: httpx.AsyncClient, body: dict, begun: asyncio.Event) -> str:
    """A streamed answer's text; sets `begun` when there is some of it."""
    text, finish = "", None
    async with client.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as reply:
        assert reply.status_code == 200, await reply.aread()
        async for line in reply.aiter_lines():
            if line.startswith("data: {"):
                (choice,) = json.loads(line.removeprefix("data: "))["choices"]
                text += choice["delta"].get("content") or ""
                finish = choice["finish_reason"] or finish
            if text:
                begun.set()
    assert finish == "length"
    return text


def _wait_idle(server: Server) -> None:
    limit = time.monotonic() + 5
    while server.metric("distaff_engine_running") or server.metric("distaff_engine_waiting"):
        assert time.monotonic() < limit, "requests are still running"
        time.sleep(0.05)


async def test_crowds_answer_like_lone_requests_and_leave_nothing_behind(server: Server) -> None:
    """Sixty-four streams of different lengths, every third cut off: the rest complete, every page is back,
    and nothing was compiled for it."""
    async with httpx.AsyncClient(base_url=server.url, timeout=300) as client:
        asks = {number: _body(number, max_tokens=4 + number % 13) for number in range(64)}

        async def cut_off(body: dict) -> None:
            async with client.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as reply:
                async for _ in reply.aiter_lines():
                    return

        together = await asyncio.gather(
            *(cut_off(body) if n % 3 == 0 else _text(client, body) for n, body in asks.items())
        )
        alone = [await _text(client, asks[n]) for n in (1, 20, 40, 61)]
    assert [together[n] for n in (1, 20, 40, 61)] == alone
    _wait_idle(server)
    assert server.metric("distaff_engine_free_pages") == server.metric("distaff_engine_total_pages")
    assert server.metric("distaff_engine_compilations") == 0


async def test_a_newcomer_joins_while_others_decode(server: Server) -> None:
    """A short request is answered long before a long one that came first."""
    async with httpx.AsyncClient(base_url=server.url, timeout=300) as client:
        long = asyncio.create_task(_text(client, _body(1, max_tokens=400)))
        await asyncio.sleep(0.5)
        await _text(client, _body(2, max_tokens=4))
        assert not long.done()
        long.cancel()
    _wait_idle(server)


async def test_a_killed_engine_ends_no_stream(server: Server) -> None:
    """kill -9: 503 from /ready until the next engine serves; all answers are those of an undisturbed run."""
    asks = [_body(number, max_tokens=120) for number in (3, 4)]
    asks.append(_body(5, max_tokens=120, temperature=0.8, seed=7, frequency_penalty=0.5))
    async with httpx.AsyncClient(base_url=server.url, timeout=300) as client:
        undisturbed = await asyncio.gather(*(_text(client, body) for body in asks))
        unstreamed = asyncio.create_task(_text(client, asks[2]))
        streams = [asyncio.create_task(_streamed(client, body, asyncio.Event())) for body in asks[:1]]
        begun = asyncio.Event()
        streams.append(asyncio.create_task(_streamed(client, asks[1], begun)))
        await begun.wait()
        server.engine().send_signal(signal.SIGKILL)
        while (await client.get("/ready")).status_code == 200:
            await asyncio.sleep(0.01)
        assert (await client.get("/health")).status_code == 200
        assert not any(stream.done() for stream in streams)
        assert [*await asyncio.gather(*streams), await unstreamed] == undisturbed
    server.wait_ready()


def test_an_engine_on_processors_leaves_them_to_the_web_process(server: Server) -> None:
    engine = server.engine()
    assert engine.nice() == min(psutil.Process(engine.ppid()).nice() + 10, 19)
    group = Path(f"/proc/{engine.pid}/autogroup")
    assert not group.exists() or group.read_text().endswith("nice 10\n")


def test_sigterm_lets_running_streams_end() -> None:
    """A stream that runs when SIGTERM comes is completed; the exit code is 0 and no child is left."""
    with running(*SMALL) as server:
        server.wait_ready()
        engine = server.engine()
        with httpx.stream(
            "POST", f"{server.url}/v1/chat/completions", json=_body(4, max_tokens=40, stream=True), timeout=60
        ) as reply:
            lines = reply.iter_lines()
            next(line for line in lines if '"content"' in line)
            server.process.send_signal(signal.SIGTERM)
            rest = list(lines)
        assert "data: [DONE]" in rest
        assert any('"finish_reason":"length"' in line for line in rest)
        assert server.process.wait(timeout=30) == 0
        assert not engine.is_running()


def test_a_ready_server_has_its_renderers(server: Server) -> None:
    """More than one, because a slow conversation must not block all others."""
    children = psutil.Process(server.process.pid).children()
    (parent,) = (child for child in children if "distaff.server.text.renderer_parent" in child.cmdline())
    assert len(parent.children()) == PROCESSES
