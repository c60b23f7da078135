"""`Checkpoint`: the interface of an opened checkpoint in any format."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from ..model.config import ModelConfig
from .generation import GenerationDefaults


class Checkpoint(Protocol):
    """An opened checkpoint in any format.

    Attributes:
      path: where it is. config: of the model. generation: its end tokens and sampling defaults.
      int8: whether linear weights are int8 with scales (see `model/quantize.py`).
      fingerprint: 64 hexadecimal digits that identify the weights: a store's manifest digest; for other
        formats a digest over config, headers, file sizes and times of change.
      nbytes: size of all tensors as `tensors` yields them.
    """

    path: Path
    config: ModelConfig
    generation: GenerationDefaults
    int8: bool
    fingerprint: str
    nbytes: int

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """`(name, values)`, one in memory at a time, in the order of `parameter_shapes`, linears
        `[inputs, outputs]`.

        Raises:
          CheckpointError: the weights are damaged, or changed while they were read.
        """
        ...
