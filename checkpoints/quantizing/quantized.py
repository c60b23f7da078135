"""A checkpoint quantised to int8: its residual stream is rotated, its linear weights are rounded, on the
host.

The rotation (`rotation.py`) does not change the model's output, and removes the outliers among activations
that one int8 scale per token cannot represent. Between up and down there is no stream to rotate; there,
channels are levelled (`levelling.py`). A tied head becomes a separate weight, because the embedding that it
is tied to is not quantised.

The rounding rule is that of `model/quantize.py`; a test compares the two. One layer at a time is in memory.
"""

import hashlib
from collections.abc import Iterator
from itertools import groupby

import numpy as np

from ...model.config import ModelConfig
from ...model.parameters import INT8, Quantization, is_linear
from ..checkpoint import Checkpoint, total_bytes
from ..store.store import group_of, inner_name
from .levelling import Tensors, level
from .rotation import Rotation
from .rounding import RoundingErrors

_LARGEST = np.float32(127)
_TINY = np.float32(1e-30)

_READERS = {
    "attention_norm": ("attention.q", "attention.k", "attention.v"),
    "feed_forward_norm": ("feed_forward.gate", "feed_forward.up", "feed_forward.router"),
}
"""The weights that read the residual stream, by the norm before them."""
_WRITERS = ("attention.o", "attention.o_bias", "feed_forward.down", "feed_forward.down_bias")


class QuantizedCheckpoint:
    """Any checkpoint with wide weights as a `Checkpoint` with int8 weights; the same attributes."""

    quantization: Quantization | None = INT8
    scheme = "int8, turned"
    """Part of the fingerprint: another scheme gives other weights. Stores on disk have it, so it must not
    change."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self.path = checkpoint.path
        self.config = checkpoint.config
        self.generation = checkpoint.generation
        self.fingerprint = hashlib.sha256(f"{checkpoint.fingerprint} {self.scheme}".encode()).hexdigest()
        self.nbytes = total_bytes(self.config, self.quantization)
        self.errors: RoundingErrors | None = None
        """Set it to have the errors of all weights added as they are read."""

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """As `Checkpoint.tensors`; each int8 weight is followed by its scales, f32."""
        for name, values in rotated(self._checkpoint.tensors(), self.config):
            if is_linear(name):
                weight, scale = quantize_host(values)
                yield from self._measured(name, values, {name: weight, f"{name}_scale": scale})
            else:
                yield name, values

    def _measured(self, name: str, wide: np.ndarray, parts: dict[str, np.ndarray]) -> Tensors:
        """The parts of a weight, after their error has been added."""
        if self.errors:
            self.errors.add(name, wide, parts)
        return parts.items()


def rotated(tensors: Tensors, config: ModelConfig) -> Iterator[tuple[str, np.ndarray]]:
    """The same model, f32, with a rotated stream, norm weights folded into linears, and a separate head."""
    rotation = Rotation(config.width)
    kept: dict[str, np.ndarray] = {}
    for group, members in groupby(tensors, lambda tensor: group_of(tensor[0])):
        arrays = {inner_name(name): np.asarray(values, np.float32) for name, values in members}
        if group.startswith("layers."):
            for name, values in _rotated_layer(arrays, rotation):
                yield f"{group}.{name}", values
            continue
        kept |= arrays
        if group == "embed":
            yield group, rotation.apply(arrays[group], -1)
        elif group == "norm":
            yield group, np.ones_like(arrays[group])
    if config.tied_head:  # its rows are the head's columns
        yield "head", rotation.apply(kept["embed"] * kept["norm"], -1).T
    else:
        yield "head", rotation.apply(kept["head"] * kept["norm"][:, None], -2)


def _rotated_layer(arrays: dict[str, np.ndarray], rotation: Rotation) -> Iterator[tuple[str, np.ndarray]]:
    level(arrays)
    norms = {reader: norm for norm, readers in _READERS.items() for reader in readers}
    for name, values in arrays.items():
        if name in norms:
            values = rotation.apply(values * arrays[norms[name]][:, None], -2)
        elif name in _WRITERS:
            values = rotation.apply(values, -1)
        yield name, np.ones_like(values) if name in _READERS else values


def largest_of_outputs(wide: np.ndarray) -> np.ndarray:
    """The largest magnitude of each output of `[..., inputs, outputs]`, never zero: f32 `[..., outputs]`."""
    return np.maximum(np.maximum(wide.max(-2), -wide.min(-2)), _TINY)


def quantize_host(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`[..., inputs, outputs]` as int8, and one scale per output, f32 `[..., outputs]`, by numpy."""
    wide = values.astype(np.float32)
    scale = largest_of_outputs(wide) / _LARGEST
    np.divide(wide, scale[..., None, :], out=wide)
    return np.rint(wide, out=wide).astype(np.int8), scale
