"""A model's configuration without its weights: no download of 140 GB to find out that they do not fit.

Takes everything that `distaff serve` takes, and also a `config.json` alone.
"""

from pathlib import Path

from ..model.config import ModelConfig
from .downloads.hub import Bytes, download_files
from .files import Progress, read_json
from .huggingface.huggingface_config import read_config
from .reading import open_checkpoint
from .sources import check, is_hub_id, resolve
from .store.manifest import MANIFEST_FILE

_CONFIG = "config.json"


def read_config_only(
    name: str | None, *, revision: str | None = None, progress: Progress | None = None
) -> ModelConfig:
    """The configuration of a model by name; for a hub id only `config.json` is downloaded.

    Raises:
      SourceNotFound: there is no such model.
      CheckpointError: the file is damaged, or cannot be downloaded.
      ConfigError: it needs mathematics that is not implemented.
    """
    check(name)
    if name is not None and is_hub_id(name):
        path = download_files(name, revision, None, (_CONFIG,), Bytes(progress) if progress else None)
    else:
        path = resolve(name, revision=revision, progress=progress)
    return _read(path)


def _read(path: Path) -> ModelConfig:
    if path.is_dir() and (path / _CONFIG).exists() and not (path / MANIFEST_FILE).exists():
        path = path / _CONFIG
    if path.suffix == ".json":
        return read_config(path, read_json(path))
    return open_checkpoint(path).config
