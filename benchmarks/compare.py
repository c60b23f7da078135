"""Distaff beside llama.cpp and transformers: the same weights, the same loads, in turns, on one machine.

`make bench`, or `python -m benchmarks.compare [--servers …] [--loads …] [--streams …] [--rounds N]`. In every
round each server is started, loaded and ended, one after the other, so that what a shared machine can do at
the moment falls on all alike; of the rounds the median is quoted. Prints tables, writes plots beside the JSON
into `--out`, and the JSON on the last line.
"""

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import httpx

from distaff.checkpoints import open_checkpoint, resolve
from distaff.model.parameters import parameter_shapes

from . import load
from .machine import matmul_rate, read_bandwidth
from .report import Figure, draw, show
from .server import CONTENDERS, Served, await_all_steps, running

LOADS = ("chat", "long", "edit", "turns", "open", "pace")
MAX_TOKENS = 64
OPEN_SHARE = 0.7
"""Of the capacity that the chats of the same round have shown, how much the open load asks for."""


def main() -> None:
    arguments = _arguments()
    figures: list[Figure] = []
    for number in range(arguments.rounds):
        for server in arguments.servers:
            print(f"round {number + 1}: {server}", flush=True)
            figures += measure(server, arguments.loads, arguments.streams)
        figures += machine()
    medians = summarise(figures)
    show(medians)
    arguments.out.mkdir(parents=True, exist_ok=True)
    draw(medians, arguments.out)
    lines = [asdict(each) for each in medians]
    (arguments.out / "figures.json").write_text(json.dumps([asdict(each) for each in figures]))
    print(json.dumps({"rounds": arguments.rounds, "medians": lines}))


def _arguments() -> argparse.Namespace:
    def words(text: str) -> list[str]:
        return text.split(",")

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--servers", type=words, default=list(CONTENDERS), help=",".join(CONTENDERS))
    parser.add_argument("--loads", type=words, default=list(LOADS), help=",".join(LOADS))
    parser.add_argument("--streams", type=lambda text: list(map(int, words(text))), default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    return parser.parse_args()


def measure(server: str, loads: list[str], streams: list[int]) -> Iterable[Figure]:
    """Starts a server, puts the loads on it, ends it."""
    with running(CONTENDERS[server]()) as served:
        yield Figure(server, "start", 0, "seconds", served.seconds_to_ready)
        await_all_steps(served)
        load.closed(served, 2, 1, 8)
        capacity = 0.0
        for each in loads:
            try:
                found = list(_LOADS[each](served, streams, capacity))
            except (httpx.HTTPError, RuntimeError) as error:
                print(f"{server}: {each} failed: {error!r}", flush=True)
                continue
            for figure in found:
                if (each, figure.name) == ("chat", "tokens_per_second"):
                    capacity = max(capacity, figure.value)
                yield Figure(server, each, figure.streams, figure.name, figure.value)
        yield Figure(server, "memory", 0, "bytes", served.peak_bytes)


def _of(result: load.LoadResult) -> Iterable[Figure]:
    for name, value in asdict(result).items():
        if name not in ("streams", "requests"):
            yield Figure("", "", result.streams, name, value)


def _chat(served: Served, streams: list[int], capacity: float) -> Iterable[Figure]:
    for count in streams:
        yield from _of(load.closed(served, count, 4 if count == 1 else 2, MAX_TOKENS))


def _long(served: Served, streams: list[int], capacity: float) -> Iterable[Figure]:
    yield from _of(load.closed(served, 1, 3, MAX_TOKENS, load.long_question))
    yield from _of(load.closed(served, 4, 2, MAX_TOKENS, load.long_question))


def _edit(served: Served, streams: list[int], capacity: float) -> Iterable[Figure]:
    yield from _of(load.closed(served, 1, 3, 3 * MAX_TOKENS, load.edit_request))


def _turns(served: Served, streams: list[int], capacity: float) -> Iterable[Figure]:
    for turn, seconds in enumerate(load.conversation(served, 8, 32), start=1):
        yield Figure("", "", 0, f"ttft_turn_{turn}", seconds)


def _open(served: Served, streams: list[int], capacity: float) -> Iterable[Figure]:
    rate = OPEN_SHARE * (capacity or 64.0) / MAX_TOKENS
    yield from _of(load.arrivals(served, rate, 15.0, MAX_TOKENS))


def _pace(served: Served, streams: list[int], capacity: float) -> Iterable[Figure]:
    intruder = " ".join(load.long_question(n) for n in range(2))
    alone, beside = load.gaps_beside(served, 4, intruder, 200)
    yield Figure("", "", 4, "gap_p99_alone", alone)
    yield Figure("", "", 4, "gap_p99_beside", beside)


_LOADS = {"chat": _chat, "long": _long, "edit": _edit, "turns": _turns, "open": _open, "pace": _pace}


def machine() -> Iterable[Figure]:
    """The ceilings, measured between the servers."""
    yield Figure("machine", "limits", 0, "read_bytes_per_second", read_bandwidth())
    yield Figure("machine", "limits", 0, "f32_operations_per_second", matmul_rate("float32"))
    yield Figure("machine", "limits", 0, "int8_operations_per_second", matmul_rate("int8"))
    for name, count in parameters_read().items():
        yield Figure("machine", "limits", 0, name, count)


def parameters_read() -> dict[str, float]:
    """Parameters that a decode step reads, and that each token of a prompt is multiplied with."""
    config = open_checkpoint(resolve(None)).config
    shapes = parameter_shapes(config, int8=True)
    sizes = {name: shape[0] * shape[1] for name, shape in shapes.items() if len(shape) == 2}
    layers = sum(size for name, size in sizes.items() if name.startswith("layers."))
    return {"parameters_decode": layers + sizes["head"], "parameters_prompt": layers}


def summarise(figures: list[Figure]) -> list[Figure]:
    """Of every figure the median over the rounds."""
    found: defaultdict[tuple[str, str, int, str], list[float]] = defaultdict(list)
    for each in figures:
        found[each.server, each.load, each.streams, each.name].append(each.value)
    return [Figure(*key, statistics.median(values)) for key, values in found.items()]


if __name__ == "__main__":
    main()
