"""GGUF's blocks as weights in groups of 32, without a second rounding of the values.

A block of Q4_0, Q4_1 or Q8_0 has an f16 scale, Q4_1 also an f16 minimum, and 32 values; a byte of 4-bit types
has value j in its low half and value j + 16 in its high half (the GGUF specification). The result is the
portable form of `model/quantize.py`: it has the values that the `gguf` package computes, to the bit.

A block of Q4_K has 256 values in 8 groups. A group's scale and minimum are integers of 6 bits times two f16
numbers of the block; here they are rounded to f16. Types of 5 and 6 bits have no groups of their own here:
who reads them rounds them to groups of 8 bits.
"""

from collections.abc import Mapping

import numpy as np
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Kind

from ...model import parameters
from ...model.errors import ConfigError
from ...model.parameters import GROUP, INT4, INT8_GROUPS, Quantization, combined
from ..errors import CheckpointError

Groups = tuple[np.ndarray, np.ndarray, np.ndarray | None]

WIDE = {Kind.F32, Kind.F16, Kind.BF16}
KINDS = (Kind.Q4_0, Kind.Q4_1, Kind.Q8_0)
"""The types that are weights in groups, to the bit."""
KEPT: dict[Kind, parameters.Kind] = {
    Kind.Q4_0: INT4,
    Kind.Q4_1: INT4,
    Kind.Q4_K: INT4,
    Kind.Q8_0: INT8_GROUPS,
}
"""The types that are kept without rounding, with the kind of weight that each becomes."""
_ROUNDED = {Kind.Q5_0, Kind.Q5_1, Kind.Q5_K, Kind.Q6_K}
"""The types that are rounded to groups of 8 bits."""


def quantization_of_kinds(kinds: Mapping[str, Kind], *, exact: bool) -> Quantization | None:
    """The quantisation of a file with linear weights of these types, by name; None if all are wide.

    A head has groups of 8 bits, whatever its type is, if any other weight has groups.

    Args:
      exact: no weight but the head may be rounded.

    Raises:
      ConfigError: some have a type that cannot be in groups, or not without rounding.
    """
    others = {name: kind for name, kind in kinds.items() if name != "head"}
    known = WIDE | KEPT.keys() | (set() if exact else _ROUNDED)
    if set(others.values()) <= WIDE:
        return None
    if not set(others.values()) <= known:
        names = ", ".join(sorted({kind.name for kind in others.values()}))
        expected = ", ".join(sorted(kind.name for kind in known - WIDE))
        raise ConfigError(f"linear weights are of {names}; expected only {expected}, to keep their bits")
    found: dict[str, parameters.Kind | None] = {
        name: None if kind in WIDE else KEPT.get(kind, INT8_GROUPS) for name, kind in others.items()
    }
    return combined({**found, "head": INT8_GROUPS})


def groups_of(raw: np.ndarray, kind: Kind) -> Groups:
    """A stored tensor `[F, D]` as a weight `[D, F]` in groups.

    Args:
      raw: u8 `[F, blocks, bytes of a block]`. kind: one of `KEPT`.

    Returns:
      4 bits: q u8 `[D/2, F]`, scale and low f16 `[D/32, F]`. 8 bits: q int8 `[D, F]`, scale f16 `[D/32, F]`,
      None.

    Raises:
      CheckpointError: eight times a scale of Q4_0, which becomes the low, is beyond f16.
    """
    scale = _halves(raw[..., :2])
    if kind == Kind.Q4_K:
        return _groups_of_256(raw)
    if kind == Kind.Q8_0:
        values = raw[..., 2:].reshape(len(raw), -1).view(np.int8)
        return np.ascontiguousarray(values.T), scale, None
    if kind == Kind.Q4_1:
        return _nibbles(raw[..., 4:]), scale, _halves(raw[..., 2:4])
    low = -8 * scale.astype(np.float32)
    if not np.all(np.abs(low) <= np.finfo(np.float16).max):
        raise CheckpointError(f"Q4_0 scales reach {np.abs(scale).max()}; expected less than 8190")
    return _nibbles(raw[..., 2:]), scale, low.astype(np.float16)


def blocks_of(raw: np.ndarray, kind: Kind) -> np.ndarray:
    """Rows of bytes u8 `[F, bytes]` as `[F, blocks, bytes of a block]`."""
    return raw.reshape(len(raw), -1, GGML_QUANT_SIZES[kind][1])


def _groups_of_256(raw: np.ndarray) -> Groups:
    """As `groups_of`, of Q4_K: u8 `[F, D/256, 144]`.

    Its bytes are the f16 factors of scales and of minimums, 12 with both, and 128 with the values: of each 32
    bytes the low halves are a group, and the high halves the next one.
    """
    factors = np.ascontiguousarray(raw[..., :4]).view("<f2").astype(np.float32)
    scale, least = _six_bits(raw[..., 4:16])
    outputs, blocks = raw.shape[:2]
    scale_FG = (factors[..., :1] * scale).reshape(outputs, -1)
    low_FG = (-factors[..., 1:] * least).reshape(outputs, -1)
    pairs = raw[..., 16:].reshape(outputs, blocks, 4, 1, GROUP)
    values = np.concatenate([pairs & 15, pairs >> 4], axis=-2).reshape(outputs, -1)
    return _joined(values), _as_halves(scale_FG), _as_halves(low_FG)


def _six_bits(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 8 scales and 8 minimums, f32 `[..., 8]`, of 12 bytes.

    The first four have 6 bits of bytes 0 to 3 and 4 to 7. Their upper two bits, with 4 bits of bytes 8 to 11,
    are the last four.
    """
    scales, leasts, rest = np.split(packed, 3, axis=-1)
    scale = np.concatenate([scales & 63, rest & 15 | scales >> 6 << 4], axis=-1)
    least = np.concatenate([leasts & 63, rest >> 4 | leasts >> 6 << 4], axis=-1)
    return scale.astype(np.float32), least.astype(np.float32)


def _as_halves(values_FG: np.ndarray) -> np.ndarray:
    """f16 `[G, F]` of f32 `[F, G]`."""
    with np.errstate(over="ignore"):
        halves = np.ascontiguousarray(values_FG.T.astype(np.float16))
    if not np.isfinite(halves).all():
        raise CheckpointError(
            f"Q4_K scales or minimums reach {np.abs(values_FG).max()}; expected at most 65504"
        )
    return halves


def _halves(raw: np.ndarray) -> np.ndarray:
    """f16 `[D/32, F]` of bytes `[F, D/32, 2]`."""
    return np.ascontiguousarray(np.ascontiguousarray(raw).view("<f2")[..., 0].T).astype(
        np.float16, copy=False
    )


def _nibbles(raw: np.ndarray) -> np.ndarray:
    """Bytes u8 `[D/2, F]`, neighbours in a byte, of blocks `[F, D/32, 16]` with value j beside j + 16."""
    return _joined(np.concatenate([raw & 15, raw >> 4], axis=-1).reshape(len(raw), -1))


def _joined(values: np.ndarray) -> np.ndarray:
    """Bytes u8 `[D/2, F]`, neighbours in a byte, of values `[F, D]`."""
    return np.ascontiguousarray((values[:, 0::2] | values[:, 1::2] << 4).T)
