"""`Batches`: what a server with files and batches has, and what each owner may see of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ..errors import ApiError
from .limits import BatchLimits
from .records import StoredBatch, StoredFile
from .runner import BatchRunner
from .store import BatchStore


@dataclass(frozen=True, slots=True)
class Batches:
    """The store and what runs its batches."""

    store: BatchStore
    runner: BatchRunner
    limits: BatchLimits

    def file(self, id: str, owner: str) -> StoredFile:
        """A file of an owner. Raises ApiError, a 404: there is none, or it belongs to somebody else."""
        found = self.store.files.get(id)
        if found is None or found.owner != owner:
            raise _missing("File", id)
        return found

    def batch(self, id: str, owner: str) -> StoredBatch:
        """A batch of an owner. Raises ApiError as `file` does."""
        found = self.store.batches.get(id)
        if found is None or found.owner != owner:
            raise _missing("Batch", id)
        return found

    def files_of(self, owner: str) -> list[StoredFile]:
        """The files of an owner, newest first."""
        return [file for file in reversed(list(self.store.files.values())) if file.owner == owner]

    def batches_of(self, owner: str) -> list[StoredBatch]:
        """The batches of an owner, newest first."""
        return [batch for batch in reversed(list(self.store.batches.values())) if batch.owner == owner]

    @contextmanager
    def space(self, size: int) -> Iterator[None]:
        """Reserves so many bytes for a file that arrives. Raises ApiError as `check_space` does."""
        self.check_space(size)
        self.store.reserved += size
        try:
            yield
        finally:
            self.store.reserved -= size

    def check_space(self, more: int) -> None:
        """Raises ApiError, a 400, if so many bytes more are too many in the folder."""
        used, most = self.store.used, self.limits.most_bytes
        if used + more > most:
            raise ApiError(
                400,
                f"The server's files are full: {used} bytes are used and {more} more are needed; the most is "
                f"{most}. Delete files that are not needed.",
                code="storage_limit_exceeded",
            )


def _missing(what: str, id: str) -> ApiError:
    return ApiError(404, f"No such {what} object: {id[:64]}", param="id", code=f"{what.lower()}_not_found")
