"""The results of `compare`: tables with targets, and plots."""

import statistics
from pathlib import Path

from rich.console import Console
from rich.table import Table

from .figures import Figures, bandwidth_ceiling

TARGETS = (
    # ours, peer, load, streams, name, at least (or, if negative, at most)
    ("distaff-f32", "llama-f32", "chat", 1, "tokens_per_second", 1.15),
    ("distaff-f32", "llama-f32", "chat", 8, "tokens_per_second", 1.5),
    ("distaff-f32", "llama-f32", "chat", 32, "tokens_per_second", 1.8),
    ("distaff-f32", "transformers", "chat", 1, "tokens_per_second", 3.0),
    ("distaff-f32", "transformers", "chat", 8, "tokens_per_second", 5.0),
    ("distaff-f32", "transformers", "chat", 32, "tokens_per_second", 8.0),
    ("distaff-f32", "distaff-undrafted", "edit", 1, "tokens_per_second", 1.5),
    ("distaff-f32", "distaff-undrafted", "chat", 1, "tokens_per_second", 0.97),
    ("distaff-f32", "distaff-undrafted", "chat", 8, "tokens_per_second", 0.97),
    ("distaff-f32", "distaff-undrafted", "chat", 32, "tokens_per_second", 0.97),
    ("distaff-deterministic", "distaff-f32", "chat", 1, "tokens_per_second", 0.95),
    ("distaff-deterministic", "distaff-f32", "chat", 8, "tokens_per_second", 0.95),
    ("distaff-deterministic", "distaff-f32", "chat", 32, "tokens_per_second", 0.95),
    ("distaff-int8", "llama-q8", "chat", 1, "tokens_per_second", 1.2),
    ("distaff-int8", "llama-q8", "chat", 8, "tokens_per_second", 2.0),
    ("distaff-int8", "llama-q8", "chat", 32, "tokens_per_second", 2.0),
    ("distaff-int8", "llama-q8", "chat", 32, "ttft_p50", -0.25),
    ("distaff-int8", "llama-q8", "long", 1, "prefill", 2.0),
    ("distaff-int8", "llama-q8", "long", 4, "ttft_p50", -1.0),
    ("distaff-q4", "llama-q4", "chat", 1, "tokens_per_second", 1.2),
    ("distaff-q4", "llama-q4", "chat", 8, "tokens_per_second", 2.5),
    ("distaff-q4", "llama-q4", "chat", 32, "tokens_per_second", 3.0),
)


def show(found: Figures) -> None:
    """Prints all tables."""
    console = Console(width=150)
    for load in ("chat", "long", "edit", "open"):
        if found.streams(load):
            console.print(_load_table(found, load))
    for load in ("turns", "pace", "start", "memory"):
        if found.names(load):
            console.print(_plain_table(found, load))
    console.print(_target_table(found))
    console.print(_limits(found))


def _load_table(found: Figures, load: str) -> Table:
    table = Table(title=f"{load}: medians over the rounds, of tokens/s also the lowest and the highest")
    for heading in (
        "server", "streams", "tokens/s", "prompt", "prefill tok/s", "TTFT p50/p95 ms", "ms/token p50/p95",
    ):  # fmt: skip
        table.add_column(heading, justify="right")
    for server in found.servers:
        for streams in found.streams(load):
            if found.rounds(server, load, streams, "tokens_per_second"):
                table.add_row(server, str(streams or "open"), *_load_row(found, server, load, streams))
    return table


def _load_row(found: Figures, server: str, load: str, streams: int) -> tuple[str, ...]:
    def get(name: str) -> float:
        return found.get(server, load, streams, name) or 0.0

    rates = sorted(found.rounds(server, load, streams, "tokens_per_second").values())
    return (
        f"{statistics.median(rates):.1f} ({rates[0]:.1f}-{rates[-1]:.1f})",
        f"{get('prompt_tokens'):.0f}",
        f"{get('prefill'):.0f}",
        f"{1e3 * get('ttft_p50'):.0f} / {1e3 * get('ttft_p95'):.0f}",
        f"{1e3 * get('time_per_token_p50'):.1f} / {1e3 * get('time_per_token_p95'):.1f}",
    )


def _plain_table(found: Figures, load: str) -> Table:
    table = Table(title=load)
    names = found.names(load)
    for heading in ("server", *names):
        table.add_column(heading, justify="right")
    for server in found.servers:
        values = [found.get(server, load, streams, name) for name in names for streams in found.streams(load)]
        table.add_row(server, *(f"{value:.4g}" if value is not None else "-" for value in values))
    return table


def _target_table(found: Figures) -> Table:
    table = Table(title="targets: the median of the rounds' ratios, the lowest and the highest")
    for heading in ("ours", "peer", "load", "what", "ratio", "target", ""):
        table.add_column(heading, justify="right")
    for ours, peer, load, streams, name, target in TARGETS:
        ratios = found.ratios(ours, peer, load, streams, name)
        if not ratios:
            continue
        ratio = statistics.median(ratios)
        met = ratio >= target if target > 0 else ratio <= -target
        bound = f"at least {target}" if target > 0 else f"at most {-target}"
        shown = f"{ratio:.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"
        table.add_row(ours, peer, f"{load}, {streams}", name, shown, bound, "met" if met else "missed")
    return table


def _limits(found: Figures) -> str:
    """How close decoding is to reading the weights once per token, and prompts to the rate of products."""
    read, who = bandwidth_ceiling(found)
    lines = [
        f"this machine reads {read / 1e9:.1f} GB/s (shown by {who}) and does "
        f"{found.ceiling('f32_operations_per_second') / 1e9:.0f} f32 and "
        f"{found.ceiling('int8_operations_per_second') / 1e9:.0f} int8 GOP/s"
    ]
    for server, width, rate in (("distaff-f32", 4, "f32"), ("distaff-int8", 1, "int8")):
        pace = found.get(server, "chat", 1, "time_per_token_p50")
        prefill = found.get(server, "long", 1, "prefill")
        if pace and read:
            share = width * found.ceiling("parameters_decode") / read / pace
            lines.append(f"{server}: decoding at 1 stream reaches {share:.0%} of the bandwidth's bound")
        if prefill and (products := found.ceiling(f"{rate}_operations_per_second")):
            share = prefill * 2 * found.ceiling("parameters_prompt") / products
            lines.append(f"{server}: a long prompt reaches {share:.0%} of the rate of products")
    return "\n".join(lines)


def draw(found: Figures, folder: Path) -> None:
    """Plots the chats: tokens per second and time to the first token over streams."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    streams = found.streams("chat")
    if not streams:
        return
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2))
    wanted = (("tokens_per_second", "output tokens/s", 1), ("ttft_p50", "time to first token, p50, ms", 1e3))
    for axis, (name, label, factor) in zip(axes, wanted, strict=True):
        for server in found.servers:
            values = [found.get(server, "chat", count, name) for count in streams]
            if None not in values:
                axis.plot(streams, [factor * (v or 0) for v in values], marker="o", label=server)
        axis.set_xscale("log", base=2)
        axis.set_xticks(streams, [str(count) for count in streams])
        axis.set_xlabel("streams")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(folder / "chat.png", dpi=120)
    pyplot.close(figure)
