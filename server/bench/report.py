"""A session's table for people, and what they must know to believe it."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from rich.table import Table

from .flag_values import METRICS
from .load import Pace
from .session import Session

_MOST_CPU_SHARE = 0.7
_MOST_LAG_MS = 10.0
_ROWS = (
    ("Successful requests", "completed", "{:,}"),
    ("Failed requests", "failed", "{:,}"),
    ("Benchmark duration (s)", "duration", "{:,.2f}"),
    ("Total input tokens", "total_input_tokens", "{:,}"),
    ("Total generated tokens", "total_output_tokens", "{:,}"),
    ("Request throughput (req/s)", "request_throughput", "{:,.2f}"),
    ("Request goodput (req/s)", "request_goodput", "{:,.2f}"),
    ("Output token throughput (tok/s)", "output_throughput", "{:,.1f}"),
    ("Total token throughput (tok/s)", "total_token_throughput", "{:,.1f}"),
    ("Peak concurrent requests", "max_concurrent_requests", "{:,}"),
)
_CLIENT_ROWS = (
    ("Client CPU (share of a core)", "client_cpu_share", "{:.1%}"),
    ("Client event loop lag, P99 (ms)", "client_lag_p99_ms", "{:.2f}"),
)
Figures = dict[str, Any]


def table(session: Session) -> Table:
    """One row for each figure, one column for each load."""
    made = Table(title="Serving benchmark result", title_style="bold")
    paces = [level.outcome.pace for level in session.levels]
    made.add_column("max concurrency" if paces[0].is_closed else "load")
    for pace in paces:
        made.add_column(_heading(pace), justify="right")
    found = [level.figures for level in session.levels]
    _add(made, _ROWS, found)
    for metric, heading in METRICS.items():
        _add(made, _statistics(metric, heading, found), found)
    _add(made, _CLIENT_ROWS, found)
    return made


def notes(session: Session) -> Iterator[str]:
    """What went wrong or limits the meaning of the figures, of each load."""
    for level in session.levels:
        limit = f"at most {level.outcome.pace.concurrency} at a time: " if len(session.levels) > 1 else ""
        yield from (limit + note for note in _notes(level.figures))


def _notes(figures: Figures) -> Iterator[str]:
    if figures["interrupted"]:
        yield f"interrupted: {figures['unfinished']:,} requests had not ended and do not count"
    if failures := figures["failures"]:
        kinds = ", ".join(f"{count:,} x {kind}" for kind, count in failures.items())
        yield f"{figures['failed']:,} failed: {kinds}; the first: {figures['first_error']}"
    if figures["completed"]:
        yield from _doubts(figures)
    if figures["client_cpu_share"] > _MOST_CPU_SHARE:
        yield f"this client used {figures['client_cpu_share']:.0%} of a core: it may be the bottleneck"
    if (figures["client_lag_p99_ms"] or 0) > _MOST_LAG_MS:
        yield (
            f"this client's event loop was up to {figures['client_lag_max_ms']:.0f} ms late (P99 "
            f"{figures['client_lag_p99_ms']:.0f} ms): latencies may be too long by as much"
        )


def _doubts(figures: Figures) -> Iterator[str]:
    if figures["output_tokens_counted_by"] != "usage":
        yield "the server sent no usage: generated tokens are counted as chunks, which may have several"
    if not figures["total_input_tokens"]:
        yield "the server sent no usage: the lengths of the prompts are unknown"
    elif cached := figures["total_cached_tokens"]:
        share = cached / figures["total_input_tokens"]
        yield (
            f"{share:.0%} of the input tokens came from the server's prefix cache: chat templates, prefixes, "
            "or prompts that were sent before, as with the same --seed"
        )
    short = figures["total_wanted_tokens"] - figures["total_output_tokens"]
    if figures["ignore_eos"] and short:
        yield f"{short:,} fewer tokens were generated than requested, although ignore_eos was sent"


def _heading(pace: Pace) -> str:
    """`4` for a closed load, `2 req/s` or `2 req/s, at most 4` for an open one, or `all at once`."""
    if pace.is_closed:
        return str(pace.concurrency)
    if math.isinf(pace.rate):
        return "all at once"
    return f"{pace.rate:g} req/s" + (f", at most {pace.concurrency}" if pace.concurrency else "")


def _statistics(metric: str, heading: str, found: Sequence[Figures]) -> list[tuple[str, str, str]]:
    """The rows of a metric, for the percentiles that were computed; none if it was not."""
    ending = f"_{metric}_ms"
    names = [name.removesuffix(ending) for name in found[0] if name.endswith(ending)]
    return [
        (f"{name.capitalize()} {heading} (ms)", name + ending, "{:,.2f}") for name in names if name != "std"
    ]


def _add(made: Table, rows: Sequence[tuple[str, str, str]], found: Sequence[Figures]) -> None:
    """Adds the rows that have a value, as a section."""
    for label, name, form in rows:
        values = [figures.get(name) for figures in found]
        if any(value is not None for value in values):
            made.add_row(label, *("-" if value is None else form.format(value) for value in values))
    made.add_section()
