"""Copying tensors into other types and orders: the definition, bit for bit, whatever the sizes."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distaff.checkpoints import casting
from distaff.checkpoints.casting import aligned, all_finite, cast

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
WIDE = (np.dtype(np.float32), BFLOAT16, np.dtype(np.float16))
TARGETS = (np.dtype(np.float32), BFLOAT16)


def made(shape: tuple[int, ...], dtype: np.dtype, order: str) -> np.ndarray:
    """Random numbers of all sizes, in memory of an order: rows first, last two axes swapped, or with gaps."""
    generator = np.random.default_rng(len(shape))
    values = (generator.standard_normal(shape) * 10.0 ** generator.integers(-4, 4, shape)).astype(dtype)
    if order == "swapped" and len(shape) > 1:
        return np.swapaxes(np.ascontiguousarray(np.swapaxes(values, -1, -2)), -1, -2)
    return np.repeat(values, 2, axis=-1)[..., ::2] if order == "gaps" else values


@given(
    shape=st.lists(st.integers(1, 70), min_size=1, max_size=3).map(tuple),
    stored=st.sampled_from(WIDE),
    target=st.sampled_from(TARGETS),
    order=st.sampled_from(["rows", "swapped", "gaps"]),
)
def test_a_copy_has_the_same_numbers(shape, stored, target, order):
    """In rows, at the alignment that spares JAX a copy; the original stays as it is."""
    values = made(shape, stored, order)
    before = values.copy()
    found, finite = cast(values, target)
    assert finite
    assert (found.shape, found.dtype, found.flags.c_contiguous) == (shape, target, True)
    assert found.ctypes.data % 64 == 0
    np.testing.assert_array_equal(
        found.view(np.uint8), np.ascontiguousarray(values.astype(target)).view(np.uint8)
    )
    np.testing.assert_array_equal(values, before)


@pytest.mark.parametrize("order", ["rows", "swapped", "gaps"])
@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("stored", WIDE, ids=str)
def test_one_number_that_is_not_finite_is_found_anywhere(stored, target, order, monkeypatch):
    """In each strip and each chunk, the last ones included."""
    monkeypatch.setattr(casting, "_CHUNK", 100)
    for place in [(0, 0), (16, 3), (37, 52), (20, 20)]:
        for bad in (np.nan, np.inf, -np.inf):
            values = made((38, 53), stored, order)
            assert cast(values, target)[1]
            values[place] = bad
            assert not cast(values, target)[1]


def test_a_number_that_becomes_infinite_is_found():
    """The largest float32 is above the largest bfloat16."""
    values = np.full((20, 20), np.finfo(np.float32).max, np.float32)
    for order in (values, values.T):
        assert cast(order, np.dtype(np.float32))[1]
        assert not cast(order, BFLOAT16)[1]


def test_what_is_ready_is_not_copied():
    values = aligned((5, 7), BFLOAT16)
    values[...] = 1
    assert cast(values, BFLOAT16)[0] is values


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32])
def test_integers_are_finite(dtype):
    """Also quantised weights whose bits would be those of infinity."""
    values = np.full((9, 70), -1, np.int64).astype(dtype)
    for order in (values, values.T):
        found, finite = cast(order, np.dtype(dtype))
        assert finite and (found == order).all()
    assert all_finite(values)


@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0), (1, 1), (1, 90), (90, 1), (2, 0, 3)])
def test_empty_and_thin_tensors(shape):
    found, finite = cast(np.zeros(shape, np.float32), BFLOAT16)
    assert finite and found.shape == shape and not found.any()
