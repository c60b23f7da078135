"""`distaff bench`: measures, prints the table, writes the files, and decides how the command ends."""

import asyncio
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.console import Console

from .. import exit_codes
from ..bench.flags import BenchFlags
from ..exit_codes import Failed

if TYPE_CHECKING:
    from ..bench.session import Session

_INTERRUPTED = 130
_WIDTH = 110
"""Columns of the table where there is no terminal."""


def bench(flags: BenchFlags) -> int:
    """Measure any OpenAI-compatible server under load.

    The flags are those of `vllm bench serve` where the thing is the same, and so are the names in the JSON.
    The environment variable OPENAI_API_KEY holds the key for a server that needs one.
    """
    from ..bench.picture import check_picture
    from ..bench.results import make_folder
    from ..bench.session import measure_all

    flags.check_together()
    if flags.plot:
        check_picture(flags.plot)
    if flags.saves:
        make_folder(flags)
    with asyncio.Runner(loop_factory=_new_loop()) as runner:
        session = runner.run(measure_all(flags))
    if not session.levels:
        raise KeyboardInterrupt  # while warming up
    _show(flags, session)
    if any(level.figures["interrupted"] for level in session.levels):
        return _INTERRUPTED
    if not session.completed:
        raise Failed("no request succeeded", exit_codes.PORT_TAKEN)
    return exit_codes.OK


def _show(flags: BenchFlags, session: "Session") -> None:
    """Prints the table and what is to be known about it, and writes the files."""
    from ..bench.picture import draw
    from ..bench.report import notes, table
    from ..bench.results import save

    console = Console(
        width=None if sys.stdout.isatty() else _WIDTH, highlight=False, markup=False, soft_wrap=True
    )
    console.print(session.title)
    console.print(table(session), soft_wrap=False)
    for note in notes(session):
        console.print(f"note: {note}")
    if flags.saves:
        console.print(f"written: {save(flags, session)}")
    if flags.plot and session.completed:
        draw(session, flags.plot)


def _new_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where there is one: it costs a third less per chunk."""
    try:
        from uvloop import new_event_loop
    except ImportError:
        return None
    return new_event_loop
