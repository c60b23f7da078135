"""The cost of HTTP, text and grammars: `python -m benchmarks.overhead`.

Three figures. The web process's CPU seconds per 1,000 tokens at 32 streams, and its share of all. Tokens per
second of 8 streams with a JSON schema, relative to those of 8 free ones, in turns. And requests per second
that the web process sustains at 64 streams with a fake engine, relative to those of a plain Sanic route that
sends as many events.
"""

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import httpx
import psutil
from sanic import HTTPResponse, Request, Sanic

from distaff.server.app import RUN_OPTIONS, create_app
from distaff.server.settings import ServerSettings
from distaff.server.testing import FakeEngine, FakeText
from distaff.server.text.text_model import ServedModel

from .server import Contender, await_all_steps, distaff, running

TURNS = 3
EVENTS = 64
"""Tokens per answer in the last figure."""
_SCHEMA = {"type": "array", "items": {"type": "object", "properties": {"name": {"type": "string"}}}}
_ENDLESS = {**_SCHEMA, "minItems": 1000}


def _load(url: str, streams: int, each: int, body: Callable[[int], dict]) -> tuple[float, int]:
    """Seconds and tokens of `streams` streams, each with `each` consecutive requests."""

    async def one(client: httpx.AsyncClient, number: int) -> int:
        async with client.stream("POST", "/v1/chat/completions", json=body(number)) as reply:
            assert reply.status_code == 200, await reply.aread()
            return sum([line.startswith('data: {"id"') async for line in reply.aiter_lines()]) - 2

    async def worker(client: httpx.AsyncClient, number: int) -> int:
        return sum([await one(client, number * each + n) for n in range(each)])

    async def run() -> tuple[float, int]:
        limits = httpx.Limits(max_connections=streams, max_keepalive_connections=streams)
        async with httpx.AsyncClient(base_url=url, limits=limits, timeout=300) as client:
            begun = time.monotonic()
            tokens = await asyncio.gather(*(worker(client, n) for n in range(streams)))
            return time.monotonic() - begun, sum(tokens)

    return asyncio.run(run())


def _ask(number: int, tokens: int, **more: object) -> dict:
    text = f"Request {number}: list people and what they do, as JSON."
    messages = [{"role": "user", "content": text}]
    return {
        "model": "tgi",
        "messages": messages,
        "max_tokens": tokens,
        "stream": True,
        "temperature": 0,
    } | more


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def of_the_real_model() -> None:
    """The first two figures."""
    with running(distaff("--no-speculation")) as served:
        await_all_steps(served)
        web = served.process
        (engine,) = [each for each in web.children() if "distaff.server.worker.main" in each.cmdline()]
        before, other = _seconds(web), _seconds(engine)
        _, tokens = _load(served.url, 32, 3, lambda n: _ask(n, 64, ignore_eos=True))
        cost, rest = _seconds(web) - before, _seconds(engine) - other
        print(f"web process: {1000 * cost / tokens:.2f} CPU s for 1,000 tokens at 32 streams,")
        print(f"  {100 * cost / (cost + rest):.1f} % of all ({tokens} tokens)", flush=True)
        ratios = []
        for _ in range(TURNS):
            held, free = _pace(served.url, {"guided_json": _ENDLESS}), _pace(served.url, {"ignore_eos": True})
            ratios.append(held / free)
            print(f"8 streams: with a schema {held:.1f}, free {free:.1f} tokens/s: {held / free:.3f}")
        print(f"median of the ratios: {statistics.median(ratios):.3f}", flush=True)


def _pace(url: str, more: dict) -> float:
    seconds, tokens = _load(url, 8, 2, lambda n: _ask(n, 96, **more))
    return tokens / seconds


def of_the_web_process_alone() -> None:
    """The last figure."""
    paces = {}
    for kind in ("distaff", "bare"):
        contender = Contender(partial(_command, kind), "/health")
        with running(contender) as served:
            runs = [_load(served.url, 64, 8, lambda n: _ask(n, EVENTS))[0] for _ in range(TURNS)]
        paces[kind] = 64 * 8 / min(runs)
        print(f"{kind}: {paces[kind]:.0f} requests/s of {EVENTS} tokens at 64 streams", flush=True)
    print(f"ratio: {paces['distaff'] / paces['bare']:.2f}")


def _command(kind: str, port: int) -> list[str]:
    return [sys.executable, "-m", "benchmarks.overhead", "--serve", kind, "--port", str(port)]


def serve(kind: str, port: int) -> None:
    """Serves fake answers with our app, or with a route that only sends events."""
    if kind == "distaff":
        engine = FakeEngine("x" * EVENTS)
        engine.capacity = 1000
        app = create_app(ServerSettings(model="fake"), engine, ServedModel(FakeText()))
        app.run("127.0.0.1", port, **RUN_OPTIONS)
    bare = Sanic("bare", configure_logging=False)
    bare.add_route(_healthy, "/health")
    bare.add_route(_events, "/v1/chat/completions", methods=["POST"])
    bare.run("127.0.0.1", port, single_process=True, motd=False, access_log=False)


async def _healthy(request: Request) -> HTTPResponse:
    return HTTPResponse("ok")


async def _events(request: Request) -> None:
    response = HTTPResponse(content_type="text/event-stream")
    await request.respond(response)
    for number in range(EVENTS + 2):
        chunk = {"id": "x", "object": "chat.completion.chunk", "n": number, "choices": [{"delta": "x"}]}
        await response.send(f"data: {json.dumps(chunk, separators=(',', ':'))}\n\n")
        await asyncio.sleep(0)  # like a token of the fake engine: after other tasks have run
    await response.send(b"", end_stream=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", choices=("distaff", "bare"))
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve, arguments.port)
    else:
        of_the_real_model()
        of_the_web_process_alone()
