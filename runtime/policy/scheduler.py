"""Decides what runs in the next step: continuous batching over limited slots and pages. No JAX, no clock.

A sequence needs the keys and values of all its tokens, and then a sample. A sequence that lacks exactly one
token is a decode row; one that lacks more gets a chunk of the step's budget. So a running request, a new
prompt, a half-computed prompt and a preempted request are one case. Decode rows go first; chunks fill the
rest, the oldest sequence first.

The scheduler runs ahead of the device: when it plans step n+1, the tokens sampled in step n are not known
yet. `Sequence.pending` counts them, and the row's input is the device's own copy of its last sample. If a
sequence has ended in step n, its row in step n+1 is wasted and the result is dropped.

When pages run out, the worst rank loses some, and of it the client that holds the most pages: its youngest
sequence is recomputed later. Better ranks receive slots first, then clients with few pages. Released pages
can be found again, like all cached pages, until they are evicted (`prefix.py`).

Within a rank no request starves. Requests are ordered by arrival, also one that is added late because its
grammar was compiled. The oldest running sequence of a rank is preempted last, and only by better ranks: in
the best rank it is never preempted, so it advances and ends. While the oldest request of a rank waits, only
requests of other clients can overtake it in its rank, and only while its own client holds pages. Those
sequences end; then it receives the next slot and is the oldest running sequence.

A step with decode rows only, and without scored prompts, can also hold drafts (`drafts.py`) if no sample is
outstanding. How many drafts are right decides what comes next, so the next step is planned after this step
has been read.
"""

import logging
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import replace

from .adapters import AdapterPlaces
from .clients import ActiveClients
from .first_tokens import can_pause, make_room
from .host_pages import HostPages
from .pages import PagePool
from .prefix import PrefixCache
from .sequence import Plan, Row, Sequence, SequenceFault
from .speculation import choose_drafts, propose_drafts
from .step_times import FLOODED_PATIENCE, PATIENCE, StepTimes

log = logging.getLogger(__name__)


class Scheduler:
    """Assigns slots and pages to sequences, and orders those that wait."""

    def __init__(
        self,
        *,
        slots: int,
        pages: PagePool,
        page_size: int,
        budget: int,
        share: bool = True,
        speculate: bool = True,
        host: HostPages | None = None,
        adapters: int = 0,
    ) -> None:
        """Starts without sequences.

        Args:
          budget: the maximum number of tokens in a step; at least one per slot.
          share: whether sequences share the pages of equal beginnings.
          speculate: whether there are drafts.
          host: keeps copies of shared pages; None without. adapters: the most on the device.
        """
        assert budget >= slots, f"a budget of {budget} tokens cannot feed {slots} slots"
        self.pages, self.page_size, self.budget = pages, page_size, budget
        self.step_times = StepTimes()
        self.clients = ActiveClients()
        self.prefix = PrefixCache(pages, page_size, enabled=share, host=host)
        self._speculate = speculate
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.preemptions = 0
        self.adapters = AdapterPlaces(adapters)
        self._pausing: list[Sequence] = []
        self._free_slots = list(range(slots - 1, -1, -1))

    def add(self, sequence: Sequence) -> None:
        """Queues a sequence, behind the waiting ones that arrived before it."""
        position = len(self.waiting)
        while position and self.waiting[position - 1].arrival > sequence.arrival:
            position -= 1
        self.waiting.insert(position, sequence)

    def finish(self, sequence: Sequence) -> None:
        """Removes a sequence and releases its slot and pages. Idempotent."""
        if sequence.finished:
            return
        sequence.finished = True
        if sequence.slot is None:
            self.waiting.remove(sequence)
            self._release_pages(sequence)
        else:
            self._release_slot(sequence)

    def discard(self, sequence: Sequence) -> None:
        """Removes a sequence after an error; nobody finds its pages."""
        for page in sequence.pages:
            self.pages.retract(page)
        sequence.computed = 0
        self.finish(sequence)

    def plan(self) -> Plan | None:
        """Decides the next step and reserves its pages; None if there is nothing to compute.

        Chunks go to one prompt after the other. So at most one prompt is half computed, and prompts cannot
        block each other by holding pages. If that prompt gets no page while no sequence decodes, the others
        wait for their last samples, and their pages become free after that.

        Raises:
          SequenceFault: a sequence cannot be planned. The others are in the state that `revoke` leaves.
        """
        rows: list[Row] = []
        try:
            size = self._make_room()
            self._add_decode_rows(rows)
            prefilling, decoding = self._prefilling(), len(rows)
            urgent = self.clients.count_urgent(prefilling, (row.sequence for row in rows))
            patience = PATIENCE if urgent or not self._is_flooded(prefilling) else FLOODED_PATIENCE
            most = max(size, self.step_times.most_tokens(decoding, urgent, patience) or self.budget)
            self._add_chunks(rows, prefilling, min(self.budget, most) - decoding)
            tiled = len(rows) > decoding or any(row.scored for row in rows)
            drafted = rows if tiled else self._with_drafts(rows)
        except SequenceFault:
            self.revoke(rows)
            raise
        if not drafted:
            return None
        copies, loads = self.prefix.take_copies(), self.adapters.take_loads()
        return Plan(drafted, copies, self._holding(drafted), loads)

    def _is_flooded(self, prefilling: list[Sequence]) -> bool:
        """Whether one of several active clients has more than half of the slots."""
        if not prefilling or not self.clients.several(self.running):
            return False
        owners = Counter(sequence.request.client for sequence in self.running)
        slots = len(self.running) + len(self._free_slots)
        return 2 * max(owners.values(), default=0) > slots

    def _make_room(self) -> int:
        """Decides which sequences pause in this step for another client's prompt; returns the size of the
        step that this needs, 0 if none. Sequences that have paused do not pause again in the next step."""
        self._pausing, paused = [], bool(self._pausing)
        if paused or not (prefilling := self._prefilling()):
            return 0
        prompt = prefilling[0]
        try:
            size, pausing = self._room_for(prompt)
        except Exception as error:
            raise SequenceFault(prompt) from error
        finally:
            if prompt.slot is None:
                self._release_pages(prompt)
        self._pausing = pausing
        return size

    def _room_for(self, prompt: Sequence) -> tuple[int, list[Sequence]]:
        """The size of a step for all of the prompt that is not cached, and the sequences that pause for it; 0
        and none if it is not preferred or there are too few pages. The prompt can keep the cached pages."""
        decoding = [each for each in self.running if each.missing == 1 and each.length < each.limit]
        theirs = can_pause(prompt, decoding)
        if not theirs or self.pages.available < self._headroom(prompt):
            return 0, []
        if prompt.slot is None:
            self.prefix.reuse_pages(prompt)
        size, pausing = make_room(prompt.missing, len(decoding), theirs, self.step_times)
        needed = sum(self._needed(each, 1) for each in decoding if each not in pausing)
        needed += self._needed(prompt, prompt.missing) + self._headroom(prompt)
        return (size, pausing) if needed <= self.pages.available else (0, [])

    def _holding(self, rows: list[Row]) -> list[tuple[Sequence, int]]:
        """The sequences of the rows, then the others that hold pages during the step, each with the number
        of its pages. One that ends with the step in flight holds none any more."""
        held = [(row.sequence, len(row.sequence.pages)) for row in rows]
        if len(held) < len(self.running):
            moving = {row.sequence.slot for row in rows}
            idle = [each for each in self.running if each.slot not in moving and each.length < each.limit]
            held += [(each, len(each.pages)) for each in idle]
        return held

    def revoke(self, rows: Iterable[Row]) -> None:
        """Cancels rows that are not dispatched: their sequences wait again, as after a preemption.

        Nobody finds the pages that they would have filled. A sequence that has found one in the same plan is
        among the rows, and releases it.
        """
        for row in rows:
            sequence, full = row.sequence, (row.start + row.count) // self.page_size
            for page in sequence.pages[row.start // self.page_size : full]:
                self.pages.retract(page)
            sequence.pending -= row.samples
        for row in rows:
            self._requeue(row.sequence)

    def should_read_first(self, kind: str, tokens: int) -> bool:
        """Whether to read the step in flight, of this kind and size, before the next one is planned.

        That pays if there are drafts. It is fair if the step is long and there are several clients: a request
        that arrives meanwhile is then in the next step.

        Raises:
          SequenceFault: the drafts of a sequence cannot be computed.
        """
        if self.clients.should_await(self.step_times.seconds(kind, tokens) or 0.0, self.running):
            return True
        if not self._speculate or self._prefilling():
            return False
        running = [s for s in self.running if s.missing == 1]
        return any(choose_drafts(self.step_times, running, [propose_drafts(s) for s in running]))

    def _with_drafts(self, rows: list[Row]) -> list[Row]:
        """The rows, with drafts added where all tokens are known except this row's sample."""
        if not self._speculate:
            return rows
        sequences = [row.sequence for row in rows]
        proposed = [propose_drafts(s) if s.pending == 1 else () for s in sequences]
        chosen = choose_drafts(self.step_times, sequences, proposed)
        return [self._add_drafts(row, drafts) for row, drafts in zip(rows, chosen, strict=True)]

    def _add_drafts(self, row: Row, drafts: tuple[int, ...]) -> Row:
        """The row with these drafts, if there are any and pages for them."""
        try:
            if not drafts or not self._reserve(row.sequence, len(drafts)):
                return row
        except Exception as error:
            raise SequenceFault(row.sequence) from error
        row.sequence.computed += len(drafts)
        return replace(row, count=1 + len(drafts), drafts=drafts)

    def _add_decode_rows(self, rows: list[Row]) -> None:
        """Adds a row for each sequence that lacks one token.

        All get their pages before the first row is made, so no sequence with a row is preempted.
        """
        for sequence in self._with_pages():
            try:
                rows.append(self._make_row(sequence, 1))
            except Exception as error:
                raise SequenceFault(sequence) from error

    def _with_pages(self) -> list[Sequence]:
        """Sequences that lack one token, do not pause and have a page for it, oldest first; preempts others
        if needed."""
        ready = [s for s in self.running if s.missing == 1 and s.length < s.limit and s not in self._pausing]
        ready.sort(key=lambda s: s.arrival)
        for sequence in ready:
            try:
                while sequence.slot is not None and not self._reserve(sequence, 1):
                    self._preempt()
            except Exception as error:
                raise SequenceFault(sequence) from error
        return [s for s in ready if s.slot is not None]

    def _add_chunks(self, rows: list[Row], prefilling: list[Sequence], budget: int) -> None:
        for sequence in prefilling:
            if budget <= 0:
                break
            try:
                row = self._chunk(sequence, budget)
            except Exception as error:
                raise SequenceFault(sequence) from error
            if row is None:
                break
            rows.append(row)
            budget -= row.count

    def _chunk(self, sequence: Sequence, budget: int) -> Row | None:
        """A row of the sequence's next tokens, at most `budget`; None if there are no pages for them."""
        if sequence.slot is None:
            self.prefix.reuse_pages(sequence)
        count = min(sequence.missing, budget)
        if not self._reserve(sequence, count):
            if sequence.slot is None:
                self._release_pages(sequence)
            return None
        if sequence.slot is None:
            self._assign_slot(sequence)
        return self._make_row(sequence, count)

    def _prefilling(self) -> list[Sequence]:
        """Sequences that lack more than one token, as far as there are slots and places for their adapters:
        those with a slot, then by rank, then by the pages of their client, then by age."""
        running = [s for s in self.running if s.missing > 1]
        if not self.waiting:
            return running
        held = self._pages_held()
        ready = sorted(
            (s for s in self.waiting if not s.pending),
            key=lambda s: (s.request.rank, held[s.request.client]),
        )
        admitted = self.adapters.admit(sequence.adapter for sequence in ready)
        ready = [sequence for sequence, can_begin in zip(ready, admitted, strict=True) if can_begin]
        return running + ready[: len(self._free_slots)]

    def _pages_held(self) -> Counter[str]:
        """The number of pages of each client; a shared page counts for every sequence."""
        held: Counter[str] = Counter()
        for sequence in self.running:
            held[sequence.request.client] += len(sequence.pages)
        return held

    def _needed(self, sequence: Sequence, count: int) -> int:
        """The number of pages that the sequence lacks for its next `count` tokens."""
        return -(-(sequence.computed + count) // self.page_size) - len(sequence.pages)

    def _headroom(self, sequence: Sequence) -> int:
        """The number of pages that it must leave free: without a slot one for each running sequence, so that
        it does not cause a preemption at once."""
        return 0 if sequence.slot is not None else len(self.running)

    def _reserve(self, sequence: Sequence, count: int) -> bool:
        """Gives the sequence pages for its next `count` tokens; False if not enough are free."""
        needed = self._needed(sequence, count)
        if self.pages.available < needed + self._headroom(sequence):
            return False
        for _ in range(needed):
            page = self.pages.allocate()
            assert page is not None
            sequence.pages.append(page)
        return True

    def _preempt(self) -> None:
        """Requeues the youngest sequence of the client with the most pages, in the worst rank that runs; the
        oldest of that rank only if it is the last one."""
        held, worst = self._pages_held(), max(s.request.rank for s in self.running)
        running = sorted((s for s in self.running if s.request.rank == worst), key=lambda s: s.arrival)
        self._requeue(max(running[1:] or running, key=lambda s: (held[s.request.client], s.arrival)))
        self.preemptions += 1

    def _requeue(self, sequence: Sequence) -> None:
        """Makes a running sequence wait again."""
        self._release_slot(sequence)
        self.add(sequence)

    def _assign_slot(self, sequence: Sequence) -> None:
        self.waiting.remove(sequence)
        sequence.slot = self._free_slots.pop()
        sequence.new_slot = True
        if sequence.adapter is not None:
            sequence.place = self.adapters.take(sequence.adapter)
        sequence.cached = sequence.computed if sequence.cached is None else sequence.cached
        self.running.append(sequence)

    def _release_slot(self, sequence: Sequence) -> None:
        assert sequence.slot is not None
        self.running.remove(sequence)
        self._free_slots.append(sequence.slot)
        sequence.slot = None
        if sequence.adapter is not None:
            self.adapters.release(sequence.adapter)
            sequence.place = -1
        try:
            self.prefix.publish(sequence)
        except Exception:  # it must not fail the sequence that needs these pages
            log.exception("the pages of request %r cannot be published", sequence.request.id)
        self._release_pages(sequence)

    def _release_pages(self, sequence: Sequence) -> None:
        keep_seconds = sequence.request.keep_seconds if sequence.finished else 0.0
        self.pages.release(sequence.pages, keep_seconds)
        sequence.pages, sequence.computed, sequence.published = [], 0, 0

    def _make_row(self, sequence: Sequence, count: int) -> Row:
        assert sequence.slot is not None
        start, samples = sequence.computed, count == sequence.missing
        first, sequence.new_slot = sequence.new_slot, False
        sequence.computed += count
        sequence.pending += samples
        self.prefix.publish(sequence)
        return Row(sequence, sequence.slot, start, count, samples, first)
