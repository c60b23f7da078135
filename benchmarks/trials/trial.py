"""The common parts of the trials: the server, its metrics, a table of results.

A trial reports each figure with its bound. The one idea: `run` ends a program with exit code 1 if a bound is
missed.
"""

import argparse
import asyncio
import contextlib
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil
import uvloop

from ..server import Contender, Served, distaff, running
from .sse import Call, ask


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of a trial.

    Attributes:
      met: whether it is within its bound; None without a bound.
    """

    trial: str
    figure: str
    measured: str
    bound: str = ""
    met: bool | None = None

    def __str__(self) -> str:
        verdict = {None: "", True: "met", False: "missed"}[self.met]
        return f"| {self.trial} | {self.figure} | {self.measured} | {self.bound} | {verdict} |"


@dataclass(slots=True)
class Table:
    """The rows of one trial; `bound` and `note` add to them."""

    trial: str
    rows: list[Row] = field(default_factory=list)

    def note(self, figure: str, measured: str) -> None:
        """Adds a figure without a bound."""
        self.rows.append(Row(self.trial, figure, measured))

    def bound(self, figure: str, measured: str, bound: str, met: bool) -> None:
        """Adds a figure with a bound."""
        self.rows.append(Row(self.trial, figure, measured, bound, met))


def percentile(values: Sequence[float], part: float) -> float:
    """The value that a fraction `part` of the values does not exceed; NaN if there are none."""
    ordered = sorted(values)
    return ordered[round(part * (len(ordered) - 1))] if ordered else float("nan")


def spread(values: Sequence[float], unit: str = "s") -> str:
    """The median, the 99th percentile and the number of values."""
    factor = 1000 if unit == "ms" else 1
    p50, p99 = (factor * percentile(values, part) for part in (0.5, 0.99))
    return f"p50 {p50:.3g}, p99 {p99:.3g} {unit} of {len(values)}"


@dataclass(frozen=True, slots=True)
class Metrics:
    """One scrape of `/metrics`: the samples by name with labels."""

    samples: dict[str, float]

    def replicas(self, name: str) -> dict[int, float]:
        """An engine metric, by replica."""
        start = f'{name}{{replica="'
        found = {sample: value for sample, value in self.samples.items() if sample.startswith(start)}
        return {int(sample[len(start) :].partition('"')[0]): value for sample, value in found.items()}

    @property
    def generated(self) -> float:
        """Tokens that all engines have generated since they started."""
        return sum(self.replicas("distaff_engine_generated_tokens_total").values())


async def scrape(url: str, key: str | None = None) -> Metrics:
    """Requests `/metrics` once."""
    text = (await ask(url, Call("/metrics"), key)).body.decode()
    pairs = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
    return Metrics({name: float(value) for name, _, value in pairs})


def engines(server: psutil.Process) -> dict[int, psutil.Process]:
    """The current engine processes of `distaff serve`, by replica."""
    found = {}
    for child in server.children():
        with contextlib.suppress(psutil.Error):
            _, mark, rest = " ".join(child.cmdline()).partition("--replica ")
            if mark:
                found[int(rest.partition(" ")[0])] = child
    return found


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The options of all trials; unknown options are passed to `distaff serve`."""
    made = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    made.add_argument("--model", default="tiny", help="`tiny`, `bundled`, or as MODEL of `distaff serve`")
    made.add_argument("--replicas", type=int, default=1)
    made.add_argument("--slots", type=int, default=16, help="of each replica")
    return made


def contender(options: argparse.Namespace, rest: Sequence[str]) -> Contender:
    """The server that the options name."""
    if options.model == "tiny":
        from .tiny import tiny_model  # imports PyTorch, which takes seconds

        model = [str(tiny_model())]
    else:
        model = [] if options.model == "bundled" else [options.model]
    sizes = ["--replicas", str(options.replicas), "--slots", str(options.slots)]
    return distaff(*model, *sizes, *rest)


@contextlib.contextmanager
def serving(options: argparse.Namespace, contended: Contender, key: str | None = None) -> Iterator[Served]:
    """Starts a server, waits until all replicas are ready with all steps compiled, and runs it during the
    context."""
    with running(contended) as served:
        asyncio.run(_complete(served.url, options.replicas, key))
        yield served


async def _complete(url: str, replicas: int, key: str | None) -> None:
    async with asyncio.timeout(300):
        while not await _is_complete(url, replicas, key):
            await asyncio.sleep(0.2)  # until the next poll


async def _is_complete(url: str, replicas: int, key: str | None) -> bool:
    found = await scrape(url, key)
    done, all_steps = (found.replicas(f"distaff_engine_{name}") for name in ("buckets_ready", "buckets"))
    return sum(found.replicas("distaff_engine_ready").values()) == replicas and done == all_steps


def run(trial: Callable[[], Coroutine[Any, Any, Table]]) -> None:
    """Runs a trial on a new event loop, prints its rows, and ends the program."""
    table = uvloop.run(trial())
    print("| trial | figure | measured | bound | |\n|---|---|---|---|---|")
    for row in table.rows:
        print(row)
    sys.exit(any(row.met is False for row in table.rows))
