"""The output of `distaff plan`: tables for people, or JSON for programs.

Computes nothing; the figures come from `runtime/capacity/`.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ...runtime.capacity.report import Memory, Plan, Program, Step
from .. import exit_codes


def show(plan: Plan, *, as_json: bool = False, plot: Path | None = None) -> int:
    """Prints a plan, plots its sweep, and returns the exit code: whether it fits.

    Raises:
      Failed: a plot is requested and matplotlib is not installed, or the file cannot be written.
    """
    if plot is not None and plan.fits:
        from .plan_picture import draw

        draw(plan, plot)
    if as_json:
        print(json.dumps(plan.to_json(), indent=1))
    else:
        console = Console(width=None if sys.stdout.isatty() else 110, highlight=False, soft_wrap=False)
        for part in _parts(plan):
            console.print(part)
    return exit_codes.OK if plan.fits else exit_codes.DOES_NOT_FIT


def _parts(plan: Plan) -> Iterator[Table | str]:
    quantized = f", {plan.quantize}" if plan.quantize else ""
    quantized += f", {plan.kv_cache_dtype} cache" if plan.kv_cache_dtype else ""
    yield f"{plan.model} on {plan.topology}, {plan.chips} devices, {plan.dtype}{quantized}; {plan.method}"
    yield _memory(plan)
    if not plan.fits:
        yield f"does not fit: {plan.short}"
        yield "would fit: " + (" or ".join(plan.remedies) or "no configuration that was tried")
        return
    yield (
        f"{plan.memory.pages} pages hold {plan.full} sequences of {plan.context} tokens, or {plan.typical} "
        f"of {plan.prompt} + {plan.completion}; slots: {plan.slots}"
    )
    yield _steps(plan)
    yield _sent(plan)
    yield _rates(plan)
    if plan.first_token is not None:
        yield f"first token of {plan.prompt} prompt tokens after {_ms(plan.first_token)}, on an idle engine"
    yield _estimates(plan)
    for note in plan.notes:
        yield f"note: {note}"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


def _memory(plan: Plan) -> Table:
    memory: Memory = plan.memory
    kind = "" if memory.measured else " (guess)"
    table = _table("Memory of each device", "", "GiB", "share")
    rows: Mapping[str, int] = {
        "weights": memory.weights,
        f"cache, {memory.pages} pages": memory.cache,
        "state": memory.state,
        f"temporaries{kind}": memory.temporaries,
        "code": memory.code,
        "in use": memory.used,
        "usable": memory.limit,
    }
    for name, size in rows.items():
        table.add_row(name, f"{size / (1 << 30):.2f}", f"{size / memory.limit:.0%}")
    return table


def _steps(plan: Plan) -> Table:
    table = _table(
        "Steps at the roofline, each device",
        "",
        "GB",
        "GFLOP",
        "memory",
        "compute",
        "links",
        "step",
        "bound by",
    )
    for step in plan.steps:
        table.add_row(*_step(step))
    return table


def _step(step: Step) -> Iterator[str]:
    yield step.name
    yield f"{sum(step.bytes.values()) / 1e9:.3f}"
    yield f"{sum(step.operations.values()) / 1e9:.0f}"
    yield from map(_ms, (step.memory, step.compute, step.links, step.total))
    yield step.bound


def _sent(plan: Plan) -> Table | str:
    if not any(program.collectives for program in plan.programs):
        return "nothing crosses between devices" if plan.chips == 1 else ""
    table = _table("What crosses between devices", "", "collective", "a step", "MB each", "MB a step")
    for program in plan.programs:
        for kind, count, size in program.collectives:
            table.add_row(program.step, kind, str(count), f"{size / 1e6:.2f}", f"{count * size / 1e6:.1f}")
    return table


def _rates(plan: Plan) -> Table:
    title = f"Tokens/s at best, {plan.prompt} prompt and {plan.completion} generated tokens"
    table = _table(title, "streams", "token to token", "decoding alone", "with prompts", "for each device")
    for rate in plan.rates:
        table.add_row(
            str(rate.streams),
            _ms(rate.token),
            f"{rate.speed:,.0f}",
            f"{rate.sustained:,.0f}",
            f"{rate.chip:,.1f}",
        )
    return table


def _estimates(plan: Plan) -> Table | str:
    """XLA's estimate of the steps, what it does not include, and what the program itself shows instead."""
    if not plan.programs:
        return ""
    columns = ["XLA: GB", "GFLOP", "does not see"]
    if any(program.traffic for program in plan.programs):
        columns += ["really moved", "by the kernel", "ideal", "ratio"]
    table = _table("XLA's own estimate, GB on each device", "", *columns)
    for program in plan.programs:
        table.add_row(*_estimate(program))
    return table


def _estimate(program: Program) -> Iterator[str]:
    unseen = [f"{count} x {name}" for name, count in program.kernels.items()]
    if program.loops:
        unseen.append(f"later iterations of {program.loops} loops")
    yield program.step
    yield _gb(program.accessed)
    yield "" if program.operations is None else f"{program.operations / 1e9:,.0f}"
    yield ", ".join(unseen) or "-"
    if program.traffic is None:
        return
    moved = sum(program.traffic.values())
    yield from map(_gb, (moved, program.kernel_bytes, program.ideal))
    whole = program.ideal and program.kernel_bytes and (moved + program.kernel_bytes) / program.ideal
    yield f"{whole:.2f}" if whole else ""


def _gb(size: float | None) -> str:
    return "" if size is None else f"{size / 1e9:.2f}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.2f} ms"
