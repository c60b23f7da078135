"""Plain steps, which GPUs have: chosen where all rows allow it, and they answer as the general ones do."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from distaff.runtime.device import assembly
from distaff.runtime.device.buckets import Bucket
from distaff.runtime.device.settings import EngineSettings, derive_shapes
from distaff.runtime.engine import Engine
from distaff.runtime.request import Request

from .conftest import Bench, complete
from .tiny import CONFIG, POISON, EventCollector, ModuloGrammar, ask, random_prompt

SETTINGS = EngineSettings(slots=4, prefill_tokens=32, grammars=True, scores=True, speculation=False)


class Launches(Bench):
    """An engine with plain steps, and the buckets that it has launched."""

    def __init__(self, engine: Engine, collector: EventCollector) -> None:
        super().__init__(engine, collector)
        self.buckets: list[Bucket] = []
        runner = engine._loop.runner
        dispatch = runner._dispatch

        def note(bucket, buffer):
            self.buckets.append(bucket)
            return dispatch(bucket, buffer)

        runner._dispatch = note


@pytest.fixture(scope="module")
def bench(parameters) -> Iterator[Launches]:
    collector = EventCollector()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            assembly,
            "derive_shapes",
            lambda *given, **named: replace(derive_shapes(*given, **named), plain=True),
        )
        engine = Engine(CONFIG, parameters, SETTINGS, collector.receive, grammars=ModuloGrammar)
    engine.warm_up()
    complete(engine._loop.runner)
    engine.start()
    yield Launches(engine, collector)
    engine.stop()


def requests(name: str, **given) -> list[Request]:
    """Greedy and drawn ones, of several lengths."""
    drawn = {"temperature": 0.9, "top_p": 0.8, "seed": 3}
    kinds = [{}, drawn, {}, {"temperature": 1.2, "top_k": 5, "seed": 4}, drawn]
    return [ask(f"{name}{n}", 9 + 20 * n, max_tokens=12, **(kind | given)) for n, kind in enumerate(kinds)]


def test_greedy_and_drawn_rows_take_plain_steps_and_get_the_same_tokens(bench):
    """As with the general steps alone: in batches, in chunks, and with pages that others have computed."""
    bench.buckets.clear()
    found = bench.run(requests("plain"))
    assert {bucket.kind for bucket in bench.buckets} == {"decode", "mixed"}
    assert all(bucket.plain for bucket in bench.buckets)
    runner, ready = bench.engine._loop.runner, bench.engine._loop.runner.ready
    runner.ready = {bucket: seconds for bucket, seconds in ready.items() if not bucket.plain}
    bench.buckets.clear()
    assert bench.run(requests("general")) == found
    assert not any(bucket.plain for bucket in bench.buckets)
    runner.ready = ready


@pytest.mark.parametrize(
    "given",
    [{"logprobs": 2}, {"frequency_penalty": 0.5}, {"logit_bias": ((5, 1.0),)}, {"prompt_logprobs": 0}],
    ids=str,
)
def test_what_plain_steps_leave_out_takes_general_ones(bench, given):
    """Every step of a request with such an option, but for those after a scored prompt."""
    bench.buckets.clear()
    bench.run([ask(f"with {given}", 40, max_tokens=5, **given)])
    general = [not bucket.plain for bucket in bench.buckets]
    assert all(general) or ("prompt_logprobs" in given and all(general[:2]) and not any(general[2:]))


def test_a_grammar_takes_general_steps(bench):
    bench.buckets.clear()
    bench.run([ask("grammar", 40, prompt_seed=9, max_tokens=5, grammar="3,5")])
    kinds = [str(bucket) for bucket in bench.buckets]
    assert kinds == ["plain mixed(32)", "mixed(16)", "sample(1)", *["decode(1)", "sample(1)"] * 4]


def test_poison_is_found_by_plain_steps(bench):
    """In the middle of a prompt, and in pages that another request has computed."""
    bench.buckets.clear()
    prompt = (*random_prompt(20, seed=1), POISON, *random_prompt(40, seed=2))
    for name in ("first", "second"):
        bench.engine.submit(replace(ask(name, 1, max_tokens=5), prompt=prompt))
        assert [event.finish for event in bench.collector.wait(name)] == ["error"]
    assert bench.buckets and all(bucket.plain for bucket in bench.buckets)
