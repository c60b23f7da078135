"""What `compare` has measured, for people: tables against targets, and plots."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Figure:
    """One number: which server, which load, how many streams (0: does not apply), what, in which round."""

    server: str
    load: str
    streams: int
    name: str
    value: float


TARGETS = (
    # ours, peer, load, streams, name, at least (or, below zero, at most)
    ("distaff-f32", "llama-f32", "chat", 1, "tokens_per_second", 1.0),
    ("distaff-f32", "llama-f32", "chat", 8, "tokens_per_second", 1.2),
    ("distaff-f32", "llama-f32", "chat", 32, "tokens_per_second", 1.5),
    ("distaff-f32", "transformers", "chat", 1, "tokens_per_second", 3.0),
    ("distaff-f32", "transformers", "chat", 8, "tokens_per_second", 3.0),
    ("distaff-f32", "transformers", "chat", 32, "tokens_per_second", 3.0),
    ("distaff-int8", "llama-q8", "chat", 1, "tokens_per_second", 1.0),
    ("distaff-int8", "llama-q8", "chat", 8, "tokens_per_second", 2.0),
    ("distaff-int8", "llama-q8", "chat", 32, "tokens_per_second", 1.6),
    ("distaff-int8", "llama-q8", "chat", 32, "ttft_p50", -0.6),
    ("distaff-int8", "transformers", "chat", 32, "ttft_p50", -0.3),
    ("distaff-int8", "llama-q8", "long", 1, "prefill", 1.5),
    ("distaff-int8", "transformers", "long", 1, "prefill", 2.0),
)


class Figures:
    """Figures by what they are of."""

    def __init__(self, figures: Iterable[Figure]) -> None:
        self._values = {(f.server, f.load, f.streams, f.name): f.value for f in figures}
        self.servers = list(dict.fromkeys(key[0] for key in self._values if key[0] != "machine"))

    def get(self, server: str, load: str, streams: int, name: str) -> float | None:
        """A figure; `prefill` is a prompt's tokens over the time to the first token. None: not measured."""
        if name == "prefill":
            tokens = self.get(server, load, streams, "prompt_tokens")
            first = self.get(server, load, streams, "ttft_p50")
            return tokens / first if tokens and first else None
        return self._values.get((server, load, streams, name))

    def streams(self, load: str) -> list[int]:
        """For which numbers of streams a load was measured."""
        return sorted({key[2] for key in self._values if key[1] == load})

    def names(self, load: str) -> list[str]:
        """What was measured of a load, in order."""
        return list(dict.fromkeys(key[3] for key in self._values if key[1] == load))


def show(figures: Sequence[Figure]) -> None:
    """Prints all tables."""
    console, found = Console(width=150), Figures(figures)
    for load in ("chat", "long", "edit", "open"):
        if found.streams(load):
            console.print(_load_table(found, load))
    for load in ("turns", "pace", "start", "memory"):
        if found.names(load):
            console.print(_plain_table(found, load))
    console.print(_target_table(found))
    console.print(_limits(found))


def _load_table(found: Figures, load: str) -> Table:
    table = Table(title=load)
    headings = (
        "server",
        "streams",
        "tokens/s",
        "prompt",
        "prefill tok/s",
        "TTFT p50/p95 ms",
        "ms/token p50/p95",
    )
    for heading in headings:
        table.add_column(heading, justify="right")
    for server in found.servers:
        for streams in found.streams(load):
            get = [
                found.get(server, load, streams, name)
                for name in (
                    "tokens_per_second", "prompt_tokens", "prefill", "ttft_p50", "ttft_p95",
                    "time_per_token_p50", "time_per_token_p95",
                )
            ]  # fmt: skip
            if get[0] is None:
                continue
            rate, prompt, prefill, *times = (value or 0.0 for value in get)
            first, late, pace, slow = (1e3 * each for each in times)
            table.add_row(
                server, str(streams or "open"), f"{rate:.1f}", f"{prompt:.0f}", f"{prefill:.0f}",
                f"{first:.0f} / {late:.0f}", f"{pace:.1f} / {slow:.1f}",
            )  # fmt: skip
    return table


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
    table = Table(title="targets")
    for heading in ("ours", "peer", "load", "what", "ratio", "target", ""):
        table.add_column(heading, justify="right")
    for ours, peer, load, streams, name, target in TARGETS:
        mine, theirs = (found.get(server, load, streams, name) for server in (ours, peer))
        if mine is None or not theirs:
            continue
        ratio = mine / theirs
        met = ratio >= target if target > 0 else ratio <= -target
        bound = f"at least {target}" if target > 0 else f"at most {-target}"
        load_of = f"{load}, {streams}"
        table.add_row(ours, peer, load_of, name, f"{ratio:.2f}", bound, "met" if met else "missed")
    return table


def _limits(found: Figures) -> str:
    """How far decoding is from reading the weights once a token, prompts from the rate of products."""

    def limit(name: str) -> float:
        return found.get("machine", "limits", 0, name) or 0.0

    lines = [
        f"this machine reads {limit('read_bytes_per_second') / 1e9:.1f} GB/s and does "
        f"{limit('f32_operations_per_second') / 1e9:.0f} f32 and "
        f"{limit('int8_operations_per_second') / 1e9:.0f} int8 GOP/s"
    ]
    for server, width, rate in (("distaff-f32", 4, "f32"), ("distaff-int8", 1, "int8")):
        pace = found.get(server, "chat", 1, "time_per_token_p50")
        prefill = found.get(server, "long", 1, "prefill")
        if pace:
            bound = width * limit("parameters_decode") / limit("read_bytes_per_second")
            lines.append(
                f"{server}: decoding at 1 stream reaches {bound / pace:.0%} of the bandwidth's bound"
            )
        if prefill:
            share = prefill * 2 * limit("parameters_prompt") / limit(f"{rate}_operations_per_second")
            lines.append(f"{server}: a long prompt reaches {share:.0%} of the rate of products")
    return "\n".join(lines)


def draw(figures: Sequence[Figure], folder: Path) -> None:
    """Plots of the chats: tokens per second and time to the first token over streams."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = Figures(figures)
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
