"""Whether the input file of a batch is valid: all its lines are, and there are not too many."""

from pathlib import Path

from .lines import read_lines
from .records import LineError

MOST_ERRORS = 100
"""The most errors that are reported of one file."""


def check_input(path: Path, endpoint: str, most_lines: int) -> tuple[int, list[LineError]]:
    """The number of lines, and what is wrong with the file; nothing if it is valid."""
    errors: list[LineError] = []
    total = 0
    with open(path, "rb") as file:
        for total, line in enumerate(read_lines(file, endpoint), start=1):
            if total > most_lines:
                errors.append(_too_many(most_lines))
            if line.problem is not None:
                code = line.problem.code or "invalid_request"
                errors.append(
                    LineError(
                        code=code, message=line.problem.message, param=line.problem.param, line=line.number
                    )
                )
            if total > most_lines or len(errors) >= MOST_ERRORS:
                break
    if not total:
        errors.append(LineError(code="empty_file", message="The input file has no lines."))
    return total, errors


def _too_many(most: int) -> LineError:
    message = f"The input file has too many lines. Expected at most {most}."
    return LineError(code="request_limit_exceeded", message=message)
