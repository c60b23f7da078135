"""Turns a model's residual stream so that no channel of it stands out, which is what int8 activations need.

RMSNorm without its weights commutes with any rotation R of the stream, so a model says the same when the
norms' weights are folded into what reads the stream, everything that writes to it is turned by R, and
everything that reads it is turned back: QuaRot (Ashkboos et al. 2024, arXiv:2404.00456), without its
rotations at run time. A few channels of a trained model carry far larger values than the others; after a
rotation all carry alike, and one scale a token loses little. R is a Kronecker product of small Hadamard and
orthogonal matrices with signs, so turning a weight costs little more than reading it. Nothing is calibrated.
"""

from math import prod

import numpy as np

_LARGEST_FACTOR = 64
_SEED = 7


class Rotation:
    """An orthogonal map of `size` channels, the same for the same size."""

    def __init__(self, size: int) -> None:
        generator = np.random.default_rng(_SEED)
        self.signs_D = generator.choice(np.array([-1, 1], np.float32), size)
        self._factors: list[np.ndarray] = []
        while size > 1:
            width = _factor(size)
            hadamard = width & (width - 1) == 0
            self._factors.append(_hadamard(width) if hadamard else _orthogonal(width, generator))
            size //= width

    def turn(self, values: np.ndarray, axis: int) -> np.ndarray:
        """`values @ R` along an axis: f32."""
        turned = np.moveaxis(values.astype(np.float32), axis, -1) * self.signs_D
        shape = turned.shape
        sizes = [len(factor) for factor in self._factors]
        for i, factor in enumerate(self._factors):
            turned = turned.reshape(-1, sizes[i], prod(sizes[i + 1 :]))
            turned = np.matmul(factor.T, turned)
        return np.moveaxis(turned.reshape(shape), -1, axis)


def _factor(size: int) -> int:
    """The largest power of two up to 64 that divides the size; of an odd size, all that is left."""
    power = size & -size
    return min(power, _LARGEST_FACTOR) if power > 1 else size


def _hadamard(size: int) -> np.ndarray:
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / np.float32(np.sqrt(size))


def _orthogonal(size: int, generator: np.random.Generator) -> np.ndarray:
    return np.linalg.qr(generator.normal(size=(size, size)))[0].astype(np.float32)
