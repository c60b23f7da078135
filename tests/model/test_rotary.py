"""Rotary embedding: every kind's frequencies against `transformers`, and the law of relative positions."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from distaff.model.config import ModelConfig, RopeScaling
from distaff.model.rotary import inverse_frequencies, rotary_tables, rotate

from .reference import reference_config

SIZES = [2, 4, 6, 64, 80, 128]
THETAS = [100.0, 10_000.0, 500_000.0, 1e6]

LLAMA31 = RopeScaling(kind="llama3", factor=8.0, original_context=8192)
LLAMA32 = RopeScaling(kind="llama3", factor=32.0, original_context=8192)
SCALINGS = {
    "default": None,
    "linear": RopeScaling(kind="linear", factor=2.5, original_context=2048),
    "llama-3.1": LLAMA31,
    "llama-3.2": LLAMA32,
    "llama3 short": RopeScaling(
        kind="llama3", factor=3.0, original_context=64, low_frequency=0.5, high_frequency=2.0
    ),
    "yarn": RopeScaling(kind="yarn", factor=4.0, original_context=32_768),
    "yarn whole": RopeScaling(kind="yarn", factor=16.0, original_context=4096, truncate=False),
    "yarn factor": RopeScaling(kind="yarn", factor=2.0, original_context=4096, attention_factor=0.75),
    "yarn mscale": RopeScaling(
        kind="yarn", factor=40.0, original_context=4096, mscale=1.0, mscale_all_dim=0.8
    ),
    "yarn one mscale": RopeScaling(kind="yarn", factor=40.0, original_context=4096, mscale=2.0),
    "yarn betas": RopeScaling(kind="yarn", factor=8.0, original_context=512, beta_fast=4.0, beta_slow=0.5),
    "yarn no ramp": RopeScaling(kind="yarn", factor=8.0, original_context=4),
    "yarn shrinks": RopeScaling(kind="yarn", factor=0.5, original_context=2048),
}


def sized(head_size: int, theta: float, rope: RopeScaling | None) -> ModelConfig:
    """A model; only its rotary part matters."""
    sizes = dict(vocabulary=8, layers=1, width=4, feed_forward=4, heads=1, kv_heads=1, context=131_072)
    return ModelConfig(**sizes, head_size=head_size, rope_theta=theta, rope=rope)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_frequencies_equal_transformers(scaling: str) -> None:
    """Every frequency equals the reference's to 2e-6, and so does the factor on cos and sin.

    A power differs in its last bit (6e-8), which `llama3` multiplies by up to its factor, 32, in its blend.
    """
    for head_size, theta in itertools.product(SIZES, THETAS):
        config = sized(head_size, theta, SCALINGS[scaling])
        kind = config.rope.kind if config.rope else "default"
        compute = ROPE_INIT_FUNCTIONS.get(kind, LlamaRotaryEmbedding.compute_default_rope_parameters)
        expected_H, expected_factor = compute(reference_config(config))
        found_H, found_factor = inverse_frequencies(config)
        np.testing.assert_allclose(found_H, expected_H.numpy(), rtol=2e-6, err_msg=f"{head_size} {theta}")
        assert found_H.dtype == np.float32
        assert found_factor == pytest.approx(expected_factor, rel=1e-12)


@pytest.mark.parametrize("theta", THETAS)
@pytest.mark.parametrize("head_size", [4, 64])
def test_dynamic_frequencies_equal_transformers(head_size: int, theta: float) -> None:
    """`dynamic` angles per unit of position follow the reference at every length, from one step for all."""
    rope = RopeScaling(kind="dynamic", factor=4.0, original_context=100)
    config, lengths = sized(head_size, theta, rope), [1, 99, 100, 101, 150, 400, 100_000]
    cos_TH, sin_TH, _ = rotary_tables(config, jnp.ones(len(lengths), jnp.int32), jnp.asarray(lengths))
    compute = ROPE_INIT_FUNCTIONS["dynamic"]
    expected_TH = np.stack([compute(reference_config(config), seq_len=n)[0].numpy() for n in lengths])
    np.testing.assert_allclose(np.arctan2(sin_TH, cos_TH), expected_TH, rtol=1e-5, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2000), st.integers(0, 2000), st.integers(0, 2000), st.sampled_from(sorted(SCALINGS)))
def test_products_depend_on_distance_only(query: int, key: int, shift: int, scaling: str) -> None:
    """Moving a query and a key by the same number of positions leaves their product unchanged.

    An angle of some thousand radians is rounded to 1e-4 in f32; the product is no more exact than that.
    """
    config = sized(16, 10_000.0, SCALINGS[scaling])
    x_TNH = np.random.default_rng(7).standard_normal((2, 1, 16)).astype(np.float32)

    def product(positions: list[int]) -> float:
        tables = rotary_tables(config, jnp.asarray(positions), jnp.zeros(2, jnp.int32))
        q_H, k_H = np.asarray(rotate(jnp.asarray(x_TNH), tables), np.float64)[:, 0]
        return float(q_H @ k_H)

    size = float(np.linalg.norm(x_TNH[0]) * np.linalg.norm(x_TNH[1]))
    factor = inverse_frequencies(config)[1] ** 2
    assert product([query + shift, key + shift]) == pytest.approx(
        product([query, key]), abs=1e-3 * size * factor
    )


def test_rotation_keeps_lengths_and_dtype() -> None:
    """Rotating a head changes neither its norm nor its dtype, and position 0 changes nothing."""
    config = sized(32, 10_000.0, None)
    x_TNH = jnp.asarray(np.random.default_rng(0).standard_normal((3, 2, 32)), jnp.float32)
    rotated_TNH = rotate(x_TNH, rotary_tables(config, jnp.asarray([0, 5, 777]), jnp.zeros(3, jnp.int32)))
    np.testing.assert_array_equal(rotated_TNH[0], x_TNH[0])
    np.testing.assert_allclose(
        jnp.linalg.norm(rotated_TNH, axis=-1), jnp.linalg.norm(x_TNH, axis=-1), rtol=1e-6
    )
    half_TNH = rotate(x_TNH.astype(jnp.bfloat16), rotary_tables(config, jnp.arange(3), jnp.arange(3)))
    assert half_TNH.dtype == jnp.bfloat16
