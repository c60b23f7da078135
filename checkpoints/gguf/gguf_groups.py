"""GGUF's blocks of 32 weights as weights in groups, without a second rounding.

A block of Q4_0, Q4_1 or Q8_0 has an f16 scale, Q4_1 also an f16 minimum, and 32 values; a byte of 4-bit types
has value j in its low half and value j + 16 in its high half (the GGUF specification). The result is the
portable form of `model/quantize.py`: it has the values that the `gguf` package computes, to the bit.
"""

from collections.abc import Iterable

import numpy as np
from gguf.constants import GGMLQuantizationType as Kind

from ...model.errors import ConfigError
from ...model.parameters import INT4, INT8_GROUPS, Quantization
from ..errors import CheckpointError

Groups = tuple[np.ndarray, np.ndarray, np.ndarray | None]

_WIDE = {Kind.F32, Kind.F16, Kind.BF16}
KINDS = (Kind.Q4_0, Kind.Q4_1, Kind.Q8_0)
"""The types that are weights in groups."""


def quantization_of_kinds(kinds: Iterable[Kind]) -> Quantization | None:
    """The quantisation of a file with linear weights of these types; None if all are wide.

    Raises:
      ConfigError: some have a type without groups of 32, or the types do not go together.
    """
    found = set(kinds)
    if found <= _WIDE:
        return None
    if found <= {Kind.Q4_0, Kind.Q4_1}:
        return INT4
    if found == {Kind.Q8_0}:
        return INT8_GROUPS
    names = ", ".join(sorted(kind.name for kind in found))
    raise ConfigError(f"linear weights are of {names}; expected Q4_0 and Q4_1, or Q8_0, to keep their bits")


def groups_of(raw: np.ndarray, kind: Kind) -> Groups:
    """A stored tensor `[F, D]` as a weight `[D, F]` in groups.

    Args:
      raw: u8 `[F, D/32, bytes of a block]`. kind: one of `KINDS`.

    Returns:
      4 bits: q u8 `[D/2, F]`, scale and low f16 `[D/32, F]`. 8 bits: q int8 `[D, F]`, scale f16 `[D/32, F]`,
      None.

    Raises:
      CheckpointError: eight times a scale of Q4_0, which becomes the low, is beyond f16.
    """
    scale = _halves(raw[..., :2])
    if kind == Kind.Q8_0:
        values = raw[..., 2:].reshape(len(raw), -1).view(np.int8)
        return np.ascontiguousarray(values.T), scale, None
    if kind == Kind.Q4_1:
        return _nibbles(raw[..., 4:]), scale, _halves(raw[..., 2:4])
    low = -8 * scale.astype(np.float32)
    if not np.all(np.abs(low) <= np.finfo(np.float16).max):
        raise CheckpointError(f"Q4_0 scales reach {np.abs(scale).max()}; expected less than 8190")
    return _nibbles(raw[..., 2:]), scale, low.astype(np.float16)


def _halves(raw: np.ndarray) -> np.ndarray:
    """f16 `[D/32, F]` of bytes `[F, D/32, 2]`."""
    return np.ascontiguousarray(np.ascontiguousarray(raw).view("<f2")[..., 0].T).astype(
        np.float16, copy=False
    )


def _nibbles(raw: np.ndarray) -> np.ndarray:
    """Bytes u8 `[D/2, F]`, neighbours in a byte, of blocks `[F, D/32, 16]` with value j beside j + 16."""
    values = np.concatenate([raw & 15, raw >> 4], axis=-1).reshape(len(raw), -1)
    return np.ascontiguousarray((values[:, 0::2] | values[:, 1::2] << 4).T)
