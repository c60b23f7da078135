"""The engine process's frames arrive as they were sent, and nothing else is accepted as one."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distaff.runtime.request import EngineStats, Request, SamplingParams, TokenEvent, TokenLogprobs
from distaff.server.engine_client import EngineInfo
from distaff.server.engines import wire

TO_ENGINE = [
    wire.Submit(
        Request(
            id="a",
            prompt=(1, 2**31 - 1),
            choice=2,
            params=SamplingParams(seed=2**64 - 1, temperature=1e-45, logprobs=20, stop_ids=(7, 9)),
        )
    ),
    wire.Submit(Request(id="b", prompt=(0,), params=SamplingParams(seed=-(2**63)))),
    wire.Submit(Request(id="c", prompt=(4, 5), generated=(6, 0, 2**31 - 1), client="Schlüssel 1")),
    wire.Abort("a"),
    wire.Stop(),
]
TO_WEB = [
    wire.Progress("download", 5, 0),
    wire.Located("/models/über"),
    wire.Ready(EngineInfo(context=8192, vocabulary=49152, slots=8, fingerprint="0123456789")),
    wire.Ready(
        EngineInfo(
            context=99,
            vocabulary=9,
            slots=1,
            fingerprint="0123456789",
            page_size=4,
            pages=1024,
        )
    ),
    wire.Step(
        [
            TokenEvent(
                request_id="a", token=3, logprobs=TokenLogprobs(chosen=-0.1, top=((3, -0.1), (4, -9.5)))
            ),
            TokenEvent(request_id="b", finish="error", error="the device is out of memory"),
            TokenEvent(request_id="c", finish="error", error="the device is out of memory", lost=True),
        ],
        EngineStats(waiting=1, running=2, steps=3, decode_seconds=0.02, prompt_seconds=1e-5),
    ),
    wire.Heartbeat(EngineStats(free_pages=5)),
    wire.Fatal("no such model", 66),
]


def test_frames_survive_the_journey():
    for reader, frames in ((wire.engine_reader(), TO_ENGINE), (wire.web_reader(), TO_WEB)):
        assert list(reader.feed(b"".join(map(wire.encode, frames)))) == frames


@given(data=st.data(), frame=st.sampled_from(TO_WEB))
def test_a_damaged_frame_is_an_error_or_another_frame_never_a_crash(data: st.DataObject, frame: wire.ToWeb):
    """Only WireError may come out, whatever one flipped byte does to lengths, tags, types or text."""
    damaged = bytearray(wire.encode(frame))
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(wire.WireError):
        for read in wire.web_reader().feed(bytes(damaged)):
            assert isinstance(read, wire.ToWeb)


def test_values_out_of_range_are_refused_on_arrival():
    good = wire.encode(wire.Submit(Request(id="a", prompt=(1,), params=SamplingParams(top_p=0.5))))
    bad = good.replace(b"\xcb?\xe0\0\0\0\0\0\0", b"\xcb\xbf\xe0\0\0\0\0\0\0")  # 0.5 becomes -0.5
    assert bad != good
    with pytest.raises(wire.WireError, match=r"top_p is -0\.5"):
        list(wire.engine_reader().feed(bad))


def test_each_direction_refuses_the_frames_of_the_other():
    with pytest.raises(wire.WireError, match="cannot be read"):
        list(wire.engine_reader().feed(wire.encode(wire.Fatal("x", 1))))


def test_a_frame_too_long_is_refused_by_the_sender():
    with pytest.raises(wire.WireError, match="Located frame"):
        wire.encode(wire.Located("x" * wire.MAX_FRAME))
