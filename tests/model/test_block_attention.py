"""Paged attention against a dense oracle in float64, and the laws that let sequences share one pool.

The kernels compute in f32: sums of some hundred terms of order one agree with float64 to 1e-5 absolute
(outputs are averages of values of order one).
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distaff.model.cache import Batch, Int8Pool, Pool, write_pages
from distaff.model.kernels.block_attention import _attend_used_rows, attend, attend_rows

from .reference import make_tiles

TOLERANCE = 1e-5
HUGE = float(np.finfo(np.float32).max)
TOKENS, ROWS, CONTEXT = 128, 4, 512


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """What a compiled shape depends on; there are few of them, so that little is compiled."""

    heads: int = 4
    kv_heads: int = 2
    head_size: int = 8
    page_size: int = 16
    window: int | None = None
    int8: bool = False

    @property
    def columns(self) -> int:
        return CONTEXT // self.page_size


GEOMETRIES = [
    Geometry(),
    Geometry(heads=3, kv_heads=3, head_size=6, page_size=8, window=5),
    Geometry(heads=6, kv_heads=1, head_size=2, page_size=64, window=1),
    Geometry(heads=6, kv_heads=2, page_size=256),
    Geometry(page_size=1, window=200),
    Geometry(heads=6, kv_heads=2, int8=True, window=100),
]
NAMES = ["gqa", "mha-window-5", "mqa-window-1", "page-256", "page-1-window-200", "int8-window-100"]


@dataclass(frozen=True, kw_only=True)
class World:
    """Sequences of keys and values, and their places in a shuffled pool."""

    geometry: Geometry
    k_RSKH: np.ndarray
    v_RSKH: np.ndarray
    tables: np.ndarray
    pool: Pool

    @classmethod
    def create(cls, geometry: Geometry, seed: int, filler: float = 0.0) -> "World":
        """Random sequences of CONTEXT tokens; every page without an owner is full of `filler`."""
        rng = np.random.default_rng(seed)
        shape = (ROWS, CONTEXT, geometry.kv_heads, geometry.head_size)
        k, v = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
        pages = 2 * ROWS * geometry.columns + 1
        tables = rng.permutation(np.arange(1, pages))[: ROWS * geometry.columns]
        pool = jnp.full((pages, geometry.page_size, 2 * geometry.kv_heads, geometry.head_size), filler)
        if geometry.int8:
            pool = Int8Pool(jnp.full(pool.shape, 127, jnp.int8), jnp.full(pool.shape[:-1], filler / 127))
        world = cls(geometry=geometry, k_RSKH=k, v_RSKH=v, tables=tables.reshape(ROWS, -1), pool=pool)
        return replace(world, pool=world.written())

    def written(self) -> Pool:
        """The pool with every sequence's keys and values in its pages."""
        slots = np.concatenate([self.slots(row, np.arange(CONTEXT)) for row in range(ROWS)])
        flat = [jnp.asarray(x.reshape(-1, *x.shape[2:])) for x in (self.k_RSKH, self.v_RSKH)]
        return jax.jit(write_pages)(self.pool, *flat, jnp.asarray(slots))

    def slots(self, row: int, positions: np.ndarray) -> np.ndarray:
        size = self.geometry.page_size
        return (self.tables[row, positions // size] * size + positions % size).astype(np.int32)

    def oracle(self, q_TNH: np.ndarray, row: int, positions: np.ndarray) -> np.ndarray:
        """Dense softmax attention of one sequence in float64."""
        groups = self.geometry.heads // self.geometry.kv_heads
        k_SNH, v_SNH = (
            np.repeat(self._kept(x[row]).astype(np.float64), groups, axis=1)
            for x in (self.k_RSKH, self.v_RSKH)
        )
        scores = np.einsum("TNH,SNH->NTS", q_TNH.astype(np.float64), k_SNH) / np.sqrt(q_TNH.shape[-1])
        distance_TS = positions[:, None] - np.arange(CONTEXT)[None, :]
        window = self.geometry.window or CONTEXT
        scores = np.where((distance_TS >= 0) & (distance_TS < window), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        return np.einsum("NTS,SNH->TNH", weights / weights.sum(-1, keepdims=True), v_SNH)

    def _kept(self, x_SKH: np.ndarray) -> np.ndarray:
        """Keys or values as the pool keeps them: in int8, the nearest of 255 multiples of a scale."""
        if not self.geometry.int8:
            return x_SKH
        scale_SK1 = np.abs(x_SKH).max(-1, keepdims=True) / np.float32(127)
        return np.rint(x_SKH / scale_SK1) * scale_SK1


@dataclass(frozen=True)
class Run:
    """Queries of one row at consecutive positions, from a place in the step's tokens."""

    row: int
    start: int
    position: int
    length: int

    @property
    def where(self) -> slice:
        return slice(self.start, self.start + self.length)

    @property
    def positions(self) -> np.ndarray:
        return self.position + np.arange(self.length)


MIXED = [Run(2, 0, 300, 1), Run(0, 1, 0, 70), Run(3, 75, 130, 1), Run(1, 80, 250, 40)]
"""Two decoding rows, a prompt from its start in two tiles, a later chunk over two blocks, holes between."""


LONG = [Run(0, 0, 100, 300), Run(2, 300, 40, 1), Run(1, 301, 0, 130), Run(3, 440, 400, 65)]
"""Five tiles, a token, three tiles, the last of two tokens, and two tiles: four and three are processed as
one."""


def queries(geometry: Geometry, seed: int, tokens: int = TOKENS) -> np.ndarray:
    shape = (tokens, geometry.heads, geometry.head_size)
    return 2.0 * np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def batch_of(world: World, runs: Sequence[Run], tokens: int) -> Batch:
    """The layout of a mixed step of so many tokens with these runs."""
    positions, singles = np.full(tokens, -1, np.int32), np.full(ROWS, tokens, np.int32)
    for run in runs:
        positions[run.where] = run.positions
        if run.length == 1:
            singles[run.row] = run.start
    prompts = [(run.start, run.length, run.row) for run in runs if run.length > 1]
    return Batch(
        positions_T=jnp.asarray(positions),
        lengths_T=jnp.asarray(positions + 1),
        entries_T=jnp.zeros(tokens, jnp.int32),
        tables_BM=jnp.asarray(world.tables, jnp.int32),
        starts_R=jnp.zeros(ROWS + 1, jnp.int32),  # this kernel uses singles and tiles
        rows=jnp.int32(len(runs)),
        singles_B=jnp.asarray(singles),
        tiles=make_tiles(prompts, tile=64, capacity=tokens // 64 + ROWS),
    )


@partial(jax.jit, static_argnames="window")
def jitted_attend(q_TNH: jax.Array, pool: Pool, batch: Batch, window: int | None) -> jax.Array:
    return attend(q_TNH, pool, batch, window=window)


def mixed(world: World, q_TNH: np.ndarray, runs: Sequence[Run], pool: Pool | None = None) -> np.ndarray:
    """A mixed step's attention."""
    pool = world.pool if pool is None else pool
    batch = batch_of(world, runs, len(q_TNH))
    return np.asarray(jitted_attend(jnp.asarray(q_TNH), pool, batch, world.geometry.window))


_rows = jax.jit(attend_rows, static_argnames="window")


def decode(
    world: World, q_TNH: np.ndarray, positions: Sequence[int], tables: np.ndarray | None = None
) -> np.ndarray:
    """A decode step's attention, row by row at these positions."""
    tables_BM = jnp.asarray(world.tables if tables is None else tables, jnp.int32)
    positions_B = jnp.asarray(positions, jnp.int32)
    return np.asarray(
        _rows(jnp.asarray(q_TNH[:ROWS]), world.pool, tables_BM, positions_B, window=world.geometry.window)
    )


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=NAMES)
def test_mixed_step_equals_dense_attention(geometry: Geometry) -> None:
    """Chunks in tiles and single tokens together get what dense attention gives each of them."""
    world, q_TNH = World.create(geometry, 0), queries(geometry, 1)
    found_TNH = mixed(world, q_TNH, MIXED)
    for run in MIXED:
        expected_TNH = world.oracle(q_TNH[run.where], run.row, run.positions)
        np.testing.assert_allclose(found_TNH[run.where], expected_TNH, atol=TOLERANCE, err_msg=repr(run))


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=NAMES)
def test_long_prompts_equal_dense_attention(geometry: Geometry) -> None:
    """Tiles that are processed together, with others that are not; equal bits alone and with other rows."""
    world, q_TNH = World.create(geometry, 18), queries(geometry, 19, 512)
    found_TNH, used = mixed(world, q_TNH, LONG), np.zeros(512, bool)
    for run in LONG:
        expected_TNH = world.oracle(q_TNH[run.where], run.row, run.positions)
        np.testing.assert_allclose(found_TNH[run.where], expected_TNH, atol=TOLERANCE, err_msg=repr(run))
        np.testing.assert_array_equal(mixed(world, q_TNH, [run])[run.where], found_TNH[run.where])
        used[run.where] = True
    assert not found_TNH[~used].any()


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=NAMES)
def test_decode_step_equals_dense_attention(geometry: Geometry) -> None:
    """Rows of very different lengths decode together as each does in dense attention; an idle row gives 0."""
    world, q_TNH = World.create(geometry, 2), queries(geometry, 3)
    for positions in ([0, 127, -1, 511], [128, -1, 255, 256], [-1, -1, -1, -1]):
        found_BNH = decode(world, q_TNH, positions)
        for row, position in enumerate(positions):
            expected_NH = 0.0
            if position >= 0:
                expected_NH = world.oracle(q_TNH[row : row + 1], row, np.asarray([position]))[0]
            np.testing.assert_allclose(found_BNH[row], expected_NH, atol=TOLERANCE)


@pytest.mark.parametrize("geometry", GEOMETRIES[:2], ids=NAMES[:2])
def test_tokens_outside_every_run_get_zero(geometry: Geometry) -> None:
    """Holes between runs, and a step without any run, come out as zeros."""
    world, q_TNH = World.create(geometry, 0), queries(geometry, 1)
    found_TNH = mixed(world, q_TNH, MIXED)
    hole = np.ones(TOKENS, bool)
    for run in MIXED:
        hole[run.where] = False
    assert hole.any() and not found_TNH[hole].any() and found_TNH[~hole].all(-1).all()
    assert not mixed(world, q_TNH, []).any()


@pytest.mark.parametrize("filler", [HUGE, -HUGE])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=NAMES)
def test_values_of_other_sequences_in_the_pool_do_not_matter(geometry: Geometry, filler: float) -> None:
    """The largest finite values on the trash page and on every foreign page change no bit of any result."""
    world, dirty = World.create(geometry, 4), World.create(geometry, 4, filler)
    q_TNH = queries(geometry, 5)
    np.testing.assert_array_equal(mixed(world, q_TNH, MIXED), mixed(dirty, q_TNH, MIXED))
    positions = [3, 511, -1, 260]
    np.testing.assert_array_equal(decode(world, q_TNH, positions), decode(dirty, q_TNH, positions))


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=NAMES)
def test_values_after_the_end_do_not_matter(geometry: Geometry) -> None:
    """Stale entries of a row's own last page, and table columns beyond it, change no bit of its result."""
    world, q_TNH, positions = World.create(geometry, 6, HUGE), queries(geometry, 7), [5, 130, 300, 0]
    k_RSKH, v_RSKH, tables = world.k_RSKH.copy(), world.v_RSKH.copy(), world.tables.copy()
    for row, position in enumerate(positions):
        k_RSKH[row, position + 1 :] = v_RSKH[row, position + 1 :] = -HUGE
        tables[row, position // geometry.page_size + 1 :] = 0
    stale = replace(world, k_RSKH=k_RSKH, v_RSKH=v_RSKH)
    stale = replace(stale, pool=stale.written())
    expected_BNH = decode(world, q_TNH, positions)
    np.testing.assert_array_equal(decode(stale, q_TNH, positions), expected_BNH)
    np.testing.assert_array_equal(decode(stale, q_TNH, positions, tables), expected_BNH)


@pytest.mark.parametrize("geometry", [GEOMETRIES[1], GEOMETRIES[4]], ids=[NAMES[1], NAMES[4]])
def test_values_before_the_window_do_not_matter(geometry: Geometry) -> None:
    """Pages before a row's window may be released: the trash page in their place changes no bit.

    Blocks without a visible key once added their values before a visible one cancelled them, and values that
    overflow in a sum left NaN.
    """
    world, q_TNH, positions = World.create(geometry, 8, HUGE), queries(geometry, 9), [2, 511, 300, 205]
    tables = world.tables.copy()
    for row, position in enumerate(positions):
        tables[row, : max(position - geometry.window + 1, 0) // geometry.page_size] = 0
    np.testing.assert_array_equal(decode(world, q_TNH, positions, tables), decode(world, q_TNH, positions))


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=NAMES)
def test_alone_equals_with_other_rows(geometry: Geometry) -> None:
    """Other rows in the step, and their lengths, change no bit of a row's result."""
    world, q_TNH, positions = World.create(geometry, 10), queries(geometry, 11), [40, 511, 129, 256]
    together_BNH = decode(world, q_TNH, positions)
    for row, position in enumerate(positions):
        alone_BNH = decode(world, q_TNH, [position if row == other else -1 for other in range(ROWS)])
        np.testing.assert_array_equal(alone_BNH[row], together_BNH[row])
    together_TNH = mixed(world, q_TNH, MIXED)
    for run in MIXED:
        np.testing.assert_array_equal(mixed(world, q_TNH, [run])[run.where], together_TNH[run.where])


@pytest.mark.parametrize("geometry", GEOMETRIES[:2], ids=NAMES[:2])
def test_values_of_neighbours_do_not_matter(geometry: Geometry) -> None:
    """Neighbours full of the largest finite values, in the same step, change no bit of a row's result."""
    world, q_TNH, positions = World.create(geometry, 16), queries(geometry, 17), [40, 511, 129, 256]
    expected_BNH, expected_TNH = decode(world, q_TNH, positions), mixed(world, q_TNH, MIXED)
    for run in MIXED:
        others = np.arange(ROWS)[:, None, None, None] != run.row
        k_RSKH, v_RSKH = (np.where(others, HUGE, x) for x in (world.k_RSKH, world.v_RSKH))
        loud = replace(world, k_RSKH=k_RSKH, v_RSKH=v_RSKH)
        loud = replace(loud, pool=loud.written())
        np.testing.assert_array_equal(decode(loud, q_TNH, positions)[run.row], expected_BNH[run.row])
        np.testing.assert_array_equal(mixed(loud, q_TNH, MIXED)[run.where], expected_TNH[run.where])


@pytest.mark.parametrize("geometry", GEOMETRIES[:2], ids=NAMES[:2])
def test_paged_equals_contiguous(geometry: Geometry) -> None:
    """Which pages a sequence has, and in which order, changes no bit of its result."""
    world, q_TNH = World.create(geometry, 12), queries(geometry, 13)
    tables = 1 + np.arange(ROWS * geometry.columns).reshape(ROWS, -1)
    contiguous = replace(world, tables=tables)
    contiguous = replace(contiguous, pool=contiguous.written())
    np.testing.assert_array_equal(mixed(world, q_TNH, MIXED), mixed(contiguous, q_TNH, MIXED))
    positions = [7, 400, 128, 3]
    np.testing.assert_array_equal(decode(world, q_TNH, positions), decode(contiguous, q_TNH, positions))


@pytest.mark.parametrize("geometry", GEOMETRIES[:2], ids=NAMES[:2])
def test_chunks_equal_the_whole(geometry: Geometry) -> None:
    """A prompt that is split anywhere, with its pieces in any place of any step, gives the same as the whole
    prompt."""
    world, q_TNH, whole = World.create(geometry, 14), queries(geometry, 15), Run(1, 0, 200, TOKENS)
    expected_TNH = mixed(world, q_TNH, [whole])

    @settings(max_examples=25, deadline=None)
    @given(st.sets(st.integers(1, TOKENS - 1), max_size=6), st.integers(0, TOKENS))
    def check(cuts: set[int], place: int) -> None:
        edges = [0, *sorted(cuts), TOKENS]
        for start, end in itertools.pairwise(edges):
            piece = Run(1, min(place, TOKENS - (end - start)), 200 + start, end - start)
            placed_TNH = np.zeros_like(q_TNH)
            placed_TNH[piece.where] = q_TNH[start:end]
            found_TNH = mixed(world, placed_TNH, [piece])[piece.where]
            np.testing.assert_allclose(found_TNH, expected_TNH[start:end], atol=TOLERANCE)

    check()


@pytest.mark.parametrize("used", [0, 1, 8, 9, 24])
def test_rows_in_use_are_processed_in_groups(used: int) -> None:
    """The same as all rows at once, and zero for those after the last one in use."""
    rng = np.random.default_rng(used)
    pool = jnp.asarray(rng.normal(size=(40, 4, 4, 8)), jnp.float32)
    q_BNH = jnp.asarray(rng.normal(size=(24, 4, 8)), jnp.float32)
    tables_BM = jnp.asarray(rng.integers(1, 40, (24, 30)), jnp.int32)
    positions_B = jnp.asarray(np.where(np.arange(24) < used, rng.integers(0, 119, 24), -1), jnp.int32)
    kernels = (_attend_used_rows, attend_rows)
    grouped, whole = (kernel(q_BNH, pool, tables_BM, positions_B, window=None) for kernel in kernels)
    np.testing.assert_allclose(grouped, whole, rtol=1e-5, atol=1e-6)
    assert not np.asarray(grouped)[used:].any()
