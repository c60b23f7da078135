"""The engine's life cycle: refused requests, aborts at any time, failures of a request and of the engine."""

import threading
import time
from types import SimpleNamespace

import pytest

from distaff.runtime.device.executables import Executables
from distaff.runtime.device.runner import Runner
from distaff.runtime.device.settings import EngineSettings
from distaff.runtime.engine import Engine
from distaff.runtime.request import EngineFailed, InvalidRequest, NotReady, Request, SamplingParams

from .tiny import CONFIG, POISON, EventCollector, ask, assert_greedy, random_prompt, tokens_of


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "param", "message"),
    [
        ([], 1, "prompt", "the prompt is empty; expected at least one token"),
        ([1, 199], 1, "prompt", "token id 199 in the prompt; expected 0 to 198"),
        ([-1], 1, "prompt", "token id -1 in the prompt; expected 0 to 198"),
        ([1] * 100, 61, "max_tokens", "100 prompt tokens and max_tokens 61; expected at most 160 together"),
        ([1] * 160, None, "prompt", "160 prompt tokens and max_tokens None; expected at most 160 together"),
    ],
)
def test_what_can_never_be_served_is_refused(bench, prompt, max_tokens, param, message):
    """The error names the field, the value and what was expected."""
    request = Request(id="bad", prompt=tuple(prompt), params=SamplingParams(max_tokens=max_tokens))
    with pytest.raises(InvalidRequest) as refusal:
        bench.engine.submit(request)
    assert (str(refusal.value), refusal.value.param) == (message, param)


@pytest.mark.parametrize("choice", [-1, 2**31])
def test_a_choice_is_a_small_number(bench, choice):
    """It is sent to the device as 32 bits; one that does not fit must not end the engine."""
    with pytest.raises(InvalidRequest, match=f"choice is {choice}; expected 0 to 2147483647"):
        bench.engine.submit(ask("bad", 3, choice=choice))


def test_the_longest_request_that_fits_is_served(bench):
    """The limits are exact."""
    (tokens,) = bench.run([ask("longest", 100, max_tokens=60)])
    assert len(tokens) == 60


def test_a_small_pool_bounds_the_context(make_engine):
    """A request that is too large even for the empty pool is refused, not queued for ever."""
    engine = make_engine(kv_pages=10)
    engine.start()
    assert engine.context == 40
    with pytest.raises(InvalidRequest, match="expected at most 40 together"):
        engine.submit(ask("big", 30, max_tokens=11))


@pytest.mark.parametrize(("kv_pages", "table"), [(10, 10), (40, 40), (41, 40)])
def test_page_tables_are_no_wider_than_the_pool(parameters, kv_pages, table):
    """Nor than the context, which is 40 pages."""
    engine = Engine(CONFIG, parameters, EngineSettings(kv_pages=kv_pages))
    assert engine._loop.runner.shapes.table == table


class Hook(EventCollector):
    """Calls `act` with the events of every step, on the engine's thread, between two steps."""

    def __init__(self) -> None:
        super().__init__()
        self.act = lambda events: None

    def receive(self, events) -> None:
        self.act(events)
        super().receive(events)


@pytest.fixture
def hook(make_engine):
    collector = Hook()
    collector.engine = make_engine(collector.receive)
    step_times = collector.engine._loop.scheduler.step_times
    # Steps are filled, whatever their times.
    step_times.most_tokens = lambda *_: None
    collector.engine.start()
    return collector


@pytest.mark.parametrize(("prompt", "steps"), [(150, 0), (150, 1), (20, 2), (20, 7)])
def test_an_abort_frees_everything_at_once(hook, prompt, steps):
    """In the inbox, in the middle of its prompt or while decoding: after the next step only the companion has
    pages, and no more events arrive."""
    engine, history = hook.engine, []

    def act(events):
        history.append((engine.stats, len(hook.events["victim"])))
        if len(history) == 5:
            engine.submit(ask("victim", prompt, max_tokens=10))
        if len(history) == 5 + steps:
            engine.abort("victim")

    hook.act = act
    engine.submit(ask("companion", 4, max_tokens=40))
    assert len(hook.wait("companion")) == 40
    assert history[4 + steps][0].running == (2 if steps else 1)
    for stats, received in history[5 + steps :]:
        assert stats.running <= 1 and stats.total_pages - stats.free_pages <= 11
        assert received == len(hook.events["victim"]) == max(0, steps - 1)


def test_a_waiting_request_is_aborted(bench):
    """A request without a slot leaves the queue and receives no events."""
    for n in range(8):
        bench.engine.submit(ask(f"busy{n}", 4, max_tokens=150))
    bench.engine.submit(ask("queued", 4, max_tokens=150))
    bench.engine.abort("queued")
    bench.engine.abort("unknown")
    for n in range(8):
        assert len(bench.collector.wait(f"busy{n}")) == 150
    bench.wait_idle()
    assert not bench.collector.events["queued"]


def test_poison_fails_only_its_own_request(bench):
    """If one request's logits are not finite, only that request ends with an error."""
    healthy = [ask(f"h{n}", n, max_tokens=30) for n in (3, 20, 60)]
    poisoned = [poison(f"p{n}", random_prompt(n)) for n in (0, 30, 70)]
    for pair in zip(healthy, poisoned, strict=True):
        for request in pair:
            bench.engine.submit(request)
    for request in poisoned:
        (last,) = bench.collector.wait(request.id)
        assert (last.finish, last.error) == ("error", "the model's output is not finite")
    for request in healthy:
        assert_greedy(request, bench.collector.tokens(request.id))
    bench.wait_idle()


@pytest.mark.parametrize(("before", "after"), [(0, 1), (5, 9), (3, 120), (120, 20)])
def test_poison_in_the_middle_of_a_prompt_is_found(bench, before, after):
    """A NaN fails the request although nothing is sampled there, also some chunks later."""
    prompt = (*random_prompt(before), POISON, *random_prompt(after))
    poisoned, healthy = f"poisoned after {before}", ask(f"healthy beside {before}", 20, max_tokens=10)
    bench.engine.submit(Request(id=poisoned, prompt=prompt, params=SamplingParams(max_tokens=9)))
    bench.engine.submit(healthy)
    assert [event.finish for event in bench.collector.wait(poisoned)] == ["error"]
    bench.collector.wait(healthy.id)
    assert_greedy(healthy, bench.collector.tokens(healthy.id))


def test_poison_is_shared_within_a_step(hook):
    """Choices in one step share pages, and fail together if those are poisoned."""
    prompt = (*random_prompt(3), POISON, *random_prompt(10))
    choices = [
        Request(id=f"choice {n}", prompt=prompt, params=SamplingParams(max_tokens=9), choice=n)
        for n in range(3)
    ]
    planned = []
    plan = hook.engine._loop.scheduler.plan

    def noted():
        planned.append(plan())
        return planned[-1]

    def act(events):
        if len(hook.events["companion"]) == 2:
            hook.engine._loop.scheduler.plan = noted
            for request in choices:
                hook.engine.submit(request)

    hook.act = act
    hook.engine.submit(ask("companion", 4, max_tokens=9))
    for request in choices:
        assert [event.finish for event in hook.wait(request.id)] == ["error"]
    rows = [row for row in planned[0].rows if row.sequence.request.id != "companion"]
    assert [row.start for row in rows] == [0, 12, 12]
    assert len(hook.wait("companion")) == 9


def test_an_id_in_flight_is_taken(bench):
    """Two requests cannot have one id at the same time; after the first has ended the id is free."""
    bench.engine.submit(ask("twin", 4, max_tokens=60))
    with pytest.raises(InvalidRequest, match="'twin' is in flight; expected a new id"):
        bench.engine.submit(ask("twin", 5, max_tokens=5))
    assert len(bench.collector.wait("twin")) == 60


def poison(name, prompt):
    """A request with a last prompt token that gives NaN."""
    return Request(id=name, prompt=(*prompt, POISON), params=SamplingParams(max_tokens=9))


def test_pages_of_a_poisoned_request_are_clean(cramped):
    """The next requests that use all these pages give the reference's tokens."""
    cramped.engine.submit(poison("poison", [POISON] * 149))
    assert cramped.collector.wait("poison")[-1].finish == "error"
    requests = [ask("next", 100, max_tokens=60), ask("other", 1, max_tokens=20)]
    for request, tokens in zip(requests, cramped.run(requests), strict=True):
        assert_greedy(request, tokens)


def test_counts_of_work_are_exact(bench):
    """Generated tokens are those received; prompt tokens are those of the prompts."""
    (tokens,) = bench.run([ask("first", 12, max_tokens=30)])
    stop = next(token for i, token in enumerate(tokens) if i > 4 and token not in tokens[:i])
    received = bench.run([ask("one", 100, max_tokens=5), ask("two", 12, max_tokens=30, stop_ids=(stop,))])
    bench.wait_idle()
    stats = bench.engine.stats
    assert stats.generated_tokens == 30 + sum(map(len, received))
    assert stats.prompt_tokens + stats.cached_tokens == 12 + 100 + 12 and stats.cached_tokens > 0


def test_requests_are_refused_before_the_start_and_after_the_end(make_engine):
    """At once; an engine can be stopped twice, or before its start."""
    engine = make_engine()
    with pytest.raises(NotReady):
        engine.submit(ask("early", 3, max_tokens=1))
    engine.start()
    assert engine.alive
    engine.stop()
    engine.stop()
    assert not engine.alive
    with pytest.raises(NotReady):
        engine.submit(ask("late", 3, max_tokens=1))
    make_engine().stop()


def test_a_single_step_serves_any_request(parameters, monkeypatch):
    """The steps that `warm_up` compiles are enough: prompts, scores, decoding in a batch, penalties."""
    monkeypatch.setattr(Runner, "compile_rest", lambda self, stop, quiet: None)
    collector = EventCollector()
    engine = Engine(CONFIG, parameters, EngineSettings(scores=True), collector.receive)
    engine.warm_up()
    engine.start()
    requests = [ask(f"one{n}", 3 + 40 * n, max_tokens=15) for n in range(3)]
    scored = ask("scored", 40, max_tokens=15, prompt_logprobs=1, pool_prompt=True)
    for request in [
        *requests,
        scored,
        ask("drawn", 9, max_tokens=15, temperature=0.8, seed=1, presence_penalty=1.0),
    ]:
        engine.submit(request)
    for request in [*requests, scored]:
        assert_greedy(request, collector.tokens(request.id))
    assert len(collector.events["scored"][0].prompt_logprobs or ()) == 39
    assert len(collector.tokens("drawn")) == 15
    assert (engine.stats.buckets_ready, engine.stats.compilations) == (1, 0)
    engine.stop()


def test_steps_are_compiled_while_no_prompt_is_computed(parameters, monkeypatch):
    """A prompt keeps the compilation waiting, a decode step or an idle engine does not; nor does a stop."""
    monkeypatch.setattr("distaff.runtime.device.runner._PATIENCE_SECONDS", 600)
    began, quiet = threading.Event(), []
    compile = Executables.compile

    def watched(executables, buckets, *rest):
        if len(executables._steps) == 1:
            quiet.append(engine._loop.quiet.is_set())
            began.set()
        return compile(executables, buckets, *rest)

    engine = Engine(CONFIG, parameters, EngineSettings())
    engine.warm_up()
    monkeypatch.setattr(Executables, "compile", watched)
    loop = engine._loop
    loop._note_prompts(SimpleNamespace(plan=SimpleNamespace(is_decode=False)))
    waits = threading.Thread(target=engine._compile_rest)
    waits.start()
    assert not began.wait(0.5)
    loop._note_prompts(None)
    assert not loop.quiet.is_set(), "it has not been idle yet"
    loop._note_prompts(SimpleNamespace(plan=SimpleNamespace(is_decode=True)))
    assert began.wait(30)
    engine.stop()
    waits.join(60)
    assert not waits.is_alive() and quiet == [True]


def test_what_cannot_be_planned_is_not_tried_again_and_again(bench, monkeypatch):
    """The thread waits for an action in the inbox before it plans again."""
    loop, plans, waits = bench.engine._loop, [], threading.Event()
    plan, process = loop.scheduler.plan, loop._process_inbox

    def watched(*, idle):
        if idle and loop._sequences:
            waits.set()
        process(idle=idle)

    monkeypatch.setattr(loop, "_process_inbox", watched)
    monkeypatch.setattr(loop.scheduler, "plan", lambda: plans.append(bool(loop._sequences)))
    request = ask("stuck", 5, max_tokens=5)
    bench.engine.submit(request)
    assert waits.wait(30), "it plans without a pause"
    assert sum(plans) <= 2
    monkeypatch.setattr(loop.scheduler, "plan", plan)
    loop.enqueue(lambda: None)
    assert_greedy(request, bench.collector.tokens("stuck"))


def test_no_request_that_can_be_planned_waits_for_an_action(bench, monkeypatch):
    """Also if all slots are in use and become free without an action in the inbox."""
    loop, pauses = bench.engine._loop, []
    process = loop._process_inbox

    def watched(*, idle):
        if idle and loop._sequences:
            pauses.append(loop.scheduler.running)
        process(idle=idle)

    monkeypatch.setattr(loop, "_process_inbox", watched)
    together = threading.Event()
    loop.enqueue(lambda: together.wait(30))
    requests = [ask(f"crowd{n}", 4, prompt_seed=n, max_tokens=1) for n in range(30)]
    for request in requests:
        bench.engine.submit(request)
    together.set()
    for request in requests:
        assert_greedy(request, bench.collector.tokens(request.id))
    assert not pauses


def test_stopping_ends_requests_in_flight(bench):
    """Running and waiting requests receive `error` with the reason, once."""
    for n in range(12):
        bench.engine.submit(ask(f"r{n}", 4, max_tokens=150))
    bench.collector.wait("r0", events=3)
    bench.engine.stop()
    for n in range(12):
        *received, last = bench.collector.wait(f"r{n}")
        assert (last.finish, last.error) == ("error", "the engine was stopped")
        assert not any(event.finish for event in received)


def test_a_failing_device_ends_every_request(bench, monkeypatch):
    """Running, waiting or in the inbox: all receive the reason, and the engine's thread ends."""
    entered, submitted = threading.Event(), threading.Event()

    def read(in_flight):
        entered.set()
        submitted.wait()
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(bench.engine._loop.runner, "read", read)
    for n in range(10):
        bench.engine.submit(ask(f"r{n}", 4, max_tokens=5))
    entered.wait()
    bench.engine.submit(ask("inbox", 4, max_tokens=5))
    submitted.set()
    for name in [*(f"r{n}" for n in range(10)), "inbox"]:
        (last,) = bench.collector.wait(name)
        assert (last.finish, last.error) == ("error", "RuntimeError: the device is gone")
    bench.engine._loop.thread.join(5)
    assert not bench.engine.alive


def test_a_failing_engine_accepts_no_requests(hook, monkeypatch):
    """After the last read of the inbox a request is refused, not lost."""
    late = []

    def act(events):
        if any(event.finish == "error" for event in events):
            try:
                hook.engine.submit(ask("late", 4, max_tokens=5))
                late.append("accepted")
            except NotReady:
                late.append("refused")

    hook.act = act
    hook.engine.submit(ask("early", 4, max_tokens=150))
    hook.wait("early", events=2)
    monkeypatch.setattr(hook.engine._loop.runner, "read", lambda in_flight: 1 / 0)
    assert hook.wait("early")[-1].error == "ZeroDivisionError: division by zero"
    assert late == ["refused"]


def test_events_can_be_streamed_and_collected(make_engine):
    """Without `on_events`, `stream` yields the events of one request and `generate` those of several."""
    engine = make_engine()
    engine.start()
    streamed = list(engine.stream(ask("streamed", 7, max_tokens=9)))
    collected = list(engine.generate(ask(f"g{n}", n, max_tokens=9) for n in (12, 7, 3)))
    assert tokens_of(streamed) == tokens_of(collected[1]) and len(streamed) == 9
    assert [len(events) for events in collected] == [9, 9, 9]


def test_leaving_a_stream_aborts(make_engine):
    """A request without a reader holds no pages."""
    engine = make_engine()
    engine.start()
    events = engine.stream(ask("left", 7, max_tokens=CONFIG.context - 7))
    next(events)
    events.close()
    deadline = time.monotonic() + 10
    while engine.stats.running and time.monotonic() < deadline:
        time.sleep(0.001)
    stats = engine.stats
    assert stats.running == 0 and stats.free_pages == stats.total_pages and stats.generated_tokens < 153


def test_a_failed_stream_raises(make_engine):
    """An error event becomes EngineFailed with the request and the reason."""
    engine = make_engine()
    engine.start()
    with pytest.raises(EngineFailed, match="request bad: the model's output is not finite"):
        list(engine.stream(poison("bad", [])))
