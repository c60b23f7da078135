"""An int8 cache in the engine: what is said follows from the rounded keys and values, however computed."""

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
"""Between log-probabilities of one rounding and another order of sums: now and then a value falls on the
other side of a half. The rounding itself moves them by some hundredths."""


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


def test_what_is_said_is_what_a_whole_text_scores(narrow, finite):
    """Cut into chunks, in company, preempted: each log-probability is the one of a rounded cache at once."""
    requests = [ask(f"w{n}", 30 + 12 * n, max_tokens=30, logprobs=0) for n in range(5)]
    narrow.run(requests)
    assert narrow.engine.stats.preemptions > 0
    rounded, exact = Scorer(CONFIG, finite, kv_cache_dtype="int8"), Scorer(CONFIG, finite)
    moved = 0.0
    for request in requests:
        events = narrow.collector.wait(request.id)
        reported = [event.logprobs.chosen for event in events if event.logprobs]
        text, start = [*request.prompt, *tokens_of(events)], len(request.prompt) - 1
        np.testing.assert_allclose(reported, rounded.logprobs(text)[start:], atol=SAME)
        moved = max(moved, np.abs(np.array(reported) - exact.logprobs(text)[start:]).max())
    assert moved > 5 * SAME, "the cache is not rounded at all"


def test_cached_prompts_say_the_same(narrow):
    """Pages that another request rounded are as good as one's own."""
    first, again = (narrow.run([ask(name, 77, max_tokens=20)])[0] for name in ("first", "again"))
    assert narrow.collector.wait("again")[0].cached_tokens > 0 and first == again


def test_an_unknown_type_is_refused(parameters):
    """With what there is."""
    with pytest.raises(ConfigError, match="kv_cache_dtype is 'fp8'; expected one of int8"):
        Engine(CONFIG, parameters, EngineSettings(kv_cache_dtype="fp8"))
