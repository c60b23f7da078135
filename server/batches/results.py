"""The results of a batch: one JSON line for each line of the input, and the file that they are appended to.

The format is OpenAI's: `{"id", "custom_id", "response", "error"}`. The file is the only record of what is
done: a run that was ended in any way, even by a loss of power, reads it again and continues. So a line counts
as done when its result is in the file with the end of its line.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from ...checkpoints.files import sync_folder
from ...model.errors import DistaffError
from ..encode import to_json
from .lines import Line

SYNC_SECONDS = 1.0
"""The most seconds of results that a loss of power costs; their lines are requested again."""

_OK = 200
_BEGINNING = b'{"id":"batch_req_'


class ResultsRefused(DistaffError):
    """A file that is not one of results, or that another process writes."""


class Response(msgspec.Struct):
    """An HTTP answer."""

    status_code: int
    request_id: str
    body: msgspec.Raw


class Failure(msgspec.Struct):
    """Why there is no HTTP answer."""

    code: str
    message: str


class Result(msgspec.Struct, kw_only=True):
    """The result of one line; either `response` or `error` is None."""

    id: str
    custom_id: str | None
    response: Response | None
    error: Failure | None

    @property
    def succeeded(self) -> bool:
        return self.response is not None and self.response.status_code == _OK

    def encode(self) -> bytes:
        return to_json(self) + b"\n"


def answered(line: Line, status: int, request_id: str, body: bytes) -> Result:
    """The result of a line with an HTTP answer. A body that is not JSON becomes a string."""
    try:
        content = msgspec.json.format(body, indent=-1)
    except msgspec.DecodeError:
        content = to_json(body.decode(errors="replace"))
    response = Response(status, request_id, msgspec.Raw(content))
    return Result(id=line.id, custom_id=line.custom_id, response=response, error=None)


def failed(line: Line, code: str, message: str) -> Result:
    """The result of a line without an HTTP answer."""
    return Result(id=line.id, custom_id=line.custom_id, response=None, error=Failure(code, message))


def refused(line: Line) -> Result:
    """The result of a line with a problem, which is not requested."""
    assert line.problem is not None
    return failed(line, line.problem.code or "invalid_request", f"Line {line.number}: {line.problem.message}")


class ResultsFile:
    """A file to which results are appended, each completely or not at all.

    Attributes:
      done: for the id of each line with a result, whether it succeeded.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Opens or creates the file, reads its results, and cuts off one that was not written completely.

        Raises:
          ResultsRefused: it has something else in it, or another process has it open.
        """
        self._path, self._clock = path, clock
        self._file = open(path, "a+b", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.done, self._size = self._restored()
            self._file.truncate(self._size)
            sync_folder(path.parent)
        except OSError as error:
            self._file.close()
            raise ResultsRefused(f"{path} cannot be written: {_reason(error)}") from None
        except BaseException:
            self._file.close()
            raise
        self._synced = clock()

    def append(self, result: Result) -> None:
        """Writes one result. Raises OSError if the disk is full; then the file is as before."""
        data = memoryview(result.encode())
        try:
            written = 0
            while written < len(data):
                written += self._file.write(data[written:])
        except OSError:
            self._file.truncate(self._size)
            raise
        self._size += len(data)
        self.done[result.id] = result.succeeded

    @property
    def sync_due(self) -> bool:
        """Whether it is time to call `sync`."""
        return self._clock() >= self._synced + SYNC_SECONDS

    def sync(self) -> None:
        """Makes what is written durable; may take long."""
        self._synced = self._clock()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Syncs and closes the file. Idempotent."""
        if not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()

    def _restored(self) -> tuple[dict[str, bool], int]:
        """The results in the file, and the bytes up to the end of the last complete one."""
        done: dict[str, bool] = {}
        place = 0
        with open(self._path, "rb") as file:
            for number, raw in enumerate(file, start=1):
                result = read_result(raw)
                if result is not None:
                    done[result.id] = result.succeeded
                    place += len(raw)
                elif not _is_torn(raw):
                    raise ResultsRefused(
                        f"line {number} of {self._path} is not the result of a line of a batch"
                    )
        return done, place


def read_result(raw: bytes) -> Result | None:
    """A line of a results file; None if it is not a complete result."""
    if not raw.endswith(b"\n"):
        return None
    try:
        return msgspec.json.decode(raw, type=Result)
    except msgspec.MsgspecError:
        return None


def _is_torn(raw: bytes) -> bool:
    """Whether this is the last line of a file, and its writer was interrupted, or the machine lost power."""
    begins = raw.startswith(_BEGINNING) or _BEGINNING.startswith(raw)
    return not raw.endswith(b"\n") and (begins or b"\0" in raw)


def write_in_order(path: Path, ids: Iterable[str]) -> None:
    """Sorts a results file by the order of the lines' ids. It is replaced when all is on the disk."""
    partial = path.with_name(path.name + ".partial")
    with open(path, "rb") as source, open(partial, "wb") as sorted_file:
        places: dict[str, tuple[int, int]] = {}
        place = 0
        for raw in source:
            result = read_result(raw)
            assert result is not None
            places[result.id] = place, len(raw)
            place += len(raw)
        for place, size in filter(None, map(places.get, ids)):
            source.seek(place)
            sorted_file.write(source.read(size))
        sorted_file.flush()
        os.fsync(sorted_file.fileno())
    partial.replace(path)
    sync_folder(path.parent)


def _reason(error: OSError) -> str:
    if isinstance(error, BlockingIOError):
        return "another process writes it"
    return error.strerror or str(error)
