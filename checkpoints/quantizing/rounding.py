"""What rounding costs: how far quantised weights are from wide ones, layer by layer.

Measures weights, not answers: `benchmarks.quality` compares those. The one idea: squares are added up as
weights are rounded, so nothing is read twice.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from ..store.store import group_of, inner_name


class RoundingErrors:
    """Collects the errors of linear weights; each is relative to the weight, by root mean squares."""

    def __init__(self) -> None:
        self._squares: dict[str, dict[str, tuple[float, float]]] = {}

    def add(self, name: str, wide: np.ndarray, parts: Mapping[str, np.ndarray]) -> None:
        """Compares a weight f32 `[..., D, F]` with its quantised parts, by their names."""
        self._squares.setdefault(group_of(name), {})[inner_name(name)] = _squares(name, wide, parts)

    def lines(self) -> Iterator[str]:
        """A line for each layer, and one for the head: its error, and that of its worst weight."""
        for group, weights in self._squares.items():
            errors = {name: _ratio(*squares) for name, squares in weights.items()}
            whole = _ratio(*map(sum, zip(*weights.values(), strict=True)))
            worst = max(errors, key=lambda name: errors[name])
            yield f"{group}: weights are off by {whole:.2%}, {worst} most, by {errors[worst]:.2%}"


def relative_error(name: str, wide: np.ndarray, parts: Mapping[str, np.ndarray]) -> float:
    """How far the quantised parts of a weight f32 `[..., D, F]` are from it, relative to its size."""
    return _ratio(*_squares(name, wide, parts))


def _squares(name: str, wide: np.ndarray, parts: Mapping[str, np.ndarray]) -> tuple[float, float]:
    """The sums of the squares of a weight's errors and of its values."""
    error = float(np.square(_widened(name, parts) - wide, dtype=np.float64).sum())
    return error, float(np.square(wide, dtype=np.float64).sum())


def _ratio(error: float, size: float) -> float:
    return (error / size) ** 0.5 if size else 0.0


def _widened(name: str, parts: Mapping[str, np.ndarray]) -> np.ndarray:
    """The weight, f32, of its parts."""
    weight, scale, low = parts[name], parts[f"{name}_scale"], parts.get(f"{name}_low")
    if scale.dtype == np.float32:
        return weight * scale[..., None, :]
    import jax.numpy as jnp

    from ...model.quantize import dequantize_groups

    packed = jnp.asarray(weight), jnp.asarray(scale), None if low is None else jnp.asarray(low)
    return np.asarray(dequantize_groups(*packed))
