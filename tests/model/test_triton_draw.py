"""The GPU's kernel for draws, run on this host by Pallas' interpreter, against the definition."""

from functools import partial

import jax
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from distaff.model.kernels.draw import DrawSettings
from distaff.model.kernels.draw import draw as portable_draw
from distaff.model.kernels.gpu import triton_draw

from .draws import SETTINGS, USUAL, check_ids, damage, make_logits, settings_of

pytestmark = pytest.mark.accelerators
draw = jax.jit(partial(triton_draw.draw, interpret=True))

ROWS = 4


@settings(max_examples=60)
@example(size=50, each=[dict(temperature=0.3, top_k=17, top_p=1.0, min_p=0.0)] * ROWS, spread=30.0, key=0)
@given(
    size=st.sampled_from([1, 50, 5077]),
    each=st.lists(SETTINGS, min_size=ROWS, max_size=ROWS),
    spread=st.sampled_from([0.0, 0.1, 2.0, 30.0]),
    key=st.integers(0, 1000),
)
def test_a_draw_is_the_definitions(size, each, spread, key):
    """In vocabularies of a part of a chunk, and of one and a part."""
    logits = make_logits(ROWS, size, spread)
    given = settings_of(ROWS, key, **{name: [one[name] for one in each] for name in each[0]})
    check_ids(np.asarray(draw(logits, given)), logits, given)


@pytest.mark.parametrize("given", USUAL, ids=str)
def test_draws_are_those_of_the_portable_kernel(given):
    """But where two ids arrive at almost the same time, or one is at the border."""
    logits, given = make_logits(200, 2000), settings_of(200, **given)
    assert np.mean(draw(logits, given) == jax.jit(portable_draw)(logits, given)) > 0.98


def test_a_draw_has_the_same_bits_in_any_company():
    logits, given = make_logits(5, 5001), settings_of(5, temperature=0.8, top_p=0.95)
    whole = np.asarray(draw(logits, given))
    for row in range(5):
        alone = draw(logits[row : row + 1], DrawSettings(*(s[row : row + 1] for s in given)))
        assert alone[0] == whole[row]


@pytest.mark.parametrize("given", [{}, {"top_k": 3}, {"top_p": 0.5, "min_p": 0.2}], ids=str)
def test_rows_that_cannot_be_drawn_disturb_no_other(given):
    """Numbers that are not finite, rows without a possible id, and rows that do not draw."""
    logits, given = make_logits(8, 300), settings_of(8, **given)
    given = given._replace(temperature_B=np.where(np.arange(8) == 6, 0, given.temperature_B))
    expected = np.asarray(draw(logits, given))
    damage(logits)
    ids = np.asarray(draw(logits, given))
    np.testing.assert_array_equal(ids[[0, 7]], expected[[0, 7]])
    assert np.all((ids >= 0) & (ids < 300))


def test_impossible_ids_are_never_drawn():
    logits = make_logits(200, 300)
    logits[:, 1::2] = -np.inf
    assert np.all(draw(logits, settings_of(200, temperature=5.0, top_p=0.99)) % 2 == 0)
