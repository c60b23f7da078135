"""Cost grows with the work: step times over context, streams, layers and width, and memory over time.

`python -m benchmarks.growth` runs models of random weights through the engine's steps, without HTTP, and
compares each time with the bytes and operations that `runtime/capacity` counts: a step's time should grow
with the bytes that it reads. Then it sends small requests one after another to an engine and measures the
process's memory. It draws `build/bench/growth.png`; the last line is JSON.
"""

import argparse
import json
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import psutil

from distaff.model.config import ModelConfig
from distaff.model.transformer import random_parameters
from distaff.runtime.capacity.work import CostModel
from distaff.runtime.device.settings import EngineSettings
from distaff.runtime.engine import Engine
from distaff.runtime.request import Request, SamplingParams, TokenEvent

from .server import until

BASE = ModelConfig(
    vocabulary=4096, layers=4, width=512, feed_forward=1408, heads=8, kv_heads=4, head_size=64, context=17408
)
PAGE = 16
STEPS = 40
"""The number of timed steps with all streams decoding."""


@dataclass(frozen=True, slots=True)
class Point:
    """One model at one load: seconds per decode step, and the step's bytes and operations."""

    what: str
    size: int
    seconds: float
    bytes: float
    operations: float


class _Listener:
    """Receives an engine's events; records when each stream's tokens arrived."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = {}
        self._changed = threading.Condition()

    def receive(self, events: Sequence[TokenEvent]) -> None:
        now = time.perf_counter()
        with self._changed:
            for event in events:
                self.times.setdefault(event.request_id, []).append(now)
            self._changed.notify_all()

    def wait(self, streams: int) -> tuple[float, list[int]]:
        """The median seconds between tokens while all streams decode, and how many each had half way."""
        with self._changed:
            self._changed.wait_for(lambda: len(self.times) == streams)
            begun = max(times[0] for times in self.times.values())
            last = max(self.times, key=lambda name: self.times[name][0])
            self._changed.wait_for(lambda: len(self.times[last]) > STEPS)
            half = begun + (self.times[last][-1] - begun) / 2
            counts = [sum(each <= half for each in times) for times in self.times.values()]
            return float(np.median(np.diff(self.times[last]))), counts


def decode(config: ModelConfig, what: str, size: int, *, streams: int, context: int) -> Point:
    """The median time of a step with `streams` decoding streams of about this context."""
    pages = streams * (-(-2 * context // PAGE) + 64)
    settings = EngineSettings(slots=streams, kv_pages=pages, speculation=False, prefix_cache=False)
    listener = _Listener()
    engine = Engine(
        config, random_parameters(config, 0, jnp.dtype("float32")), settings, on_events=listener.receive
    )
    engine.warm_up()
    engine.start()
    until(lambda: engine.stats.buckets_ready == engine.stats.buckets, "all steps are compiled")
    for request in _requests(config, streams, context):
        engine.submit(request)
    seconds, counts = listener.wait(streams)
    engine.stop()
    work = CostModel(config=config, shards=1, dtype="float32", quantization=None, page_size=PAGE).decode(
        [context + count for count in counts]
    )
    return Point(what, size, seconds, sum(work.bytes.values()), sum(work.operations.values()))


def _requests(config: ModelConfig, streams: int, context: int) -> list[Request]:
    """Requests that run as long as there is room, so that the first ones decode until the last one does."""
    generator = np.random.default_rng(0)
    params = SamplingParams(max_tokens=context + 512, temperature=0, ignore_eos=True)
    return [
        Request(
            id=str(n), prompt=tuple(generator.integers(0, config.vocabulary, context).tolist()), params=params
        )
        for n in range(streams)
    ]


def points() -> Iterator[Point]:
    """Varies one size at a time."""
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
    """Resident bytes of this process at eleven times during `requests` consecutive requests."""
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


def draw(found: Sequence[Point], folder: Path) -> None:
    """Plots each series: measured milliseconds, and those that its bytes would take at the best point's
    rate."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    whats = list(dict.fromkeys(point.what for point in found))
    figure, axes = pyplot.subplots(1, len(whats), figsize=(3.6 * len(whats), 3.4))
    pace = max(point.bytes / point.seconds for point in found)
    for axis, what in zip(axes, whats, strict=True):
        mine = [point for point in found if point.what == what]
        sizes = [point.size for point in mine]
        axis.plot(sizes, [1e3 * point.seconds for point in mine], marker="o", label="measured")
        bound = [1e3 * point.bytes / pace for point in mine]
        axis.plot(sizes, bound, linestyle="--", label=f"its bytes at {pace / 1e9:.0f} GB/s")
        axis.set(xlabel=what, ylabel="ms a decode step", ylim=(0, None))
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.tight_layout()
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "growth.png", dpi=120)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    arguments = parser.parse_args()
    found = []
    for point in points():
        found.append(point)
        print(
            f"{point.what:8} {point.size:5}: {point.seconds * 1e3:8.2f} ms a step, "
            f"{point.bytes / 1e6:7.1f} MB at {point.bytes / point.seconds / 1e9:5.1f} GB/s, "
            f"{point.operations / point.seconds / 1e9:6.1f} GFLOP/s",
            flush=True,
        )
    draw(found, Path("build/bench"))
    sizes = memory(arguments.requests)
    print("resident MiB:", " ".join(str(size >> 20) for size in sizes))
    print(json.dumps({"points": [asdict(point) for point in found], "resident": sizes}))


if __name__ == "__main__":
    main()
