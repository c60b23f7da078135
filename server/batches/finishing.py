"""The end of a batch: its results become the output file and the error file."""

import hashlib
from pathlib import Path

from .lines import read_lines
from .records import StoredBatch
from .results import ResultsFile, failed, read_result
from .store import BatchStore

_REASONS = {
    "expired": ("batch_expired", "The batch expired before this request was answered."),
    "cancelled": ("batch_cancelled", "The batch was cancelled before this request was answered."),
    "failed": ("batch_failed", "The batch failed before this request was answered."),
}
"""Why a line has no answer, by the status with which its batch ends."""


def fill_up(source: Path, results: ResultsFile, batch: StoredBatch, status: str) -> None:
    """Appends an error for every line without a result, so that each has one."""
    code, message = _REASONS[status]
    with open(source, "rb") as file:
        for line in read_lines(file, batch.endpoint):
            if line.id not in results.done:
                results.append(failed(line, code, message))
                batch.count(succeeded=False)


def write_files(store: BatchStore, batch: StoredBatch) -> None:
    """Divides the results into two files by success. May be repeated: the files have the same ids then."""
    batch.output_file_id = _write(store, batch, "output", succeeded=True)
    batch.error_file_id = _write(store, batch, "error", succeeded=False)


def _write(store: BatchStore, batch: StoredBatch, kind: str, *, succeeded: bool) -> str | None:
    """The id of a file with some of the results; None if there are none."""
    id = "file-" + hashlib.sha256(f"{batch.id} {kind}".encode()).hexdigest()[:24]
    partial = store.uploads / id
    with open(store.results_path(batch.id), "rb") as source, open(partial, "wb") as file:
        for raw in source:
            result = read_result(raw)
            if result is not None and result.succeeded == succeeded:
                file.write(raw)
        empty = not file.tell()
    if empty:
        partial.unlink()
        return None
    store.add_file(partial, batch.owner, f"{batch.id}_{kind}.jsonl", "batch_output", id)
    return id
