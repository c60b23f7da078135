"""Wide weights that round to those of a file with 4 bits: a stand-in for the model that the file was made of.

Rounding a file's weights to 4 bits again changes nothing, so it does not show what `--quantize int4` costs a
wide model. Here each weight is drawn from the interval that rounds to its stored value. A group's smallest
and largest keep the ends of its range, because GGUF's rounding puts them there; so rounding what is drawn as
GGUF does gives the file's own bits.
"""

from collections.abc import Iterator

import numpy as np

from distaff.checkpoints.checkpoint import Checkpoint
from distaff.model.parameters import GROUP, Quantization

_HIGHEST = 15


class UnroundedCheckpoint:
    """A checkpoint with weights in groups as a `Checkpoint` with wide ones; the same for the same seed."""

    quantization: Quantization | None = None

    def __init__(self, checkpoint: Checkpoint, seed: int = 0) -> None:
        self._checkpoint, self._seed = checkpoint, seed
        self.path, self.generation = checkpoint.path, checkpoint.generation
        self.config, self.nbytes = checkpoint.config, checkpoint.nbytes
        self.fingerprint = checkpoint.fingerprint

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """Each weight by its name, f32; a tied embedding comes last."""
        rng = np.random.default_rng(self._seed)
        rounded = dict(self._checkpoint.tensors())
        for name, values in rounded.items():
            scale = rounded.get(f"{name}_scale")
            if name.endswith(("_scale", "_low")):
                continue
            if scale is None:
                yield name, values
                continue
            drawn = unrounded(values, scale, rounded.get(f"{name}_low"), rng)
            tied = name == "head" and "embed" not in rounded
            yield ("embed", drawn.T) if tied else (name, drawn)


def unrounded(
    w: np.ndarray, scale: np.ndarray, low: np.ndarray | None, rng: np.random.Generator
) -> np.ndarray:
    """Weights, f32 `[D, F]`, that round to these groups; see `quantize.GroupedWeight`."""
    q = _grouped(w if low is None else _nibbles(w)).astype(np.float32)
    drawn = q + rng.random(q.shape, np.float32) - np.float32(0.5)
    if low is None:
        ends = np.abs(q) == np.abs(q).max(1, keepdims=True)
    else:
        ends = (q == 0) | (q == _HIGHEST)
        inner = np.where(q == 0, np.abs(drawn), _HIGHEST - np.abs(drawn - _HIGHEST))
        drawn = np.where(ends, inner, drawn)
        ends = _first(q == 0) | _first(q == _HIGHEST)
    values = np.where(ends, q, drawn) * scale.astype(np.float32)[:, None]
    values += 0 if low is None else low.astype(np.float32)[:, None]
    return values.reshape(-1, w.shape[-1])


def _nibbles(w: np.ndarray) -> np.ndarray:
    return np.stack([w & _HIGHEST, w >> 4], axis=1).reshape(-1, w.shape[-1])


def _grouped(values: np.ndarray) -> np.ndarray:
    """`[D/32, 32, F]`."""
    return values.reshape(-1, GROUP, values.shape[-1])


def _first(found: np.ndarray) -> np.ndarray:
    """In each group the first of these places alone."""
    return found & (found.cumsum(axis=1) == 1)
