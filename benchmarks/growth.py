"""Cost grows as the work does: step times over context, streams, layers and width, and memory over time.

`python -m benchmarks.growth` runs models of random weights through the engine's own steps, without HTTP, and
holds each time against the bytes and operations that `runtime/capacity` counts. Then it sends small requests
one after the other to an engine and watches the process's memory. The last line is JSON.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import jax.numpy as jnp
import numpy as np
import psutil

from distaff.model.config import ModelConfig
from distaff.model.transformer import random_parameters
from distaff.runtime.capacity.work import Counted
from distaff.runtime.engine import Engine
from distaff.runtime.request import Request, SamplingParams
from distaff.runtime.settings import EngineSettings

BASE = ModelConfig(
    vocabulary=4096, layers=4, width=512, feed_forward=1408, heads=8, kv_heads=4, head_size=64, context=8704
)
TOKENS = 24


@dataclass(frozen=True, slots=True)
class Point:
    """One model at one load: seconds a decode step, and what the step reads and computes."""

    what: str
    size: int
    seconds: float
    bytes: float
    operations: float


def decode(config: ModelConfig, what: str, size: int, *, streams: int, context: int) -> Point:
    """The median time between tokens of some streams that all have about this context."""
    pages = streams * (-(-(context + TOKENS) // 16) + 1)
    settings = EngineSettings(slots=max(streams, 1), kv_pages=pages, speculation=False, prefix_cache=False)
    engine = Engine(config, random_parameters(config, 0, jnp.dtype("float32")), settings)
    engine.warm_up()
    engine.start()
    while engine.stats.buckets_ready < engine.stats.buckets:
        time.sleep(0.05)  # the smaller steps are compiled beside it
    beats = list(_beats(engine, streams, context))
    engine.stop()
    work = Counted(config=config, shards=1, dtype="float32", int8=False, page_size=16).decode(
        [context] * streams
    )
    return Point(
        what, size, float(np.median(np.diff(beats))), sum(work.bytes.values()), sum(work.operations.values())
    )


def _beats(engine: Engine, streams: int, context: int) -> Iterator[float]:
    """When each token of the last stream came."""
    generator = np.random.default_rng(0)
    requests = [
        Request(
            id=str(n),
            prompt=tuple(generator.integers(0, BASE.vocabulary, context).tolist()),
            params=SamplingParams(max_tokens=TOKENS + 8 * (n == streams - 1), temperature=0),
        )
        for n in range(streams)
    ]
    for request in requests[:-1]:
        engine.submit(request)
    for _ in engine.stream(requests[-1]):
        yield time.perf_counter()


def points() -> Iterator[Point]:
    """One thing grown at a time."""
    for context in (128, 512, 2048, 8192):
        yield decode(BASE, "context", context, streams=4, context=context)
    for streams in (1, 4, 16, 64):
        yield decode(BASE, "streams", streams, streams=streams, context=128)
    for layers in (2, 4, 8, 16):
        yield decode(replace(BASE, layers=layers), "layers", layers, streams=4, context=128)
    for width in (256, 512, 1024):
        config = replace(BASE, width=width, feed_forward=width * 11 // 4, heads=width // 64)
        yield decode(config, "width", width, streams=4, context=128)


def memory(requests: int) -> list[int]:
    """Resident bytes of this process at eleven moments of so many requests, one after the other."""
    config = replace(BASE, layers=1, width=64, feed_forward=128, heads=2, kv_heads=2, head_size=32)
    settings = EngineSettings(slots=4, kv_pages=256, context=512)
    engine = Engine(config, random_parameters(config, 0, jnp.dtype("float32")), settings)
    engine.warm_up()
    engine.start()
    generator, sizes = np.random.default_rng(1), []
    for number in range(requests + 1):
        if number % (requests // 10) == 0:
            sizes.append(psutil.Process().memory_info().rss)
        prompt = tuple(generator.integers(0, BASE.vocabulary, 24).tolist())
        params = SamplingParams(max_tokens=4, temperature=0)
        for _ in engine.stream(Request(id=str(number), prompt=prompt, params=params)):
            pass
    engine.stop()
    return sizes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    arguments = parser.parse_args()
    found = []
    for point in points():
        found.append(point)
        print(
            f"{point.what:8} {point.size:5}: {point.seconds * 1e3:8.2f} ms a step, "
            f"{point.bytes / point.seconds / 1e9:6.1f} GB/s, "
            f"{point.operations / point.seconds / 1e9:6.1f} GFLOP/s",
            flush=True,
        )
    sizes = memory(arguments.requests)
    print("resident MiB:", " ".join(str(size >> 20) for size in sizes))
    print(json.dumps({"points": [asdict(point) for point in found], "resident": sizes}))


if __name__ == "__main__":
    main()
