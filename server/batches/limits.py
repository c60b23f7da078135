"""The limits of files and batches. Imports nothing, because every process reads the settings."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchLimits:
    """The limits of one server; those of OpenAI, except for the sum.

    Attributes:
      most_lines: of one batch. most_file_bytes: of one upload.
      most_bytes: of all files and results; beyond it, no file and no batch is accepted.
    """

    most_lines: int = 50_000
    most_file_bytes: int = 200 * 2**20
    most_bytes: int = 20 * 2**30
