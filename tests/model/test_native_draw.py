"""Draws by the native kernels against the definition in float64 numpy, for each instruction set."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from distaff.model.kernels.cpu.native_draw import draw, draw_with_floors
from distaff.model.kernels.draw import DrawSettings
from distaff.model.kernels.draw import draw as portable_draw

from ..native import NATIVE
from .draws import SETTINGS, USUAL, check_floors, check_ids, damage, make_logits, settings_of

pytestmark = NATIVE


@example(size=50, each=[dict(temperature=0.3, top_k=17, top_p=1.0, min_p=0.0)], spread=30.0, key=0).via(
    "a floor of 1e-80"
)
@given(
    size=st.sampled_from([1, 2, 50, 128, 300, 5077]),
    each=st.lists(SETTINGS, min_size=1, max_size=8),
    spread=st.sampled_from([0.0, 0.1, 2.0, 30.0]),
    key=st.integers(0, 1000),
)
def test_a_draw_is_the_definitions(on_each_instruction_set, size, each, spread, key):
    logits = make_logits(len(each), size, spread)
    settings = settings_of(len(each), key, **{name: [one[name] for one in each] for name in each[0]})

    def check():
        ids, floors = map(np.asarray, draw_with_floors(logits, settings))
        check_floors(floors, logits, settings)
        check_ids(ids, logits, settings)

    on_each_instruction_set(check)


@pytest.mark.parametrize("given", USUAL, ids=str)
def test_draws_are_those_of_the_portable_kernel(given):
    """But where two ids arrive at almost the same time, or one is at the border."""
    logits, settings = make_logits(500, 2000), settings_of(500, **given)
    assert np.mean(draw(logits, settings) == jax.jit(portable_draw)(logits, settings)) > 0.99


def test_a_draw_has_the_same_bits_in_any_company():
    logits, settings = make_logits(9, 3001), settings_of(9, temperature=0.8, top_p=0.95)
    whole = draw_with_floors(logits, settings)
    for row in range(9):
        alone = draw_with_floors(logits[row : row + 1], DrawSettings(*(s[row : row + 1] for s in settings)))
        assert [each[0] for each in alone] == [each[row] for each in whole]


@pytest.mark.parametrize("given", [{}, {"top_k": 3}, {"top_p": 0.5, "min_p": 0.2}], ids=str)
def test_rows_that_cannot_be_drawn_disturb_no_other(given, on_each_instruction_set):
    """Numbers that are not finite, rows without a possible id, and rows that do not draw."""
    logits = make_logits(8, 300)
    settings = settings_of(8, **given)
    settings = settings._replace(temperature_B=np.where(np.arange(8) == 6, 0, settings.temperature_B))
    expected = np.asarray(draw(logits, settings))
    damage(logits)

    def compare():
        ids = np.asarray(draw(logits, settings))
        np.testing.assert_array_equal(ids[[0, 6, 7]], expected[[0, 6, 7]])
        assert np.all((ids >= 0) & (ids < 300))

    on_each_instruction_set(compare)


def test_impossible_ids_are_never_drawn():
    logits = make_logits(500, 300)
    logits[:, 1::2] = -np.inf
    assert np.all(draw(logits, settings_of(500, temperature=5.0, top_p=0.99)) % 2 == 0)


def test_other_shapes_are_refused():
    with pytest.raises(jax.errors.JaxRuntimeError, match="draw: expected logits"):
        jax.block_until_ready(draw(jnp.zeros((3, 8)), settings_of(4)))
