"""LoRA adapters in a running engine: each sequence gets its own, in any company, without a compilation."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distaff.model.adapter import Adapter
from distaff.model.config import ModelConfig
from distaff.model.errors import ConfigError
from distaff.model.lora import InvalidAdapter
from distaff.model.parameters import parameter_shapes
from distaff.model.quantize import quantize
from distaff.model.sharding import create_mesh, place_all
from distaff.model.transformer import random_parameters
from distaff.runtime.device.settings import EngineSettings
from distaff.runtime.engine import Engine
from distaff.runtime.request import InvalidRequest, Request
from distaff.runtime.scorer import Scorer

from .conftest import Bench, complete
from .tiny import CONFIG, TOLERANCE, EventCollector, ModuloGrammar, ask, make_parameters, random_prompt

PLACES, RANK = 2, 8
SETTINGS = EngineSettings(
    max_adapters=PLACES, max_adapter_rank=RANK, grammars=True, scores=True, speculation=False
)

WIDER = replace(CONFIG, feed_forward=128, width=128, head_size=32)
"""With whole groups of inputs."""


def draw(
    seed: int, names: Sequence[str] | None = None, rank: int = RANK, config: ModelConfig = CONFIG
) -> Adapter:
    """An adapter that changes every logit, of some maps or of all."""
    rng = np.random.default_rng(seed)
    shapes = {n: s for n, s in parameter_shapes(config).items() if len(s) == 2 and n != "embed"}
    weights = {
        name: (
            rng.normal(size=(shapes[name][0], rank)).astype(np.float32) * shapes[name][0] ** -0.5,
            rng.normal(size=(rank, shapes[name][1])).astype(np.float32) * 0.5,
        )
        for name in names or shapes
    }
    return Adapter(rank=rank, weights=weights)


ADAPTERS = {
    "all": draw(1),
    "attention": draw(2, ["layers.0.attention.q", "layers.1.attention.v"], rank=3),
    "head": draw(3, ["head"]),
    "down": draw(4, [f"layers.{n}.feed_forward.down" for n in range(2)]),
}


def merged(adapter: Adapter | None) -> dict[str, jax.Array]:
    """The model's parameters with an adapter in them."""
    parameters = make_parameters()
    for name, (down, up) in (adapter.weights if adapter else {}).items():
        parameters[name] = parameters[name] + jnp.asarray(down @ up)
    return parameters


@cache
def scorer_of(name: str) -> Scorer:
    return Scorer.of(CONFIG, merged(ADAPTERS.get(name)))


def assert_greedy_with(request: Request, tokens: list[int], tolerance: float = TOLERANCE) -> None:
    """Each token is the most likely one of the model with the request's adapter merged into it."""
    sequence = [*request.prompt, *tokens]
    logits = scorer_of(request.adapter).logits(sequence)[len(request.prompt) - 1 : -1]
    assert (logits[np.arange(len(tokens)), tokens] >= logits.max(-1) - tolerance).all()


def adapted(name: str, adapter: str, length: int = 12, **params) -> Request:
    return replace(ask(name, length, **{"max_tokens": 12, **params}), adapter=adapter)


@pytest.fixture(scope="module")
def warm() -> Engine:
    """An engine with every step compiled, whose runner others share."""
    engine = Engine(CONFIG, make_parameters(), SETTINGS)
    engine.warm_up()
    complete(engine._loop.runner)
    return engine


@pytest.fixture
def bench(warm: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A running engine with the adapters of this module."""
    collector = EventCollector()
    engine = Engine(CONFIG, make_parameters(), SETTINGS, collector.receive, grammars=ModuloGrammar)
    engine._loop.runner = warm._loop.runner
    for name, adapter in ADAPTERS.items():
        engine.add_adapter(name, adapter)
    engine.start()
    yield Bench(engine, collector)
    engine.stop()


def test_every_adapter_computes_what_its_merged_weights_do(bench: Bench):
    """One after the other, more of them than there are places, with prompts of many lengths."""
    for number, name in enumerate(["", *ADAPTERS, "all", ""]):
        request = adapted(f"{number}", name, length=(5, 30, 90)[number % 3])
        (tokens,) = bench.run([request])
        assert_greedy_with(request, tokens)
    assert bench.engine.stats.compilations == 0


def test_adapters_and_the_base_share_steps(bench: Bench):
    """The tokens in company are those alone, also of more adapters than places, and no two are alike."""
    names = ["", *ADAPTERS, "all", ""]
    prompt = random_prompt(20, seed=3)
    requests = [replace(adapted(f"r{n}", name), prompt=prompt) for n, name in enumerate(names)]
    together = bench.run(requests)
    alone = [bench.run([replace(request, id=f"alone {request.id}")])[0] for request in requests]
    assert together == alone
    for request, tokens in zip(requests, together, strict=True):
        assert_greedy_with(request, tokens)
    assert together[0] == together[-1] and together[1] == together[-2]
    assert len({tuple(tokens) for tokens in together}) == len(ADAPTERS) + 1
    bench.wait_idle()
    assert bench.engine.stats.compilations == 0


def test_pages_are_kept_apart_by_adapter(bench: Bench):
    """A prompt is found again with the same adapter only."""
    prompt = random_prompt(40, seed=9)

    def cached(name: str, adapter: str) -> int:
        bench.run([replace(adapted(name, adapter), prompt=prompt)])
        return bench.collector.events[name][0].cached_tokens

    assert [cached(f"first {name}", name) for name in ("", "all", "head")] == [0, 0, 0]
    assert all(cached(f"again {name}", name) for name in ("", "all", "head"))


def test_log_probabilities_grammars_and_scores_have_the_adapter(bench: Bench):
    """What is reported is of the adapted model; a grammar is followed."""
    request = adapted("scored", "all", logprobs=1, prompt_logprobs=0)
    (tokens,) = bench.run([request])
    sequence = [*request.prompt, *tokens]
    expected = scorer_of("all").logprobs(sequence)
    events = bench.collector.events["scored"]
    prompt = [entry.chosen for entry in events[0].prompt_logprobs or ()]
    np.testing.assert_allclose(prompt, expected[: len(request.prompt) - 1], atol=1e-3)
    chosen = [event.logprobs.chosen for event in events if event.logprobs]
    np.testing.assert_allclose(chosen, expected[len(request.prompt) - 1 :], atol=1e-3)
    (constrained,) = bench.run([adapted("grammar", "all", grammar="2,30")])
    assert all(ModuloGrammar.allowed("2,30", n)[token] for n, token in enumerate(constrained))


def test_a_removed_adapter_finishes_its_sequences(bench: Bench):
    """New requests are refused; the same name can come back with other weights under another id."""
    engine = bench.engine
    running = adapted("running", "all", max_tokens=100)
    engine.submit(running)
    while len(bench.collector.events["running"]) < 3:
        time.sleep(0.001)
    engine.remove_adapter("all")
    with pytest.raises(InvalidRequest, match=r"adapter 'all' is not loaded"):
        engine.submit(adapted("late", "all"))
    assert_greedy_with(running, bench.collector.tokens("running"))
    engine.remove_adapter("unknown")
    engine.add_adapter("all", ADAPTERS["all"])
    request = adapted("back", "all")
    assert_greedy_with(request, bench.run([request])[0])


def test_nobody_starves(bench: Bench):
    """While other adapters keep coming, one that waits for a place gets it; the base passes meanwhile."""
    stop, answered = threading.Event(), []

    def flood(name: str, adapter: str) -> None:
        number = 0
        while not stop.is_set():
            bench.run([adapted(f"{name} {number}", adapter, length=4, max_tokens=20)])
            number += 1

    floods = {"a": "all", "b": "attention", "c": "all", "d": "attention"}
    threads = [threading.Thread(target=flood, args=each) for each in floods.items()]
    for thread in threads:
        thread.start()
    try:
        for number in range(5):
            for name in ("head", "down", ""):
                request = adapted(f"mine {number} {name}", name)
                answered.append((request, bench.run([request])[0]))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    for request, tokens in answered:
        assert_greedy_with(request, tokens)
    bench.wait_idle()


def test_adapters_that_do_not_fit_are_refused(bench: Bench, make_engine: Callable[..., Engine]):
    """With what was found and expected."""
    add = bench.engine.add_adapter
    with pytest.raises(InvalidAdapter, match=r"the adapter's rank is 9; expected at most 8"):
        add("large", draw(1, rank=9))
    with pytest.raises(InvalidAdapter, match=r"the adapter changes norm; expected only linear maps"):
        add("norm", Adapter(rank=1, weights={"norm": (np.ones((1, 1)), np.ones((1, 1)))}))
    wrong = {"layers.0.attention.k": (np.ones((32, 2)), np.ones((2, 32)))}
    with pytest.raises(InvalidAdapter, match=r"attention.k are \[32, 2\] and \[2, 32\]; expected \[32, r\]"):
        add("wrong", Adapter(rank=2, weights=wrong))
    with pytest.raises(InvalidAdapter, match=r"expected max_adapters of at least 1"):
        make_engine().add_adapter("all", ADAPTERS["all"])
    with pytest.raises(ConfigError, match=r"max_adapters is -1 and max_adapter_rank 16; expected positive"):
        Engine(CONFIG, make_parameters(), EngineSettings(max_adapters=-1))


@pytest.mark.parametrize("kind", ["bfloat16", "int8", "int4", "fp8", "mesh", "portable"])
def test_other_bases(kind: str):
    """Quantised ones, bf16, divided ones and other kernels: near the merged weights, the base untouched."""
    settings, parameters, mesh = SETTINGS, make_parameters(), None
    if kind == "portable":
        settings = replace(settings, kernels=(("adapters", "plain"), ("linear", "plain")))
    if kind == "mesh":
        mesh = create_mesh(2)
        parameters = place_all(parameters, CONFIG, mesh)
    if kind == "bfloat16":
        parameters = {name: values.astype(jnp.bfloat16) for name, values in parameters.items()}
    if kind in ("int8", "int4", "fp8"):
        parameters = quantize(random_parameters(WIDER, 0, jnp.float32), kind)
    config = WIDER if kind in ("int8", "int4", "fp8") else CONFIG
    collector = EventCollector()
    engine = Engine(config, parameters, settings, collector.receive, mesh)
    engine.add_adapter("all", ADAPTERS["all"] if config is CONFIG else draw(1, config=config))
    engine.warm_up()
    engine.start()
    bench = Bench(engine, collector)
    requests = [adapted(f"{n}", name, length=9) for n, name in enumerate(("", "all", "", "all"))]
    found = bench.run(requests)
    assert found[0] == found[2] and found[1] == found[3] and found[0] != found[1]
    if kind in ("mesh", "portable"):
        for request, tokens in zip(requests, found, strict=True):
            assert_greedy_with(request, tokens, 1e-3)
    engine.stop()
    without = Engine(config, parameters, replace(settings, max_adapters=0), collector.receive, mesh)
    without.warm_up()
    without.start()
    assert Bench(without, collector).run([replace(requests[0], id="base")]) == found[:1]
    without.stop()
