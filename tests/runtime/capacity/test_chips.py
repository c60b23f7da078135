"""Topologies on the command line, and times from a chip's figures."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distaff.model.errors import ConfigError
from distaff.runtime.capacity.chips import CHIPS, larger, parse_topology
from distaff.runtime.capacity.roofline import collective_time, step_time
from distaff.runtime.capacity.work import Collective, Work

TOPOLOGIES = [f"{name}:{'x'.join(map(str, shape))}" for name, chip in CHIPS.items() for shape in chip.shapes]


@pytest.mark.parametrize("word", [*TOPOLOGIES, "h100:8", "l4:1", "cpu:4"])
def test_a_topology_can_be_parsed_and_printed(word: str) -> None:
    """Both are inverse, and `larger` returns only larger ones."""
    topology = parse_topology(word)
    assert str(topology) == word == str(parse_topology(word.upper()))
    sizes = [each.size for each in larger(topology)]
    assert sizes == sorted(sizes) and all(size > topology.size for size in sizes)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("v9:2x2", "no chip 'v9'; expected one of v5e, v5p"),
        ("v5e:3x5", "expected one of 1x1, 2x2"),
        ("v5p:2x4", "expected one of 2x2x1"),
        ("v5e", "expected for example v5e:2x4"),
        ("h100:2x4", "expected for example h100:4"),
        ("h100:0", "expected for example h100:4"),
        ("cpu:", "expected for example cpu:4"),
        ("", "no chip ''"),
    ],
)
def test_unknown_topologies_are_refused(word: str, message: str) -> None:
    """The message lists the known ones."""
    with pytest.raises(ConfigError, match=message):
        parse_topology(word)


@given(st.sampled_from(sorted(CHIPS)), st.integers(0, 10**12), st.integers(0, 10**15))
def test_a_step_takes_the_longer_of_memory_and_arithmetic(name: str, size: int, operations: int) -> None:
    """At twice the rates it takes half as long."""
    chip = CHIPS[name]
    work = Work(bytes={"weights": size}, operations={"bfloat16": operations}, collectives=())
    time = step_time(work, chip, 1)
    assert time.total == max(size / chip.bandwidth, operations / chip.rate["bfloat16"])
    fast = replace(chip, bandwidth=2 * chip.bandwidth, rate={k: 2 * v for k, v in chip.rate.items()})
    assert step_time(work, fast, 1).total == pytest.approx(time.total / 2)


def test_an_all_reduce_is_two_passes_of_a_ring() -> None:
    """33.6 MB over eight v5e take 746 µs in the source's own example, which leaves out (n - 1) / n.

    A tiny one takes the hops of half the ring, twice.
    """
    chip = CHIPS["v5e"]
    large = Collective(kind="all-reduce", count=1, bytes=2048 * 8192 * 2)
    assert collective_time(large, chip, 8) == pytest.approx(746e-6 * 7 / 8, rel=0.01)
    assert collective_time(replace(large, kind="all-gather"), chip, 8) == pytest.approx(
        373e-6 * 7 / 8, rel=0.01
    )
    assert collective_time(replace(large, bytes=8), chip, 8) == pytest.approx(8e-6)
