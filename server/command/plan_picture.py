"""A plot of a plan's sweep over numbers of streams; needs matplotlib (extra `plot`)."""

from pathlib import Path

from ...runtime.capacity.report import Plan
from .. import exit_codes
from ..exit_codes import Failed


def draw(plan: Plan, path: Path) -> None:
    """Plots tokens/s and the inter-token latency over streams; the file's suffix decides its format.

    Raises:
      Failed: matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise Failed(
            "--plot needs matplotlib, which is not installed; pip install 'distaff[plot]'",
            exit_codes.REFUSED_SETTING,
        ) from None
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    streams = [rate.streams for rate in plan.rates]
    speed = figure.subplots()
    speed.plot(streams, [rate.speed for rate in plan.rates], "o-", label="decoding alone")
    speed.plot(streams, [rate.sustained for rate in plan.rates], "s-", label="with prompts")
    speed.set(xlabel="streams", ylabel="tokens/s at best", xscale="log", ylim=(0, None))
    speed.set_xticks(streams, map(str, streams))
    wait = speed.twinx()
    wait.plot(
        streams, [rate.token * 1e3 for rate in plan.rates], "^:", color="gray", label="inter-token latency"
    )
    wait.set(ylabel="ms from token to token", ylim=(0, None))
    figure.legend(loc="outside lower center", ncols=3)
    speed.set_title(f"{plan.model} on {plan.topology}: {plan.prompt} + {plan.completion} tokens")
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise Failed(f"{path}: cannot be written ({error})", exit_codes.USAGE) from None
