"""A request that crashes its engine, among others: `python -m benchmarks.trials.planted --replicas 2`.

Sixteen mixed calls run with one call that crashes its engine, through a fault in the benchmark's own server
(`fatal.py`). That call must end with an error after three crashes at most; the others must have the same
results as without it.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..server import Contender
from . import fatal
from .faults import Differences, add_lengths, comparable
from .mixed import calls, sized, undisturbed
from .replies import content_of, longest_pause
from .sse import Answer, Call, ask
from .trial import Table, parser, run, serving

MOST_CRASHES = 3
_OTHERS = 16
_RUN_IN_SECONDS = 2.0
"""Until the others are running."""
_LONGEST_SECONDS = 300.0

KILLER = Call(
    "/v1/completions",
    {"model": "tgi", "prompt": list(fatal.PROMPT), "max_tokens": 500, "stream": True, "ignore_eos": True},
)


async def trial(url: str, options: argparse.Namespace, deaths: Path) -> Table:
    """The others undisturbed, then with the killer among them."""
    asked = await sized(url, calls()[:: 32 // _OTHERS], options.longest)
    expected = await undisturbed(url, asked)
    found = Differences()
    async with asyncio.timeout(_LONGEST_SECONDS):
        others = [asyncio.create_task(ask(url, each.call)) for each in expected]
        await asyncio.sleep(_RUN_IN_SECONDS)  # until the others run
        begun = time.perf_counter()
        killer = await ask(url, KILLER)
        ended = time.perf_counter() - begun
        answers = await asyncio.gather(*others)
    for one, answer in zip(expected, answers, strict=True):
        found.add(one, content_of(one.call.path, answer))
    table = Table(f"planted fault, {options.model}, {options.replicas} replicas")
    _rows(table, found, answers, deaths)
    error = content_of(KILLER.path, killer).error
    table.bound("the killer ends with an error", f"{error} after {ended:.1f} s", "yes", error is not None)
    return table


def _rows(table: Table, found: Differences, answers: Sequence[Answer], deaths: Path) -> None:
    count = len(deaths.read_text().splitlines())
    table.bound("crashes", str(count), f"1 to {MOST_CRASHES}", 1 <= count <= MOST_CRASHES)
    for figure, wrong in (
        ("others that were refused", found.refused),
        ("others that ended with an error", len(found.ended)),
        ("others with different texts", len(found.texts)),
        ("others with different usage", found.usage),
    ):
        table.bound(figure, f"{wrong} of {found.answers}", "none", wrong == 0)
    table.note("longest pause of the others", f"{max(map(longest_pause, answers)):.1f} s")
    for line in [*found.ended, *found.texts]:
        print(line, file=sys.stderr)


def _with_fault(contended: Contender, deaths: Path) -> Contender:
    """The same command line, run with the module that has the fault."""
    return replace(
        contended,
        command=lambda port: [sys.executable, "-m", "benchmarks.trials.fatal", *contended.command(port)[1:]],
        environment=lambda: {fatal.DEATHS: str(deaths)},
    )


def main() -> None:
    """Measures and prints."""
    made = parser(__doc__)
    made.set_defaults(slots=32)
    add_lengths(made)
    options, rest = made.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        deaths = Path(folder) / "deaths"
        deaths.touch()
        contended = _with_fault(comparable(options, rest), deaths)
        with serving(options, contended) as served:
            run(lambda: trial(served.url, options, deaths))


if __name__ == "__main__":
    main()
