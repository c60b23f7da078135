"""Experts with weights in groups on a GPU: its kernels in Pallas' interpreter against sums in float64."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from distaff.model.kernels.block_experts import block_experts
from distaff.model.kernels.gpu import triton_experts

from .test_grouped_experts import COUNT, IN_GROUPS, SIZES, drawn, inputs, oracle

pytestmark = pytest.mark.accelerators
interpreted = jax.jit(partial(triton_experts.triton_experts, interpret=True))


@settings(max_examples=12, deadline=None, phases=[Phase.generate])  # shrinking would compile for minutes
@given(st.sampled_from(IN_GROUPS), st.integers(1, 200), st.integers(1, 3), SIZES)
def test_it_is_the_sum_over_experts(kind, tokens, choices, sizes):
    """With rows of f32, which are not rounded."""
    count, width, inner = sizes[0], 32 * sizes[1], 32 * sizes[2]
    step, experts = inputs(tokens, choices, count, width), drawn(kind, count, width, inner)
    expected_TD, found_TD = oracle(step, experts, rounded=False), interpreted(*step, experts)
    np.testing.assert_allclose(found_TD, expected_TD, atol=1e-5 * max(1, np.abs(expected_TD).max()))


@pytest.mark.parametrize("tokens", [1, 60, 300])
@pytest.mark.parametrize("kind", IN_GROUPS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_rows_stay_close(dtype, kind, tokens):
    """Blocks of 16 to 128 rows; weights, hidden values and outputs are rounded to the type of the rows."""
    x_TD, *rest = inputs(tokens, width=256)
    experts = drawn(kind, COUNT, 256, 416)
    found_TD = interpreted(jnp.asarray(x_TD, dtype), *rest, experts)
    assert found_TD.dtype == dtype
    expected_TD = oracle((x_TD, *rest), experts, rounded=False)
    limit = (0.02 if dtype == "bfloat16" else 0.003) * np.abs(expected_TD).max()
    np.testing.assert_allclose(found_TD.astype(jnp.float32), expected_TD, atol=limit)


def test_weights_may_have_different_bits():
    """Gate of 4 bits, up of 8, down of 4."""
    step, (four, eight) = inputs(40), map(drawn, IN_GROUPS)
    mixed = replace(four, up=eight.up, up_scale=eight.up_scale, up_low=None)
    expected_TD = oracle(step, mixed, rounded=False)
    np.testing.assert_allclose(interpreted(*step, mixed), expected_TD, atol=1e-5)
    x_TD, *rest = step
    found_TD = interpreted(jnp.asarray(x_TD, jnp.bfloat16), *rest, mixed).astype(jnp.float32)
    np.testing.assert_allclose(found_TD, expected_TD, atol=0.02 * np.abs(expected_TD).max())


@pytest.mark.parametrize("kind", IN_GROUPS)
def test_other_tokens_and_place_change_no_bit(kind):
    mine_X, experts, own_D, found = np.int32([2, 0]), drawn(kind), inputs(1)[0][0], []
    for seed, place, crowd in [(1, 0, None), (2, 6, None), (3, 3, 0), (4, 5, 2), (5, 1, COUNT)]:
        x_TD, expert_TX, weight_TX = inputs(40, seed=seed)
        if crowd is not None:
            expert_TX[:] = [crowd, COUNT]
        x_TD[place], expert_TX[place], weight_TX[place] = own_D, mine_X, [0.25, 0.75]
        found.append(np.asarray(interpreted(x_TD, expert_TX, weight_TX, experts))[place])
        np.testing.assert_array_equal(found[-1], found[0])
    assert found[0].any()


@pytest.mark.parametrize("kind", IN_GROUPS)
def test_padding_affects_no_token(kind):
    """Tokens without an expert come out as zero, also if they hold NaN, and change no other token."""
    x_TD, expert_TX, weight_TX = inputs(30)
    expert_TX[::3] = COUNT
    poisoned_TD = np.where(np.arange(30)[:, None] % 3 == 0, np.float32(np.nan), x_TD)
    clean_TD, found_TD = (interpreted(x, expert_TX, weight_TX, drawn(kind)) for x in (x_TD, poisoned_TD))
    np.testing.assert_array_equal(found_TD, clean_TD)
    assert not np.asarray(found_TD[::3]).any() and np.asarray(found_TD).any()


@pytest.mark.parametrize("kind", IN_GROUPS)
def test_what_does_not_fit_goes_to_the_portable_kernel(kind, monkeypatch):
    monkeypatch.setattr(triton_experts, "is_addressable", lambda w: False)
    step, experts = inputs(9), drawn(kind)
    found_TD = jax.jit(lambda *each: triton_experts.triton_experts(*each))(*step, experts)
    np.testing.assert_array_equal(found_TD, jax.jit(block_experts)(*step, experts))


def test_it_takes_what_it_can():
    """Not rows of other types."""
    experts, x_TD = drawn("int4"), jax.ShapeDtypeStruct((4, 64), jnp.int8)
    assert triton_experts.fits(jnp.zeros((4, 64), jnp.bfloat16), experts)
    assert not triton_experts.fits(x_TD, experts)
