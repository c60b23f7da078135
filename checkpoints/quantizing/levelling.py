"""Levels the channels between up and down, so that rounding loses less of those that matter.

There is no residual stream to rotate between up and down. There, each channel is divided by a factor by
which down's weights are multiplied, the root of the largest of them (SmoothQuant's idea, with weights only:
Xiao et al. 2023, arXiv:2211.10438). The model's output stays the same. Activations get similar sizes, and
where several inputs share a scale, the large weights are rounded more finely than the small ones.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

Tensors = Iterable[tuple[str, np.ndarray]]

_UPS, _DOWN = ("feed_forward.up", "feed_forward.up_bias"), "feed_forward.down"
_TINY = np.float32(1e-30)


def level(arrays: dict[str, np.ndarray]) -> None:
    """Moves a factor of each channel from its activation to down's weights, in place.

    Args:
      arrays: a layer's, f32, by their names inside it; at least up, its bias if it has one, and down.
    """
    down = arrays[_DOWN]
    factor = np.sqrt(np.maximum(np.abs(down).max(-1), _TINY))
    factor /= np.exp(np.log(factor).mean(-1, keepdims=True))
    arrays[_DOWN] = down * factor[..., None]
    for name in _UPS:
        if name in arrays:
            divisor = factor if name.endswith("_bias") else factor[..., None, :]
            arrays[name] = arrays[name] / divisor


def levelled(tensors: Tensors, exact: Callable[[np.ndarray], bool]) -> Iterator[tuple[str, np.ndarray]]:
    """The same model with levelled channels; up and down, f32, are in memory at once.

    Args:
      exact: whether rounding changes nothing of a layer's down; then its channels are left as they are.
    """
    held: dict[str, np.ndarray] = {}
    for name, values in tensors:
        layer, _, inner = name.partition(".feed_forward.")
        inner = f"feed_forward.{inner}"
        if inner in (*_UPS, _DOWN):
            held[inner] = np.asarray(values, np.float32)
        else:
            yield name, values
        if inner == _DOWN:
            if not exact(held[_DOWN]):
                level(held)
            yield from ((f"{layer}.{each}", held.pop(each)) for each in list(held))
