"""An engine on several devices: the same tokens as on one, a divided pool, checked options."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from distaff.model.config import MoEConfig
from distaff.model.errors import ConfigError
from distaff.model.sharding import create_mesh, place_all
from distaff.model.transformer import random_parameters
from distaff.runtime.device.settings import EngineSettings
from distaff.runtime.devices import claim_mesh
from distaff.runtime.engine import Engine
from distaff.runtime.options import parse_kernels, parse_mesh
from distaff.runtime.scorer import Scorer

from .tiny import CONFIG, ask, assert_greedy, random_prompt, tokens_of

MIXTURE = replace(
    CONFIG, heads=6, kv_heads=3, vocabulary=203, moe=MoEConfig(experts=4, experts_per_token=2), window=40
)
SETTINGS = EngineSettings(slots=4, context=96)


def generate(config, parameters, shards: int, settings=SETTINGS, **params) -> list[list[int]]:
    """The output of an engine on `shards` devices for five prompts of different lengths."""
    mesh = create_mesh(shards)
    engine = Engine(config, place_all(parameters, config, mesh), settings, mesh=mesh)
    engine.warm_up()
    engine.start()
    try:
        requests = [ask(f"r{n}", 3 + 17 * n, max_tokens=12, seed=n, **params) for n in range(5)]
        found = [tokens_of(events) for events in engine.generate(requests)]
        assert engine.stats.compilations == 0 and engine.stats.free_pages == engine.stats.total_pages
        for pool in jax.tree.leaves(engine._loop.runner._state.cache):
            assert {shard.data.shape[2] for shard in pool.addressable_shards} == {pool.shape[2] // shards}
        return found
    finally:
        engine.stop()


def test_llama_over_two_devices_is_greedy(parameters):
    """Every token is the reference's best, and a seeded draw is the same as on one device."""
    clean = dict(parameters) | {"embed": jax.numpy.nan_to_num(parameters["embed"])}
    found = generate(CONFIG, clean, 2)
    for n, tokens in enumerate(found):
        assert_greedy(ask(f"r{n}", 3 + 17 * n), tokens)
    assert generate(CONFIG, clean, 2, temperature=0.8) == generate(CONFIG, clean, 1, temperature=0.8)


def test_mixtral_over_four_devices_gives_the_same_output():
    """Three key/value heads and 203 ids, neither a multiple of four, and divided experts."""
    parameters = random_parameters(MIXTURE, 3, jax.numpy.dtype("float32"))
    parameters = {name: 8.0 * w if w.ndim > 1 else w for name, w in parameters.items()}
    assert generate(MIXTURE, parameters, 4) == generate(MIXTURE, parameters, 1)


def test_an_int8_cache_is_divided_with_its_scales(parameters):
    """Two devices give the same output as one."""
    clean = dict(parameters) | {"embed": jax.numpy.nan_to_num(parameters["embed"])}
    settings = replace(SETTINGS, kv_cache_dtype="int8")
    assert generate(CONFIG, clean, 2, settings) == generate(CONFIG, clean, 1, settings)


def test_scores_are_those_of_one_device(parameters):
    """Logits and log-probabilities of a text, on four devices and on one."""
    clean = dict(parameters) | {"embed": jax.numpy.nan_to_num(parameters["embed"])}
    mesh, tokens = create_mesh(4), random_prompt(50)
    one, four = Scorer.of(CONFIG, clean), Scorer.of(CONFIG, place_all(clean, CONFIG, mesh), mesh)
    expected = one.logits(tokens)
    assert np.abs(four.logits(tokens) - expected).max() <= 1e-4 * np.abs(expected).max()
    np.testing.assert_allclose(four.logprobs(tokens), one.logprobs(tokens), atol=1e-3)


@pytest.mark.parametrize("text", ["4", "model=0", "model=", "data=2", "model=-1", "model=2,data=2", ""])
def test_a_wrong_mesh_is_refused(text):
    with pytest.raises(ConfigError, match="expected model=N"):
        parse_mesh(text)


@pytest.mark.parametrize("text", ["attention", "=blocks", "attention=", "a=b=c", ""])
def test_a_wrong_kernel_is_refused(text):
    with pytest.raises(ConfigError, match="expected operation=backend"):
        parse_kernels(["linear=plain", text])


def test_chosen_kernels_are_used(parameters):
    """An unknown backend is refused with the known ones."""
    kernels = parse_kernels(["linear=plain"])
    engine = Engine(CONFIG, parameters, replace(SETTINGS, kernels=kernels))
    assert ("linear", "plain") in engine.kernels
    with pytest.raises(ConfigError, match=r"kernel linear=magic; expected one of plain, split_k"):
        Engine(CONFIG, parameters, replace(SETTINGS, kernels=(("linear", "magic"),)))


def test_a_mesh_is_the_first_devices():
    assert claim_mesh("model=2").devices.tolist() == jax.devices()[:2]
    assert claim_mesh(None).size == parse_mesh("model=1") == 1
    with pytest.raises(ConfigError, match="mesh model=8; expected at most 4"):
        claim_mesh("model=8")
