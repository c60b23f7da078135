"""An int8 cache in the engine: the output follows from the rounded keys and values, however computed."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
import pytest

from distaff.model.errors import ConfigError
from distaff.runtime.device.settings import EngineSettings
from distaff.runtime.engine import Engine
from distaff.runtime.scorer import Scorer

from .conftest import Bench
from .tiny import CONFIG, EventCollector, ask, tokens_of

SAME = 2e-3
"""The tolerance between log-probabilities with the same rounding and another order of sums, in which a few
values round differently. The rounding itself changes log-probabilities by some hundredths."""


@pytest.fixture(scope="module")
def finite(parameters):
    """The tiny model's parameters without poison."""
    return dict(parameters) | {"embed": jnp.nan_to_num(parameters["embed"])}


@pytest.fixture(scope="module")
def narrow(finite) -> Iterator[Bench]:
    """An engine with an int8 cache, with pages for two or three long sequences."""
    collector = EventCollector()
    engine = Engine(CONFIG, finite, EngineSettings(kv_cache_dtype="int8", kv_pages=64), collector.receive)
    engine.warm_up()
    engine.start()
    yield Bench(engine, collector)
    engine.stop()


def test_log_probabilities_are_those_of_the_whole_text(narrow, finite):
    """In chunks, in a batch, preempted: each log-probability is that of the text at once, also rounded."""
    requests = [ask(f"w{n}", 30 + 12 * n, max_tokens=30, logprobs=0) for n in range(5)]
    narrow.run(requests)
    assert narrow.engine.stats.preemptions > 0
    rounded, exact = Scorer.of(CONFIG, finite, kv_cache_dtype="int8"), Scorer.of(CONFIG, finite)
    moved = 0.0
    for request in requests:
        events = narrow.collector.wait(request.id)
        reported = [event.logprobs.chosen for event in events if event.logprobs]
        text, start = [*request.prompt, *tokens_of(events)], len(request.prompt) - 1
        np.testing.assert_allclose(reported, rounded.logprobs(text)[start:], atol=SAME)
        moved = max(moved, np.abs(np.array(reported) - exact.logprobs(text)[start:]).max())
    assert moved > 5 * SAME, "the cache is not rounded"


def test_cached_prompts_give_the_same_output(narrow):
    """Also with pages that another request has rounded."""
    first, again = (narrow.run([ask(name, 77, max_tokens=20)])[0] for name in ("first", "again"))
    assert narrow.collector.wait("again")[0].cached_tokens > 0 and first == again


def test_an_unknown_type_is_refused(parameters):
    """With the known types."""
    with pytest.raises(ConfigError, match="kv_cache_dtype is 'fp8'; expected one of int8"):
        Engine(CONFIG, parameters, EngineSettings(kv_cache_dtype="fp8"))
