"""`BatchRunner`: takes every batch from its validation to its end, and goes on after a restart.

It hands out lines only while the server has nothing better to do, and never more than the engines can hold;
what happens to a line is up to the function that answers it. Batches of one owner run one after the other,
those of different owners beside each other. All state is in the `BatchStore`: results are appended as they
come, so a server that was killed asks again only for lines that had no result.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

from .checking import check_input
from .finishing import fill_up, write_files
from .lines import Line, read_lines
from .records import LineError, Status, StoredBatch, now
from .results import Result, ResultsFile, failed
from .store import BatchStore

log = logging.getLogger(__name__)

POLL_SECONDS = 0.05
"""The interval of checks whether the server is idle."""
LAST_WORDS_SECONDS = 2.0
"""How long a server that stops waits for answers that have ended to be recorded."""
_RETRY_SECONDS = 5.0
"""The pause after a result could not be written."""


class NotNow(Exception):
    """A line was not answered for a reason that will pass; `seconds`: when to try again."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"try again in {seconds} s")
        self.seconds = seconds


Answer = Callable[[str, Line], Awaitable[Result]]
"""Answers a line of an owner. Raises NotNow."""


class BatchRunner:
    """The batches of one store. Use it on one event loop."""

    def __init__(
        self,
        store: BatchStore,
        answer: Answer,
        room: Callable[[], int],
        most_lines: int,
        counted: Callable[[bool], None] = lambda succeeded: None,
    ) -> None:
        """Starts nothing yet.

        Args:
          room: the lines that may be in progress now; 0 while the server has other work.
          most_lines: of one batch. counted: called with the success of each line that is answered.
        """
        self._store = store
        self._answer, self._room, self._counted = answer, room, counted
        self._most_lines = most_lines
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._cancelled: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._asking: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._saving = asyncio.Lock()

    def start(self) -> None:
        """Continues all batches that have not ended."""
        for batch in list(self._store.batches.values()):
            if not batch.ended:
                self._begin(batch)

    async def create(self, batch: StoredBatch) -> None:
        """Stores a new batch and runs it."""
        await self._save(batch)
        self._begin(batch)

    def _begin(self, batch: StoredBatch) -> None:
        task = asyncio.create_task(self._run(batch), name=batch.id)
        self._tasks[batch.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(batch.id, None))
        task.add_done_callback(lambda _: self._cancelled.pop(batch.id, None))

    async def cancel(self, batch: StoredBatch) -> None:
        """Ends a batch early; its requests in progress are aborted."""
        batch.become("cancelling")
        self._cancelled[batch.id].set()
        await self._save(batch)

    async def stop(self) -> None:
        """Waits a moment for answers that have ended, and stops. The store keeps everything for `start`."""
        if self._asking:
            await asyncio.wait(self._asking, timeout=LAST_WORDS_SECONDS)
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, batch: StoredBatch) -> None:
        """One batch, from whatever status it has to its end. A full disk delays it, a defect ends it."""
        while not batch.ended:
            try:
                if batch.status == "validating":
                    await self._validate(batch)
                else:
                    await self._work(batch)
            except OSError as error:
                log.error("%s is tried again: %s", batch.id, error)
                await asyncio.sleep(_RETRY_SECONDS)
            except Exception as error:
                log.exception(
                    "%s failed; its results stay in %s", batch.id, self._store.results_path(batch.id)
                )
                message = f"The batch failed on the server: {type(error).__name__}."
                batch.errors.append(LineError(code="internal_error", message=message))
                batch.become("failed")
                await self._save(batch)

    async def _validate(self, batch: StoredBatch) -> None:
        path = self._store.content_path(self._store.files[batch.input_file_id])
        batch.total, batch.errors = await asyncio.to_thread(
            check_input, path, batch.endpoint, self._most_lines
        )
        if batch.status == "validating":  # it may have been cancelled meanwhile
            batch.become("failed" if batch.errors else "in_progress")
        await self._save(batch)

    async def _work(self, batch: StoredBatch) -> None:
        """Answers the lines and writes the files."""
        source = self._store.content_path(self._store.files[batch.input_file_id])
        results = await _opened(self._store.results_path(batch.id))
        batch.completed = sum(results.done.values())
        batch.failed = len(results.done) - batch.completed
        with closing(results):
            status = await self._until_ended(batch, results)
            if status != "cancelled":
                batch.become("finalizing")
            if status == "expired":
                batch.times["expired_at"] = now()
            await self._save(batch)
            if status != "completed":
                await asyncio.to_thread(fill_up, source, results, batch, status)
        await asyncio.to_thread(write_files, self._store, batch)
        batch.become(status)
        await self._save(batch)
        await asyncio.to_thread(self._store.remove_results, batch)

    async def _until_ended(self, batch: StoredBatch, results: ResultsFile) -> Status:
        """Answers lines until all are, or the batch is cancelled or expires; how it ends."""
        cancelled = self._cancelled[batch.id]
        if batch.status == "cancelling":
            cancelled.set()
        answering = asyncio.create_task(self._answer_lines(batch, results))
        waiting = asyncio.create_task(cancelled.wait())
        try:
            seconds = max(batch.expires_at - now(), 0)
            await asyncio.wait({answering, waiting}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                answering.result()
        finally:
            waiting.cancel()
            answering.cancel()
            with suppress(asyncio.CancelledError):
                await answering
        if cancelled.is_set():
            return "cancelled"
        complete = len(results.done) >= batch.total and "expired_at" not in batch.times
        return "completed" if complete else "expired"

    async def _answer_lines(self, batch: StoredBatch, results: ResultsFile) -> None:
        """Hands out every line without a result when there is room, and waits for the last."""
        running: set[asyncio.Task[None]] = set()
        source = self._store.content_path(self._store.files[batch.input_file_id])
        try:
            async with self._turns[batch.owner]:
                with open(source, "rb") as file:
                    lines = (line for line in read_lines(file, batch.endpoint) if line.id not in results.done)
                    while (line := await asyncio.to_thread(next, lines, None)) is not None:
                        await self._until(lambda: len(self._asking) < self._room())
                        task = asyncio.create_task(self._answer_line(batch, results, line))
                        for group in (running, self._asking):
                            group.add(task)
                            task.add_done_callback(partial(_leave, group, self._changed))
            while running:
                await asyncio.wait(running)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _answer_line(self, batch: StoredBatch, results: ResultsFile, line: Line) -> None:
        """Answers one line, however often it takes, and records the result."""
        result = await self._answered(batch.owner, line)
        while not self._recorded(results, result):
            await asyncio.sleep(_RETRY_SECONDS)
        batch.count(result.succeeded)
        self._counted(result.succeeded)
        if results.sync_due:
            await asyncio.to_thread(results.sync)

    async def _answered(self, owner: str, line: Line) -> Result:
        while True:
            try:
                return await self._answer(owner, line)
            except NotNow as refusal:
                await asyncio.sleep(refusal.seconds)
                await self._until(lambda: self._room() > 0)
            except Exception as error:
                log.exception("line %d of a batch failed", line.number)
                return failed(line, "internal_error", f"The server failed: {type(error).__name__}.")

    def _recorded(self, results: ResultsFile, result: Result) -> bool:
        try:
            results.append(result)
        except OSError as error:
            log.error("cannot write a result, which is tried again: %s", error.strerror or error)
            return False
        return True

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Waits until a condition holds; looks when a line has ended, and from time to time."""
        while not condition():
            self._changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS):
                    await self._changed.wait()

    async def _save(self, batch: StoredBatch) -> None:
        async with self._saving:
            await asyncio.to_thread(self._store.save_batch, batch)


async def _opened(path: Path) -> ResultsFile:
    """A results file, opened in a thread; closed if the caller is cancelled meanwhile."""
    opening = asyncio.ensure_future(asyncio.to_thread(ResultsFile, path))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        (await opening).close()
        raise


def _leave(group: set[asyncio.Task[None]], changed: asyncio.Event, task: asyncio.Task[None]) -> None:
    group.discard(task)
    changed.set()
