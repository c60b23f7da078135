"""What this machine can do at best: the ceilings that figures are held against."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from distaff.runtime.capacity.host import quickest

_GIB = 1 << 30
_SIZES = (1024, 2048)


def _fastest(work: Callable[[], object], repeats: int) -> float:
    """Seconds of the quickest of some runs, after one that may compile."""
    work()
    return quickest(work, repeats)


@functools.cache
def _numbers() -> jax.Array:
    return jax.random.uniform(jax.random.key(0), (_GIB // 4,))


def read_bandwidth(repeats: int = 7) -> float:
    """Bytes per second at which all cores together read memory: the best of several sums over 1 GiB."""
    numbers, total = _numbers(), jax.jit(jnp.sum)
    return numbers.nbytes / _fastest(lambda: total(numbers).block_until_ready(), repeats)


def matmul_rate(dtype: str, repeats: int = 5) -> float:
    """Operations per second of square products, the best of some sizes and, in f32, of XLA and numpy."""
    rates = [_rate(size, _xla(size, dtype), repeats) for size in _SIZES]
    if dtype == "float32":
        rates += [_rate(size, _numpy(size), repeats) for size in _SIZES]
    return max(rates)


def _rate(size: int, work: Callable[[], object], repeats: int) -> float:
    return 2 * size**3 / _fastest(work, repeats)


def _xla(size: int, dtype: str) -> Callable[[], object]:
    x = jnp.ones((size, size), dtype)
    wide = jnp.int32 if dtype == "int8" else jnp.float32
    product = jax.jit(lambda x: lax.dot(x, x, preferred_element_type=wide))
    return lambda: product(x).block_until_ready()


def _numpy(size: int) -> Callable[[], object]:
    x = np.ones((size, size), np.float32)
    return lambda: x @ x
