"""Experts in fp8 on a GPU: its kernels in Pallas' interpreter against sums in float64."""

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

from .fp8_experts import FP8, drawn, oracle
from .test_grouped_experts import COUNT, inputs

pytestmark = pytest.mark.accelerators
WIDTH, INNER = 128, 256
SIZES = st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 3))
"""Experts, blocks of D, blocks of F."""

interpreted = jax.jit(partial(triton_experts.triton_experts, interpret=True))
several = partial(inputs, width=WIDTH)


@settings(max_examples=12, deadline=None, phases=[Phase.generate])  # shrinking would compile for minutes
@given(st.sampled_from(FP8), st.integers(1, 200), st.integers(1, 3), SIZES)
def test_it_is_the_sum_over_experts(kind, tokens, choices, sizes):
    count, width, inner = sizes[0], 128 * sizes[1], 128 * sizes[2]
    step, experts = inputs(tokens, choices, count, width), drawn(kind, count, width, inner)
    expected_TD, found_TD = oracle(step, experts), interpreted(*step, experts)
    np.testing.assert_allclose(found_TD, expected_TD, atol=1e-5 * max(1, np.abs(expected_TD).max()))


def test_scales_of_outputs_need_no_whole_blocks():
    step, experts = inputs(40, width=72), drawn("fp8", COUNT, 72, 100)
    np.testing.assert_allclose(interpreted(*step, experts), oracle(step, experts), atol=1e-5)


@pytest.mark.parametrize("tokens", [1, 60, 300])
@pytest.mark.parametrize("kind", FP8)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_rows_stay_close(dtype, kind, tokens):
    """Blocks of 16 to 128 rows. Hidden values and outputs are rounded to the type of the rows."""
    x_TD, *rest = several(tokens)
    x_TD = jnp.asarray(x_TD, dtype)
    experts = drawn(kind, COUNT, WIDTH, INNER)
    found_TD = interpreted(x_TD, *rest, experts)
    assert found_TD.dtype == dtype
    expected_TD = oracle((np.asarray(x_TD.astype(jnp.float32)), *rest), experts)
    limit = (0.01 if dtype == "bfloat16" else 0.002) * np.abs(expected_TD).max()
    np.testing.assert_allclose(found_TD.astype(jnp.float32), expected_TD, atol=limit)


def test_experts_may_be_arrays_of_their_own():
    """As they are unstacked for a CPU."""
    step, experts = several(20), drawn("fp8-blocks", COUNT, WIDTH, INNER)
    parts = {name: tuple(jnp.split(getattr(experts, name), COUNT)) for name in ("gate", "up", "down")}
    np.testing.assert_array_equal(interpreted(*step, replace(experts, **parts)), interpreted(*step, experts))


@pytest.mark.parametrize("kind", FP8)
def test_other_tokens_and_place_change_no_bit(kind):
    mine_X, experts, own_D, found = np.int32([2, 0]), drawn(kind, COUNT, WIDTH, INNER), several(1)[0][0], []
    for seed, place, crowd in [(1, 0, None), (2, 6, None), (3, 3, 0), (4, 5, 2), (5, 1, COUNT)]:
        x_TD, expert_TX, weight_TX = several(40, seed=seed)
        if crowd is not None:
            expert_TX[:] = [crowd, COUNT]
        x_TD[place], expert_TX[place], weight_TX[place] = own_D, mine_X, [0.25, 0.75]
        found.append(np.asarray(interpreted(x_TD, expert_TX, weight_TX, experts))[place])
        np.testing.assert_array_equal(found[-1], found[0])
    assert found[0].any()


@pytest.mark.parametrize("kind", FP8)
def test_padding_affects_no_token(kind):
    """Tokens without an expert come out as zero, also if they hold NaN, and change no other token."""
    (x_TD, expert_TX, weight_TX), experts = several(30), drawn(kind, COUNT, WIDTH, INNER)
    expert_TX[::3] = COUNT
    poisoned_TD = np.where(np.arange(30)[:, None] % 3 == 0, np.float32(np.nan), x_TD)
    clean_TD, found_TD = (interpreted(x, expert_TX, weight_TX, experts) for x in (x_TD, poisoned_TD))
    np.testing.assert_array_equal(found_TD, clean_TD)
    assert not np.asarray(found_TD[::3]).any() and np.asarray(found_TD).any()


@pytest.mark.parametrize("kind", FP8)
def test_what_does_not_fit_goes_to_the_portable_kernel(kind, monkeypatch):
    monkeypatch.setattr(triton_experts, "is_addressable", lambda w: False)
    step, experts = several(9), drawn(kind, COUNT, WIDTH, INNER)
    found_TD = jax.jit(lambda *each: triton_experts.triton_experts(*each))(*step, experts)
    np.testing.assert_array_equal(found_TD, jax.jit(block_experts)(*step, experts))
