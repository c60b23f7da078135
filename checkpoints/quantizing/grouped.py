"""A checkpoint quantised in groups: linear weights to 4 bits, the head to 8, one by one when read.

The rounding is that of `model/quantize.py`, on the default device. A tied embedding is the head's groups.
The residual stream is not rotated, because that needs the norms' weights folded into the linear weights,
which costs more than a rotation gains here (docs/decisions.md); channels between up and down are levelled
(`levelling.py`).
"""

from collections.abc import Iterator

import numpy as np

from ...model.parameters import INT4, INT8_GROUPS, Kind, Quantization, check_groups, is_linear, kind_of
from ..checkpoint import Checkpoint
from .levelling import levelled
from .quantized import QuantizedCheckpoint
from .rounding import relative_error

_FEW = 32
_EXACT = 0.01
"""Half a step of 16 is about 8 % of normal weights; those that were rounded before are off by f16's steps."""


class GroupedCheckpoint(QuantizedCheckpoint):
    """Any checkpoint with wide weights as a `Checkpoint` with weights in groups; the same attributes.

    Raises:
      ConfigError: the model's linear maps have no whole groups.
    """

    quantization: Quantization | None = INT4
    scheme = "int4, groups of 32, fitted and levelled"

    def __init__(self, checkpoint: Checkpoint) -> None:
        check_groups(checkpoint.config, INT4)
        super().__init__(checkpoint)

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """As `Checkpoint.tensors`; each weight in groups is followed by its scales and lows."""
        tied: np.ndarray | None = None
        for name, values in levelled(self._checkpoint.tensors(), _is_exact):
            if name == "embed" and self.config.tied_head:
                tied = values
            elif is_linear(name):
                parts = dict(quantized_in_groups(name, values, kind_of(name, INT4)))
                yield from self._measured(name, values, parts)
            else:
                yield name, values
        if tied is not None:
            parts = dict(quantized_in_groups("head", tied.T, INT8_GROUPS))
            yield from self._measured("head", tied.T, parts)


def quantized_in_groups(name: str, values: np.ndarray, kind: Kind | None) -> Iterator[tuple[str, np.ndarray]]:
    """A linear weight f32 `[..., D, F]` of this kind, and its scales.

    Experts are rounded one by one, because that takes several times their size in f32.
    """
    assert kind is not None, name
    if values.ndim == 2:
        yield from _rounded(name, values, kind).items()
        return
    parts = [_rounded(name, expert, kind) for expert in values]
    yield from ((part, np.stack([each.pop(part) for each in parts])) for part in list(parts[0]))


def _is_exact(values: np.ndarray) -> bool:
    """Whether a weight has 4 bits already, such as one of a GGUF of Q4_1, by a few of its outputs.

    Its steps would not fit levelled channels.
    """
    few = values.reshape(-1, *values.shape[-2:])[0, :, :_FEW]
    return relative_error("down", few, _rounded("down", few, INT4)) < _EXACT


def _rounded(name: str, values: np.ndarray, kind: Kind) -> dict[str, np.ndarray]:
    import jax.numpy as jnp

    from ...model.quantize import quantize_linear

    parts = quantize_linear(name, jnp.asarray(values, jnp.float32), kind)
    return {part: np.asarray(found) for part, found in parts.items()}
