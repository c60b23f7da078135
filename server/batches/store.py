"""`BatchStore`: the files and batches of a server, in one folder on the disk.

    lock                  held by the server that uses the folder
    files/ID.json         the record of a file        files/ID.jsonl      its content
    batches/ID.json       the record of a batch       batches/ID.jsonl    results of a batch in progress
    uploads/              what is not complete; emptied at the start

A record appears when its content is on the disk, and disappears before it, so a crash at any moment leaves
whole files only. Records are also held in memory. Paths are made of our own ids, never of what clients send.
"""

import fcntl
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import IO, TypeVar

import msgspec

from ...checkpoints.files import sync_folder, write_whole
from ...model.errors import DistaffError
from ..encode import to_json
from .records import Purpose, StoredBatch, StoredFile, new_id, now

_ID = re.compile(r"(?:file-|batch_)[0-9A-Za-z]{1,64}")
_RECORD_BYTES = 4096
"""What a file counts beside its content, so that empty ones count, too."""

_Record = TypeVar("_Record", StoredFile, StoredBatch)


class StoreRefused(DistaffError):
    """A folder that cannot be used."""


class BatchStore:
    """The folder of one server.

    Attributes:
      files, batches: the records, by id, oldest first. Change them through the methods only.
      uploads: the folder for files that are not complete. reserved: the bytes that these may need.
    """

    def __init__(self, folder: Path) -> None:
        """Opens or creates the folder.

        Raises:
          StoreRefused: it cannot be used, another server uses it, or a record in it is damaged.
        """
        self._files, self._batches, self.uploads = (folder / name for name in ("files", "batches", "uploads"))
        try:
            for each in (self._files, self._batches, self.uploads):
                each.mkdir(parents=True, exist_ok=True)
            self._lock: IO[bytes] = open(folder / "lock", "wb")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise StoreRefused(f"--batches {folder}: another server uses this folder") from None
        except OSError as error:
            raise StoreRefused(f"--batches {folder} cannot be used: {error.strerror or error}") from None
        self.reserved = 0
        try:
            self.files = _loaded(self._files, StoredFile)
            self.batches = _loaded(self._batches, StoredBatch)
            self._remove_strays()
        except BaseException:
            self._lock.close()
            raise

    def close(self) -> None:
        """Lets another server use the folder. Idempotent."""
        self._lock.close()

    @property
    def used(self) -> int:
        """The bytes of all files, of the results of batches in progress, and those that are reserved."""
        results = (self.results_path(id) for id, batch in list(self.batches.items()) if not batch.ended)
        size = sum(path.stat().st_size for path in results if path.exists())
        return size + self.reserved + sum(_RECORD_BYTES + file.size for file in list(self.files.values()))

    def content_path(self, file: StoredFile) -> Path:
        """Where the content of a file is."""
        return self._files / f"{file.id}.jsonl"

    def results_path(self, batch_id: str) -> Path:
        """Where the results of a batch are while it is in progress."""
        return self._batches / f"{batch_id}.jsonl"

    def add_file(
        self, content: Path, owner: str, filename: str, purpose: Purpose, id: str | None = None
    ) -> StoredFile:
        """Moves a complete file from `uploads` into the store; a file of the same id is replaced."""
        with open(content, "rb") as file:
            os.fsync(file.fileno())
            size = os.fstat(file.fileno()).st_size
        stored = StoredFile(
            id=id or new_id("file-"),
            owner=owner,
            filename=filename,
            purpose=purpose,
            size=size,
            created_at=now(),
        )
        content.replace(self.content_path(stored))
        write_whole(self._files / f"{stored.id}.json", to_json(stored))
        self.files[stored.id] = stored
        return stored

    def remove_file(self, file: StoredFile) -> None:
        """Removes a file. Who reads it can read on."""
        self.files.pop(file.id, None)
        (self._files / f"{file.id}.json").unlink(missing_ok=True)
        sync_folder(self._files)
        self.content_path(file).unlink(missing_ok=True)

    def save_batch(self, batch: StoredBatch) -> None:
        """Makes the record of a batch durable. Call it for one batch at a time."""
        write_whole(self._batches / f"{batch.id}.json", to_json(batch))
        self.batches[batch.id] = batch

    def remove_results(self, batch: StoredBatch) -> None:
        """Removes the results of a batch that has ended, which are in its files."""
        self.results_path(batch.id).unlink(missing_ok=True)

    def user_of(self, file: StoredFile) -> StoredBatch | None:
        """A batch in progress whose input is this file."""
        unfinished = (batch for batch in list(self.batches.values()) if not batch.ended)
        return next((batch for batch in unfinished if batch.input_file_id == file.id), None)

    def _remove_strays(self) -> None:
        """Removes what a crash left behind, and results that are in the files of a batch."""
        for path in self.uploads.iterdir():
            path.unlink()
        _remove_others(self._files, self.files)
        kept = (id for id, batch in self.batches.items() if not batch.ended or batch.status == "failed")
        _remove_others(self._batches, kept)


def _loaded(folder: Path, kind: type[_Record]) -> dict[str, _Record]:
    """The records of a folder, oldest first."""
    found: list[_Record] = []
    for path in folder.glob("*.json"):
        try:
            record = msgspec.json.decode(path.read_bytes(), type=kind)
        except (OSError, msgspec.MsgspecError) as error:
            raise StoreRefused(f"{path} is damaged: {error}") from None
        if record.id != path.stem or not _ID.fullmatch(record.id):
            raise StoreRefused(f"{path} is damaged: it is the record of {record.id!r}")
        found.append(record)
    return {record.id: record for record in sorted(found, key=lambda each: (each.created_at, each.id))}


def _remove_others(folder: Path, kept: Iterable[str]) -> None:
    """Removes contents except of these ids, and records that were not written completely."""
    ids = set(kept)
    for path in folder.iterdir():
        if path.suffix == ".partial" or (path.suffix == ".jsonl" and path.stem not in ids):
            path.unlink()
