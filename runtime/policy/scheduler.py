"""Who runs in the next step: continuous batching over a bounded number of slots and pages. No JAX, no clock.

A sequence needs its tokens' keys and values computed up to the last one, and then a sample; that is all there
is to it. Whoever lacks exactly one token is a decode row; whoever lacks more gets a chunk of the step's
budget. So a running request, a fresh prompt, a half-done prompt and a preempted request being recomputed
are one case. Decode rows go first, chunks fill the rest, the oldest first.

The scheduler runs ahead of the device: when it plans step n+1, the tokens sampled in step n are not known
yet. They are counted in `Sequence.pending`, and the row's input is the device's own copy of its last sample.
A sequence that turns out to have ended in step n has one wasted row in step n+1, whose result is dropped.

When pages run out, the client that holds most of them gives some up: its youngest sequence is recomputed
later. Clients that hold few are seated first. What is given up can be found again, as can what others have
computed, while no one else needs the place (`prefix.py`).

Nobody starves: the oldest of those that run is never preempted, so it advances and ends. The oldest request
of all, while it waits, is overtaken by other clients only, and only while its own client holds pages. Those
that hold them end; then it is seated next, and from then on is the oldest of those that run.

A step in which all decode, and no prompt is scored, may hold drafts beside (`drafts.py`), if no sample is
outstanding: what follows depends on how many are right, so the next step is planned after this one has been
read.
"""

import logging
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import replace

from .drafts import allocate_drafts
from .pages import PagePool
from .prefix import PrefixCache
from .sequence import Plan, Row, Sequence, SequenceFault
from .step_times import StepTimes

log = logging.getLogger(__name__)


class Scheduler:
    """Slots, pages and the order of those who wait for them."""

    def __init__(
        self,
        *,
        slots: int,
        pages: PagePool,
        page_size: int,
        budget: int,
        share: bool = True,
        speculate: bool = True,
    ) -> None:
        """Empty.

        Args:
          budget: the most tokens of one step; at least one per slot.
          share: whether sequences share the pages of what they begin with.
          speculate: whether drafts are made.
        """
        assert budget >= slots, f"a budget of {budget} tokens cannot feed {slots} slots"
        self.pages = pages
        self.page_size = page_size
        self.budget = budget
        self.step_times = StepTimes()
        self._prefix = PrefixCache(pages, page_size, enabled=share)
        self._speculate = speculate
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
            self._release_pages(sequence)
        else:
            self._release_slot(sequence)

    def discard(self, sequence: Sequence) -> None:
        """Takes a sequence out at which something went wrong: nobody finds what is in its pages."""
        for page in sequence.pages:
            self.pages.retract(page)
        sequence.computed = 0
        self.finish(sequence)

    def plan(self) -> Plan | None:
        """Decides the next step and reserves its pages; None when there is nothing to compute.

        Chunks are dealt out one prompt after the other, so at most one prompt is ever half computed, and
        prompts cannot hold all pages against each other. If that one finds no page while nobody decodes, the
        others await their last samples, and their pages come back with them.

        Raises:
          SequenceFault: a sequence cannot be planned. The others are as `revoke` leaves them.
        """
        rows: list[Row] = []
        try:
            self._add_decode_rows(rows)
            prefilling, decoding = self._prefilling(), len(rows)
            most = self.step_times.most_tokens(decoding, len(prefilling)) or self.budget
            self._add_chunks(rows, prefilling, min(self.budget, most) - decoding)
            tiled = len(rows) > decoding or any(row.scored for row in rows)
            drafted = rows if tiled else self._with_drafts(rows)
        except SequenceFault:
            self.revoke(rows)
            raise
        return Plan(drafted) if drafted else None

    def revoke(self, rows: Iterable[Row]) -> None:
        """Takes back rows that are not dispatched: their sequences wait again, as if preempted.

        The pages that they would have filled are not found any more; who has found one in the same plan is
        among the rows, and gives it back.
        """
        for row in rows:
            sequence, full = row.sequence, (row.start + row.count) // self.page_size
            for page in sequence.pages[row.start // self.page_size : full]:
                self.pages.retract(page)
            sequence.pending -= row.samples
        for row in rows:
            self._requeue(row.sequence)

    @property
    def should_read_first(self) -> bool:
        """Whether the samples under way had better be seen before the next step is planned: drafts pay.

        Raises:
          SequenceFault: guesses at what a sequence says next fail.
        """
        if not self._speculate or self._prefilling():
            return False
        running = [s for s in self.running if s.missing == 1]
        return any(self._choose_drafts(running, [_draft(s) for s in running]))

    def _with_drafts(self, rows: list[Row]) -> list[Row]:
        """The rows, with drafts behind those whose tokens are all known but for the sample of this row."""
        if not self._speculate:
            return rows
        sequences = [row.sequence for row in rows]
        drafts = self._choose_drafts(sequences, [_draft(s) if s.pending == 1 else () for s in sequences])
        return [self._add_drafts(row, guesses) for row, guesses in zip(rows, drafts, strict=True)]

    def _choose_drafts(
        self, sequences: list[Sequence], drafts: list[tuple[int, ...]]
    ) -> list[tuple[int, ...]]:
        """As many of each one's drafts as a step of all of them shall hold."""
        offers = [(s.drafter.chance, len(guesses)) for s, guesses in zip(sequences, drafts, strict=True)]
        counts = allocate_drafts(
            offers, self.step_times.sizes("decode"), lambda size: self.step_times.seconds("decode", size)
        )
        return [guesses[:count] for guesses, count in zip(drafts, counts, strict=True)]

    def _add_drafts(self, row: Row, drafts: tuple[int, ...]) -> Row:
        """The row with these drafts, if there are any, and pages for them."""
        try:
            if not drafts or not self._reserve(row.sequence, len(drafts)):
                return row
        except Exception as error:
            raise SequenceFault(row.sequence) from error
        row.sequence.computed += len(drafts)
        return replace(row, count=1 + len(drafts), drafts=drafts)

    def _add_decode_rows(self, rows: list[Row]) -> None:
        """One row for each sequence that lacks one token.

        All have their pages before the first has its row, so a row is never taken from one that is preempted.
        """
        for sequence in self._with_pages():
            try:
                rows.append(self._make_row(sequence, 1))
            except Exception as error:
                raise SequenceFault(sequence) from error

    def _with_pages(self) -> list[Sequence]:
        """Those that lack one token and have the page for it, the oldest first; others make room for them."""
        ready = [s for s in self.running if s.missing == 1 and s.length < s.limit]
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
        """The sequence's next tokens, at most so many; None where there are no pages for them."""
        if sequence.slot is None:
            self._prefix.reuse_pages(sequence)
        count = min(sequence.missing, budget)
        if not self._reserve(sequence, count):
            if sequence.slot is None:
                self._release_pages(sequence)
            return None
        if sequence.slot is None:
            self._assign_slot(sequence)
        return self._make_row(sequence, count)

    def _prefilling(self) -> list[Sequence]:
        """Those that need more than a decode row, as far as there are slots: seated ones first, then those of
        clients that hold few pages, then the oldest."""
        seated = [s for s in self.running if s.missing > 1]
        if not self.waiting:
            return seated
        held = self._pages_held()
        ready = sorted((s for s in self.waiting if not s.pending), key=lambda s: held[s.request.client])
        return seated + ready[: len(self._free_slots)]

    def _pages_held(self) -> Counter[str]:
        """How many pages each client holds; shared ones count for every sequence."""
        held: Counter[str] = Counter()
        for sequence in self.running:
            held[sequence.request.client] += len(sequence.pages)
        return held

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

    def _preempt(self) -> None:
        """Sends back the youngest sequence of the client that holds most pages, but never the oldest one."""
        held = self._pages_held()
        _, *others = sorted(self.running, key=lambda s: s.arrival)
        self._requeue(max(others, key=lambda s: (held[s.request.client], s.arrival)))
        self.preemptions += 1

    def _requeue(self, sequence: Sequence) -> None:
        """Has a running sequence wait again, in the order of arrival."""
        self._release_slot(sequence)
        self.waiting.insert(sum(s.arrival < sequence.arrival for s in self.waiting), sequence)

    def _assign_slot(self, sequence: Sequence) -> None:
        self.waiting.remove(sequence)
        sequence.slot = self._free_slots.pop()
        sequence.new_slot = True
        sequence.cached = sequence.computed if sequence.cached is None else sequence.cached
        self.running.append(sequence)

    def _release_slot(self, sequence: Sequence) -> None:
        assert sequence.slot is not None
        self.running.remove(sequence)
        self._free_slots.append(sequence.slot)
        sequence.slot = None
        try:
            self._prefix.publish(sequence)
        except Exception:  # it may be somebody else's turn that this sequence is sent back for
            log.exception("what request %r has computed will not be found again", sequence.request.id)
        self._release_pages(sequence)

    def _release_pages(self, sequence: Sequence) -> None:
        self.pages.release(sequence.pages)
        sequence.pages, sequence.computed, sequence.published = [], 0, 0

    def _make_row(self, sequence: Sequence, count: int) -> Row:
        assert sequence.slot is not None
        start, samples = sequence.computed, count == sequence.missing
        first, sequence.new_slot = sequence.new_slot, False
        sequence.computed += count
        sequence.pending += samples
        self._prefix.publish(sequence)
        return Row(sequence, sequence.slot, start, count, samples, first)


def _draft(sequence: Sequence) -> tuple[int, ...]:
    """Guesses at what follows the known tokens, where there may be any."""
    try:
        most = sequence.limit - len(sequence.tokens) - 1 if sequence.draftable else 0
        return sequence.drafter.propose(sequence.tokens, most)
    except Exception as error:
        raise SequenceFault(sequence) from error
