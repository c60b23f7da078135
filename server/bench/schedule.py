"""When the requests of an open load are due, whatever the server does."""

import math

import numpy as np


def arrival_times(count: int, rate: float, burstiness: float, random: np.random.Generator) -> np.ndarray:
    """Seconds from the start of a load at which each of `count` requests is due.

    The gaps follow a gamma distribution with the shape `burstiness`: at 1 the arrivals are a Poisson process,
    below it they come in bursts, and towards infinity at even distances. As in `vllm bench serve`, they are
    scaled so that the last request is due after exactly `count / rate` seconds: the mean rate is the same
    for every seed.

    Args:
      rate: requests per second; infinite: all are due at once.
    """
    if math.isinf(rate):
        return np.zeros(count)
    gaps = np.ones(count) if math.isinf(burstiness) else random.gamma(burstiness, size=count)
    times = np.cumsum(gaps)
    if not times[-1] > 0:  # underflow of a tiny burstiness: one single burst at the end
        return np.full(count, count / rate)
    return times / times[-1] * (count / rate)
