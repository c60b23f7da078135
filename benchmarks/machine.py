"""What this machine can do at best: the ceiling that figures are held against."""

import functools
import statistics
import time

import jax
import jax.numpy as jnp

_GIB = 1 << 30


@functools.cache
def _numbers() -> jax.Array:
    return jax.random.uniform(jax.random.key(0), (_GIB // 4,))


def read_bandwidth(repeats: int = 7) -> float:
    """Bytes per second at which all cores together read memory: the median of several sums over 1 GiB."""
    numbers = _numbers()
    total = jax.jit(jnp.sum)
    total(numbers).block_until_ready()
    seconds = []
    for _ in range(repeats):
        begun = time.perf_counter()
        total(numbers).block_until_ready()
        seconds.append(time.perf_counter() - begun)
    return numbers.nbytes / statistics.median(seconds)
