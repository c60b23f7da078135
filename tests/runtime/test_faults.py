"""Errors on the host: an error in one sequence ends only that sequence."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distaff.runtime.device import packing, readout
from distaff.runtime.device.readout import InFlightStep
from distaff.runtime.device.runner import Runner
from distaff.runtime.engine import Engine
from distaff.runtime.loop import Loop
from distaff.runtime.policy.drafts import Drafter
from distaff.runtime.policy.output_processor import OutputProcessor
from distaff.runtime.policy.pages import PagePool
from distaff.runtime.policy.prefix import PrefixCache
from distaff.runtime.policy.scheduler import Scheduler
from distaff.runtime.policy.scores import PromptScores
from distaff.runtime.policy.sequence import Plan, Row, Sequence, SequenceFault
from distaff.runtime.request import EngineFailed, Request, TokenEvent

from .policy.simulation import SimulatedRunner, alone, make_sequence
from .tiny import EventCollector, ModuloGrammar, ask, assert_greedy, tokens_of


def failing(original: Callable[..., Any], named: Callable[..., bool]) -> Callable[..., Any]:
    """The function, except that it raises for arguments of the bad request."""

    def call(*arguments: Any) -> Any:
        if named(*arguments):
            raise ValueError("sabotage")
        return original(*arguments)

    return call


BAD = {
    "plan": (PrefixCache, "_content", lambda self, sequence, index: sequence.request.id == "bad", {}),
    "draft": (Drafter, "propose", lambda self, tokens, most: tokens[0] == 197, {}),
    "prepare": (
        packing,
        "_adjustments_of",
        lambda request, vocabulary: request.id == "bad",
        {"presence_penalty": 1.0},
    ),
    "pack": (packing, "_pack_tokens", lambda views, span, row: row.sequence.request.id == "bad", {}),
    "pack a sample": (
        packing,
        "_pack_settings",
        lambda views, lines, row: row.sequence.request.id == "bad",
        {},
    ),
    "mask": (ModuloGrammar, "fill", lambda self, mask_W: self._grammar == "3,9", {"grammar": "3,9"}),
    "read": (readout._Reports, "of", lambda self, line, count: count == 7, {"logprobs": 7}),
    "score": (
        PromptScores,
        "add",
        lambda self, start, chunk: self.length == 120,
        {"prompt_logprobs": 2},
    ),
    "consume": (ModuloGrammar, "consume", lambda self, token: self._grammar == "3,9", {"grammar": "3,9"}),
    "process": (
        OutputProcessor,
        "_add_token",
        lambda self, sequence, *rest: sequence.request.id == "bad",
        {},
    ),
}


def submit(engine: Engine, requests: list[Request]) -> None:
    """Submits requests; their events can be read one after the other."""
    for request in requests:
        engine.event_queues.open(request.id)
        engine.submit(request)


@pytest.mark.parametrize("stage", BAD)
def test_a_failing_sequence_fails_alone(make_engine, monkeypatch, stage):
    """At any stage: it receives the reason, the others receive the reference's tokens; nothing leaks, and the
    engine continues."""
    owner, name, named, params = BAD[stage]
    monkeypatch.setattr(owner, name, failing(getattr(owner, name), named))
    engine = make_engine(speculation=stage == "draft")
    engine.start()
    bad = ask("bad", 120 if stage == "score" else 21, max_tokens=30, **params)
    bad = type(bad)(id="bad", prompt=(197, *bad.prompt[1:]), params=bad.params)
    good = [ask(f"good{n}", 5 + 20 * n, max_tokens=20, grammar="2,30" if n == 1 else None) for n in range(4)]
    good.append(ask("good logprobs", 9, max_tokens=20, logprobs=2, presence_penalty=0.5))
    submit(engine, [good[0], bad, *good[1:]])
    with pytest.raises(EngineFailed, match="request bad: ValueError: sabotage"):
        list(engine.event_queues.read("bad"))
    for request in good:
        tokens = [event.token for event in engine.event_queues.read(request.id) if event.token is not None]
        assert_greedy(request, tokens)
    assert engine.alive
    again = ask("again", 30, max_tokens=5)
    (events,) = engine.generate([again])
    assert_greedy(again, tokens_of(events))
    engine._pages.check()
    assert engine.stats.free_pages == engine.stats.total_pages and not engine.stats.running


def test_followers_receive_only_what_is_launched(bench, monkeypatch):
    """A plan that cannot be packed is sent neither to the device nor to another process."""
    runner, sent, done = bench.engine._loop.runner, [], []
    followers = SimpleNamespace(
        launch=lambda bucket, buffer: sent.append((bucket, buffer.tobytes())),
        prepare=lambda *tables: None,
        record_samples=lambda token_B: None,
        close=lambda: None,
    )
    dispatch = runner._dispatch

    def note(bucket, buffer):
        done.append((runner._buckets.index(bucket), buffer.tobytes()))
        return dispatch(bucket, buffer)

    owner, name, named, _ = BAD["pack a sample"]
    monkeypatch.setattr(owner, name, failing(getattr(owner, name), named))
    monkeypatch.setattr(runner, "_followers", followers)
    monkeypatch.setattr(runner, "_dispatch", note)
    for request in (ask("first", 9, max_tokens=9), ask("bad", 9, max_tokens=9, grammar="2,9")):
        bench.engine.submit(request)
    assert len(bench.collector.tokens("first")) == 9
    assert bench.collector.wait("bad")[-1].finish == "error"
    assert sent == done and sent


def test_every_request_ends_with_a_failing_engine(make_engine, monkeypatch):
    """Both those that end in the failing step and those that would continue after it."""
    engine = make_engine()
    engine.start()
    process = OutputProcessor.process

    def half(self, rows):
        process(self, rows)
        raise RuntimeError("the output processor is lost")

    requests = [ask(f"r{n}", 4, max_tokens=2) for n in range(3)]
    monkeypatch.setattr(OutputProcessor, "process", half)
    submit(engine, requests)
    for request in requests:
        with pytest.raises(EngineFailed, match="RuntimeError: the output processor is lost"):
            list(engine.event_queues.read(request.id))


def test_only_requests_of_a_failed_engine_are_lost(make_engine, monkeypatch):
    """Those that ended for other reasons are not."""
    collector = EventCollector()
    engine = make_engine(collector.receive)
    engine.start()
    owner, name, named, params = BAD["consume"]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, failing(getattr(owner, name), named))
        engine.submit(ask("bad", 9, max_tokens=9, **params))
        assert (collector.wait("bad")[-1].finish, collector.wait("bad")[-1].lost) == ("error", False)
    engine.submit(ask("good", 9, max_tokens=9))
    assert not collector.wait("good")[-1].lost
    monkeypatch.setattr(Runner, "read", lambda self, in_flight: 1 / 0)
    engine.submit(ask("lost", 9, max_tokens=9))
    last = collector.wait("lost")[-1]
    assert (last.finish, last.param, last.lost) == ("error", None, True)
    assert last.error == "ZeroDivisionError: division by zero"


class Saboteur:
    """Raises at some moments, for the sequence that is processed then; moments count over all methods."""

    def __init__(self, moments: set[int]) -> None:
        self.moments, self.count = moments, 0
        self.struck: set[str] = set()

    def strike(self, sequence: Sequence) -> None:
        self.count += 1
        if self.count in self.moments:
            self.struck.add(sequence.request.id)
            raise ValueError("sabotage")

    def around(self, owner: object, name: str) -> None:
        """Strikes before or after a method of the owner with a sequence as its first argument."""
        method = getattr(owner, name)

        def call(sequence: Sequence, *rest: Any) -> Any:
            self.strike(sequence)
            result = method(sequence, *rest)
            self.strike(sequence)
            return result

        setattr(owner, name, call)


class FaultyDrafter(Drafter):
    """A drafter that the saboteur can strike."""

    def __init__(self, saboteur: Saboteur, sequence: Sequence) -> None:
        super().__init__()
        self._saboteur, self._sequence = saboteur, sequence

    def propose(self, tokens, most):
        self._saboteur.strike(self._sequence)
        return super().propose(tokens, most)


class FaultyRunner(SimulatedRunner):
    """A simulated runner that cannot pack or read every row."""

    def __init__(self, saboteur: Saboteur, page_size: int) -> None:
        super().__init__(page_size)
        self._saboteur = saboteur

    def launch(self, plan: Plan) -> InFlightStep:
        for row in plan.rows:
            try:
                self._saboteur.strike(row.sequence)
            except ValueError as error:
                raise SequenceFault(row.sequence) from error
        return super().launch(plan)

    def read(self, step: Any) -> list[tuple[Row, Any]]:
        return [(row, self._one(row, sampled)) for row, sampled in super().read(step)]

    def _one(self, row: Any, sampled: Any) -> Any:
        try:
            self._saboteur.strike(row.sequence)
        except ValueError as error:
            return error
        return sampled


PROMPTS = st.lists(st.integers(1, 2), min_size=1, max_size=9)


@settings(max_examples=800)
@given(
    prompts=st.lists(PROMPTS, min_size=1, max_size=2),
    asked=st.lists(st.tuples(st.integers(0, 1), st.integers(1, 12)), min_size=1, max_size=7),
    moments=st.sets(st.integers(1, 120), max_size=6) | st.sets(st.integers(1, 800), max_size=6),
    pages=st.integers(14, 40),
    page_size=st.integers(1, 3),
    share=st.booleans(),
    speculate=st.booleans(),
)
def test_faults_at_any_moment_do_not_affect_others(
    prompts, asked, moments, pages, page_size, share, speculate
):
    """With the real loop and scheduler: other sequences have the same output as alone, all end exactly once,
    and all pages and slots are released."""
    saboteur, sent = Saboteur(moments), list[TokenEvent]()
    pool = PagePool(pages)
    scheduler = Scheduler(
        slots=3, pages=pool, page_size=page_size, budget=8, share=share, speculate=speculate
    )
    for owner, name in [(scheduler, "_make_row"), (scheduler, "_reserve"), (scheduler, "_assign_slot")]:
        saboteur.around(owner, name)
    for name in ("reuse_pages", "publish"):
        saboteur.around(scheduler.prefix, name)
    scheduler.step_times.record_trial("decode", 8, 1.0)
    loop = Loop(cast(Runner, FaultyRunner(saboteur, page_size)), scheduler, sent.extend)
    context = pages * page_size
    jobs = [(prompts[which % len(prompts)], most) for which, most in asked]
    jobs = [(prompt, min(most, context - len(prompt))) for prompt, most in jobs]
    saboteur.around(loop.outputs, "_add_token")
    for number, (prompt, most) in enumerate(jobs):
        sequence = make_sequence(number, prompt, most)
        sequence.drafter = FaultyDrafter(saboteur, sequence)
        loop._active_ids.add(sequence.request.id)
        loop._add(sequence)
    in_flight, iterations = None, 0
    while loop._sequences or in_flight:
        in_flight, iterations = loop._run_once(in_flight), iterations + 1
        pool.check()
        assert iterations < 2000
    for number, (prompt, most) in enumerate(jobs):
        received = [event for event in sent if event.request_id == str(number)]
        assert [event.finish is not None for event in received] == [False] * (len(received) - 1) + [True]
        tokens = [event.token for event in received if event.token is not None]
        expected = alone(prompt, len(prompt) + most)[len(prompt) :]
        if received[-1].finish == "error":
            assert str(number) in saboteur.struck and tokens == expected[: len(tokens)]
        else:
            assert tokens == expected
    assert pool.available == pool.total and sorted(scheduler._free_slots) == [0, 1, 2]
    assert not scheduler.waiting and not scheduler.running and not loop._active_ids


def test_what_a_failed_sequence_has_not_computed_is_not_found():
    """Pages of tokens that were planned but not dispatched are not reused."""
    scheduler = Scheduler(slots=2, pages=PagePool(20), page_size=2, budget=8)
    publish = scheduler.prefix.publish

    def fail_once(sequence: Sequence) -> None:
        scheduler.prefix.publish = publish
        raise ValueError("sabotage")

    scheduler.prefix.publish = fail_once
    first, second = (make_sequence(n, [1, 2, 3, 4, 5], 3) for n in range(2))
    scheduler.add(first)
    with pytest.raises(SequenceFault):
        scheduler.plan()
    scheduler.discard(first)
    scheduler.add(second)
    plan = scheduler.plan()
    assert plan is not None and [(row.start, row.count) for row in plan.rows] == [(0, 5)]


def test_wrong_drafts_of_a_failed_sequence_are_not_found(monkeypatch):
    """Such a page holds the drafts, not the sampled tokens."""
    scheduler = Scheduler(slots=2, pages=PagePool(20), page_size=1, budget=8)
    sequence = make_sequence(0, [1, 2, 3], 9)
    processor = OutputProcessor(lambda name: scheduler.finish(sequence))
    scheduler.add(sequence)
    for drafts, sampled in [((), [5]), ((7, 8), [7, 9, 4])]:
        plan = scheduler.plan()
        assert plan is not None
        row = scheduler._add_drafts(plan.rows[0], drafts)
        if drafts:
            monkeypatch.setattr(OutputProcessor, "_count_drafts", lambda *_: 1 / 0)
        events = processor.process([(row, [(token, None) for token in sampled])])
    assert events[-1].error == "ZeroDivisionError: division by zero" and sequence.finished
    scheduler.add(make_sequence(1, [1, 2, 3, 5, 7, 9, 6], 3))
    plan = scheduler.plan()
    assert plan is not None and plan.rows[0].start <= 5
