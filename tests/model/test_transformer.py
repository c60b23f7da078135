"""Laws of the whole model: how its work is split, shared and rounded does not change its results."""

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distaff.model.config import ModelConfig, MoEConfig, RopeScaling
from distaff.model.kernels.registry import choose
from distaff.model.parameters import Quantization, parameter_shapes
from distaff.model.quantize import quantize
from distaff.model.target import Target
from distaff.model.transformer import Skeleton, random_parameters

from ..native import NATIVE
from .reference import Driver, build_reference, parameters_from

CONFIG = ModelConfig(
    vocabulary=61,
    layers=2,
    width=24,
    feed_forward=32,
    heads=4,
    kv_heads=2,
    head_size=8,
    context=256,
    rope=RopeScaling(kind="dynamic", factor=4.0, original_context=16),
)
MIXTRAL = replace(CONFIG, rope=None, window=33, moe=MoEConfig(experts=4, experts_per_token=2))
LONGROPE = RopeScaling(
    kind="longrope", factor=4.0, original_context=16, query_growth=0.3,
    short_factors=(1.0, 1.2, 2.0), long_factors=(1.5, 3.0, 9.0),
)  # fmt: skip
FEATURES = replace(
    MIXTRAL, layers=3, rope=LONGROPE, full_layers=(1,), unrotated_layers=(2,), head_norms=True, rotary_size=6,
    moe=MoEConfig(experts=4, experts_per_token=2, normalized=False), attention_bias=True, output_bias=False,
    embedding_scale=2.5, residual_scale=0.7, attention_scale=0.5, logits_divisor=1.5,
)  # fmt: skip
"""What families other than Llama and Mixtral have, in one model."""
MODELS = {"llama": CONFIG, "mixtral": MIXTRAL, "features": FEATURES}
PROMPT = np.random.default_rng(0).integers(0, CONFIG.vocabulary, 90).tolist()


@pytest.fixture(scope="module")
def parameters() -> dict[str, jax.Array]:
    return parameters_from(build_reference(CONFIG, 3), CONFIG)


@pytest.fixture(scope="module", params=MODELS)
def driver(request: pytest.FixtureRequest) -> Driver:
    config = MODELS[request.param]
    drawn = config is FEATURES  # transformers has no such model
    return Driver(config, draw(config) if drawn else parameters_from(build_reference(config, 3), config))


def draw(config: ModelConfig) -> dict[str, jax.Array]:
    """Weights with which every part of the network changes the logits."""
    rng, drawn = np.random.default_rng(3), {}
    for name, shape in parameter_shapes(config).items():
        values = rng.standard_normal(shape, np.float32)
        gain = 1.5 * shape[-2] ** -0.5 if len(shape) > 1 else 0.3
        drawn[name] = jnp.asarray(gain * values + name.endswith("norm"), jnp.float32)
    return drawn


def whole(driver: Driver, prompt: list[int], row: int = 1) -> np.ndarray:
    """Logits of a prompt in one step by itself."""
    driver.start(row, len(prompt))
    return driver.mixed({row: prompt})[row]


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def test_chunked_equals_whole(driver: Driver) -> None:
    """A prompt in any pieces gives the same logits as the whole prompt, also if its length changes the
    rope."""
    expected = whole(driver, PROMPT)

    @settings(max_examples=15, deadline=None)
    @given(st.sets(st.integers(1, 89), max_size=5))
    def check(cuts: set[int]) -> None:
        driver.start(0, len(PROMPT))
        pieces = np.split(np.asarray(PROMPT), sorted(cuts))
        found = np.concatenate([driver.mixed({0: piece.tolist()})[0] for piece in pieces])
        assert relative(found, expected) < 1e-5

    check()


def test_cached_equals_uncached(parameters: dict[str, jax.Array]) -> None:
    """A token decoded with the cache gets the same logits as at the end of one long prompt."""
    driver = Driver(replace(CONFIG, rope=None), parameters)  # `dynamic` rotates prompts by their length
    expected = whole(driver, PROMPT)
    driver.start(2, 80)
    driver.mixed({2: PROMPT[:80]})
    found = np.concatenate([driver.decode({2: token})[2] for token in PROMPT[80:]])
    assert relative(found, expected[80:]) < 1e-5


def test_other_rows_change_no_bit(driver: Driver) -> None:
    """A prompt and its decoding in steps with others equal the same alone, bit for bit."""
    alone = whole(driver, PROMPT[:40])
    alone_next = driver.decode({1: 7})[1]
    driver.start(2, 9)
    driver.mixed({2: PROMPT[:9]})
    for row, length in ((0, 20), (1, 40)):
        driver.start(row, length)
    together = driver.mixed({1: PROMPT[:40], 2: [5], 0: PROMPT[50:70]})[1]
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(driver.decode({0: 3, 1: 7, 2: 4})[1], alone_next)


@pytest.mark.parametrize("place", [1, 2, 7, 31, 50])
def test_place_in_the_step_changes_no_bit(driver: Driver, place: int) -> None:
    """The place of a prompt among a step's tokens changes no bit."""
    alone = whole(driver, PROMPT[:40])
    driver.start(1, 40)
    driver.start(0, place)
    found = driver.mixed({0: PROMPT[:place], 1: PROMPT[:40]})[1]
    np.testing.assert_array_equal(found, alone)


def test_one_prompt_alone_is_a_single(driver: Driver) -> None:
    """A prompt of one token gives the same as a row of a mixed step and as a row of a decode step."""
    first = whole(driver, PROMPT[:1])
    driver.start(1, 1)
    assert relative(driver.decode({1: PROMPT[0]})[1], first) < 1e-5


@pytest.mark.parametrize("change", [{"norm_epsilon": 0.1}, {"window": 3}, {"rope_theta": 50.0}], ids=str)
def test_equal_shapes_do_not_share_a_trace(parameters: dict[str, jax.Array], change: dict) -> None:
    """Models that differ in one number only do not use each other's compiled layers, in one process."""
    plain = replace(CONFIG, rope=None)
    first, other, again = (
        whole(Driver(config, parameters, optimized=False), PROMPT)
        for config in (plain, replace(plain, **change), plain)
    )
    assert relative(other, first) > 1e-2
    np.testing.assert_array_equal(again, first)


def test_bfloat16_stays_close_to_float32(parameters: dict[str, jax.Array]) -> None:
    """In bfloat16, weights, activations and cache alike, logits are finite and within 5 % of f32's.

    bfloat16 keeps 8 bits: a rounding is 2^-9 of a value, and some tens of them add up over two layers.
    """
    dtype, expected = jnp.dtype("bfloat16"), whole(Driver(CONFIG, parameters), PROMPT)
    narrow = {name: weight.astype(dtype) for name, weight in parameters.items()}
    driver = Driver(CONFIG, narrow, dtype=dtype)
    found = whole(driver, PROMPT)
    assert {pool.dtype for pool in driver.cache} == {dtype} and found.dtype == np.float32
    assert np.isfinite(driver.decode({1: 3})[1]).all()
    assert relative(found, expected) < 0.05


PANELS = replace(CONFIG, vocabulary=64, width=32, heads=2, kv_heads=1, head_size=32)
MIXTURE = replace(PANELS, moe=MoEConfig(experts=4, experts_per_token=2))
WHOLE_BLOCKS = replace(PANELS, width=128, heads=4, feed_forward=256)


@NATIVE
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize(
    "config, dtype, overrides, invariant",
    [
        (PANELS, "float32", {}, True),
        (replace(PANELS, tied_head=True), "float32", {}, True),
        (PANELS, "bfloat16", {}, False),
        (replace(PANELS, vocabulary=61), "float32", {}, False),
        (replace(PANELS, heads=4, kv_heads=2, head_size=16), "float32", {}, False),
        (MIXTURE, "float32", {}, True),
        (MIXTURE, "bfloat16", {}, False),
        (replace(MIXTURE, feed_forward=40), "float32", {}, False),
        (MIXTURE, "float32", {"experts": "blocks"}, False),
        (MIXTURE, "float32", {"linear": "plain"}, False),
        (PANELS, "float32", {"attention": "blocks"}, False),
        (PANELS, "float32", {"rms_norm": "plain"}, False),
        (PANELS, "float32", {"row_sum": "plain"}, False),
        (PANELS, "float32", {"linear": "plain", "int8_linear": "plain"}, False),
    ],
)
def test_only_native_kernels_of_whole_panels_are_batch_invariant(config, dtype, overrides, invariant, int8):
    target = Target(kernels=choose("cpu", overrides), quantization="int8" if int8 else None)
    assert Skeleton.of(config, target).is_batch_invariant(jnp.dtype(dtype)) == invariant


@NATIVE
@pytest.mark.parametrize("quantization", ["int4", "int8-groups", "fp8"])
def test_quantised_experts_are_batch_invariant(quantization: Quantization) -> None:
    """So a token that is decoded with the cache has the bits that it has in one long prompt."""
    config = replace(MIXTURE, rope=None)  # `dynamic` rotates prompts by their length
    weights = parameters_from(build_reference(config, 3), config)
    driver = Driver(config, quantize(weights, quantization), quantization=quantization)
    assert driver.skeleton.is_batch_invariant(jnp.dtype("float32"))
    expected = whole(driver, PROMPT)
    driver.start(2, 80)
    driver.mixed({2: PROMPT[:80]})
    found = np.concatenate([driver.decode({2: token})[2] for token in PROMPT[80:]])
    np.testing.assert_array_equal(found, expected[80:])


@pytest.mark.parametrize("overrides", [{"experts": "blocks"}, {"grouped_linear": "plain"}], ids=str)
def test_groups_without_native_kernels_are_not_invariant(overrides: dict[str, str]) -> None:
    target = Target(kernels=choose("cpu", overrides), quantization="int4")
    assert not Skeleton.of(MIXTURE, target).is_batch_invariant(jnp.dtype("float32"))


@pytest.mark.parametrize(
    "config, quantization",
    [
        *itertools.product([PANELS, replace(PANELS, tied_head=True)], [None, "int8", "int4", "int8-groups"]),
        *itertools.product([PANELS, MIXTURE, replace(MIXTURE, feed_forward=40)], ["fp8"]),
        *itertools.product([WHOLE_BLOCKS, replace(WHOLE_BLOCKS, moe=MIXTURE.moe)], ["fp8-blocks"]),
        *itertools.product([MIXTURE, replace(MIXTURE, feed_forward=40)], [None, "int8"]),
        *itertools.product([MIXTURE], ["int4", "int8-groups"]),
    ],
)
def test_shapes_and_types_are_those_of_the_laid_out_weights(
    config: ModelConfig, quantization: Quantization | None
) -> None:
    """For programs that are compiled without weights."""
    weights = random_parameters(config, 1, jnp.dtype("float32"))
    skeleton = Skeleton.of(config, Target(quantization=quantization))
    leaves = skeleton.flatten(quantize(weights, quantization) if quantization else weights)
    abstract = skeleton.abstract(jnp.dtype("float32"))
    for name, leaf, expected in zip(skeleton.names, leaves, abstract, strict=True):
        assert (leaf.shape, leaf.dtype) == (expected.shape, expected.dtype), name
