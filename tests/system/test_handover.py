"""Real engine processes on a tiny model: what one had begun when it was killed, another continues."""

import asyncio
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from distaff.checkpoints.grammars.grammar import json_schema_grammar
from distaff.runtime.request import EngineStats, Request, SamplingParams, TokenEvent
from distaff.server.engine_client import EngineInfo
from distaff.server.engines import wire
from distaff.server.engines.engine_process import EngineProcess
from distaff.server.flags import ServeFlags

from ..checkpoints.making import make_model, save_folder

pytestmark = pytest.mark.serial
SCHEMA = {"type": "array", "items": {"type": "string"}, "minItems": 30}
KINDS: list[dict] = [
    {"temperature": 0.0},
    {"temperature": 1.0, "seed": 7, "logprobs": 2},
    {"temperature": 0.8, "seed": 8, "frequency_penalty": 0.5, "repetition_penalty": 1.1, "min_tokens": 50},
    {"temperature": 1.0, "seed": 9, "grammar": json_schema_grammar(SCHEMA)},
]


class Worker:
    """An engine process and what it has said."""

    def __init__(self) -> None:
        self.info: EngineInfo | None = None
        self.stats = EngineStats()
        self.fatal: str | None = None
        self.events: defaultdict[str, list[TokenEvent]] = defaultdict(list)
        self._news = asyncio.Event()

    async def start(self, flags: ServeFlags) -> None:
        command = [sys.executable, "-m", "distaff.server.worker.main", flags.to_argument()]
        self.child = await EngineProcess.spawn(command, self._receive)

    def _receive(self, frame: wire.ToWeb) -> None:
        match frame:
            case wire.Heartbeat(stats):
                self.stats = stats
            case wire.Ready(info):
                self.info = info
                assert 0 < self.stats.prompt_seconds <= self.stats.decode_seconds
            case wire.Step(events, _):
                for event in events:
                    self.events[event.request_id].append(event)
            case wire.Fatal(message, _):
                self.fatal = message
        self._news.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(120):
            while not condition():
                self._news.clear()
                await self._news.wait()
                assert self.fatal is None, self.fatal

    async def finish(self, request: Request) -> list[TokenEvent]:
        """All events of a request."""
        events = self.events[request.id]
        self.child.send(wire.Submit(request))
        await self.until(lambda: bool(events and events[-1].finish))
        return events


def said(events: list[TokenEvent]) -> list[tuple[object, ...]]:
    return [(event.token, event.logprobs, event.finish, event.end, event.error) for event in events]


async def test_what_a_killed_process_had_begun_another_continues(tmp_path: Path) -> None:
    """Greedy and drawn, with penalties and under a grammar: to the bit, as the engines are deterministic.
    They say how many pages they have and how long their steps take."""
    folder = save_folder(tmp_path, make_model(max_position_embeddings=512))
    flags = ServeFlags(model=str(folder), slots=4, context=512, kv_tokens=2048, deterministic=True)
    first, second = Worker(), Worker()
    try:
        await asyncio.gather(first.start(flags), second.start(flags))
        await asyncio.gather(*(worker.until(lambda w=worker: w.info) for worker in (first, second)))
        info = second.info
        assert info and info.page_size * info.pages >= 2048
        requests = [
            Request(id=f"{n}", prompt=tuple(range(5 + n, 40)), params=SamplingParams(max_tokens=400, **kind))
            for n, kind in enumerate(KINDS)
        ]
        for request in requests:
            first.child.send(wire.Submit(request))
        await first.until(lambda: all(len(first.events[request.id]) > 4 for request in requests))
        first.child.kill()
        cut = [request for request in requests if not first.events[request.id][-1].finish]
        assert cut, "all had ended before the process could be killed"
        for request in requests:
            whole, heard = await second.finish(request), first.events[request.id]
            if request in cut:
                generated = tuple(event.token for event in heard if event.token is not None)
                again = replace(request, id=f"{request.id} again", generated=generated)
                heard = heard + await second.finish(again)
            assert said(heard) == said(whole)
    finally:
        for worker in (first, second):
            worker.child.kill()
            await worker.child.reap()
