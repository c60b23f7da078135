"""How a store splits a tensor along the axis that a mesh divides, so that a device can read only its part.

A tensor `[…, n, …]` is stored as `[slabs, …, n / slabs, …]`, each slab in a separate chunk. A device holds a
run of whole slabs, for every number of devices that divides them; heads are never split. No JAX.
"""

from math import prod

import numpy as np

from ...model.config import ModelConfig

MOST = 16
"""Slabs per tensor: enough for sixteen devices; more would only make more files."""
_LEAST_BYTES = 1 << 16
"""A smaller tensor stays in one piece."""


def units_of(name: str, config: ModelConfig) -> int | None:
    """The number of heads or experts in a parameter's divided axis; None if it may be split anywhere."""
    if config.moe is not None and "feed_forward." in name:
        return config.moe.experts
    kind = name.rpartition("attention.")[2] if "attention." in name else ""
    return {"q": config.heads, "o": config.heads, "k": config.kv_heads, "v": config.kv_heads}.get(kind)


def count_slabs(size: int, units: int | None) -> int:
    """The number of slabs of an axis of this size; no slab is a part of a unit."""
    if units is not None and units <= MOST:
        return units
    return next(count for count in (16, 8, 4, 2, 1) if (units or size) % count == 0)


def slabs_for(name: str, shape: tuple[int, ...], itemsize: int, axis: int | None, config: ModelConfig) -> int:
    """The number of slabs of a parameter that a mesh divides along `axis`; 1 if it is in one piece."""
    if axis is None or prod(shape) * itemsize < _LEAST_BYTES:
        return 1
    return count_slabs(shape[axis], units_of(name, config))


def cut(values: np.ndarray, axis: int, slabs: int) -> np.ndarray:
    """`[…, n, …]` to `[slabs, …, n / slabs, …]`."""
    shape = values.shape
    split = values.reshape(*shape[:axis], slabs, shape[axis] // slabs, *shape[axis + 1 :])
    return np.ascontiguousarray(np.moveaxis(split, axis, 0))


def join(values: np.ndarray, axis: int) -> np.ndarray:
    """The inverse of `cut`."""
    split = np.moveaxis(values, 0, axis)
    return split.reshape(*split.shape[:axis], -1, *split.shape[axis + 2 :])
