"""A checkpoint quantised in groups: linear weights to 4 bits, the head to 8, one by one when read.

The rounding is that of `model/quantize.py`, on the default device. A tied embedding is the head's groups.
"""

import hashlib
from collections.abc import Iterator

import numpy as np

from ..model.parameters import INT4, Quantization, check_groups, is_linear
from .checkpoint import Checkpoint, total_bytes

_SCHEME = "int4, groups of 32"
"""Part of the fingerprint: another scheme gives other weights. Stores on disk have it, so it must not
change."""


class GroupedCheckpoint:
    """Any checkpoint with wide weights as a `Checkpoint` with weights in groups; the same attributes.

    Raises:
      ConfigError: the model's linear maps have no whole groups.
    """

    quantization: Quantization | None = INT4

    def __init__(self, checkpoint: Checkpoint) -> None:
        check_groups(checkpoint.config, INT4)
        self._checkpoint = checkpoint
        self.path = checkpoint.path
        self.config = checkpoint.config
        self.generation = checkpoint.generation
        self.fingerprint = hashlib.sha256(f"{checkpoint.fingerprint} {_SCHEME}".encode()).hexdigest()
        self.nbytes = total_bytes(self.config, INT4)

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """As `Checkpoint.tensors`; each weight in groups is followed by its scales and lows."""
        tied: np.ndarray | None = None
        for name, values in self._checkpoint.tensors():
            if name == "embed" and self.config.tied_head:
                tied = values
            elif is_linear(name):
                yield from _quantized(name, values)
            else:
                yield name, values
        if tied is not None:
            yield from _quantized("head", tied.T)


def _quantized(name: str, values: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    import jax.numpy as jnp

    from ..model.quantize import quantize_linear

    parts = quantize_linear(name, jnp.asarray(values, jnp.float32), INT4)
    yield from ((part, np.asarray(found)) for part, found in parts.items())
