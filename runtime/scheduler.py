"""Who runs in the next step: continuous batching over a bounded number of slots and pages. No JAX, no clock.

A sequence needs its tokens' keys and values computed up to the last one, and then a sample; that is all there
is to it. Whoever lacks exactly one token is a decode row; whoever lacks more gets a chunk of the step's
budget. So a running request, a fresh prompt, a half-done prompt and a preempted request being recomputed
are one case. Decode rows go first, chunks fill the rest, the oldest first.

The scheduler runs ahead of the device: when it plans step n+1, the tokens sampled in step n are not known
yet. They are counted in `Sequence.pending`, and the row's input is the device's own copy of its last sample.
A sequence that turns out to have ended in step n has one wasted row in step n+1, whose result is dropped.

When pages run out, the youngest sequence gives all of its up and is recomputed later, so the oldest always
advances and nobody starves.
"""

from collections import deque
from dataclasses import dataclass, field

from .pages import PagePool
from .request import Request


@dataclass(eq=False, slots=True)
class Sequence:
    """One request on its way through the engine.

    Attributes:
      limit: the most tokens it may reach, prompt included.
      tokens: the prompt and every generated token that the host has seen.
      computed: how many of its tokens have their keys and values computed by steps dispatched so far.
      pending: samples dispatched but not yet seen; the newest of them is the input that follows `tokens`.
      pages: its pages, in order. slot: its row of the device's state, None while it waits.
    """

    request: Request
    seed: int
    limit: int
    arrival: int
    tokens: list[int] = field(default_factory=list)
    computed: int = 0
    pending: int = 0
    pages: list[int] = field(default_factory=list)
    slot: int | None = None
    finished: bool = False

    @property
    def length(self) -> int:
        """Tokens including those sampled but not yet seen."""
        return len(self.tokens) + self.pending

    @property
    def missing(self) -> int:
        """Tokens that must still be computed before the next sample."""
        return self.length - self.computed


@dataclass(frozen=True, slots=True)
class Row:
    """A sequence's share of one step: `count` tokens from position `start`; does it end in a sample?"""

    sequence: Sequence
    slot: int
    start: int
    count: int
    samples: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """The host's decision for one step."""

    rows: list[Row]

    @property
    def tokens(self) -> int:
        """Tokens in the step, padding not counted."""
        return sum(row.count for row in self.rows)

    @property
    def is_decode(self) -> bool:
        """Every row has exactly one token and ends in a sample."""
        return all(row.count == 1 and row.samples for row in self.rows)


class Scheduler:
    """Slots, pages and the order of those who wait for them."""

    def __init__(self, *, slots: int, pages: PagePool, page_size: int, budget: int) -> None:
        """`budget` is the most tokens of one step; at least one per slot."""
        assert budget >= slots, f"a budget of {budget} tokens cannot feed {slots} slots"
        self.pages = pages
        self.page_size = page_size
        self.budget = budget
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.preemptions = 0
        self._free_slots = list(range(slots - 1, -1, -1))

    def add(self, sequence: Sequence) -> None:
        """Queues a new sequence behind those that wait."""
        self.waiting.append(sequence)

    def finish(self, sequence: Sequence) -> None:
        """Takes a sequence out, wherever it is, and gives its slot and pages back. Idempotent."""
        if sequence.finished:
            return
        sequence.finished = True
        if sequence.slot is None:
            self.waiting.remove(sequence)
        else:
            self._give_back(sequence)

    def plan(self) -> Plan | None:
        """Decides the next step and reserves its pages; None when there is nothing to compute.

        Chunks are dealt out one prompt after the other, so at most one prompt is ever half computed, and
        prompts cannot hold all pages against each other. If that one finds no page while nobody decodes, the
        others await their last samples, and their pages come back with them.
        """
        rows = self._decode_rows()
        rows += self._chunks(self.budget - len(rows))
        return Plan(rows) if rows else None

    def _decode_rows(self) -> list[Row]:
        """One row for each sequence that lacks one token, the oldest first.

        In that order a row is never taken from a sequence that a later one then preempts.
        """
        rows: list[Row] = []
        for sequence in sorted(self.running, key=lambda s: s.arrival):
            if sequence.slot is None or sequence.missing != 1 or sequence.length >= sequence.limit:
                continue
            if self._reserve_by_force(sequence):
                rows.append(self._take(sequence, 1))
        return rows

    def _chunks(self, budget: int) -> list[Row]:
        rows: list[Row] = []
        for sequence in self._lacking():
            count = min(sequence.missing, budget)
            if count == 0 or not self._reserve(sequence, count):
                break
            if sequence.slot is None:
                self._seat(sequence)
            rows.append(self._take(sequence, count))
            budget -= count
        return rows

    def _lacking(self) -> list[Sequence]:
        """Those that need more than a decode row, seated ones first, as far as there are slots."""
        seated = [s for s in self.running if s.missing > 1]
        ready = [s for s in self.waiting if not s.pending]
        return seated + ready[: len(self._free_slots)]

    def _needed(self, sequence: Sequence, count: int) -> int:
        """Pages that the sequence lacks for its next `count` tokens."""
        return -(-(sequence.computed + count) // self.page_size) - len(sequence.pages)

    def _reserve(self, sequence: Sequence, count: int) -> bool:
        """Gives the sequence pages for its next `count` tokens if that many are free.

        A newcomer must leave one page for each running sequence, so that it does not evict one at once.
        """
        needed = self._needed(sequence, count)
        headroom = 0 if sequence.slot is not None else len(self.running)
        if self.pages.available < needed + headroom:
            return False
        for _ in range(needed):
            page = self.pages.allocate()
            assert page is not None
            sequence.pages.append(page)
        return True

    def _reserve_by_force(self, sequence: Sequence) -> bool:
        """Gives a running sequence the page for its next token, preempting the youngest until there is one.

        False when the sequence itself was the youngest.
        """
        while not self._reserve(sequence, 1):
            if self._preempt_youngest() is sequence:
                return False
        return True

    def _preempt_youngest(self) -> Sequence:
        victim = max(self.running, key=lambda s: s.arrival)
        self._give_back(victim)
        victim.computed = 0
        self.waiting.insert(sum(s.arrival < victim.arrival for s in self.waiting), victim)
        self.preemptions += 1
        return victim

    def _seat(self, sequence: Sequence) -> None:
        self.waiting.remove(sequence)
        sequence.slot = self._free_slots.pop()
        self.running.append(sequence)

    def _give_back(self, sequence: Sequence) -> None:
        assert sequence.slot is not None
        self.running.remove(sequence)
        self._free_slots.append(sequence.slot)
        sequence.slot = None
        self.pages.release(sequence.pages)
        sequence.pages = []

    def _take(self, sequence: Sequence, count: int) -> Row:
        assert sequence.slot is not None
        start, samples = sequence.computed, count == sequence.missing
        sequence.computed += count
        sequence.pending += samples
        return Row(sequence, sequence.slot, start, count, samples)
