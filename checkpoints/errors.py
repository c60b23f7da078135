"""What can be wrong with a checkpoint. Each message is one line: the file, the tensor, found and expected."""

from pathlib import Path

from ..model.errors import DistaffError


class CheckpointError(DistaffError):
    """A checkpoint that is damaged, incomplete, inconsistent or not ours to read."""


class SourceNotFound(CheckpointError):
    """A model name that is no path, no bundled model and no id on the hub."""


def not_finite(path: Path, name: str) -> CheckpointError:
    """What is said of a tensor that holds a number which is none."""
    return CheckpointError(f"{path}: tensor {name} holds NaN or infinity; expected finite weights")


class GrammarError(DistaffError):
    """A grammar that cannot be followed; the message says why."""


class SchemaError(GrammarError):
    """A JSON schema that cannot be followed; `place` are the keys that lead to the part at fault."""

    def __init__(self, reason: str, place: tuple[str | int, ...]) -> None:
        super().__init__(f"In context=({', '.join(map(repr, place))}), {reason}" if place else reason)
        self.reason, self.place = reason, place
