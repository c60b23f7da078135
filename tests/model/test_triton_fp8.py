"""Products with fp8 weights for GPUs, in Pallas' interpreter, against float64 and the portable ones."""

from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from distaff.model.kernels.fp8 import fp8_plain
from distaff.model.kernels.gpu import triton_fp8, triton_split
from distaff.model.quantize import widen_fp8
from distaff.model.sharding import AXIS, create_mesh, over_shares

from .test_fp8_kernels import Weight, drawn, exact, rows_of

pytestmark = pytest.mark.accelerators
BOTH = pytest.mark.parametrize("blocks", [False, True], ids=["outputs", "blocks"])
TYPES = ["float32", "bfloat16", "float16"]
SHAPES = st.tuples(st.integers(1, 300), st.integers(1, 10), st.integers(1, 300))
"""Rows, blocks of inputs, outputs."""
EXAMPLES = settings(max_examples=12, deadline=None, phases=[Phase.generate])  # each compiles

interpreted = jax.jit(partial(triton_fp8.fp8_linear, interpret=True))


def compare(found_TF: jax.Array, x_TD: jax.Array, weight: Weight) -> None:
    """Only sums may be rounded, in f32, whatever the type of the rows."""
    expected_TF, magnitude_TF = exact(np.asarray(x_TD).astype(np.float64), weight)
    assert found_TF.dtype == jnp.float32 and found_TF.shape == expected_TF.shape
    np.testing.assert_array_less(np.abs(found_TF - expected_TF), 2e-6 * magnitude_TF + 1e-30)


@BOTH
@EXAMPLES
@given(SHAPES, st.sampled_from(TYPES))
def test_it_is_the_product_with_the_weight(blocks, shape, dtype):
    """Of any size, with rows of any type: neither rows nor weights are rounded."""
    rows, count, outputs = shape
    x_TD = jnp.asarray(rows_of(rows, 128 * count), dtype)
    weight = drawn(128 * count, outputs, blocks=blocks)
    compare(interpreted(x_TD, weight)[0], x_TD, weight)


@pytest.mark.parametrize("inputs", [1, 3, 37, 300])
@pytest.mark.parametrize("dtype", TYPES)
def test_scales_of_outputs_need_no_whole_blocks(dtype, inputs):
    x_TD, weight = jnp.asarray(rows_of(5, inputs), dtype), drawn(inputs, 70, blocks=False)
    compare(interpreted(x_TD, weight)[0], x_TD, weight)


@pytest.mark.parametrize("dtype", TYPES)
def test_every_finite_number_of_fp8_is_read(dtype):
    """The smallest ones too."""
    values = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn)
    w_DF = np.where(np.isfinite(values), values, 0).astype(ml_dtypes.float8_e4m3fn)[None, :]
    (found_TF,) = interpreted(jnp.ones((1, 1), dtype), (jnp.asarray(w_DF), jnp.ones(256)))
    np.testing.assert_array_equal(found_TF[0], w_DF[0].astype(np.float32))


@BOTH
@pytest.mark.parametrize("dtype", TYPES)
def test_each_input_has_its_own_weight(dtype, blocks):
    """A row of the identity picks its line, to the last bit."""
    weight = drawn(384, 45, blocks=blocks)
    (found_DF,) = interpreted(jnp.eye(384, dtype=dtype), weight)
    np.testing.assert_array_equal(found_DF, widen_fp8(*weight))


def test_one_call_computes_weights_with_scales_of_both_kinds():
    x_TD = jnp.asarray(rows_of(7, 256))
    weights = [drawn(256, size, blocks=blocks) for size, blocks in ((64, True), (33, False), (96, True))]
    for found_TF, weight in zip(interpreted(x_TD, *weights), weights, strict=True):
        np.testing.assert_array_equal(found_TF, interpreted(x_TD, weight)[0])


@BOTH
@pytest.mark.parametrize("rows", [16, 64, 130])
def test_other_rows_change_no_bit_of_a_row(rows, blocks):
    """Also NaN in them, and at any place."""
    weight, own_D = drawn(2048, 96, blocks=blocks), jnp.asarray(rows_of(1, 2048)[0], jnp.bfloat16)
    found = []
    for seed, place in enumerate((0, 7, rows - 1)):
        x_TD = jnp.asarray(rows_of(rows + seed, 2048)[:rows], jnp.bfloat16)
        x_TD = x_TD.at[(place + 1) % rows].set(jnp.nan).at[place].set(own_D)
        found.append(np.asarray(interpreted(x_TD, weight)[0][place]))
        np.testing.assert_array_equal(found[-1], found[0])
    assert np.isfinite(found[0]).all() and found[0].any()


@BOTH
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_inputs_are_divided_if_rows_are_few(dtype, blocks):
    """Also within a block, and a part without inputs adds zero."""
    x_TD, weight = jnp.asarray(rows_of(1, 384), dtype), drawn(384, 40, blocks=blocks)
    for parts in (1, 2, 5, 16):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(triton_split, "count_parts", lambda *_, parts=parts: parts)
            (found_TF,) = triton_fp8.fp8_linear(x_TD, weight, interpret=True)
        compare(found_TF, x_TD, weight)


@BOTH
@pytest.mark.parametrize("axis", [0, 1], ids=["rows", "columns"])
def test_each_device_computes_its_share(axis, blocks):
    """Outputs or whole blocks of inputs on each of two devices, under `shard_map`."""
    x_TD, weight = jnp.asarray(rows_of(5, 512)), drawn(512, 96, blocks=blocks)
    scales = P(*(None,) * blocks, AXIS) if axis else P(*(AXIS,) * blocks, None)
    specs = (P(), (P(None, AXIS), scales)) if axis else (P(None, AXIS), (P(AXIS, None), scales))

    def share(x_TD: jax.Array, weight: Weight) -> jax.Array:
        (y_TF,) = triton_fp8.fp8_linear(x_TD, weight, interpret=True)
        return y_TF if axis else jax.lax.psum(y_TF, AXIS)

    run = over_shares(share, create_mesh(2), specs, P(None, AXIS) if axis else P())
    compare(run(x_TD, weight), x_TD, weight)


@BOTH
def test_it_stays_within_its_arrays(blocks, monkeypatch):
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
        monkeypatch.setattr(triton_fp8.triton, name, watched(getattr(triton_fp8.triton, name)))
    x_TD = jnp.asarray(rows_of(40, 384), jnp.bfloat16)
    triton_fp8.fp8_linear(x_TD, drawn(384, 200, blocks=blocks), interpret=True)
    jax.effects_barrier()
    assert len(found) > 8 and all(found)


def test_products_of_f32_are_exact():
    """A lowered step does not show what is inside kernels; a GPU's default is TF32."""
    text = str(jax.make_jaxpr(triton_fp8.fp8_linear)(rows_of(7, 256), drawn(256, 33, blocks=True)))
    assert text.count("dot_general[") == text.count("(Precision.HIGHEST, Precision.HIGHEST)") == 1


def test_what_does_not_fit_goes_to_the_portable_kernel(monkeypatch):
    monkeypatch.setattr(triton_split, "is_addressable", lambda w: w.shape[1] == 33)
    x_TD, weights = jnp.asarray(rows_of(7, 256)), [drawn(256, size, blocks=True) for size in (33, 40)]
    found = jax.jit(partial(triton_fp8.fp8_linear, interpret=True))(x_TD, *weights)
    np.testing.assert_array_equal(found[1], jax.jit(fp8_plain)(x_TD, weights[1])[0])
    np.testing.assert_array_equal(found[0], interpreted(x_TD, weights[0])[0])


@given(st.integers(1, 5000), st.sampled_from([2, 4]), st.sampled_from([32, 64, 128]))
def test_tiles_are_of_sensible_size(rows, itemsize, widest):
    """An iteration is within a block of inputs; at least 16 on every side of a product, few rows for few."""
    tile = triton_fp8.tile_of(triton_split.block_rows(rows, itemsize), itemsize, widest)
    assert 128 % tile.terms == 0 and 16 <= tile.outputs <= widest
    assert min(tile.terms, tile.rows) >= 16 and tile.rows < max(17, 2 * rows)
