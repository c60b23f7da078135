"""Distaff beside llama.cpp and transformers: the same weights, the same loads, in turns, on one machine.

`make bench`, or `python -m benchmarks.compare [--servers …] [--loads …] [--streams …] [--rounds N]`. In every
round each server is started, loaded and ended, one after another, so that changes of a shared machine's speed
affect all of them. Every figure is written to `figures.jsonl` in `--out` immediately; the tables are made
from that file, so `--rounds 0` shows its contents again. Plots are written beside it; the last line is JSON.
"""

import argparse
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from distaff.checkpoints import open_checkpoint, resolve
from distaff.model.parameters import parameter_shapes

from . import load
from .figures import MACHINE, Figure, Figures
from .machine import matmul_rate, read_bandwidth
from .report import draw, show
from .server import CONTENDERS, Served, await_all_steps, running

LOADS = ("chat", "long", "edit", "turns", "open", "pace")
MAX_TOKENS = 64
INTRUDER_TOKENS = 4000
OPEN_SHARE = 0.7
"""The open load, as a fraction of the capacity that the chats of the same round have shown."""


def main() -> None:
    arguments = _arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "figures.jsonl"
    if arguments.rounds:
        with path.open("w") as file:
            for figure in _all(arguments):
                print(json.dumps(asdict(figure)), file=file, flush=True)
    figures = [Figure(**json.loads(line)) for line in path.read_text().splitlines()]
    found = Figures(figures)
    show(found)
    draw(found, arguments.out)
    print(json.dumps([asdict(each) for each in figures]))


def _all(arguments: argparse.Namespace) -> Iterator[Figure]:
    for number in range(1, arguments.rounds + 1):
        for server in arguments.servers:
            print(f"round {number}: {server}", flush=True)
            try:
                for load_name, streams, name, value in measure(server, arguments.loads, arguments.streams):
                    yield Figure(number, server, load_name, streams, name, value)
            except RuntimeError as error:
                print(f"round {number}: {server} has no more figures: {error}", flush=True)
        for name, value in limits():
            yield Figure(number, MACHINE, "limits", 0, name, value)


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


Found = tuple[int, str, float]
"""Number of streams, name, value."""


def measure(server: str, loads: list[str], streams: list[int]) -> Iterator[tuple[str, int, str, float]]:
    """Starts a server, applies the loads, ends it; yields load, streams, name and value of each figure."""
    with running(CONTENDERS[server]()) as served:
        yield "start", 0, "seconds", served.seconds_to_ready
        await_all_steps(served)
        load.closed(served, 2, 1, 8)
        capacity = 0.0
        for each in loads:
            try:
                found = list(_LOADS[each](served, streams, capacity))
            except RuntimeError as error:
                print(f"{server}: {each} failed: {error!r}", flush=True)
                continue
            for count, name, value in found:
                if (each, name) == ("chat", "tokens_per_second"):
                    capacity = max(capacity, value)
                yield each, count, name, value
        yield "memory", 0, "bytes", served.peak_bytes


def _of(result: load.LoadResult) -> Iterable[Found]:
    for name, value in asdict(result).items():
        if name not in ("streams", "requests"):
            yield result.streams, name, value


def _chat(served: Served, streams: list[int], capacity: float) -> Iterable[Found]:
    for count in streams:
        yield from _of(load.closed(served, count, 4 if count == 1 else 2, MAX_TOKENS))


def _long(served: Served, streams: list[int], capacity: float) -> Iterable[Found]:
    yield from _of(load.closed(served, 1, 3, MAX_TOKENS, load.long_chat))
    yield from _of(load.closed(served, 4, 2, MAX_TOKENS, load.long_chat))


def _edit(served: Served, streams: list[int], capacity: float) -> Iterable[Found]:
    yield from _of(load.closed(served, 1, 3, 3 * MAX_TOKENS, load.edit))


def _turns(served: Served, streams: list[int], capacity: float) -> Iterable[Found]:
    for turn, seconds in enumerate(load.multi_turn(served, 8, 32), start=1):
        yield 0, f"ttft_turn_{turn}", seconds


def _open(served: Served, streams: list[int], capacity: float) -> Iterable[Found]:
    if not capacity:
        raise RuntimeError("the capacity is unknown: measure `chat` as well")
    yield from _of(load.arrivals(served, OPEN_SHARE * capacity / MAX_TOKENS, 15.0, MAX_TOKENS))


def _pace(served: Served, streams: list[int], capacity: float) -> Iterable[Found]:
    alone, beside = load.gaps_beside(served, 4, load.long_question(0, INTRUDER_TOKENS), 400)
    yield 4, "gap_p99_alone", alone
    yield 4, "gap_p99_beside", beside


_LOADS = {"chat": _chat, "long": _long, "edit": _edit, "turns": _turns, "open": _open, "pace": _pace}


def limits() -> Iterable[tuple[str, float]]:
    """The machine's limits, measured between the servers."""
    yield "read_bytes_per_second", read_bandwidth()
    yield "f32_operations_per_second", matmul_rate("float32")
    yield "int8_operations_per_second", matmul_rate("int8")
    yield from parameters_read().items()


def parameters_read() -> dict[str, float]:
    """The number of parameters that a decode step reads, and that each prompt token is multiplied with."""
    config = open_checkpoint(resolve(None)).config
    shapes = parameter_shapes(config, "int8")
    sizes = {name: shape[0] * shape[1] for name, shape in shapes.items() if len(shape) == 2}
    layers = sum(size for name, size in sizes.items() if name.startswith("layers."))
    return {"parameters_decode": layers + sizes["head"], "parameters_prompt": layers}


if __name__ == "__main__":
    main()
