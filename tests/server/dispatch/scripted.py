"""Engines without processes, for the dispatcher's laws: what they say can be computed by hand."""

import asyncio
import heapq
import itertools
from collections.abc import Callable

from distaff.runtime.request import EngineFailed, EngineStats, Request, SamplingParams, TokenEvent
from distaff.server.dispatch.admission import Admission
from distaff.server.dispatch.dispatcher import Dispatcher
from distaff.server.dispatch.engine_handle import EngineHandle
from distaff.server.dispatch.event_stream import BufferedStream
from distaff.server.dispatch.forecast import Steps
from distaff.server.engine_client import EngineInfo, EngineState

SLOTS = 3
INFO = EngineInfo(context=4096, vocabulary=1000, slots=SLOTS, fingerprint="0" * 10)
STEPS = Steps(decode=1.0, prompt=0.1)
POISON = 999
"""A prompt of this token is the death of its engine, at the position that its second token says."""


def token_at(request: Request, position: int) -> int:
    """What is said to a request as its `position`-th token: it differs from place to place."""
    return (request.prompt[0] * 7 + position * 13) % 900


class ScriptedEngine:
    """Computes a token of each of its requests with every `step`, in which it may die of one.

    It reports a device-second and three page-seconds for each token that it has computed of a request.
    """

    def __init__(self) -> None:
        self.state: EngineState = "restarting"
        self.info: EngineInfo | None = INFO
        self.rows: dict[str, tuple[Request, int]] = {}
        self.given: list[Request] = []
        self.free_pages = self.total_pages = 0
        self.ready_in = 5.0
        self.buckets_ready = 2

    @property
    def stats(self) -> EngineStats:
        return EngineStats(
            running=len(self.rows),
            free_pages=self.free_pages,
            total_pages=self.total_pages,
            decode_seconds=STEPS.decode,
            prompt_seconds=STEPS.prompt,
            buckets_ready=self.buckets_ready,
            buckets=2,
        )

    def send(self, request: Request) -> None:
        assert self.state == "ready" and request.id not in self.rows
        self.rows[request.id] = request, len(request.generated)
        self.given.append(request)
        assert len(self.rows) <= SLOTS

    def abort(self, request_id: str) -> None:
        self.rows.pop(request_id, None)

    def step(self) -> list[TokenEvent] | None:
        """The events of a step; None if the engine has died."""
        if any(request.prompt[0] == POISON and at >= request.prompt[1] for request, at in self.rows.values()):
            return None
        return [self._say(name) for name in list(self.rows)]

    def _say(self, name: str) -> TokenEvent:
        request, position = self.rows[name]
        assert request.params.max_tokens is not None
        last = position + 1 >= request.params.max_tokens
        self.rows[name] = request, position + 1
        if last:
            del self.rows[name]
        finish = "length" if last else None
        taken = position + 1 - len(request.generated)
        used = {"device_seconds": 1.0 * taken, "page_seconds": 3.0 * taken}
        return TokenEvent(request_id=name, token=token_at(request, position), finish=finish, **used)


class World:
    """A dispatcher over such engines, and a clock that stands still until it is moved."""

    def __init__(self, engines: int = 2, admission: Admission | None = None, most_pause: float = 1e9) -> None:
        self.now = 0.0
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self.engines = [ScriptedEngine() for _ in range(engines)]
        self.handles = [EngineHandle(number, engine) for number, engine in enumerate(self.engines)]
        self.dispatcher = Dispatcher(
            self.handles, admission or Admission(max_wait=1e9), lambda: self.now, self._later, most_pause
        )
        self.dispatcher._forecast.factor = 1.0  # a step takes what STEPS says
        self.streams: dict[str, BufferedStream] = {}

    def _later(self, seconds: float, work: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (self.now + seconds, next(self._numbers), work))

    def wait(self, seconds: float = 0.0) -> None:
        """Moves the clock on."""
        end = self.now + seconds
        while self._timers and self._timers[0][0] <= end:
            self.now, _, work = heapq.heappop(self._timers)
            work()
        self.now = end

    def begin(self, number: int) -> None:
        """An engine is ready."""
        self.engines[number].state = "ready"
        self.dispatcher.ready(self.handles[number], INFO)

    def kill(self, number: int, *, by_others: bool = False) -> None:
        """An engine dies, by somebody else's signal or of what it computes."""
        engine = self.engines[number]
        engine.state, engine.rows = "restarting", {}
        self.dispatcher.lose(self.handles[number], killed=by_others)

    def drain(self, number: int) -> None:
        self.engines[number].state = "draining"
        self.dispatcher.close(self.handles[number])

    def step(self, number: int) -> None:
        """A step of one engine, which may be its last."""
        events = self.engines[number].step()
        if events is None:
            self.kill(number)
        else:
            self.dispatcher.receive(self.handles[number], events)
        self.wait(1.0)

    def submit(self, *requests: Request) -> list[BufferedStream]:
        streams = self.dispatcher.submit(requests)
        self.streams |= {stream.request.id: stream for stream in streams}
        return streams

    def run(self, steps: int = 10_000) -> None:
        """Steps of all engines, each of them ready again as soon as it has died, until nothing is left."""
        for _ in range(steps):
            for number, engine in enumerate(self.engines):
                if engine.state != "ready":
                    self.begin(number)
                self.step(number)
            if not self.dispatcher.under_way:
                return
        raise AssertionError(f"{self.dispatcher.under_way} sequences have no end")


def request(
    name: str,
    tokens: int,
    client: str = "",
    prompt: tuple[int, ...] = (1, 2, 3),
    choice: int = 0,
    background: bool = False,
    priority: int = 0,
    weight: float = 1.0,
) -> Request:
    params = SamplingParams(max_tokens=tokens, seed=1, ignore_eos=True)
    return Request(
        id=name,
        prompt=prompt,
        params=params,
        client=client,
        choice=choice,
        background=background,
        priority=priority,
        weight=weight,
    )


def heard(stream: BufferedStream) -> tuple[list[int], str | EngineFailed]:
    """What an ended stream said: its tokens, and how it ended."""

    async def read() -> tuple[list[int], str | EngineFailed]:
        tokens: list[int] = []
        ends: list[str] = []
        try:
            async for event in stream:
                assert event.request_id == stream.request.id and not ends
                tokens += [] if event.token is None else [event.token]
                assert (event.device_seconds, event.page_seconds) == (len(tokens), 3 * len(tokens))
                ends += [event.finish] if event.finish else []
        except EngineFailed as failure:
            return tokens, failure
        return tokens, ends[0] if ends else "aborted"

    assert stream.ended
    return asyncio.run(read())
