"""`distaff batch`: requests every line of a file, and writes a result for each into another file.

The output is the only state: a run that was interrupted is started again with the same files and requests the
lines that have no result. `server/batches/` has the formats, `line_client.py` the requests.
"""

import logging
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import BinaryIO, Protocol

from .. import exit_codes
from ..batches.lines import Line, count_lines, read_lines
from ..batches.results import Result, ResultsFile, ResultsRefused, refused, write_in_order
from ..exit_codes import Failed
from ..process.progress import ProgressDisplay

log = logging.getLogger(__name__)

STANDARD = Path("-")
"""In place of a path: standard input or output."""
DEFAULT_CONCURRENCY = 32

Ask = Callable[[Line], Result]


class Sink(Protocol):
    """Where results go; `done` has those that are there, and whether they succeeded."""

    @property
    def done(self) -> dict[str, bool]: ...

    @property
    def sync_due(self) -> bool: ...

    def append(self, result: Result) -> None: ...

    def sync(self) -> None: ...

    def close(self) -> None: ...


@dataclass
class StandardOutput:
    """Results on standard output, where nothing can be found again."""

    done: dict[str, bool] = field(default_factory=dict)
    sync_due: bool = False

    def append(self, result: Result) -> None:
        sys.stdout.buffer.write(result.encode())
        sys.stdout.buffer.flush()
        self.done[result.id] = result.succeeded

    def sync(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


def check_files(source: Path, target: Path, *, ordered: bool) -> None:
    """Raises Failed for files that cannot be used together."""
    if ordered and target == STANDARD:
        raise Failed(
            "--ordered sorts the output file and cannot be used with standard output", exit_codes.USAGE
        )
    if source != STANDARD and not source.is_file():
        raise Failed(f"{source} is not a file", exit_codes.USAGE)
    if source != STANDARD and target != STANDARD and target.exists() and source.samefile(target):
        raise Failed(f"{source} is both the input and the output", exit_codes.USAGE)
    if target != STANDARD and (target.is_dir() or not target.parent.is_dir()):
        raise Failed(
            f"{target} cannot be written: it is a folder, or its folder does not exist", exit_codes.USAGE
        )


def run_batch(
    source: Path,
    target: Path,
    open_client: Callable[[], AbstractContextManager[tuple[Ask, int]]],
    display: ProgressDisplay,
    *,
    ordered: bool,
) -> int:
    """Writes the results of all lines that have none; returns the exit code.

    Args:
      open_client: called if there is something to request; what requests a line, and for how many at once.

    Raises:
      Failed: the output is of another input, is something else, or cannot be written.
    """
    with _opened(source) as file, closing(_sink(target)) as sink, closing(display):
        total = _check_same(file, source, target, sink)
        try:
            if len(sink.done) < total:
                with open_client() as (ask, together):
                    _request(file, sink, ask, together, total, display)
        finally:
            display.close()
            _report(sink, total, target)
    if ordered:
        with _opened(source) as file:
            write_in_order(target, (line.id for line in read_lines(file)))
    return exit_codes.OK if all(sink.done.values()) else exit_codes.LINES_FAILED


def _request(
    file: BinaryIO, sink: Sink, ask: Ask, together: int, total: int, display: ProgressDisplay
) -> None:
    """Requests the lines without a result."""
    display.show("lines", len(sink.done), total)
    left = (line for line in read_lines(file) if line.id not in sink.done)
    for result in results(left, ask, together):
        try:
            sink.append(result)
            if sink.sync_due:
                sink.sync()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise Failed(
                f"cannot write the output: {error.strerror or error}", exit_codes.NO_OUTPUT
            ) from None
        display.show("lines", len(sink.done), total)


def results(lines: Iterable[Line], ask: Ask, together: int) -> Iterator[Result]:
    """The result of every line, in the order in which they come. Lines with a problem are not requested.

    Args:
      lines: read when there is room for one. together: the most requests at once, each on a thread.
    """
    todo: SimpleQueue[Line] = SimpleQueue()
    ended: SimpleQueue[Result | BaseException] = SimpleQueue()
    waiting = threads = 0
    for line in lines:
        if line.problem is not None:
            yield refused(line)
            continue
        if waiting == together:
            yield _taken(ended)
            waiting -= 1
        if threads <= waiting:
            threading.Thread(target=_work, args=(todo, ended, ask), daemon=True).start()
            threads += 1
        todo.put(line)
        waiting += 1
    for _ in range(waiting):
        yield _taken(ended)


def _work(todo: SimpleQueue[Line], ended: SimpleQueue[Result | BaseException], ask: Ask) -> None:
    while True:
        line = todo.get()
        try:
            ended.put(ask(line))
        except BaseException as error:
            ended.put(error)


def _taken(ended: SimpleQueue[Result | BaseException]) -> Result:
    result = ended.get()
    if isinstance(result, BaseException):
        raise result
    return result


@contextmanager
def _opened(source: Path) -> Iterator[BinaryIO]:
    """The input; standard input is copied to a temporary file, because it is read more than once."""
    if source == STANDARD:
        with tempfile.TemporaryFile() as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
            yield file
        return
    with open(source, "rb") as file:
        yield file


def _sink(target: Path) -> Sink:
    try:
        return StandardOutput() if target == STANDARD else ResultsFile(target)
    except ResultsRefused as error:
        raise Failed(str(error), exit_codes.NO_OUTPUT) from None


def _check_same(file: BinaryIO, source: Path, target: Path, sink: Sink) -> int:
    """The number of lines; raises Failed if there are results of other lines, as of a changed input."""
    if not sink.done:
        return count_lines(file)
    ids = [line.id for line in read_lines(file)]
    if strangers := len(sink.done.keys() - set(ids)):
        raise Failed(
            f"{target} has results of {strangers} lines that are not in {source}; expected the same input as "
            "before, or a new output file",
            exit_codes.USAGE,
        )
    return len(ids)


def _report(sink: Sink, total: int, target: Path) -> None:
    """Logs how many lines are done, and how."""
    succeeded = sum(sink.done.values())
    left = total - len(sink.done)
    log.info("%d lines succeeded, %d failed", succeeded, len(sink.done) - succeeded)
    if left and target != STANDARD:
        log.info("%d lines are left: start the same command again to continue", left)
