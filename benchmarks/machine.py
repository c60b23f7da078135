"""This machine's limits, which figures are compared with."""

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from distaff.runtime.capacity.host import fastest

_GIB = 1 << 30
_SIZES = (1024, 2048)


def _fastest(work: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of some runs, after one that may compile."""
    work()
    return fastest(work, repeats)


def _numbers(count: int) -> jax.Array:
    return jax.random.uniform(jax.random.key(0), (count,))


def read_bandwidth(repeats: int = 7) -> float:
    """Bytes per second at which all cores together read memory: the best of several sums and products.

    Over 1 GiB and half of it: XLA's sum, XLA's product of a vector and a matrix, and numpy with one thread
    per core.
    """
    rates = []
    for count in (_GIB // 4, _GIB // 8):
        numbers = _numbers(count)
        matrices = jnp.split(numbers.reshape(2, 1024, -1), 2)  # one product each, in parallel
        parts = np.array_split(np.asarray(numbers), os.cpu_count() or 1)
        row = jnp.ones((1, 1024))
        for work in (
            functools.partial(_sum, numbers),
            functools.partial(_products, row, matrices),
            functools.partial(_numpy_sums, parts),
        ):
            rates.append(numbers.nbytes / _fastest(work, repeats))
    return max(rates)


_jitted_sum = jax.jit(jnp.sum)


def _sum(numbers: jax.Array) -> None:
    _jitted_sum(numbers).block_until_ready()


@jax.jit
def _multiply(row: jax.Array, matrices: list[jax.Array]) -> list[jax.Array]:
    return [row @ matrix[0] for matrix in matrices]


def _products(row: jax.Array, matrices: list[jax.Array]) -> None:
    jax.block_until_ready(_multiply(row, matrices))


def _numpy_sums(parts: list[np.ndarray]) -> None:
    with ThreadPoolExecutor(len(parts)) as pool:
        list(pool.map(np.max, parts))  # limited by memory: a maximum does not wait for a previous sum


def matmul_rate(dtype: str, repeats: int = 5) -> float:
    """Operations per second of square products: the best of some sizes and, in f32, of XLA and numpy."""
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
