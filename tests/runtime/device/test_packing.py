"""Packing a plan into a buffer: every token has its place, padding has no effect."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distaff.runtime.device.buckets import Bucket, Layout, Shapes
from distaff.runtime.device.packing import pack
from distaff.runtime.policy.sequence import Row, Sequence
from distaff.runtime.request import Request, SamplingParams

SHAPES = Shapes(slots=4, budget=32, page_size=4, table=8, tile=8)
DECODE = Bucket(kind="decode", tokens=4, rows=4)
MIXED = Bucket(kind="mixed", tokens=32, rows=4)


def make_row(
    slot=0, *, prompt=8, seen=0, pending=0, start=0, count=1, samples=False, choice=0, **params
) -> Row:
    """A row of a sequence with `prompt` and `seen` tokens; its token n is 100 + n."""
    request = Request(
        id="r", prompt=tuple(range(100, 100 + prompt)), params=SamplingParams(**params), choice=choice
    )
    sequence = Sequence(request=request, seed=params.get("seed") or 0, limit=32, arrival=0)
    sequence.tokens = list(range(100, 100 + prompt + seen))
    sequence.pending, sequence.slot = pending, slot
    sequence.pages = [10 * slot + n for n in range(1, 2 + (start + count - 1) // 4)]
    return Row(sequence, slot, start, count, samples)


def fields_of(rows: list[Row], bucket: Bucket) -> dict[str, np.ndarray]:
    """The fields that the device reads from the packed plan."""
    layout = Layout(bucket, SHAPES)
    buffer = pack(rows, bucket, layout, SHAPES)
    _, views = layout.allocate()
    at = 0
    for name, view in views.items():
        views[name] = buffer[at : at + view.size].view(view.dtype).reshape(view.shape)
        at += view.size
    return views


def test_known_tokens_are_sent_and_the_newest_is_read_on_the_device():
    """A sample that the host has not read is -1: the device has it."""
    rows = [make_row(2, seen=3, start=10), make_row(0, seen=3, pending=1, start=11, samples=True)]
    fields = fields_of(rows, DECODE)
    assert fields["token"][:2].tolist() == [110, -1] and fields["position"][:2].tolist() == [10, 11]


def test_a_recomputed_sequence_counts_only_what_it_generated():
    """Penalties count tokens after the prompt, and only if the request has penalties."""
    row = make_row(1, prompt=3, seen=4, count=7, samples=True, frequency_penalty=0.5)
    assert fields_of([row], MIXED)["counted"][:8].tolist() == [0, 0, 0, 1, 1, 1, 1, 0]
    row = make_row(1, prompt=3, seen=4, count=7, samples=True)
    assert not fields_of([row], MIXED)["counted"].any()


def test_lengths_are_those_when_a_token_was_added():
    """The prompt's length for its tokens in every chunk, then one more with each token."""
    row = make_row(1, prompt=6, seen=2, start=4, count=4)
    assert fields_of([row], MIXED)["length"][:4].tolist() == [6, 6, 7, 8]


def test_settings_are_sent_with_the_rows_that_sample():
    """Every setting is at the row's place."""
    params = dict(temperature=0.7, top_k=5, top_p=0.9, min_p=0.1, logprobs=0, seed=2**63 + 5)
    params |= dict(frequency_penalty=-1.0, presence_penalty=2.0)
    row = make_row(3, seen=2, start=9, samples=True, choice=6, **params)
    expected = dict(slot=3, choice=6, sample_position=10, top_k=5, wants_logprobs=1)
    expected |= dict(temperature=0.7, top_p=0.9, min_p=0.1, frequency_penalty=-1.0, presence_penalty=2.0)
    for bucket in (DECODE, MIXED):
        fields = fields_of([make_row(1, seen=1, start=8), row], bucket)
        assert {name: fields[name][1] for name in expected} == pytest.approx(expected)
        assert fields["seed"][1].tolist() == [5, 2**31]


@pytest.mark.parametrize(("asked", "sent"), [(0.0, 0.0), (1e-9, 0.0), (9e-6, 0.0), (1e-5, 1e-5), (2.0, 2.0)])
def test_the_coldest_temperatures_are_greedy(asked, sent):
    """Below 1e-5 a division by the temperature would overflow."""
    fields = fields_of([make_row(samples=True, temperature=asked)], DECODE)
    assert fields["temperature"][0] == np.float32(sent)


@pytest.mark.parametrize("bucket", [DECODE, MIXED], ids=str)
def test_padding_is_inert(bucket):
    """After the rows: no position, no slot, nothing counted, no place in attention or head."""
    fields = fields_of([make_row(1, seen=1, start=8, samples=True)], bucket)
    others = [1, 2, 3]
    assert fields["rows"][0] == 1
    assert np.all(fields["position"][1:] == -1) and not fields["counted"][1:].any()
    assert np.all(fields["slot"][others] == SHAPES.slots) and not fields["table"][others].any()
    if bucket is MIXED:
        assert np.all(fields["end"] == 1)
        assert np.all(fields["single"][others] == 32) and np.all(fields["last"][others] == 32)
        assert fields["tile_count"][0] == 0


def test_a_row_without_a_sample_has_a_slot_and_no_last_token():
    """Half a prompt has no sample, although its tokens are computed and have a slot."""
    fields = fields_of([make_row(1, prompt=20, count=10)], MIXED)
    assert fields["slot"][0] == 1 and fields["last"][0] == 32
    assert fields["table"][0].tolist() == [11, 12, 13, 0, 0, 0, 0, 0]


@st.composite
def plans(draw):
    """Rows of distinct slots that fit into a mixed step."""
    slots = draw(st.permutations(range(4)))[: draw(st.integers(1, 4))]
    rows, left = [], 32 - len(slots)
    for slot in slots:
        count = 1 + draw(st.integers(0, left))
        left -= count - 1
        start = draw(st.integers(0, 32 - count))
        rows.append(make_row(slot, prompt=32, start=start, count=count, samples=draw(st.booleans())))
    return rows


@given(plans())
def test_every_token_of_a_mixed_step_is_in_one_place(rows):
    """Each token is its row's single or in exactly one tile of its row; tiles are runs within the row."""
    fields = fields_of(rows, MIXED)
    places = [(line, row.start + n) for line, row in enumerate(rows) for n in range(row.count)]
    tokens = len(places)
    assert fields["slot"][: len(rows)].tolist() == [row.slot for row in rows]
    assert fields["rows"][0] == len(rows)
    ends = np.cumsum([row.count for row in rows])
    assert fields["end"].tolist() == [*ends, *[tokens] * (4 - len(rows))]
    assert list(zip(fields["row"][:tokens], fields["position"][:tokens], strict=True)) == places
    used = range(fields["tile_count"][0])
    starts, lengths, owners = (fields[f"tile_{name}"] for name in ("start", "length", "row"))
    tiled = [(owners[i], starts[i] + n) for i in used for n in range(lengths[i])]
    single = [(row, at) for row, at in enumerate(fields["single"]) if at < 32]
    assert sorted(tiled + single) == sorted((line, at) for at, (line, _) in enumerate(places))
    assert all(1 <= lengths[i] <= SHAPES.tile for i in used)
    for line, row in enumerate(rows):
        last = fields["last"][line]
        assert last == (places.index((line, row.start + row.count - 1)) if row.samples else 32)


def test_the_device_reads_what_the_host_wrote():
    """A packed plan, unpacked by the layout on the device."""
    rows = [make_row(3, seen=2, start=9, samples=True, seed=-1 % 2**64, top_p=0.25)]
    layout = Layout(DECODE, SHAPES)
    arrived = jax.jit(layout.unpack)(pack(rows, DECODE, layout, SHAPES))
    expected = fields_of(rows, DECODE)
    for name, field in expected.items():
        np.testing.assert_array_equal(np.asarray(arrived[name]), field)
