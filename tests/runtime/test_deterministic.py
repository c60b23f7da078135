"""`deterministic`: equal requests get equal bits, whatever else the engine does."""

from collections.abc import Iterator
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distaff.model.config import ModelConfig, MoEConfig
from distaff.model.kernels.native_library import instruction_sets
from distaff.model.parameters import Quantization
from distaff.model.quantize import quantize
from distaff.model.transformer import random_parameters
from distaff.runtime.device.runner import Runner
from distaff.runtime.device.settings import EngineSettings
from distaff.runtime.engine import Engine
from distaff.runtime.request import Request, TokenEvent

from .conftest import Bench, complete
from .policy.test_drafts import set_drafts
from .tiny import CONFIG, EventCollector, ask, random_prompt

KINDS = [
    {"logprobs": 3},
    {"logprobs": 0, "temperature": 0.9, "seed": 5},
    {"logprobs": 1, "temperature": 0.4, "seed": 6, "top_p": 0.7, "top_k": 50},
    {"logprobs": 2, "frequency_penalty": 0.5, "presence_penalty": 0.3},
]
LENGTHS = (1, 7, 24, 61)
PANELS = ModelConfig(
    vocabulary=224, layers=2, width=64, feed_forward=96, heads=2, kv_heads=1, head_size=32, context=160
)
"""Every linear map has a multiple of 32 outputs, so that native kernels compute them all."""
MIXTURE = replace(PANELS, moe=MoEConfig(experts=5, experts_per_token=3))


def request_of(name: str, kind: int, length: int) -> Request:
    """One of sixteen: short and long, greedy and sampled; half of each prompt is a repetition."""
    made = ask(name, 1, max_tokens=24, **KINDS[kind])
    text = random_prompt(max(1, length // 2), seed=90)
    return replace(made, prompt=(text * 3)[:length])


def received(bench: Bench, name: str) -> list[tuple[object, ...]]:
    """Tokens and their exact log-probabilities."""
    events: list[TokenEvent] = bench.collector.wait(name)
    assert events[-1].finish == "length"
    return [(event.token, event.logprobs) for event in events]


def panels(config: ModelConfig, quantization: Quantization | None) -> dict[str, jax.Array]:
    """Weights that fill whole panels, large enough that every token before a position moves its logits."""
    drawn = random_parameters(config, 3, jnp.dtype("float32"))
    weights = {name: weight * 12 if weight.ndim > 1 else weight for name, weight in drawn.items()}
    return quantize(weights, quantization) if quantization else weights


NATIVES: dict[str, tuple[ModelConfig, Quantization | None]] = {
    "native": (PANELS, None),
    "native int8": (PANELS, "int8"),
    "native int4": (PANELS, "int4"),
    "native fp8": (PANELS, "fp8"),
    "native experts": (MIXTURE, None),
    "native int8 experts": (MIXTURE, "int8"),
    "native int4 experts": (MIXTURE, "int4"),
}
Model = tuple[ModelConfig, dict[str, jax.Array], Runner]


@pytest.fixture(scope="module", params=["one shape", *NATIVES])
def model(request: pytest.FixtureRequest, parameters) -> Model:
    """With one compiled shape, or with all of them and batch-invariant kernels."""
    native = request.param in NATIVES
    if native and not instruction_sets():
        pytest.skip("the native kernels were not built")
    config, quantization = NATIVES.get(request.param, (CONFIG, None))
    weights = panels(config, quantization) if native else parameters
    engine = Engine(config, weights, EngineSettings(deterministic=True))
    engine.warm_up()
    complete(engine._loop.runner)
    assert any(bucket.kind == "mixed" for bucket in engine._loop.runner.ready) == native
    assert native or [str(bucket) for bucket in engine._loop.runner.ready] == ["decode(16)"]
    return config, weights, engine._loop.runner


@pytest.fixture(scope="module")
def start(model: Model):
    """Starts deterministic engines, one at a time."""
    config, parameters, runner = model
    engines: list[Engine] = []

    def make(**wanted) -> Bench:
        for engine in engines:
            engine.stop()
        collector = EventCollector()
        engine = Engine(config, parameters, EngineSettings(deterministic=True, **wanted), collector.receive)
        engine._loop.runner = runner
        engines.append(engine)
        engine.start()
        return Bench(engine, collector)

    yield make
    for engine in engines:
        engine.stop()


@pytest.fixture(scope="module")
def alone(start) -> dict[tuple[int, int], list]:
    """The output of each of the sixteen alone, without cache and drafts."""
    bench, outputs = start(prefix_cache=False, speculation=False), {}
    for kind in range(len(KINDS)):
        for length in LENGTHS:
            name = f"{kind} {length}"
            bench.run([request_of(name, kind, length)])
            outputs[kind, length] = received(bench, name)
    return outputs


CROWDS = st.lists(st.tuples(st.integers(0, 3), st.sampled_from(LENGTHS)), min_size=1, max_size=31)


@pytest.fixture(scope="module", params=["roomy", "cramped"])
def place(request, alone, start) -> Iterator[Bench]:
    """An engine with cache and drafts, and pages for all requests or for two or three."""
    outputs = [(request_of("", *key), [token for token, _ in events]) for key, events in alone.items()]
    with pytest.MonkeyPatch.context() as patch:
        set_drafts(patch, outputs)
        bench = start() if request.param == "roomy" else start(kv_pages=44)
        yield bench
    stats = bench.engine.stats
    assert stats.cached_tokens > 0 and stats.accepted_tokens > 0
    assert (stats.preemptions > 0) == (request.param == "cramped")


@given(crowd=CROWDS)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_other_requests_change_no_bit(place, alone, crowd):
    """Alone or with 31 others, preempted or not, cached or not, with drafts or not."""
    base = len(place.collector.events)
    requests = [request_of(f"{base + n}", *each) for n, each in enumerate(crowd)]
    for each in requests:
        place.engine.submit(each)
    for each, key in zip(requests, crowd, strict=True):
        assert received(place, each.id) == alone[key]


@given(kind=st.integers(0, 3), length=st.sampled_from(LENGTHS), cut=st.integers(1, 23), crowd=CROWDS)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_interruption_changes_no_bit(place, alone, kind, length, cut, crowd):
    """A sequence from another engine continues with the same bits as there."""
    events, base = alone[kind, length], len(place.collector.events)
    for n, each in enumerate(crowd):
        place.engine.submit(request_of(f"{base + n}", *each))
    before = tuple(token for token, _ in events[:cut])
    place.engine.submit(replace(request_of(f"cut {base}", kind, length), generated=before))
    assert received(place, f"cut {base}") == events[cut:]
    for n in range(len(crowd)):
        place.collector.wait(f"{base + n}")


@pytest.mark.parametrize("model", ["one shape"], indirect=True)
def test_decode_and_prompt_seconds_come_from_the_one_shape(start):
    """Its trial gives both."""
    engine = start().engine
    (seconds,) = engine._loop.runner.ready.values()
    assert (engine.decode_seconds, engine.prompt_seconds) == (seconds, seconds / 16)
