"""A weight as integers with zeros and scales, whatever file layout it came from, and what it becomes here.

A weight is (q - zero) * scale, with one zero and one scale for an output and a group of inputs. In our groups
of 32 inputs a larger group's scale is repeated, and zero becomes the low, -zero * scale; the integers stay as
they are. Arrays have outputs first, as the files have; `Origin.assemble` transposes them.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ....model.parameters import GROUP, INT4, Kind
from ...errors import CheckpointError

_LARGEST = np.float32(127)
_STRIP = 16
_MIDDLE = 128
"""The zero of symmetric values of 8 bits, which is not stored with our groups."""


class Values(Protocol):
    """A weight that has been read."""

    def wide(self) -> np.ndarray:
        """f32 `[F, D]`."""
        ...

    def parts(self, kind: Kind) -> tuple[np.ndarray, ...]:
        """The weight, its scales and its lows, if there are any: those of `quantize.py`, outputs first.

        Raises:
          CheckpointError: the weight cannot be kept so.
        """
        ...


@dataclass(frozen=True, slots=True)
class Integers:
    """A weight `[F, D]` of G groups of inputs for each output.

    Attributes:
      name: for messages. q: u8; 8 bits `[F, D]`; 4 bits `[F, D/2]`, input 2i in the low half of byte i.
      zero, scale: f32 `[F, G]`. group_D: the group of each input, i32 `[D]`; None: groups are runs of D/G.
    """

    name: str
    bits: int
    q: np.ndarray
    zero: np.ndarray
    scale: np.ndarray
    group_D: np.ndarray | None = None

    def wide(self) -> np.ndarray:
        """f32 `[F, D]`."""
        q = split_nibbles(self.q) if self.bits == 4 else self.q
        if self.group_D is not None:
            return (q - self.zero[:, self.group_D]) * self.scale[:, self.group_D]
        grouped = q.reshape(len(q), self.scale.shape[1], -1).astype(np.float32)
        return ((grouped - self.zero[:, :, None]) * self.scale[:, :, None]).reshape(q.shape)

    def parts(self, kind: Kind) -> tuple[np.ndarray, ...]:
        """See `Values`. Integers of 8 bits, or of 4 if they are rounded, become groups of 8 bits."""
        if kind == INT4:
            return inputs_first(self.q), self._halves(self.scale), self._halves(-self.zero * self.scale)
        if self.bits == 8 and self.group_D is None and (self.zero == _MIDDLE).all():
            return (inputs_first(self.q) ^ _MIDDLE).view(np.int8), self._halves(self.scale)
        return rounded_in_groups(self.wide())

    def _halves(self, values: np.ndarray) -> np.ndarray:
        """f16 `[F, D/32]`."""
        with np.errstate(over="ignore"):
            halves = values.astype(np.float16)
        if not np.isfinite(halves).all():
            raise CheckpointError(
                f"{self.name}: a scale times its zero is {np.abs(values).max()}; expected at most 65504"
            )
        inputs = self.q.shape[1] * (8 // self.bits)
        return np.repeat(halves, inputs // GROUP // values.shape[1], axis=1)


def rounded_in_groups(wide: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """f32 `[F, D]` as int8 and scales f16 `[F, D/32]`, rounded as by `quantize.quantize_groups8`."""
    grouped = wide.reshape(len(wide), -1, GROUP)
    scale = (np.abs(grouped).max(-1) / _LARGEST).astype(np.float16)
    divisor = np.where(scale == 0, np.inf, scale.astype(np.float32))[:, :, None]
    q = np.rint(grouped / divisor).clip(-_LARGEST, _LARGEST)
    return q.reshape(wide.shape).astype(np.int8), scale


def inputs_first(values: np.ndarray) -> np.ndarray:
    """The same `[F, D]` with an input's values side by side in memory, as they are served.

    By 16 outputs at a time numpy is seven times as fast as with all of them.
    """
    if values.flags.f_contiguous:
        return values
    turned = np.empty(values.shape[::-1], values.dtype)
    for first in range(0, len(values), _STRIP):
        turned[:, first : first + _STRIP] = values[first : first + _STRIP].T
    return turned.T


def split_nibbles(packed: np.ndarray) -> np.ndarray:
    """The values u8 `[..., 2 N]` of bytes `[..., N]`, the low half first."""
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)


def unpack(words: np.ndarray, bits: int) -> np.ndarray:
    """The values u8 `[..., 32 N / bits]` of words i32 `[..., N]`, the lowest bits first."""
    packed = packed_bytes(words)
    return split_nibbles(packed) if bits == 4 else packed


def packed_bytes(words: np.ndarray) -> np.ndarray:
    """The bytes u8 `[..., 4 N]` of words i32 `[..., N]`, the lowest first: with 4 bits two values each."""
    return np.ascontiguousarray(words).astype("<i4", copy=False).view(np.uint8)


def packed_rows(words: np.ndarray) -> np.ndarray:
    """The bytes u8 `[4 N, F]` of words i32 `[N, F]`, those of a word below each other, the lowest first."""
    split = packed_bytes(words).reshape(*words.shape, 4)
    return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(-1, words.shape[1])
