"""`Checkpoint`: the interface of an opened checkpoint in any format."""

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Protocol

import ml_dtypes  # noqa: F401  # numpy knows the names of its types then
import numpy as np

from ..model.config import ModelConfig
from ..model.parameters import Quantization, parameter_shapes, stored_type
from .generation import GenerationDefaults


class Checkpoint(Protocol):
    """An opened checkpoint in any format.

    Attributes:
      path: where it is. config: of the model. generation: its end tokens and sampling defaults.
      quantization: of linear weights (see `model/quantize.py`); None if they are wide.
      fingerprint: 64 hexadecimal digits that identify the weights: a store's manifest digest; for other
        formats a digest over config, headers, file sizes and times of change.
      nbytes: size of all tensors as `tensors` yields them.
    """

    path: Path
    config: ModelConfig
    generation: GenerationDefaults
    quantization: Quantization | None
    fingerprint: str
    nbytes: int

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """`(name, values)`, one in memory at a time, in the order of `parameter_shapes`, linears
        `[inputs, outputs]`.

        Raises:
          CheckpointError: the weights are damaged, or changed while they were read.
        """
        ...


def total_bytes(config: ModelConfig, quantization: Quantization | None) -> int:
    """The bytes of all parameters; those that are not part of a quantised weight as f32."""
    return sum(
        prod(shape) * np.dtype(stored_type(name, quantization) or np.float32).itemsize
        for name, shape in parameter_shapes(config, quantization).items()
    )
