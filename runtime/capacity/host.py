"""This host as a chip: its memory bandwidth and multiplication rate, measured in a second."""

import os
import time
from collections.abc import Callable

import numpy as np
import psutil

from .chips import Chip

_BYTES = 1 << 28
_WIDTH = 1536
_REPEATS = 3


def measure_host(devices: int) -> Chip:
    """One of `devices` equal parts of this host.

    The bandwidth is measured by summing 256 MiB, the rate by a product of two f32 matrices of 1536 x 1536,
    each the best of three runs with numpy. Devices of one host send data through its memory.
    """
    numbers = np.ones(_BYTES // 4, np.float32)
    matrix = np.ones((_WIDTH, _WIDTH), np.float32)
    bandwidth = _BYTES / fastest(lambda: numbers.sum(), _REPEATS)
    rate = 2 * _WIDTH**3 / fastest(lambda: matrix @ matrix, _REPEATS)
    return Chip(
        name="cpu",
        platform="cpu",
        kind=f"{os.cpu_count()} cores",
        memory=psutil.virtual_memory().total / devices,
        bandwidth=bandwidth / devices,
        rate={"float32": rate / devices, "bfloat16": rate / devices, "int8": rate / devices},
        send=bandwidth / devices,
    )


def fastest(work: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of some runs."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)
