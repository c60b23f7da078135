"""The first figures: start-up, distance from the memory's limit, throughput at 1, 8 and 32 streams.

`python -m benchmarks.first_light` serves the bundled default in f32 twice (the second start is measured
with warm caches), measures this machine's read bandwidth in the same run, and loads the server with chats
of about 110 prompt tokens and 64 generated ones. The last line is JSON.
"""

import argparse
import asyncio
import json
import statistics
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from distaff.checkpoints import open_checkpoint, resolve
from distaff.model.parameters import parameter_shapes

from .load import LoadResult, run
from .machine import read_bandwidth
from .server import serve

STREAMS = (1, 8, 32)
MAX_TOKENS = 64
LLAMA_CPP_F32 = {1: 37, 8: 88, 32: 96}
"""Tokens per second of llama.cpp's server in F32 on a 2-core AVX2 CPU (docs/decisions.md): another run,
perhaps another machine, so a mark to pass and no side-by-side comparison."""


def main() -> None:
    arguments = _arguments()
    weights = weight_bytes(arguments.model)
    with serve(*arguments.model) as first:
        cold = first.seconds_to_ready
    with serve(*arguments.model) as server:
        warm = server.seconds_to_ready
        asyncio.run(run(server.url, 8, 1, 16))
        bandwidth, pace = against_memory(server.url, 2 * arguments.rounds + 1)
        results = [best(server.url, streams, arguments.rounds) for streams in STREAMS]
    bound = bandwidth / weights
    share = 1 / pace / bound
    report(results, cold, warm, bandwidth, bound, share)
    figures = {
        "start_seconds": {"first": cold, "second": warm},
        "read_bandwidth_gb_s": bandwidth / 1e9,
        "weight_bytes": weights,
        "bandwidth_bound_tokens_per_second": bound,
        "decode_share_of_bound": share,
        "loads": [asdict(result) for result in results],
    }
    print(json.dumps(figures))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="*", help="a model for `distaff serve`; default: the bundled one")
    parser.add_argument("--rounds", type=int, default=3, help="repetitions of each load; the best counts")
    return parser.parse_args()


def weight_bytes(model: list[str]) -> int:
    """Bytes of f32 parameters that one decode step reads; a tied embedding is read once, as the head."""
    config = open_checkpoint(resolve(*model or [None])).config
    shapes = parameter_shapes(config)
    if not config.tied_head:
        del shapes["embed"]
    sizes = (shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in shapes.values())
    return 4 * sum(sizes)


def against_memory(url: str, rounds: int) -> tuple[float, float]:
    """Read bandwidth (bytes/s) and seconds a token at one stream: medians, measured in turns.

    In turns, because what a shared machine can read changes from one minute to the next.
    """
    bandwidths, paces = [], []
    for _ in range(rounds):
        bandwidths.append(read_bandwidth())
        paces.append(asyncio.run(run(url, 1, 1, MAX_TOKENS)).time_per_token_p50)
    return statistics.median(bandwidths), statistics.median(paces)


def best(url: str, streams: int, rounds: int) -> LoadResult:
    """The fastest of several runs: neighbours on a shared machine only ever slow one down."""
    per_stream = 2 if streams > 1 else 4
    runs = [asyncio.run(run(url, streams, per_stream, MAX_TOKENS)) for _ in range(rounds)]
    return max(runs, key=lambda result: result.tokens_per_second)


def report(
    results: list[LoadResult], cold: float, warm: float, bandwidth: float, bound: float, share: float
) -> None:
    """The same figures for people."""
    table = Table(title="SmolLM2-135M, f32: 110-token prompts, 64 tokens out")
    for heading in ("streams", "tokens/s", "llama.cpp F32 (mark)", "TTFT p50 ms", "p95 ms", "ms/token"):
        table.add_column(heading, justify="right")
    for r in results:
        table.add_row(
            str(r.streams), f"{r.tokens_per_second:.1f}", str(LLAMA_CPP_F32[r.streams]),
            f"{r.ttft_p50 * 1e3:.0f}", f"{r.ttft_p95 * 1e3:.0f}", f"{r.time_per_token_p50 * 1e3:.1f}",
        )  # fmt: skip
    console = Console()
    console.print(table)
    console.print(f"ready after {cold:.1f} s, after a second start {warm:.1f} s")
    console.print(f"read bandwidth {bandwidth / 1e9:.1f} GB/s bounds decode at {bound:.1f} tokens/s a stream")
    console.print(f"decode at 1 stream reaches {share:.0%} of that")


if __name__ == "__main__":
    main()
