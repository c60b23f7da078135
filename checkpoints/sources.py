"""A model's name to its path: a local path, a bundled model, or an id on the Hugging Face hub.

`check` is a quick test for the command line; `resolve` finds or downloads the model, with `bundle` and `hub`.
"""

import os
import re
from pathlib import Path

from .downloads.bundle import SMOLLM2, BundledModel, prepare
from .downloads.hub import download
from .errors import SourceNotFound
from .files import Progress

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]*\w")
_BUNDLED = (SMOLLM2,)


def bundled() -> tuple[BundledModel, ...]:
    """The models that have a name without a path or the hub."""
    return _BUNDLED


def cache_folder() -> Path:
    """`distaff` in the user's cache folder (XDG base directory specification); it may not exist.

    If the user has no home, as in containers, `/` is used.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    home = os.path.expanduser("~")
    return (Path(base) if base else Path(home if home != "~" else "/", ".cache")) / "distaff"


def check(name: str | None) -> None:
    """Refuses a name that cannot be a model, in milliseconds and without the network.

    Raises:
      SourceNotFound: not an existing path, not bundled, and not in the form of a hub id.
    """
    if name is None or _find_bundled(name) or (name and Path(name).expanduser().exists()):
        return
    if _is_path(name):
        raise SourceNotFound(
            f"{name}: no such file or folder; expected a model folder, a GGUF file or a hub id"
        )
    if not _HUB_ID.fullmatch(name):
        known = ", ".join(model.name for model in _BUNDLED)
        raise SourceNotFound(
            f"{name!r} is neither a path nor a model; expected a path, ORG/NAME on the hub, or {known}"
        )


def resolve(
    name: str | None,
    *,
    revision: str | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """The local path of a model, downloaded if needed.

    Args:
      name: None for the bundled default, or a path, a bundled name or `ORG/NAME` on the hub.
      revision: a branch, tag or commit on the hub.
      cache: instead of the user's cache folder (and of the hub client's own).
      progress: receives the phase `download`.

    Raises:
      SourceNotFound: there is no such model. CheckpointError: the download failed.
    """
    check(name)
    model = _find_bundled(name or SMOLLM2.name)
    if model is not None:
        return prepare(model, cache or cache_folder(), progress)
    assert name is not None
    path = Path(name).expanduser()
    return path if path.exists() else download(name, revision, cache / "hub" if cache else None, progress)


def is_hub_id(name: str) -> bool:
    """Whether a name is a hub id: neither an existing path nor a bundled model."""
    return _find_bundled(name) is None and not Path(name).expanduser().exists()


def _find_bundled(name: str) -> BundledModel | None:
    return next((model for model in _BUNDLED if model.name == name), None)


def _is_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.endswith(".gguf") or name.count("/") > 1
