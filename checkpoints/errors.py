"""Errors of checkpoints and grammars. Each message is one line: the file, the tensor, found and expected
values."""

from pathlib import Path

from ..model.errors import DistaffError


class CheckpointError(DistaffError):
    """A checkpoint that is damaged, incomplete, inconsistent or not supported."""


class SourceNotFound(CheckpointError):
    """A model name that is not a path, a bundled model or an id on the hub."""


def not_finite(path: Path, name: str) -> CheckpointError:
    """The error for a tensor that holds NaN or infinity."""
    return CheckpointError(f"{path}: tensor {name} holds NaN or infinity; expected finite weights")


class GrammarError(DistaffError):
    """A grammar that cannot be followed; the message has the reason."""


class SchemaError(GrammarError):
    """A JSON schema that cannot be followed; `place` has the keys of the invalid part."""

    def __init__(self, reason: str, place: tuple[str | int, ...]) -> None:
        super().__init__(f"In context=({', '.join(map(repr, place))}), {reason}" if place else reason)
        self.reason, self.place = reason, place
