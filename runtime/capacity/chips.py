"""Devices by name: memory size, bandwidth, compute rates and links. Published figures, no JAX.

Sources. TPUs: peak rates, bandwidths and one-way link bandwidths as in "How to Scale Your Model" (Austin et
al. 2025, jax-ml.github.io/scaling-book, "TPU specs"), about a microsecond per hop from the same source; the
memory is what the compiler of libtpu 0.0.42 lets a program use, from its error message for a larger one;
shapes from cloud.google.com/tpu/docs/{v5e,v5p,v6e}. GPUs: NVIDIA's data sheets of the H100 SXM, the A100 80GB
SXM and the L4, dense rates (half of those "with sparsity"), NVLink (or PCIe 4.0 x16) in one direction, memory
as sold; no latency is published.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ...model.errors import ConfigError

_GIB = 1 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Chip:
    """One device.

    Attributes:
      name: as in `--topology`. platform: JAX's name for it. kind: JAX's name for the device.
      memory: bytes that a program can use. bandwidth: bytes/s of that memory.
      rate: peak operations/s, by operand type.
      send: bytes/s that the device can send to its neighbours in a ring, both directions together.
      hop: seconds to reach a neighbour; 0 if none is published.
      shapes: the possible topologies; empty for any number in a row.
    """

    name: str
    platform: Literal["tpu", "gpu", "cpu"]
    kind: str
    memory: float
    bandwidth: float
    rate: Mapping[str, float]
    send: float
    hop: float = 0.0
    shapes: tuple[tuple[int, ...], ...] = field(default=(), repr=False)


_FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_CUBES = (
    *((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4), (4, 4, 8), (4, 8, 8), (8, 8, 8)),
    *((8, 8, 16), (8, 16, 16), (16, 16, 16), (16, 16, 24)),
)


def _tpu(
    name: str, kind: str, memory: float, bandwidth: float, tera: float, link: float, shapes: tuple
) -> Chip:
    """int8 has twice bf16's rate, f32 products run as bf16 (JAX's default); a ring uses two links."""
    rate = {"bfloat16": tera * 1e12, "int8": 2 * tera * 1e12, "float32": tera * 1e12}
    return Chip(
        name=name, platform="tpu", kind=kind, memory=memory, bandwidth=bandwidth, rate=rate,
        send=2 * link, hop=1e-6, shapes=shapes,
    )  # fmt: skip


def _gpu(name: str, kind: str, memory: float, bandwidth: float, send: float, **tera: float) -> Chip:
    rate = {dtype: rate * 1e12 for dtype, rate in tera.items()}
    return Chip(
        name=name, platform="gpu", kind=kind, memory=memory, bandwidth=bandwidth, rate=rate, send=send
    )


CHIPS = {
    chip.name: chip
    for chip in (
        _tpu("v5e", "TPU v5 lite", 15.75 * _GIB, 8.1e11, 197, 45e9, _FLAT),
        _tpu("v5p", "TPU v5", 95.74 * _GIB, 2.8e12, 459, 90e9, _CUBES),
        _tpu("v6e", "TPU v6 lite", 31.25 * _GIB, 1.6e12, 920, 90e9, _FLAT),
        _gpu("h100", "NVIDIA H100 80GB HBM3", 80e9, 3.35e12, 450e9, bfloat16=989, int8=1979, float32=67),
        _gpu("a100", "NVIDIA A100-SXM4-80GB", 80e9, 2.039e12, 300e9, bfloat16=312, int8=624, float32=19.5),
        _gpu("l4", "NVIDIA L4", 24e9, 300e9, 32e9, bfloat16=121, int8=242, float32=30.3),
    )
}
"""By name; the figures of a CPU are measured (see `host.py`)."""


@dataclass(frozen=True, slots=True)
class Topology:
    """Devices of one kind that a model is divided among.

    Attributes:
      chip: a name in `CHIPS`, or `cpu`. shape: the number of devices along each axis of the links.
    """

    chip: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many devices."""
        return math.prod(self.shape)

    def __str__(self) -> str:
        return f"{self.chip}:{'x'.join(map(str, self.shape))}"


def parse_topology(word: str) -> Topology:
    """Parses a topology such as `v5e:2x4`, `h100:8` or `cpu:4`.

    Raises:
      ConfigError: an unknown chip, or a shape that it does not have.
    """
    name, _, rest = word.lower().partition(":")
    known = (*CHIPS, "cpu")
    if name not in known:
        raise ConfigError(f"topology {word!r}: no chip {name!r}; expected one of {', '.join(known)}")
    shapes = CHIPS[name].shapes if name in CHIPS else ()
    pattern = r"\d{1,3}(x\d{1,3})*" if shapes else r"[1-9]\d{0,3}"
    if not re.fullmatch(pattern, rest):
        example = f"{name}:{'x'.join(map(str, shapes[2]))}" if shapes else f"{name}:4"
        raise ConfigError(f"topology {word!r} has no shape; expected for example {example}")
    shape = tuple(map(int, rest.split("x")))
    if shapes and shape not in shapes:
        raise ConfigError(f"topology {word!r}: unknown shape; expected one of {_listed(shapes)}")
    return Topology(name, shape)


def _listed(shapes: tuple[tuple[int, ...], ...]) -> str:
    return ", ".join("x".join(map(str, shape)) for shape in shapes)


def larger(topology: Topology) -> list[Topology]:
    """Topologies of the same chip with more devices, smallest first; none for a CPU."""
    if topology.chip not in CHIPS:
        return []
    shapes = CHIPS[topology.chip].shapes or tuple((topology.size << power,) for power in range(1, 8))
    return [Topology(topology.chip, shape) for shape in shapes if math.prod(shape) > topology.size]
