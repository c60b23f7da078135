"""Joins the batches to the server: how a line is answered here, and how many may be in progress."""

from pathlib import Path

from ..batches.lines import Line
from ..batches.results import Result, answered
from ..batches.runner import BatchRunner, NotNow
from ..batches.service import Batches
from ..batches.store import BatchStore
from .context import App, AppContext
from .in_process import answer_in_process

_RETRIED = frozenset({429, 503, 529})
_AHEAD = 4
"""One line for each so many slots is prepared while all slots are in use, so that none waits for its text."""


def open_batches(app: App, folder: Path) -> Batches:
    """The files and batches in a folder. Raises StoreRefused."""
    context, limits = app.ctx, app.ctx.settings.batch_limits

    async def answer(owner: str, line: Line) -> Result:
        found = await answer_in_process(app, line.url, line.body, owner)
        if found.status in _RETRIED:
            raise NotNow(found.retry_after or 1.0)
        return answered(line, found.status, found.request_id, found.body)

    store = BatchStore(folder)
    runner = BatchRunner(store, answer, lambda: _room(context), limits.most_lines, context.metrics.count_line)
    return Batches(store, runner, limits)


def _room(context: AppContext) -> int:
    """The lines that may be in progress: none while a request of a client waits, or none can be answered."""
    engine, info = context.engine, context.engine.info
    idle = engine.takes and not context.draining and context.served.text is not None and not engine.queued[0]
    return info.slots + max(info.slots // _AHEAD, 1) if info is not None and idle else 0
