"""Each platform's attention kernel against dense attention, run on this host by Pallas' interpreters.

The layout is the runtime's: rows are consecutive, those in use come first.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas.ops.tpu.ragged_paged_attention import (
    dynamic_validate_inputs,
    ref_ragged_paged_attention,
)

from distaff.model.cache import Batch
from distaff.model.kernels import block_attention
from distaff.model.kernels.gpu import triton_attention, triton_walk
from distaff.model.kernels.gpu.triton_decode import count_parts
from distaff.model.kernels.tpu import ragged_attention

from .reference import make_tiles
from .test_block_attention import Geometry, World

pytestmark = pytest.mark.accelerators
FLOAT32, BFLOAT16 = jnp.dtype("float32"), jnp.dtype("bfloat16")
Run = tuple[int, int]
"""A row's tokens in a step: the first one's position, and how many."""

MIXED: list[Run] = [(300, 1), (0, 40), (130, 1), (250, 21)]
DECODE: list[Run] = [(300, 1), (-1, 1), (511, 1)]
"""Row 1 is padding."""
UNEVEN: list[Run] = [(511, 1), (2, 1), (64, 1), (300, 1)]

RAGGED = [
    Geometry(heads=4, kv_heads=1, head_size=128, page_size=16),
    Geometry(heads=4, kv_heads=2, head_size=128, page_size=64, window=100),
]
TRITON = [
    Geometry(heads=4, kv_heads=2, head_size=16),
    Geometry(heads=3, kv_heads=1, head_size=32, page_size=8, window=5),
    Geometry(heads=2, kv_heads=2, head_size=64, page_size=256, window=200),
    Geometry(heads=4, kv_heads=2, head_size=16, int8=True),
]
TRITON_NAMES = ["gqa", "three-heads-window-5", "page-256-window-200", "int8"]


def lay_out(world: World, runs: Sequence[Run], tokens: int, *, tiles: bool) -> Batch:
    """A step of these runs, row by row, then padding; tiles that are not in use hold any values."""
    rows, ends = len(world.tables), np.cumsum([0, *(length for _, length in runs)])
    positions = np.full(tokens, -1, np.int32)
    for (first, length), start in zip(runs, ends, strict=False):
        positions[start : start + length] = first + np.arange(length) if first >= 0 else -1
    singles = [start if n == 1 else tokens for (_, n), start in zip(runs, ends, strict=False)]
    prompts = [(start, n, i) for i, ((_, n), start) in enumerate(zip(runs, ends, strict=False)) if n > 1]
    made = make_tiles(prompts, tile=min(64, tokens), capacity=tokens // 64 + rows)
    unused_C = jnp.arange(made.start_C.shape[0]) >= made.count
    return Batch(
        positions_T=jnp.asarray(positions),
        lengths_T=jnp.asarray(positions + 1),
        entries_T=jnp.zeros(tokens, jnp.int32),
        tables_BM=jnp.asarray(world.tables, jnp.int32),
        starts_R=jnp.asarray(np.pad(ends, (0, rows + 1 - len(ends))), jnp.int32),
        rows=jnp.int32(len(runs)),
        singles_B=jnp.asarray(singles + [tokens] * (rows - len(runs)), jnp.int32),
        tiles=replace(made, length_C=jnp.where(unused_C, 3, made.length_C)) if tiles else None,
    )


STEPS = {
    "mixed": (MIXED, 80, True),
    "one-prompt": ([(0, 64)], 64, True),
    "decode": (DECODE, 4, False),
    "uneven": (UNEVEN, 4, False),
    "padding-alone": ([], 4, False),
    "mixed-padding-alone": ([], 64, True),
}


@cache
def interpreted(parts: int) -> Callable[..., jax.Array]:
    """Our GPU kernel, with the keys of a row of one token in so many parts."""
    return partial(triton_attention.attend, parts=parts, interpret=True)


@cache
def jitted(attend: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """The kernel, compiled once for each shape, type and window of all tests that ask for it."""
    return jax.jit(attend, static_argnames="window")


def run_step(
    attend: Callable[..., jax.Array], geometry: Geometry, step: str, dtype: jnp.dtype, *, jit: bool = True
) -> tuple[np.ndarray, np.ndarray, Batch]:
    """A step's output `[T, N, H]` by a kernel, and by dense attention: zero for tokens of no row."""
    runs, tokens, tiles = STEPS[step]
    world = World.create(geometry, 3)
    shape = (tokens, geometry.heads, geometry.head_size)
    q_TNH = np.random.default_rng(4).standard_normal(shape).astype(dtype)
    pool = world.pool if geometry.int8 else world.pool.astype(dtype)
    batch = lay_out(world, runs, tokens, tiles=tiles)
    if tiles is False:
        batch = replace(
            batch, starts_R=jnp.arange(5, dtype=jnp.int32), singles_B=jnp.arange(4, dtype=jnp.int32)
        )
    ours = jitted(attend) if jit else attend
    found = np.asarray(ours(jnp.asarray(q_TNH), pool, batch, window=geometry.window), np.float32)
    return found, dense(world, q_TNH, runs), batch


def dense(world: World, q_TNH: np.ndarray, runs: Sequence[Run]) -> np.ndarray:
    """What `World.oracle` computes for each run, with keys and values of the queries' type unless in int8."""
    if not world.geometry.int8:
        k_RSKH, v_RSKH = (x.astype(q_TNH.dtype) for x in (world.k_RSKH, world.v_RSKH))
        world = replace(world, k_RSKH=k_RSKH, v_RSKH=v_RSKH)
    expected, start = np.zeros(q_TNH.shape), 0
    for row, (first, length) in enumerate(runs):
        where = slice(start, start + length)
        if first >= 0:
            expected[where] = world.oracle(q_TNH[where], row, first + np.arange(length))
        start += length
    return expected


def compare(
    attend: Callable[..., jax.Array],
    geometry: Geometry,
    step: str,
    dtype: jnp.dtype,
    tolerance: float,
    *,
    jit: bool = True,
) -> None:
    """Checks that the kernel's output is dense attention's and that tokens of no row get exactly zero."""
    found, expected, batch = run_step(attend, geometry, step, dtype, jit=jit)
    np.testing.assert_allclose(found, expected, atol=tolerance)
    assert not found[np.asarray(batch.positions_T) < 0].any()
    assert found[np.asarray(batch.positions_T) >= 0].any(-1).all()


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=str)
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("geometry", TRITON, ids=TRITON_NAMES)
def test_triton_equals_dense_attention(geometry: Geometry, step: str, dtype: jnp.dtype) -> None:
    """In bfloat16 weights are rounded before the product with the values: 2^-9 of values around one."""
    compare(interpreted(1), geometry, step, dtype, 1e-5 if dtype == FLOAT32 else 0.02)


@pytest.mark.parametrize(
    ("step", "dtype", "parts"),
    [("uneven", FLOAT32, 3), ("uneven", FLOAT32, 32), ("decode", BFLOAT16, 3), ("mixed", FLOAT32, 3)],
    ids=str,
)
@pytest.mark.parametrize("geometry", TRITON, ids=TRITON_NAMES)
def test_triton_in_parts_equals_dense_attention(
    geometry: Geometry, step: str, dtype: jnp.dtype, parts: int
) -> None:
    """Rows of up to eight blocks in three parts that are not equally long, and in more parts than blocks."""
    compare(interpreted(parts), geometry, step, dtype, 1e-5 if dtype == FLOAT32 else 0.02)


@pytest.mark.parametrize("parts", [5, 32])
@pytest.mark.parametrize("geometry", TRITON, ids=TRITON_NAMES)
def test_rows_of_any_length_in_parts(geometry: Geometry, parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to 32 blocks of 16 keys a row, and padding, against dense attention. The largest numbers on every
    page that belongs to no row, and the other rows, change no bit."""
    monkeypatch.setattr(triton_walk, "KEY_BYTES", 1)
    attend = jax.jit(partial(triton_attention.attend, parts=parts, interpret=True, window=geometry.window))
    worlds = [World.create(geometry, 3, filler) for filler in (0.0, float(np.finfo(np.float32).max))]
    q_TNH = np.random.default_rng(5).standard_normal((4, geometry.heads, geometry.head_size), np.float32)

    def found(world: World, positions: Sequence[int]) -> np.ndarray:
        batch = lay_out(world, [(position, 1) for position in positions], 4, tiles=False)
        return np.asarray(attend(jnp.asarray(q_TNH), world.pool, batch))

    @settings(max_examples=15, deadline=None)
    @given(st.lists(st.integers(-1, 511), min_size=4, max_size=4))
    def check(positions: list[int]) -> None:
        expected = dense(worlds[0], q_TNH, [(position, 1) for position in positions])
        clean, dirty = (found(world, positions) for world in worlds)
        np.testing.assert_allclose(clean, expected, atol=1e-5)
        np.testing.assert_array_equal(dirty, clean)
        assert not clean[np.asarray(positions) < 0].any()
        alone = found(worlds[0], [positions[0], -1, -1, -1])
        np.testing.assert_array_equal(alone[0], clean[0])

    check()


PARTS = [
    (1, 8, 2048, 32),  # a stream of 32,768 tokens: 256 programs
    (1, 1, 2048, 32),
    (1, 8, 12, 3),  # three blocks of 64 keys
    (1, 8, 1, 1),
    (2, 8, 512, 16),
    (24, 8, 512, 2),
    (32, 8, 512, 1),
    (64, 8, 512, 1),
]


@pytest.mark.parametrize(("rows", "kv_heads", "pages", "parts"), PARTS)
def test_few_rows_have_many_parts(rows: int, kv_heads: int, pages: int, parts: int) -> None:
    """For heads of 128 in bfloat16 and pages of 16 tokens."""
    q_BNH = jax.ShapeDtypeStruct((rows, 4 * kv_heads, 128), BFLOAT16)
    pool = jax.ShapeDtypeStruct((9, 16, 2 * kv_heads, 128), BFLOAT16)
    assert count_parts(q_BNH, pool, jax.ShapeDtypeStruct((rows, pages), jnp.int32)) == parts


@pytest.mark.parametrize("step", ["mixed", "decode"])
@pytest.mark.parametrize("geometry", TRITON[:3], ids=TRITON_NAMES[:3])
def test_portable_equals_dense_attention_in_bfloat16(geometry: Geometry, step: str) -> None:
    """In float32: tests/model/test_block_attention.py."""
    compare(block_attention.attend, geometry, step, BFLOAT16, 0.02)


def stand_in(q_TNH, pool, lengths_B, tables_BM, starts_R, rows, **settings) -> jax.Array:
    """JAX's reference of its TPU kernel; NaN where it leaves the output unchanged."""
    arguments = q_TNH, pool, lengths_B, tables_BM, starts_R, rows
    dynamic_validate_inputs(*arguments, **settings)
    used = int(rows[0])
    assert used >= 1 and (np.diff(starts_R)[:used] >= 1).all() and (lengths_B[:used] >= 1).all()
    blocks = ("num_kv_pages_per_block", "num_queries_per_block")
    mathematics = {name: value for name, value in settings.items() if name not in blocks}
    out_TNH = ref_ragged_paged_attention(*arguments, **mathematics)
    return jnp.full_like(q_TNH, jnp.nan).at[: len(out_TNH)].set(out_TNH)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    ("geometry", "dtype"), [(RAGGED[0], FLOAT32), (RAGGED[1], BFLOAT16)], ids=["f32", "bf16-window-100"]
)
def test_ragged_equals_dense_attention(
    geometry: Geometry, step: str, dtype: jnp.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The arguments for JAX's TPU kernel mean what they should, and meet its requirements:
    each row in use has a token and a key, because it prefetches keys.

    The kernel runs in no interpreter (JAX 0.10.2's does not support reshaped references), so its reference
    is used instead.
    """
    monkeypatch.setattr(ragged_attention, "ragged_paged_attention", stand_in)
    tolerance = 1e-5 if dtype == FLOAT32 else 0.02
    compare(ragged_attention.attend, geometry, step, dtype, tolerance, jit=False)


SHAPES = [
    ((8, 4, 128), (9, 16, 2), BFLOAT16, True),
    ((8, 4, 128), (9, 16, 2), FLOAT32, True),
    ((8, 32, 128), (9, 16, 64), BFLOAT16, True),
    ((8, 32, 128), (9, 16, 64), FLOAT32, False),
    ((8, 64, 128), (9, 16, 64), FLOAT32, True),
    ((8, 4, 256), (9, 16, 4), BFLOAT16, False),
    ((8, 4, 64), (9, 16, 2), BFLOAT16, False),
    ((8, 9, 128), (9, 16, 6), BFLOAT16, False),
    ((8, 4, 128), (9, 16, 2), jnp.dtype("float16"), False),
]


@pytest.mark.parametrize(("q", "pool", "dtype", "expected"), SHAPES, ids=str)
def test_ragged_takes_what_it_can(q: tuple, pool: tuple, dtype: jnp.dtype, expected: bool) -> None:
    """Heads of size 64 or 256, three key heads, f32 with one query head for each of many key heads, and
    unknown dtypes go to the portable kernel; so do page tables that are too large and queries of another
    dtype."""
    q_TNH = jax.ShapeDtypeStruct(q, dtype)
    pages = jax.ShapeDtypeStruct((*pool, q[2]), dtype)
    small, large = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((8, 64), (512, 1024)))
    assert ragged_attention.fits(q_TNH, pages, small) == expected
    assert not ragged_attention.fits(q_TNH, pages, large)
    assert not ragged_attention.fits(jax.ShapeDtypeStruct(q, jnp.int8), pages, small)


@pytest.mark.parametrize("kernel", [ragged_attention, triton_attention], ids=lambda kernel: kernel.__name__)
def test_what_does_not_fit_goes_to_the_portable_kernel(kernel: ModuleType) -> None:
    """A head size of 24 fits neither kernel: the step equals the portable one's bit for bit."""
    found, portable = (
        run_step(attend, Geometry(head_size=24), "mixed", FLOAT32)[0]
        for attend in (kernel.attend, block_attention.attend)
    )
    assert portable.any()
    np.testing.assert_array_equal(found, portable)
