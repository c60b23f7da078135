"""Rotates a model's residual stream so that no channel has outliers, as int8 activations need.

RMSNorm without its weights commutes with any rotation R of the stream. So the model's output stays the same
if the norms' weights are folded into the weights that read the stream, every weight that writes to it is
rotated by R, and every weight that reads it is rotated back: QuaRot (Ashkboos et al. 2024, arXiv:2404.00456),
without its rotations at run time. A few channels of a trained model have far larger values than the others;
after a rotation all have similar values, and one scale per token loses little. R is a Kronecker product of
small Hadamard and orthogonal matrices with signs, so rotating a weight costs little more than reading it.
There is no calibration.
"""

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

    def apply(self, values: np.ndarray, axis: int) -> np.ndarray:
        """`values @ R` along the last axis (-1) or the one before it (-2): f32."""
        assert axis in (-1, -2), axis
        rotated = np.asarray(values, np.float32) * (self.signs_D if axis == -1 else self.signs_D[:, None])
        before, after = 1, rotated.shape[axis] * (1 if axis == -1 else rotated.shape[-1])
        for factor in self._factors:
            after //= len(factor)
            if after > 1:
                rotated = np.matmul(factor.T, rotated.reshape(-1, len(factor), after))
            else:  # products with one column each would take ten times as long
                rotated = np.matmul(rotated.reshape(-1, before, len(factor)), factor)
            before *= len(factor)
        return rotated.reshape(values.shape)


def _factor(size: int) -> int:
    """The largest power of two up to 64 that divides the size; if the size is odd, the size itself."""
    power = size & -size
    return min(power, _LARGEST_FACTOR) if power > 1 else size


def _hadamard(size: int) -> np.ndarray:
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / np.float32(np.sqrt(size))


def _orthogonal(size: int, generator: np.random.Generator) -> np.ndarray:
    return np.linalg.qr(generator.normal(size=(size, size)))[0].astype(np.float32)
