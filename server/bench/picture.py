"""A session as a picture: throughput and latencies over concurrency, or the distributions of a single load.

Needs matplotlib (extra `plot`).
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .. import exit_codes
from ..exit_codes import Failed
from .flag_values import METRICS
from .session import Level, Session
from .summary import samples

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def check_picture(path: Path) -> None:
    """Checks before the loads that a picture can be made.

    Raises:
      Failed: matplotlib is not installed, has no such format, or the folder does not exist.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise Failed(
            "--plot needs matplotlib, which is not installed; pip install 'distaff[plot]'",
            exit_codes.REFUSED_SETTING,
        ) from None
    formats = Figure().canvas.get_supported_filetypes()
    if path.suffix.lstrip(".").lower() not in formats:
        raise Failed(f"--plot {path}: expected a file of {', '.join(sorted(formats))}", exit_codes.USAGE)
    if not path.absolute().parent.is_dir():
        raise Failed(f"--plot {path}: its folder does not exist", exit_codes.USAGE)


def draw(session: Session, path: Path) -> None:
    """Plots the loads that had an answer, at least one; the file's suffix decides its format.

    Raises:
      Failed: the file cannot be written.
    """
    from matplotlib.figure import Figure

    levels = [level for level in session.levels if level.figures["completed"]]
    figure = Figure(figsize=(11, 7 if len(levels) > 1 else 4.5), layout="constrained")
    figure.suptitle(session.title, fontsize="medium")
    (_sweep if len(levels) > 1 else _distributions)(figure, levels)
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise Failed(f"{path}: cannot be written ({error})", exit_codes.USAGE) from None


def _sweep(figure: "Figure", levels: Sequence[Level]) -> None:
    speed, *waits = figure.subplots(2, 2).flat
    speed.set(ylabel="tokens/s", title="Throughput")
    _lines(
        speed, levels, {"output_throughput": ("output", "C0o-"), "total_token_throughput": ("total", "C0s:")}
    )
    for axes, metric, colour in zip(waits, ("ttft", "tpot", "e2el"), ("C1", "C2", "C3"), strict=True):
        axes.set(ylabel="ms", title=METRICS[metric])
        ending = f"_{metric}_ms"
        names = [name.removesuffix(ending) for name in levels[0].figures if name.endswith(ending)]
        shown = [name for name in names if name not in ("mean", "std")]
        styles = itertools.cycle(("o-", "^:", "s--", "v-."))
        _lines(axes, levels, {name + ending: (name.capitalize(), colour + next(styles)) for name in shown})


def _lines(axes: "Axes", levels: Sequence[Level], names: dict[str, tuple[str, str]]) -> None:
    """A line over concurrency for each name that all levels have a figure of."""
    streams = [level.outcome.pace.concurrency or 0 for level in levels]
    for name, (label, style) in names.items():
        values = [value for level in levels if (value := level.figures.get(name)) is not None]
        if len(values) == len(levels):
            axes.plot(streams, values, style, label=label)
            axes.legend()
    axes.set(xlabel="max concurrency", xscale="log", ylim=(0, None))
    axes.set_xticks(streams, [str(count) for count in streams])
    axes.minorticks_off()
    axes.grid(alpha=0.3)


def _distributions(figure: "Figure", levels: Sequence[Level]) -> None:
    """How many of the values are at most so long, for each metric of the one load, and the limits."""
    (level,) = levels
    found, limits = samples(level.outcome), level.figures["goodput_limits_ms"]
    all_axes = figure.subplots(1, 4, sharey=True)
    all_axes[0].set_ylabel("share of values")
    for axes, metric in zip(all_axes, ("ttft", "tpot", "itl", "e2el"), strict=True):
        values = 1e3 * np.array(found[metric])
        axes.set(title=f"{METRICS[metric]} of {len(values):,}", xlabel="ms")
        axes.grid(alpha=0.3)
        if len(values):
            axes.ecdf(values)
        if metric in limits:
            axes.axvline(limits[metric], color="gray", linestyle=":")
        axes.set(xlim=(0, None), ylim=(0, 1))
