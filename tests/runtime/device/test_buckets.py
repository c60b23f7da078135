"""Static shapes, and the buffer with a step's inputs."""

from dataclasses import replace
from itertools import pairwise

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distaff.runtime.device.buckets import Bucket, Layout, Shapes, choose

SIZES = st.builds(
    lambda slots, more, tile: Shapes(slots=slots, budget=slots + more, page_size=16, table=9, tile=tile),
    st.integers(1, 300),
    st.integers(0, 3000),
    st.sampled_from([8, 64]),
)


@given(SIZES)
def test_buckets_double_up_to_the_largest(shapes):
    """Sizes are powers of two times the smallest, except the largest, which is the setting itself."""
    for kind, lowest, highest in (("decode", 1, shapes.slots), ("mixed", 16, shapes.budget)):
        sizes = sorted(bucket.tokens for bucket in shapes.buckets() if bucket.kind == kind)
        assert sizes[:-1] == [lowest * 2**n for n in range(len(sizes) - 1)] and sizes[-1] == highest
        assert len(sizes) < 2 or highest <= 2 * sizes[-2]


@given(SIZES, st.data())
def test_the_smallest_bucket_that_fits_is_chosen(shapes, data):
    """Every size up to the largest has a bucket; the smallest is chosen; padding is at most twofold."""
    kind, most = data.draw(st.sampled_from([("decode", shapes.slots), ("mixed", shapes.budget)]))
    tokens = data.draw(st.integers(1, most))
    chosen = choose(shapes.buckets(), kind, tokens)
    assert chosen.kind == kind and tokens <= chosen.tokens
    assert not [b for b in shapes.buckets() if b.kind == kind and tokens <= b.tokens < chosen.tokens]
    assert chosen.tokens <= max(2 * tokens, 16)


def test_the_most_useful_buckets_come_first():
    """The first one is enough for any request."""
    shapes = Shapes(slots=6, budget=100, page_size=16, table=9, tile=64)
    names = [str(bucket) for bucket in shapes.buckets()]
    assert names == "mixed(100) decode(6) decode(1) decode(2) decode(4) mixed(16) mixed(32) mixed(64)".split()


def test_grammars_add_sample_buckets():
    """One for every number of rows, of which the largest is essential; mixed steps score prompts."""
    shapes = Shapes(slots=6, budget=100, page_size=16, table=9, tile=64, mask=7, scores=True)
    names = [str(bucket) for bucket in shapes.buckets()]
    assert names[8:] == "sample(6) sample(4) sample(2) sample(1)".split()
    assert [str(bucket) for bucket in shapes.essential()] == "mixed(100) sample(6)".split()


def test_a_mixed_step_replaces_those_that_are_not_ready():
    """Decode rows use the first bucket until theirs is ready."""
    shapes = Shapes(slots=6, budget=100, page_size=16, table=9, tile=64)
    first, second = shapes.buckets()[:2]
    assert choose([first], "decode", 3) == first and choose([first, second], "decode", 3) == second


@given(SIZES, st.data())
def test_there_are_tiles_for_any_split(shapes, data):
    """The tiles of any split of T tokens among the rows fit."""
    bucket = data.draw(st.sampled_from([b for b in shapes.buckets() if b.kind == "mixed"]))
    cuts = data.draw(st.lists(st.integers(0, bucket.tokens), max_size=bucket.rows - 1))
    edges = [0, *sorted(cuts), bucket.tokens]
    needed = sum(-(-(b - a) // shapes.tile) for a, b in pairwise(edges))
    assert needed <= shapes.tiles(bucket)


BUCKETS = [Bucket(kind="decode", tokens=4, rows=4), Bucket(kind="mixed", tokens=32, rows=4)]
SHAPES = Shapes(slots=4, budget=32, page_size=4, table=5, tile=8)
LAYOUTS = {bucket.kind: Layout(bucket, SHAPES) for bucket in BUCKETS}
UNPACK = {kind: jax.jit(layout.unpack) for kind, layout in LAYOUTS.items()}


@pytest.mark.parametrize("kind", ["decode", "mixed"])
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_what_is_packed_is_unpacked(kind, data):
    """Every field arrives on the device unchanged, of any type; also words above 2**31 and NaNs."""
    buffer, views = LAYOUTS[kind].allocate()
    content = data.draw(st.binary(min_size=buffer.nbytes, max_size=buffer.nbytes))
    buffer[:] = np.frombuffer(content, np.int32)
    arrived = UNPACK[kind](buffer)
    assert arrived.keys() == views.keys()
    for name, view in views.items():
        assert arrived[name].dtype == view.dtype and arrived[name].shape == view.shape
        np.testing.assert_array_equal(np.asarray(arrived[name]).view(np.int32), view.view(np.int32))


@pytest.mark.parametrize("kind", ["decode", "mixed"])
def test_fields_share_nothing_and_fill_the_buffer(kind):
    """Writing one field changes no other, and every word of the buffer belongs to a field."""
    buffer, views = LAYOUTS[kind].allocate()
    assert not buffer.any()
    for view in views.values():
        assert not view.any()
        view.view(np.int32)[...] = 1
    assert np.all(buffer == 1)


def test_buffers_are_never_reused():
    """A step reads its buffer while the host fills the next one."""
    (first, _), (second, _) = (LAYOUTS["decode"].allocate() for _ in range(2))
    assert not np.shares_memory(first, second)


def test_plain_buckets_follow_the_two_largest():
    """Every decode and mixed bucket has a plain one, which is chosen for plain rows only."""
    shapes = Shapes(slots=2, budget=40, page_size=16, table=9, tile=64, mask=7, scores=True, plain=True)
    names = ", ".join(str(bucket) for bucket in shapes.buckets())
    plain = "plain mixed(40), plain decode(2), plain decode(1), plain mixed(16), plain mixed(32)"
    assert names == (f"mixed(40), decode(2), {plain}, decode(1), mixed(16), mixed(32), sample(2), sample(1)")
    assert [str(bucket) for bucket in shapes.essential()] == ["mixed(40)", "sample(2)"]
    for kind, tokens in (("decode", 1), ("decode", 2), ("mixed", 20)):
        with_options, plain = (choose(shapes.buckets(), kind, tokens, plain=plain) for plain in (False, True))
        assert not with_options.plain and plain == replace(with_options, plain=True)


def test_a_general_step_replaces_a_plain_one_that_is_not_ready():
    """A bucket of the right size is preferred."""
    shapes = Shapes(slots=2, budget=40, page_size=16, table=9, tile=64, plain=True)
    ready = [bucket for bucket in shapes.buckets() if str(bucket) != "plain decode(1)"]
    assert str(choose(ready, "decode", 1, plain=True)) == "decode(1)"
