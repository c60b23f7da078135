"""What is known of a file and of a batch: the records on the disk, and their JSON in OpenAI's shape.

Source: OpenAI's OpenAPI description of `File` and `Batch`.
"""

import time
from typing import Any, Literal

import msgspec

from ..protocol.heading import fresh_id

Purpose = Literal["batch", "batch_output"]
Status = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]
ENDED: frozenset[Status] = frozenset({"failed", "completed", "expired", "cancelled"})

_ID_LENGTH = 24


def new_id(prefix: Literal["file-", "batch_"]) -> str:
    """An id that nobody can guess; letters and digits after the prefix."""
    return fresh_id(prefix, _ID_LENGTH)


def now() -> int:
    """Unix seconds."""
    return int(time.time())


class StoredFile(msgspec.Struct, kw_only=True):
    """A file. `owner`: the id of the key that made it; empty if none was needed. `size`: in bytes."""

    id: str
    owner: str
    filename: str
    purpose: Purpose
    size: int
    created_at: int

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.size,
            "created_at": self.created_at,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
        }


class LineError(msgspec.Struct, kw_only=True):
    """Why a line of an input file is invalid, or with `line` None the file."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class StoredBatch(msgspec.Struct, kw_only=True):
    """A batch. Times are in Unix seconds; counts are those of the lines with a result."""

    id: str
    owner: str
    model: str
    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None
    created_at: int
    expires_at: int
    status: Status = "validating"
    times: dict[str, int] = msgspec.field(default_factory=dict)
    errors: list[LineError] = msgspec.field(default_factory=list)
    output_file_id: str | None = None
    error_file_id: str | None = None
    total: int = 0
    completed: int = 0
    failed: int = 0

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    def become(self, status: Status) -> None:
        """Changes the status, and records when that was."""
        self.status = status
        self.times[f"{status}_at"] = now()

    def count(self, succeeded: bool) -> None:
        """Counts the result of a line."""
        self.completed += succeeded
        self.failed += not succeeded

    def to_json(self) -> dict[str, Any]:
        errors = {"object": "list", "data": [msgspec.to_builtins(error) for error in self.errors]}
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "model": self.model,
            "errors": errors if self.errors else None,
            "input_file_id": self.input_file_id,
            "completion_window": self.completion_window,
            "status": self.status,
            "output_file_id": self.output_file_id,
            "error_file_id": self.error_file_id,
            "created_at": self.created_at,
            "in_progress_at": self.times.get("in_progress_at"),
            "expires_at": self.expires_at,
            "finalizing_at": self.times.get("finalizing_at"),
            "completed_at": self.times.get("completed_at"),
            "failed_at": self.times.get("failed_at"),
            "expired_at": self.times.get("expired_at"),
            "cancelling_at": self.times.get("cancelling_at"),
            "cancelled_at": self.times.get("cancelled_at"),
            "request_counts": {"total": self.total, "completed": self.completed, "failed": self.failed},
            "metadata": self.metadata,
        }
