"""A flood beside a light key, in virtual time: `python -m benchmarks.trials.virtual_fairness`.

The real dispatcher, scheduler and loop over a device whose steps last as long as a formula says. So only
their decisions count, neither the web process nor other programs; `fairness.py` measures a whole server.
Steps with prompts last `start` and `token` for each token of their size, steps without `decode`.
"""

import argparse
import heapq
import itertools
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

from distaff.runtime import loop as engine_loop
from distaff.runtime.policy.pages import PagePool
from distaff.runtime.policy.scheduler import Scheduler
from distaff.runtime.policy.sequence import Plan, Sequence
from distaff.runtime.request import EngineStats, Request, SamplingParams, TokenEvent
from distaff.server.dispatch.admission import Admission
from distaff.server.dispatch.dispatcher import Dispatcher
from distaff.server.dispatch.engine_handle import EngineHandle
from distaff.server.engine_client import EngineInfo

from .trial import Table, percentile, spread

BOUND = 1.5
_SIZES = (16, 32, 64, 128, 256)
_PAGES, _PAGE_SIZE, _PROMPT, _MANY = 20_000, 16, 118, 100
_HOST_SECONDS = 0.0015
"""Of the engine's thread for each step."""


@dataclass(frozen=True, slots=True)
class Device:
    """How long steps last, in seconds."""

    slots: int
    decode: float
    start: float
    token: float

    def seconds(self, kind: str, size: int) -> float:
        return self.decode if kind == "decode" else self.start + self.token * size

    def bucket(self, plan: Plan) -> Any:
        """The kind and size of a plan's step."""
        if plan.is_decode:
            return SimpleNamespace(kind="decode", tokens=self.slots)
        return SimpleNamespace(kind="mixed", tokens=next(size for size in _SIZES if size >= plan.tokens))


class World:
    """A dispatcher over one engine, on a clock that moves with the device."""

    def __init__(self, device: Device) -> None:
        self.now = self.due = self._free = 0.0
        self._device, self._numbers = device, itertools.count()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._in_flight: Any = None
        self.has_compiled = False
        scheduler = Scheduler(
            slots=device.slots,
            pages=PagePool(_PAGES),
            page_size=_PAGE_SIZE,
            budget=_SIZES[-1],
            speculate=False,
        )
        scheduler.step_times.record_trial("decode", device.slots, device.decode)
        for size in _SIZES:
            scheduler.step_times.record_trial("mixed", size, device.seconds("mixed", size))
        # This world stands in for the runner, with what the loop uses of it.
        self.loop = engine_loop.Loop(self, scheduler, self._receive)  # type: ignore[arg-type]
        self.state, self.ready_in = "ready", 0.0
        self.info = EngineInfo(
            context=4096, vocabulary=1000, slots=device.slots, fingerprint="0", pages=_PAGES
        )
        self.stats = EngineStats(
            free_pages=_PAGES, total_pages=_PAGES, decode_seconds=device.decode, prompt_seconds=device.token
        )
        # And for the engine client, likewise.
        self._handle = EngineHandle(0, self)  # type: ignore[arg-type]
        self.dispatcher = Dispatcher(
            [self._handle], Admission(max_wait=1e9), lambda: self.now, self.later, 1e9
        )
        self.dispatcher.ready(self._handle, self.info)

    def later(self, seconds: float, work: Callable[[], None]) -> None:
        """Calls a function after some seconds."""
        heapq.heappush(self._timers, (self.now + seconds, next(self._numbers), work))

    def send(self, request: Request) -> None:
        """Called by the dispatcher."""
        sequence = Sequence(
            request=request,
            seed=0,
            limit=len(request.prompt) + (request.params.max_tokens or 0),
            arrival=next(self._numbers),
            tokens=[*request.prompt, *request.generated],
            submitted=self.now,
        )
        self.loop._active_ids.add(request.id)
        self.loop.enqueue(lambda: self.loop._add(sequence))

    def abort(self, request_id: str) -> None:
        """Called by the dispatcher."""
        self.loop.abort(request_id)

    def launch(self, plan: Plan) -> Any:
        """Called by the loop: the device begins the step when the one before has ended."""
        self.now += _HOST_SECONDS
        bucket = self._device.bucket(plan)
        seconds = self._device.seconds(bucket.kind, bucket.tokens) * random.uniform(0.95, 1.05)
        self._free = max(self.now, self._free) + seconds
        sampled = [(row, [(7, None)]) for row in plan.rows if row.samples]
        return SimpleNamespace(
            plan=plan, bucket=bucket, launched=self.now, done=False, end=self._free, sampled=sampled
        )

    def read(self, step: Any) -> Any:
        """Called by the loop: waits for the end of the step; what arrives meanwhile is in the inbox."""
        self.now = max(self.now, step.end)
        self._arrive()
        return step.sampled

    def keep_copies(self, step: Any) -> None:
        """Called by the loop."""

    def sample_masked(self, step: Any) -> Any:
        """Called by the loop."""
        return step

    def run(self, seconds: float) -> None:
        """Lets so much time pass."""
        end = self.now + seconds
        while self.now < end:
            self._arrive()
            self.loop.enqueue(lambda: None)
            self._in_flight = self.loop._run_once(self._in_flight)
            if self._in_flight is None:
                self.now = max(self.now, self._timers[0][0] if self._timers else end)

    def _receive(self, events: list[TokenEvent]) -> None:
        self.dispatcher.receive(self._handle, events)

    def _arrive(self) -> None:
        while self._timers and self._timers[0][0] <= self.now:
            self.due, _, work = heapq.heappop(self._timers)
            work()

    def ask(self, client: str, tokens: int, on_event: Callable[[TokenEvent], None]) -> None:
        """Submits a request with a fresh prompt; `on_event` is called with each of its events."""
        prompt = tuple(random.choices(range(2, 900), k=_PROMPT))
        params = SamplingParams(max_tokens=tokens, seed=1, ignore_eos=True)
        request = Request(id=f"{client}{next(self._numbers)}", prompt=prompt, params=params, client=client)
        (stream,) = self.dispatcher.submit([request])
        put = stream.put

        def pass_on(event: TokenEvent) -> None:
            on_event(event)
            put(event)

        # The stream of one sequence, watched without reading it.
        stream.put = pass_on  # type: ignore[method-assign]


def once_a_second(world: World, seconds: float) -> list[float]:
    """Key B's times to the first token."""
    found: list[float] = []

    def ask() -> None:
        begun, first = world.due, len(found)
        found.append(0.0)

        def on_event(event: TokenEvent) -> None:
            found[first] = found[first] or world.now - begun

        world.ask("B", 4, on_event)

    for second in range(round(seconds)):
        world.later(second + random.uniform(0.0, 0.5), ask)
    world.run(seconds + 5.0)
    return found


def flood(world: World) -> list[int]:
    """Starts key A's streams, each again when it ends; the list's length is the number of tokens so far."""
    tokens_of_a: list[int] = []

    def ask() -> None:
        def on_event(event: TokenEvent) -> None:
            tokens_of_a.append(1)
            if event.finish:
                world.later(0.0, ask)

        world.ask("A", 400, on_event)

    for _ in range(_MANY):
        world.later(0.0, ask)
    return tokens_of_a


def trial(device: Device, seconds: float) -> Table:
    """B alone, A alone, then both."""
    world = World(device)
    with mock.patch.object(engine_loop, "time", SimpleNamespace(monotonic=lambda: world.now)):
        alone = once_a_second(world, seconds)
        tokens = flood(world)
        world.run(20.0)  # until all slots are full
        before, begun = len(tokens), world.now
        world.run(seconds)
        pace_alone = (len(tokens) - before) / (world.now - begun)
        before, begun = len(tokens), world.now
        beside = once_a_second(world, seconds)
        pace_beside = (len(tokens) - before) / (world.now - begun)
    table = Table(f"fairness in virtual time, {device.slots} slots")
    table.note("B's time to first token, alone", spread(alone, "ms"))
    table.note("B's time to first token, beside A", spread(beside, "ms"))
    ratio = percentile(beside, 0.99) / percentile(alone, 0.99)
    table.bound("B's p99 beside A to alone", f"{ratio:.2f}", f"at most {BOUND:g}", ratio <= BOUND)
    table.note("A's tokens/s, alone; beside B", f"{pace_alone:.0f}; {pace_beside:.0f}")
    return table


def main() -> None:
    """Simulates and prints."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--slots", type=int, default=8)
    made.add_argument("--seconds", type=float, default=240.0, help="for each of alone and beside")
    made.add_argument("--decode", type=float, default=33.0, help="ms of a step in which all slots decode")
    made.add_argument("--start", type=float, default=20.0, help="ms of a step with prompts")
    made.add_argument("--token", type=float, default=0.65, help="ms for each token of its size")
    asked = made.parse_args()
    random.seed(1)
    milliseconds = (each / 1000 for each in (asked.decode, asked.start, asked.token))
    table = trial(Device(asked.slots, *milliseconds), asked.seconds)
    print("| trial | figure | measured | bound | |\n|---|---|---|---|---|")
    for row in table.rows:
        print(row)
    sys.exit(any(row.met is False for row in table.rows))


if __name__ == "__main__":
    main()
