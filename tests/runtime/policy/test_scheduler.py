"""Loop and scheduler on a simulated device: sequences are correct with any arrivals, ends and aborts."""

import itertools
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from distaff.runtime.policy.host_pages import HostPages
from distaff.runtime.policy.page_file import PageFile

from .simulation import SimulatedLoop, alone, make_sequence


def held_pages(loop: SimulatedLoop) -> list[int]:
    """The pages of all sequences; a page with two holders is listed twice."""
    return [page for sequence in loop.sequences for page in sequence.pages]


def test_a_preempted_sequence_waits_for_its_sample():
    """With a sample in flight it gets no slot in the same step, even if pages are free."""
    loop = SimulatedLoop(slots=2, pages=7, page_size=1, budget=3)
    loop.submit([4], 6), loop.submit([5] * 3, 4)
    older, younger = loop.sequences
    while not loop.scheduler.preemptions:
        plan = loop.run_once()
    assert [row.sequence for row in plan.rows] == [older] and loop.pool.available >= 3
    assert younger.tokens == alone([5] * 3, 7)[: len(younger.tokens)]


def test_a_sequence_that_is_added_late_has_its_place_in_the_order_of_arrival():
    loop = SimulatedLoop(slots=1, pages=8, page_size=1, budget=2)
    for arrival in (2, 0, 3, 1):
        loop.scheduler.add(make_sequence(arrival, [1, 2], 1))
    assert [s.arrival for s in loop.scheduler.waiting] == [0, 1, 2, 3]


def test_no_sequence_with_a_row_is_preempted():
    """A plan has no row of a sequence without pages, in any order of running sequences."""
    loop = SimulatedLoop(slots=2, pages=4, page_size=1, budget=4)
    loop.submit([1], 3), loop.submit([2], 3)
    loop.run(2)
    loop.scheduler.running.reverse()
    plan = loop.run_once()
    assert loop.scheduler.preemptions == 1 and [row.sequence.arrival for row in plan.rows] == [0]


def test_a_new_sequence_leaves_a_page_for_each_running_one():
    """A sequence that would be preempted in the next step gets no slot in this one."""
    loop = SimulatedLoop(slots=2, pages=4, page_size=1, budget=4)
    loop.submit([1], 3), loop.submit([2] * 2, 1)
    loop.run_once()
    assert [len(s.pages) for s in loop.sequences] == [1, 2]
    loop.submit([3], 2)
    loop.run(20)
    assert not loop.unfinished and loop.scheduler.preemptions == 0


def test_a_half_computed_prompt_waits_for_pages():
    """There is no preemption while the holder of the missing pages only waits for its last sample."""
    loop = SimulatedLoop(slots=2, pages=6, page_size=1, budget=4)
    loop.submit([1] * 3, 1), loop.submit([2] * 5, 1)
    loop.run(50)
    assert not loop.unfinished and loop.scheduler.preemptions == 0


def test_a_single_token_without_a_sample_is_no_decode_row():
    """A chunk of one token, because of the budget, must not be a decode row: it samples nothing."""
    loop = SimulatedLoop(slots=2, pages=8, page_size=1, budget=2)
    loop.submit([1], 4), loop.submit([2] * 3, 1)
    plan = loop.run_once()
    assert [(row.count, row.samples) for row in plan.rows] == [(1, True), (1, False)]
    assert not plan.is_decode


def test_decode_rows_come_before_prompts():
    """A long prompt never delays decoding sequences: they all have a row in every step."""
    loop = SimulatedLoop(slots=4, pages=40, page_size=4, budget=8)
    for name in range(3):
        loop.submit([1 + name], 12)
    loop.run_once()
    loop.submit([7] * 40, 4)
    decoding = [s for s in loop.sequences[:3] if s.length < s.limit]
    plan = loop.run_once()
    assert {row.sequence for row in plan.rows} == {*decoding, loop.sequences[3]}
    assert plan.rows[-1].count == 8 - len(decoding) and plan.tokens == 8


def test_a_budget_below_the_slots_is_refused():
    """Each running sequence must fit into a step."""
    with pytest.raises(AssertionError, match="a budget of 3 tokens cannot feed 4 slots"):
        SimulatedLoop(slots=4, pages=8, page_size=1, budget=3)


def test_pages_are_taken_from_the_client_that_holds_most():
    """Its youngest sequence is preempted, although others are younger; the oldest of all never is."""
    loop = SimulatedLoop(slots=4, pages=12, page_size=1, budget=16)
    for prompt, client in (([1, 2], "one"), ([2, 3, 4], "many"), ([3, 4, 5], "many"), ([4], "one")):
        loop.submit(prompt, 9, client)
    while not loop.scheduler.preemptions:
        loop.run_once()
    assert [s.arrival for s in loop.scheduler.waiting] == [2]
    loop = SimulatedLoop(slots=2, pages=8, page_size=1, budget=16)
    loop.submit([1, 2, 3], 5, "many"), loop.submit([2], 5, "one")
    while not loop.scheduler.preemptions:
        loop.run_once()
    assert [s.arrival for s in loop.scheduler.waiting] == [1]


def test_pages_are_taken_from_the_worst_rank():
    """Although others are younger and hold more, and although it is the oldest of all: if that one kept its
    pages, an old line of a batch would take those of interactive streams."""
    loop = SimulatedLoop(slots=4, pages=20, page_size=1, budget=16)
    for prompt, priority in (([1, 2], 9), ([2, 3, 4], 0), ([3, 4], 7), ([4, 5, 6], 0)):
        loop.submit(prompt, 9, str(priority), priority=priority)
        loop.run_once()
    while not loop.scheduler.preemptions:
        loop.run_once()
    assert [s.arrival for s in loop.scheduler.waiting] == [0]
    loop.submit([7], 2, "late", priority=-1)
    while len(loop.sequences[4].tokens) == 1:
        loop.run_once()
    assert loop.sequences[0] in loop.scheduler.waiting
    while not loop.sequences[1].finished:
        loop.run_once()
        assert loop.sequences[1] not in loop.scheduler.waiting


def test_the_oldest_of_a_rank_is_preempted_last():
    """Two old lines of a batch lose their pages to a stream, but not to each other again and again."""
    loop = SimulatedLoop(slots=3, pages=15, page_size=1, budget=16)
    loop.submit([1, 2, 3, 4], 8, "one", priority=5), loop.submit([2, 3], 8, "two", priority=5)
    loop.run_once()
    loop.submit([5], 12, "stream")
    lost, stream = [], loop.sequences[2]
    while not stream.finished and len(lost) < 2:
        loop.run_once()
        lost += [s.arrival for s in loop.scheduler.waiting if s.arrival not in lost]
    assert lost == [1, 0] and stream in loop.scheduler.running


def steps_to_a_first_token(client: str) -> int:
    """Of a short sequence that arrives when long ones of the client "many" need too many pages."""
    loop = SimulatedLoop(slots=8, pages=30, page_size=2, budget=16)
    for name in range(7):
        loop.submit([1 + name] * 4, 20, "many")
    while not loop.scheduler.preemptions:
        loop.run_once()
    short, iterations = loop.submit([9, 8], 2, client), 0
    while len(short.tokens) == len(short.request.prompt):
        loop.run_once()
        iterations += 1
    return iterations


def test_clients_without_pages_get_slots_first():
    """A client's newest sequence waits for its older ones, which need all pages; others' do not."""
    assert steps_to_a_first_token("one") * 3 <= steps_to_a_first_token("many")


@settings(max_examples=30)
@given(
    long=st.lists(st.integers(1, 20), min_size=1, max_size=5),
    often=st.integers(1, 3),
    budget=st.integers(4, 20),
)
def test_no_request_is_overtaken_for_ever(long, often, budget):
    """A client with endless short sequences cannot block another client: there is a bound that does not
    depend on how many arrive."""
    loop = SimulatedLoop(slots=4, pages=21, page_size=1, budget=budget)
    for length in long:
        loop.submit([5] * length, 21 - length, "few")
    iterations = 0
    while not all(s.finished for s in loop.sequences[: len(long)]):
        if iterations % often == 0:
            loop.submit([1 + iterations % 15] * 3, 4, "endless")
        loop.run_once()
        iterations += 1
        assert iterations <= 3 * len(long) * (21 * len(long) + 4 * 7)


class Traffic(RuleBasedStateMachine):
    """Random arrivals and aborts on a random small engine; the pool is often too small for all.

    Some sequences are added long after their arrival, like those that wait for a grammar.
    """

    @initialize(
        slots=st.integers(1, 4),
        page_size=st.integers(1, 3),
        more_pages=st.integers(0, 8),
        more_budget=st.integers(0, 6),
        share=st.booleans(),
        drafts=st.booleans(),
        mixed=st.booleans(),
        clients=st.sampled_from(["a", "a", "ab", "abc"]),
        priorities=st.sampled_from([[0], [0], [0, 1], [0, 1, 2]]),
        copies=st.sampled_from([0, 0, 2, 50]),
        group=st.integers(1, 3),
    )
    def build(
        self,
        slots,
        page_size,
        more_pages,
        more_budget,
        share,
        drafts,
        mixed,
        clients,
        priorities,
        copies,
        group,
    ):
        pages, budget = slots + more_pages, slots + more_budget
        self.file = os.memfd_create("pages") if copies and share else None

        def start() -> SimulatedLoop:
            file = None if self.file is None else PageFile(self.file, "simulation")
            return SimulatedLoop(
                slots=slots, pages=pages, page_size=page_size, budget=budget, share=share, drafts=drafts,
                mixed=mixed, host=HostPages(file, copies, page_size, page_size, group) if file else None,
            )  # fmt: skip

        self.start, self.loop = start, start()
        self.budget, self.clients, self.priorities = budget, clients, priorities
        self.arrivals, self.late = itertools.count(), list[int]()

    @rule()
    def arrive(self):
        """A sequence arrives that is added later."""
        self.late.append(next(self.arrivals))

    @precondition(lambda self: self.loop.context > 1)
    @rule(data=st.data())
    def submit(self, data):
        """A prompt of any length, up to one that fills the whole pool; often the continuation of another."""
        prompt = data.draw(st.lists(st.integers(1, 15), min_size=1, max_size=self.loop.context - 1))
        if self.loop.sequences and data.draw(st.booleans()):
            before = data.draw(st.sampled_from(self.loop.sequences)).tokens
            prompt = [*before, *prompt][: self.loop.context - 1]
        max_tokens = data.draw(st.integers(1, self.loop.context - len(prompt)))
        is_late = self.late and data.draw(st.booleans())
        arrival = self.late.pop(0) if is_late else next(self.arrivals)
        client, priority = (data.draw(st.sampled_from(each)) for each in (self.clients, self.priorities))
        self.loop.submit(prompt, max_tokens, client, arrival, priority)

    @precondition(lambda self: self.loop.sequences)
    @rule(data=st.data())
    def abort(self, data):
        """At any time in any state, also twice, also after the end: all pages are released at once."""
        sequence = data.draw(st.sampled_from(self.loop.sequences))
        for _ in range(2):
            self.loop.abort(sequence)
            assert sequence.finished and not sequence.pages and sequence.slot is None

    @precondition(lambda self: self.file is not None)
    @rule()
    def restart(self):
        """The engine dies, with a step in flight or not; the next one continues what it had."""
        before, self.loop = self.loop.unfinished, self.start()
        for sequence in before:
            rest = sequence.limit - len(sequence.tokens)
            client, priority = sequence.request.client, sequence.request.priority
            self.loop.submit(sequence.tokens, rest, client, next(self.arrivals), priority)

    @rule(iterations=st.integers(1, 4))
    def run(self, iterations):
        """Some iterations of the loop; each plan is checked."""
        for _ in range(iterations):
            self.run_once()

    def run_once(self):
        there = self.loop.unfinished if len(self.clients) == 1 else self.loop.scheduler.running
        oldest = min(there, key=lambda s: (s.request.rank, s.arrival), default=None)
        advanced = min(oldest.computed, len(oldest.tokens)) if oldest else 0
        plan = self.loop.run_once()
        assert not oldest or oldest.finished or oldest.computed >= advanced, (
            "the oldest of the best rank was preempted"
        )
        rows = plan.rows if plan else []
        assert sum(row.count for row in rows) <= self.budget
        assert len({row.slot for row in rows}) == len(rows) <= self.loop.slots
        for row in rows:
            self.check_row(row, self.loop.awaited)

    def check_row(self, row, awaited):
        """Rows stay below the limit; a recomputation starts after whole cached pages, and not before the last
        sample has been read."""
        sequence, end = row.sequence, row.start + row.count
        assert row.start < end < sequence.limit
        assert not row.drafts or row.count == 1 + len(row.drafts)
        if row.first:
            assert row.start % self.loop.scheduler.page_size == 0
            assert sequence not in awaited, "it got a slot before its sample was read"
            kind = (sequence.request.client, sequence.request.rank)
            waiting = [s for s in self.loop.scheduler.waiting if s not in awaited]
            waiting = [s for s in waiting if (s.request.client, s.request.rank) == kind]
            assert all(s.arrival > sequence.arrival for s in waiting), "an older one was overtaken"

    @invariant()
    def shares_what_is_equal(self):
        """Pages and slots are conserved; a page has several holders only if they have equal beginnings.

        Waiting sequences have neither.
        """
        scheduler = self.loop.scheduler
        self.loop.pool.check()
        held = held_pages(self.loop)
        assert len(set(held)) == self.loop.pool.total - self.loop.pool.available
        size = scheduler.page_size
        holds = {
            (page, tuple(s.tokens[: (place + 1) * size] if held.count(page) > 1 else ()))
            for s in scheduler.running
            for place, page in enumerate(s.pages)
        }
        assert len(holds) == len(set(held)), "a page is shared by sequences that differ"
        assert len({s.slot for s in scheduler.running}) == len(scheduler.running) <= self.loop.slots
        assert not any(s.pages or s.slot is not None for s in scheduler.waiting)
        assert {*scheduler.running, *scheduler.waiting} == set(self.loop.unfinished)

    @invariant()
    def keeps_one_prompt_half_done(self):
        """Never more than one: so half-computed prompts cannot block each other."""
        half_done = [s for s in self.loop.scheduler.running if s.missing > 1]
        assert len(half_done) <= 1

    @invariant()
    def charges_each_step_to_its_sequences(self):
        """The sequences' device-seconds and page-seconds add up to those of all steps, to the last bit of a
        sum: nobody's use is lost with an abort, a preemption or a dropped row, and none counts twice."""
        counts, sequences = self.loop.outputs.counts, self.loop.sequences
        assert sum(s.device_seconds for s in sequences) == pytest.approx(counts.device_seconds, rel=1e-9)
        assert sum(s.page_seconds for s in sequences) == pytest.approx(counts.page_seconds, rel=1e-9)

    def teardown(self):
        """No sequence starves: all end within the steps that they need one by one, with the output as alone.

        If clients or ranks preempt each other, the others may be computed again for each one that ends.
        """
        if not hasattr(self, "loop"):
            return
        if self.file is not None:
            os.close(self.file)
        bound = sum(sequence.limit + 2 for sequence in self.loop.unfinished)
        alike = len(self.clients) == len(self.priorities) == 1
        bound *= 1 if alike else len(self.loop.unfinished)
        while self.loop.unfinished and bound:
            self.run_once()
            bound -= 1
        assert not self.loop.unfinished, "a sequence starves"
        assert not held_pages(self.loop) and self.loop.pool.available == self.loop.pool.total
        for sequence in self.loop.sequences:
            expected = alone(sequence.request.prompt, sequence.limit)
            whole = sequence not in self.loop.aborted
            assert sequence.tokens == (expected if whole else expected[: len(sequence.tokens)])
            self.check_events(sequence, ends=whole)

    def check_events(self, sequence, *, ends):
        """Each token is reported once, in order, and one end after them, except for an aborted sequence."""
        events = [event for event in self.loop.events if event.request_id == sequence.request.id]
        tokens = [event.token for event in events if event.token is not None]
        assert tokens == sequence.tokens[len(sequence.request.prompt) :]
        assert [event.finish for event in events[:-1]] == [None] * len(events[:-1])
        assert bool(events and events[-1].finish in ("stop", "length")) == ends
        used = [(event.device_seconds, event.page_seconds) for event in events]
        assert used == sorted(used) and all(device > 0 and pages > 0 for device, pages in used)
        if ends and events[-1].finish == "length":  # no row of it was in flight
            assert used[-1] == (sequence.device_seconds, sequence.page_seconds)


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
