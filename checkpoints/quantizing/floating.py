"""A checkpoint quantised to fp8: linear weights but the head, one by one when they are read, on the host.

The rounding is that of `model/quantize.py`; a test compares the two. A number of fp8 is off by a share of
itself, whatever the size of the others, so no rotation helps. The head stays wide, as it does in fp8
checkpoints of others, and a tied one stays tied.
"""

from collections.abc import Iterator

import ml_dtypes
import numpy as np

from ...model.parameters import FP8, Quantization, is_linear, kind_of
from .quantized import QuantizedCheckpoint, largest_of_outputs

_SMALLEST = np.float32(1 / 448)


class Fp8Checkpoint(QuantizedCheckpoint):
    """Any checkpoint with wide weights as a `Checkpoint` with fp8 weights; the same attributes."""

    quantization: Quantization | None = FP8
    scheme = "fp8, outputs"

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """As `Checkpoint.tensors`; each fp8 weight is followed by its scales, f32."""
        for name, values in self._checkpoint.tensors():
            if is_linear(name) and kind_of(name, FP8):
                weight, scale = round_to_fp8(values)
                yield from self._measured(name, values, {name: weight, f"{name}_scale": scale})
            else:
                yield name, values


def round_to_fp8(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`[..., inputs, outputs]` as fp8, and one scale per output, f32 `[..., outputs]`."""
    wide = values.astype(np.float32)
    scale = largest_of_outputs(wide) * _SMALLEST
    np.divide(wide, scale[..., None, :], out=wide)
    return wide.astype(ml_dtypes.float8_e4m3fn), scale
