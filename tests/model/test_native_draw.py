"""Draws by the native kernels against the definition in float64 numpy, for each instruction set."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from distaff.model.kernels.draw import DrawSettings
from distaff.model.kernels.draw import draw as portable_draw
from distaff.model.kernels.native_draw import draw, draw_with_floors

from ..native import NATIVE

pytestmark = NATIVE

TOLERANCE = 1e-4
"""Relative, of weights and arrival times in f32."""

SMALLEST_WEIGHT = 1e-36
"""Smaller weights count as 0: those near f32's smallest normal number may underflow, in the kernel only."""


def settings_of(rows: int, key=0, **given) -> DrawSettings:
    """Plain draws, except for the given values, one or one per row."""
    values = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | given
    kinds = {"top_k": np.int32}
    fields = {
        f"{name}_B": np.broadcast_to(np.asarray(value, kinds.get(name, np.float32)), rows)
        for name, value in values.items()
    }
    keys = np.random.default_rng(key).integers(0, 2**32, (rows, 2), np.uint32)
    return DrawSettings(**fields, key_B2=keys)


def make_logits(rows: int, size: int, spread: float = 2.0) -> np.ndarray:
    return np.random.default_rng([rows, size]).normal(0, spread, (rows, size)).astype(np.float32)


def weights_of(logits: np.ndarray, settings: DrawSettings) -> np.ndarray:
    scaled = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return without_underflow(np.exp(scaled / settings.temperature_B.astype(np.float64)[:, None]))


def without_underflow(weights: np.ndarray) -> np.ndarray:
    return np.where(weights < SMALLEST_WEIGHT, 0, weights)


def floors_of(weights: np.ndarray, settings: DrawSettings, nudge: float) -> np.ndarray:
    """The smallest weight that each row keeps, with top-p moved by a rounding error."""
    floors = []
    for row, ranked in enumerate(-np.sort(-weights, axis=-1)):
        kept = ranked[: settings.top_k_B[row] or None]
        if settings.top_p_B[row] < 1:
            needed = max(settings.top_p_B[row] * (1 + nudge), 1e-12) * kept.sum()
            kept = kept[np.cumsum(kept) - kept < needed]
        floors.append(max(kept[-1], settings.min_p_B[row] * (1 - nudge)))
    return np.array(floors)


def speeds_of(weights: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Each id's weight over its arrival time."""
    bits = np.arange(weights.shape[1], dtype=np.uint32) * np.uint32(0x9E3779B1) + keys[:, :1]
    bits = (bits ^ (bits >> 16)) * np.uint32(0x7FEB352D)
    bits = (bits ^ (bits >> 15) ^ keys[:, 1:]) * np.uint32(0x846CA68B)
    uniform = ((bits ^ (bits >> 16)).astype(np.float32) + np.float32(0.5)) * np.float32(2**-32)
    with np.errstate(divide="ignore"):
        return weights / np.minimum(-np.log1p(-uniform.astype(np.float64)), 100)


def check(logits: np.ndarray, settings: DrawSettings) -> None:
    """Each id is the first to arrive of those that are kept, up to rounding."""
    ids, found_floors = map(np.asarray, draw_with_floors(logits, settings))
    weights = weights_of(logits, settings)
    low, high = (floors_of(weights, settings, nudge) for nudge in (TOLERANCE, -TOLERANCE))
    found_floors = without_underflow(found_floors)
    below = np.where(weights < (low * (1 - TOLERANCE))[:, None], weights, -1).max(-1)
    assert np.all((found_floors > below) & (found_floors <= high * (1 + TOLERANCE)))
    rows = np.arange(len(ids))
    assert np.all(weights[rows, ids] >= low * (1 - TOLERANCE))
    speeds = speeds_of(weights, settings.key_B2)
    surely_kept = weights >= (high * (1 + TOLERANCE))[:, None]
    best = np.where(surely_kept, speeds, 0).max(-1)
    assert np.all(speeds[rows, ids] >= best * (1 - TOLERANCE))


SETTINGS = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([1e-5, 0.3, 0.8, 1.0, 3.0, 3e38]),
        "top_k": st.sampled_from([0, 2, 3, 17, 128, 129, 1000, 10**9]),
        "top_p": st.sampled_from([1e-9, 0.3, 0.9, 0.95, 0.999, 1.0]),
        "min_p": st.sampled_from([0.0, 0.0, 0.05, 1.0]),
    }
)


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
    on_each_instruction_set(lambda: check(logits, settings))


@pytest.mark.parametrize(
    "given", [{}, {"top_p": 0.9}, {"top_k": 40, "temperature": 0.7}, {"min_p": 0.1}], ids=str
)
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
    logits[1, 17], logits[2, 0], logits[3], logits[4, 299] = np.nan, np.inf, -np.inf, np.nan
    logits[5] = np.nan

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
