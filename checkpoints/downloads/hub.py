"""Downloads a model's files from the Hugging Face hub into its client's cache: data only, no pickles, no
code."""

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from ..errors import CheckpointError, SourceNotFound
from ..files import Progress

_FILES = ("*.json", "*.safetensors", "*.jinja")
_NEVER = ["*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt", "*.py", "*/*.json", "*/*.safetensors", "consolidated*"]
"""From sub-folders only templates are downloaded: `additional_chat_templates/*.jinja`."""


def download(
    name: str,
    revision: str | None,
    cache: Path | None,
    progress: Progress | None = None,
    *,
    files: Sequence[str] = _FILES,
) -> Path:
    """The folder of a repository's files, downloaded unless they are in the cache; phase `download`.

    Args:
      files: patterns of the files to download.

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
            tqdm_class=_bar(progress) if progress else None,
        )
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise SourceNotFound(f"{name}: not on the hub, or this user has no access ({_line(error)})") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(f"{name}: the download failed ({_line(error)})") from None
    return Path(folder)


def _bar(progress: Progress) -> Any:
    """A progress bar for the hub client that draws nothing and reports bytes."""
    from tqdm.auto import tqdm

    furthest, lock = 0, Lock()

    class Bar(tqdm):
        def display(self, *args: Any, **options: Any) -> None:
            """Draws nothing."""

        def update(self, n: float | None = 1) -> bool | None:
            """Reports the larger of two bars: bytes received and bytes written."""
            nonlocal furthest
            shown = super().update(n)
            with lock:
                if self.unit == "B" and self.total and self.n > furthest:
                    furthest = int(self.n)
                    progress("download", furthest, int(self.total))
            return shown

    return Bar


def _line(error: Exception) -> str:
    """The first line of a message."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
