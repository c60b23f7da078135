"""Draws by the definition, in float64 numpy: what the kernels for draws are compared with."""

import numpy as np
from hypothesis import strategies as st

from distaff.model.kernels.draw import DrawSettings

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


def check_floors(found_floors: np.ndarray, logits: np.ndarray, settings: DrawSettings) -> None:
    """Each floor keeps what the definition keeps, up to rounding."""
    weights = weights_of(logits, settings)
    low, high = (floors_of(weights, settings, nudge) for nudge in (TOLERANCE, -TOLERANCE))
    found_floors = without_underflow(found_floors)
    below = np.where(weights < (low * (1 - TOLERANCE))[:, None], weights, -1).max(-1)
    assert np.all((found_floors > below) & (found_floors <= high * (1 + TOLERANCE)))


def check_ids(ids: np.ndarray, logits: np.ndarray, settings: DrawSettings) -> None:
    """Each id is the first to arrive of those that are kept, up to rounding."""
    weights, rows = weights_of(logits, settings), np.arange(len(ids))
    low, high = (floors_of(weights, settings, nudge) for nudge in (TOLERANCE, -TOLERANCE))
    assert np.all(weights[rows, ids] >= low * (1 - TOLERANCE))
    speeds = speeds_of(weights, settings.key_B2)
    surely_kept = weights >= (high * (1 + TOLERANCE))[:, None]
    best = np.where(surely_kept, speeds, 0).max(-1)
    assert np.all(speeds[rows, ids] >= best * (1 - TOLERANCE))


USUAL = [{}, {"top_p": 0.9}, {"top_k": 40, "temperature": 0.7}, {"min_p": 0.1}]
"""What most requests ask for."""


def damage(logits: np.ndarray) -> None:
    """Makes rows 1 to 5 of `[8, 300]` such that they cannot be drawn from; row 3 has no possible id."""
    logits[1, 17], logits[2, 0], logits[3], logits[4, 299] = np.nan, np.inf, -np.inf, np.nan
    logits[5] = np.nan


SETTINGS = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([1e-5, 0.3, 0.8, 1.0, 3.0, 3e38]),
        "top_k": st.sampled_from([0, 2, 3, 17, 128, 129, 1000, 10**9]),
        "top_p": st.sampled_from([1e-9, 0.3, 0.9, 0.95, 0.999, 1.0]),
        "min_p": st.sampled_from([0.0, 0.0, 0.05, 1.0]),
    }
)
