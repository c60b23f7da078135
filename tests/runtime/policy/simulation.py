"""The engine's loop and scheduler over a device made of dictionaries, without arrays or threads.

The device writes token ids where the engine would write keys and values, and "samples" a hash of the history
that it reads back through the sequence's pages. So a page shared by mistake, a missing position, a position
computed twice with wrong tokens, or a row with another sequence's sample all give different tokens.
"""

import hashlib
import time
from collections.abc import Callable
from collections.abc import Sequence as List
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from distaff.runtime.device.readout import InFlightStep
from distaff.runtime.device.runner import Runner
from distaff.runtime.loop import Loop
from distaff.runtime.policy.host_pages import HostPages
from distaff.runtime.policy.output_processor import Sampled
from distaff.runtime.policy.pages import PagePool
from distaff.runtime.policy.scheduler import Scheduler
from distaff.runtime.policy.sequence import Copies, Plan, Row, Sequence
from distaff.runtime.request import Request, SamplingParams, TokenEvent

STOP = 0
"""The id that ends a sequence; the device draws it once in 16."""


def next_token(history: List[int]) -> int:
    """The simulated model's token after a history; it mostly depends on the last two tokens only."""
    seen = history if len(history) % 8 == 0 else history[-2:]
    return hashlib.sha256(bytes(seen)).digest()[0] % 16


def alone(prompt: List[int], limit: int) -> list[int]:
    """The tokens of a sequence on its own, without the end token."""
    history = list(prompt)
    while len(history) < limit and (token := next_token(history)) != STOP:
        history.append(token)
    return history


def make_sequence(
    name: int,
    prompt: List[int],
    max_tokens: int,
    client: str = "",
    priority: int = 0,
    background: bool = False,
) -> Sequence:
    """A sequence as the engine creates it; `name` is its place in the order of arrival."""
    params = SamplingParams(max_tokens=max_tokens, stop_ids=(STOP,))
    request = Request(
        id=str(name),
        prompt=tuple(prompt),
        params=params,
        client=client,
        priority=priority,
        background=background,
    )
    limit = len(prompt) + max_tokens
    return Sequence(request=request, seed=0, limit=limit, arrival=name, tokens=list(prompt))


class Device:
    """Cells of the cache by number, and each slot's newest sample."""

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self.cells: dict[int, int] = {}
        self.last: dict[int, int] = {}

    def cell(self, sequence: Sequence, position: int) -> int:
        page = sequence.pages[position // self.page_size]
        return page * self.page_size + position % self.page_size

    def step(self, plan: Plan) -> list[tuple[Row, Sampled]]:
        """Stores every row's tokens, then samples; as on a real device, the host has not read them yet."""
        for row in plan.rows:
            tokens = [*row.sequence.tokens[row.start : row.start + row.count], *row.drafts]
            tokens += [self.last.get(row.slot, -1)] * (row.count - len(tokens))
            for position, token in enumerate(tokens, start=row.start):
                self.cells[self.cell(row.sequence, position)] = token
        return [(row, self.sample(row)) for row in plan.rows if row.samples]

    def read_page(self, page: int) -> np.ndarray:
        """A page's cells, u8 `[page]`."""
        first = page * self.page_size
        return np.array([self.cells[first + n] for n in range(self.page_size)], np.uint8)

    def write_page(self, page: int, cells: np.ndarray) -> None:
        self.cells.update(enumerate(cells.tolist(), start=page * self.page_size))

    def sample(self, row: Row) -> Sampled:
        end = row.start + row.count
        history = [self.cells[self.cell(row.sequence, position)] for position in range(end)]
        sampled = [next_token(history[: end - n]) for n in range(len(row.drafts), -1, -1)]
        self.last[row.slot] = sampled[-1]
        return [(token, None) for token in sampled]


class SimulatedRunner:
    """A runner over such a device. No step is of a kind that was tried, so the step times never change.

    Attributes:
      awaited: the sequences with samples in flight when the newest step was launched.
      while_awaited: is called once, while a step is awaited.
    """

    has_compiled = False

    def __init__(self, page_size: int, host: HostPages | None = None) -> None:
        self.device = Device(page_size)
        self.host = host
        self.awaited: set[Sequence] = set()
        self.while_awaited: Callable[[], None] | None = None
        self._unread: list[Any] = []

    def launch(self, plan: Plan) -> InFlightStep:
        self.awaited = {row.sequence for step in self._unread for row, _ in step.sampled}
        bucket = SimpleNamespace(kind="simulated", tokens=plan.tokens)
        step = SimpleNamespace(plan=plan, bucket=bucket, launched=0.0, done=False)
        copies = plan.copies or Copies([], [])
        for page, cells in copies.restored:
            self.device.write_page(page, cells)
        step.sampled = self.device.step(plan)
        step.saved = [(content, self.device.read_page(page)) for page, content in copies.saved]
        self._unread.append(step)
        return cast(InFlightStep, step)

    def read(self, step: Any) -> list[tuple[Row, Any]]:
        self._unread.remove(step)
        if self.while_awaited:
            self.while_awaited()
            self.while_awaited = None
        return step.sampled

    def keep_copies(self, step: Any) -> None:
        for content, cells in step.saved:
            assert self.host and cells.tolist() == list(content.tokens)
        if step.saved and self.host:
            contents, cells = zip(*step.saved, strict=True)
            self.host.keep(contents, [np.stack(cells)])

    def sample_masked(self, step: InFlightStep) -> InFlightStep:
        return step


class SimulatedLoop:
    """The engine's loop, run by the test instead of a thread.

    With `drafts`, drafts cost no time; without, the times of steps are unknown, so there are none. With
    `mixed`, the times of steps with prompts are known, too, so that other clients make room for a prompt.

    Attributes:
      events: all events that were reported, in order.
      sequences: all that were submitted, in order; a sequence's id is its place here.
      aborted: those that were aborted before they ended.
    """

    def __init__(
        self,
        *,
        slots: int,
        pages: int,
        page_size: int,
        budget: int,
        share: bool = False,
        drafts: bool = False,
        mixed: bool = False,
        host: HostPages | None = None,
    ) -> None:
        self.slots, self.context = slots, pages * page_size
        self.pool = PagePool(pages)
        self.scheduler = Scheduler(
            slots=slots, pages=self.pool, page_size=page_size, budget=budget, share=share, host=host
        )
        if drafts:
            self.scheduler.step_times.record_trial("decode", budget, 1.0)
        for size in range(1, budget + 1) if mixed else ():
            self.scheduler.step_times.record_trial("mixed", size, 1.0 + size / budget)
            self.scheduler.step_times.record_trial("decode", size, 1.0)
        self.events: list[TokenEvent] = []
        self.sequences: list[Sequence] = []
        self.aborted: set[Sequence] = set()
        self._runner = SimulatedRunner(page_size, host)
        self._loop = Loop(cast(Runner, self._runner), self.scheduler, self.events.extend)
        self.outputs = self._loop.outputs
        self._in_flight: InFlightStep | None = None

    def submit(
        self,
        prompt: List[int],
        max_tokens: int,
        client: str = "",
        arrival: int | None = None,
        priority: int = 0,
        background: bool = False,
    ) -> Sequence:
        """Adds a sequence as the loop adds one from its inbox; `arrival` is by default its place here."""
        sequence = make_sequence(len(self.sequences), prompt, max_tokens, client, priority, background)
        sequence.submitted = time.monotonic()
        sequence.arrival = sequence.arrival if arrival is None else arrival
        self.sequences.append(sequence)
        self._loop._active_ids.add(sequence.request.id)
        self._loop._add(sequence)
        return sequence

    def during_step(self, action: Callable[[], Any]) -> None:
        """Lets the action arrive in the inbox while the step in flight is awaited."""
        self._runner.while_awaited = lambda: self._loop.enqueue(action)

    def abort(self, sequence: Sequence) -> None:
        if not sequence.finished:
            self.aborted.add(sequence)
        self._loop._abort(sequence.request.id)

    def run_once(self) -> Plan | None:
        """One iteration of the loop; returns what it planned. An idle loop waits for its inbox, so the inbox
        is never empty."""
        self._loop.enqueue(lambda: None)
        self._in_flight = self._loop._run_once(self._in_flight)
        return self._in_flight.plan if self._in_flight else None

    @property
    def awaited(self) -> set[Sequence]:
        """The sequences with samples in flight when the newest step was planned."""
        return self._runner.awaited

    @property
    def unfinished(self) -> list[Sequence]:
        return [sequence for sequence in self.sequences if not sequence.finished]

    def run(self, iterations: int) -> None:
        """Runs steps until all sequences have finished, at most `iterations` of them."""
        while self.unfinished and iterations:
            self.run_once()
            iterations -= 1
