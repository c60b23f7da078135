"""Arrays of zeros by the native kernel: zero whatever their memory held before, allocated as it is used."""

import jax
import jax.numpy as jnp
import numpy as np
import psutil
import pytest

from distaff.model.kernels.cpu.native_zeros import zeros
from distaff.model.kernels.native_library import instruction_sets

pytestmark = pytest.mark.skipif(not instruction_sets(), reason="the native kernels were not built")
SHAPES = [
    jax.ShapeDtypeStruct((3, 5), "float32"),
    jax.ShapeDtypeStruct((0, 7), "int8"),
    jax.ShapeDtypeStruct((300, 1001), "float32"),
    jax.ShapeDtypeStruct((1 << 20,), "int8"),
    jax.ShapeDtypeStruct(((1 << 20) + 1,), "int8"),
    jax.ShapeDtypeStruct((700, 3, 999), "bfloat16"),
]
_MIB = 1 << 20


def test_memory_that_was_used_before_becomes_zero() -> None:
    """Sizes below, at and above that of pages which Linux takes back, and none at all; three times."""
    create = jax.jit(lambda: zeros(SHAPES))
    dirty = jax.jit(lambda: [jnp.ones(each.shape, each.dtype) for each in SHAPES])
    for _ in range(3):
        used = jax.block_until_ready(dirty())
        assert all(np.asarray(each).all() for each in used)
        del used
        for found, wanted in zip(create(), SHAPES, strict=True):
            assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
            assert not np.asarray(found).any()


@pytest.mark.skipif(not psutil.LINUX, reason="elsewhere zeros are written")
def test_memory_is_occupied_where_it_is_written() -> None:
    """Four arrays of 128 MiB, and one write to each: nothing is copied."""
    process = psutil.Process()
    shapes = [jax.ShapeDtypeStruct((32 * _MIB,), "float32")] * 4
    create = jax.jit(lambda: zeros(shapes))
    write = jax.jit(lambda arrays: [each.at[7].set(1.0) for each in arrays], donate_argnums=0)
    write(create())  # so that the compiler's memory is not counted
    before = process.memory_info().rss
    pools = jax.block_until_ready(write(create()))
    assert process.memory_info().rss - before < 64 * _MIB
    assert [float(each[7]) for each in pools] == [1.0] * 4
    assert [float(each[8]) for each in pools] == [0.0] * 4
