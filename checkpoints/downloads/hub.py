"""Downloads a model's files from the Hugging Face hub into its client's cache: data only, no pickles, no
code, and of the weights only those that are read.

The client downloads several files at a time, keeps whole files, resumes broken connections, and works without
the hub where the cache has all files. The one idea here: the small files come first, because the index among
them names the weights.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from ..errors import CheckpointError, SourceNotFound
from ..files import INDEX_FILE, SINGLE_FILE, Progress, read_json

_SMALL = ("*.json", "*.jinja")
_NEVER = ["*/*.json"]
"""From sub-folders only templates are downloaded: `additional_chat_templates/*.jinja`."""
_PLAIN = re.compile(r"[\w.-]+\.safetensors")


def download(name: str, revision: str | None, cache: Path | None, progress: Progress | None = None) -> Path:
    """The folder of a model's files, downloaded unless they are in the cache; phase `download`.

    Raises:
      SourceNotFound: no such repository, or it is gated. CheckpointError: the download failed.
    """
    bar = Bytes(progress) if progress else None
    folder = download_files(name, revision, cache, _SMALL, bar)
    return download_files(name, folder.name, cache, (*_SMALL, *_weights(folder)), bar)


def _weights(folder: Path) -> list[str]:
    """The files of a model's weights. Of an index only plain names count, because here names are patterns."""
    if not (folder / INDEX_FILE).exists():
        return [SINGLE_FILE]
    placement = read_json(folder / INDEX_FILE).get("weight_map")
    names = placement.values() if isinstance(placement, dict) else ()
    return sorted({name for name in names if isinstance(name, str) and _PLAIN.fullmatch(name)})


def download_files(
    name: str, revision: str | None, cache: Path | None, files: Sequence[str], bar: "Bytes | None" = None
) -> Path:
    """The folder of some files of a repository, downloaded unless they are in the cache.

    Args:
      files: patterns of their names. bar: receives the bytes.

    Raises:
      SourceNotFound: no such repository, or it is gated. CheckpointError: the download failed.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        folder = snapshot_download(
            name,
            revision=revision,
            cache_dir=cache,
            allow_patterns=list(files),
            ignore_patterns=_NEVER,
            tqdm_class=bar.bar_class() if bar else None,
        )
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise SourceNotFound(f"{name}: not on the hub, or this user has no access ({_line(error)})") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(f"{name}: the download failed ({_line(error)})") from None
    return Path(folder)


class Bytes:
    """Adds up the bytes of several downloads, for a progress display."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._lock = Lock()
        self._before = self._done = self._total = 0

    def bar_class(self) -> Any:
        """A progress bar for the client's next download, which draws nothing and reports bytes."""
        from tqdm.auto import tqdm

        self._before, self._done, self._total = self._before + self._total, 0, 0
        report = self._report

        class Bar(tqdm):
            def display(self, *args: Any, **options: Any) -> None:
                """Draws nothing."""

            def update(self, n: float | None = 1) -> bool | None:
                """Reports the larger of two bars: bytes received and bytes written."""
                shown = super().update(n)
                if self.unit == "B" and self.total:
                    report(int(self.n), int(self.total))
                return shown

        return Bar

    def _report(self, done: int, total: int) -> None:
        with self._lock:
            if done > self._done:
                self._done, self._total = done, total
                self._progress("download", self._before + done, self._before + total)


def _line(error: Exception) -> str:
    """The first line of a message."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
