"""Products with weights in groups for GPUs, in Pallas' interpreter, against float64 and the portable ones."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from distaff.model.kernels.gpu import triton_grouped, triton_groups, triton_split
from distaff.model.kernels.gpu.triton_decode import PROGRAMS
from distaff.model.kernels.linear import grouped_plain
from distaff.model.quantize import GroupedWeight
from distaff.model.sharding import AXIS, create_mesh, over_shares

pytestmark = pytest.mark.accelerators
TYPES = ["float32", "bfloat16", "float16"]
SHAPES = st.tuples(st.integers(1, 300), st.integers(1, 40), st.integers(1, 300))
"""Rows, groups of inputs, outputs."""
EXAMPLES = settings(max_examples=12, deadline=None, phases=[Phase.generate])  # each compiles

interpreted = jax.jit(partial(triton_grouped.grouped_linear, interpret=True))


def drawn(groups: int, outputs: int, bits: int) -> GroupedWeight:
    """Any bytes, and scales and lows with which weights are of order one."""
    rng = np.random.default_rng([groups, outputs, bits])
    scale = rng.uniform(0.5, 1, (groups, outputs)) / (8 if bits == 4 else 100)
    halves = jnp.asarray(scale, jnp.float16), jnp.asarray(-8 * scale, jnp.float16)
    if bits == 4:
        return jnp.asarray(rng.integers(0, 256, (groups * 16, outputs), np.uint8)), *halves
    return jnp.asarray(rng.integers(-128, 128, (groups * 32, outputs), np.int8)), halves[0], None


def rows_of(rows: int, groups: int, dtype: str = "float32") -> jax.Array:
    rng = np.random.default_rng([rows, groups])
    return jnp.asarray(rng.standard_normal((rows, 32 * groups)), dtype)


def widened(weight: GroupedWeight) -> np.ndarray:
    """The weight, f64 `[D, F]`."""
    w, scale, low = (None if part is None else np.asarray(part, np.float64) for part in weight)
    if low is None:
        return w * np.repeat(scale, 32, axis=0)
    q_DF = np.stack([w % 16, w // 16], axis=1).reshape(-1, w.shape[1])
    return q_DF * np.repeat(scale, 32, axis=0) + np.repeat(low, 32, axis=0)


def limits(x_TD: jax.Array, weight: GroupedWeight) -> np.ndarray:
    """How far sums may be off: by a rounding of each weight to x's type, half a unit in its last place, and
    by those of f32 sums."""
    relative = 0.5 * float(jnp.finfo(x_TD.dtype).eps) + 2e-6
    return relative * (np.abs(np.asarray(x_TD, np.float64)) @ np.abs(widened(weight))) + 1e-5


@pytest.mark.parametrize("bits", [4, 8])
@EXAMPLES
@given(SHAPES, st.sampled_from(TYPES))
def test_it_is_the_product_with_the_weight(bits, shape, dtype):
    """Of any size, with rows of any type, which are not rounded: of f32 to within f32's roundings."""
    rows, groups, outputs = shape
    x_TD, weight = rows_of(rows, groups, dtype), drawn(groups, outputs, bits)
    (found_TF,) = interpreted(x_TD, weight)
    assert found_TF.dtype == jnp.float32 and found_TF.shape == (rows, outputs)
    expected_TF = np.asarray(x_TD, np.float64) @ widened(weight)
    np.testing.assert_array_less(np.abs(found_TF - expected_TF), limits(x_TD, weight))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rows", [1, 40, 130])
def test_it_equals_the_portable_product(bits, rows):
    """If rounding changes no row: integers, with 127 in each group."""
    x_TD = np.random.default_rng(rows).integers(-127, 128, (rows, 32 * 20))
    x_TD[:, ::32] = 127
    x_TD, weight = jnp.asarray(x_TD, jnp.float32), drawn(20, 136, bits)
    limit_TF = limits(x_TD, weight)
    for found_TF, expected_TF in zip(interpreted(x_TD, weight), grouped_plain(x_TD, weight), strict=True):
        np.testing.assert_array_less(np.abs(found_TF - expected_TF), 2 * limit_TF)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("bits", [4, 8])
def test_each_input_has_its_own_weight(bits, dtype):
    """A row of the identity picks its line: values, order of the halves, scales and lows to the last bit."""
    weight = drawn(7, 45, bits)
    (found_DF,) = interpreted(jnp.eye(7 * 32, dtype=dtype), weight)
    expected_DF = jnp.asarray(widened(weight), jnp.float32).astype(dtype)
    np.testing.assert_array_equal(found_DF, expected_DF.astype(jnp.float32))


def test_one_call_computes_weights_of_four_and_of_eight_bits():
    x_TD, weights = rows_of(7, 5), [drawn(5, 33, 4), drawn(5, 64, 8), drawn(5, 20, 4)]
    for found_TF, weight in zip(interpreted(x_TD, *weights), weights, strict=True):
        np.testing.assert_array_equal(found_TF, interpreted(x_TD, weight)[0])


@pytest.mark.parametrize("rows", [16, 64, 130])
@pytest.mark.parametrize("bits", [4, 8])
def test_other_rows_change_no_bit_of_a_row(bits, rows):
    """Also NaN in them, and at any place."""
    weight, own_D = drawn(64, 96, bits), rows_of(1, 64, "bfloat16")[0]
    found = []
    for seed, place in enumerate((0, 7, rows - 1)):
        x_TD = rows_of(rows + seed, 64, "bfloat16")[:rows].at[(place + 1) % rows].set(jnp.nan)
        found.append(np.asarray(interpreted(x_TD.at[place].set(own_D), weight)[0][place]))
        np.testing.assert_array_equal(found[-1], found[0])
    assert np.isfinite(found[0]).all() and found[0].any()


@pytest.mark.parametrize("bits", [4, 8])
def test_inputs_are_divided_if_rows_are_few(bits):
    """A part without inputs adds zero: seven iterations in as many parts as there can be."""
    x_TD, weight = rows_of(1, 14, "float32"), drawn(14, 40, bits)
    expected_TF = np.asarray(x_TD, np.float64) @ widened(weight)
    for parts in (1, 2, 5, 16):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(triton_split, "count_parts", lambda *_, parts=parts: parts)
            (found_TF,) = triton_grouped.grouped_linear(x_TD, weight, interpret=True)
        np.testing.assert_array_less(np.abs(found_TF - expected_TF), limits(x_TD, weight))


@pytest.mark.parametrize("axis", [0, 1], ids=["rows", "columns"])
@pytest.mark.parametrize("bits", [4, 8])
def test_each_device_computes_its_share(bits, axis):
    """Outputs or whole groups of inputs on each of two devices, under `shard_map`."""
    x_TD, weight = rows_of(5, 8), drawn(8, 96, bits)
    specs = (P(), P(None, AXIS)) if axis else (P(None, AXIS), P(AXIS, None))

    def share(x_TD: jax.Array, weight: GroupedWeight) -> jax.Array:
        (y_TF,) = triton_grouped.grouped_linear(x_TD, weight, interpret=True)
        return y_TF if axis else jax.lax.psum(y_TF, AXIS)

    run = over_shares(share, create_mesh(2), specs, P(None, AXIS) if axis else P())
    expected_TF = np.asarray(x_TD, np.float64) @ widened(weight)
    np.testing.assert_array_less(np.abs(run(x_TD, weight) - expected_TF), limits(x_TD, weight))


@pytest.mark.parametrize("bits", [4, 8])
def test_it_stays_within_its_arrays(bits, monkeypatch):
    """What a mask admits is inside; the interpreter itself would clamp or drop what is not."""
    found = []

    def watched(access):
        def checked(ref, *values, mask, **settings):
            inside = mask
            for index, size in zip(ref.transforms[-1].indices, ref.ref.shape, strict=True):
                inside = inside & (index >= 0) & (index < size)
            jax.debug.callback(found.append, (inside == mask).all())
            return access(ref, *values, mask=mask, **settings)

        return checked

    for name in ("load", "store"):
        monkeypatch.setattr(triton_split.triton, name, watched(getattr(triton_split.triton, name)))
    triton_grouped.grouped_linear(rows_of(40, 3, "bfloat16"), drawn(3, 200, bits), interpret=True)
    jax.effects_barrier()
    assert len(found) > 8 and all(found)


def test_products_of_f32_are_exact():
    """A lowered step does not show what is inside kernels; a GPU's default is TF32."""
    text = str(jax.make_jaxpr(triton_grouped.grouped_linear)(rows_of(7, 5), drawn(5, 33, 4)))
    assert text.count("dot_general[") == text.count("(Precision.HIGHEST, Precision.HIGHEST)") == 2


def test_what_does_not_fit_goes_to_the_portable_kernel(monkeypatch):
    monkeypatch.setattr(triton_split, "is_addressable", lambda w: w.dtype == jnp.uint8)
    x_TD, weights = rows_of(7, 5), [drawn(5, 33, bits) for bits in (4, 8)]
    found = jax.jit(partial(triton_grouped.grouped_linear, interpret=True))(x_TD, *weights)
    np.testing.assert_array_equal(found[1], jax.jit(grouped_plain)(x_TD, weights[1])[0])
    np.testing.assert_array_equal(found[0], interpreted(x_TD, weights[0])[0])


@pytest.mark.parametrize(
    ("x", "size", "expected"),
    [
        ("bfloat16", 1 << 31, True),
        ("float16", 3 << 30, False),
        ("float32", 5 << 30, True),
        ("int8", 8, False),
    ],
)
def test_it_takes_what_it_can(x, size, expected):
    """Not bytes of 2 to 4 GiB, which Pallas cannot reach."""
    weight = jax.ShapeDtypeStruct((1024, size >> 10), "int8")
    assert triton_split.fits(jax.ShapeDtypeStruct((4, 1024), x), weight) == expected


@given(
    st.integers(1, 5000), st.sampled_from([2, 4]), st.lists(st.sampled_from([4, 8]), min_size=1, max_size=2)
)
def test_tiles_are_of_sensible_size(rows, itemsize, bits):
    """Powers of two of whole groups, at least 16 on every side of a product, few rows for few."""
    stacks = tuple((None, None, None if each == 8 else 0) for each in bits)
    tile = triton_groups.tile_of(triton_split.block_rows(rows, itemsize), itemsize, stacks, 128)
    assert all(math.log2(size).is_integer() for size in (tile.rows, tile.terms, tile.outputs))
    assert tile.terms % (32 if 8 in bits else 16) == 0 and tile.outputs >= 16
    assert 16 <= tile.rows < max(17, 2 * rows)


@given(st.integers(1, 5000), st.integers(1, 1000), st.integers(1, 200_000))
def test_parts_are_as_many_as_are_useful(rows, groups, outputs):
    """Enough for a GPU or as many as pay; the sums of several take less memory than the weight in 4 bits."""
    tile = triton_groups.tile_of(triton_split.block_rows(rows, 2), 2, ((None, None, None),), 128)
    parts = triton_split.count_parts(rows, 32 * groups, outputs, tile)
    programs = parts * -(-outputs // tile.outputs) * -(-rows // tile.rows)
    assert parts == 1 or programs < 2 * PROGRAMS
    assert parts == 1 or parts * max(rows, 16) * 4 <= 32 * groups * 5 / 8
