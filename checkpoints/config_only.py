"""A model's configuration without its weights: no download of 140 GB to find out that they do not fit.

Takes everything that `distaff serve` takes, and also a `config.json` alone. How its weights are quantised is
what a config.json says of most of them; which are wide, a file would show.
"""

from dataclasses import dataclass
from pathlib import Path

from ..model.config import ModelConfig
from ..model.parameters import Quantization
from .downloads.hub import Bytes, download_files
from .files import Progress, read_json
from .huggingface.huggingface_config import read_config, text_config
from .huggingface.tensors.quantization_config import read_quantization
from .reading import open_checkpoint
from .sources import check, is_hub_id, resolve
from .store.manifest import MANIFEST_FILE

_CONFIG = "config.json"


@dataclass(frozen=True, slots=True)
class Stated:
    """What is known of a model without its weights.

    Attributes:
      config: its configuration. quantization: how its linear weights are served; None: wide.
    """

    config: ModelConfig
    quantization: Quantization | None


def read_config_only(
    name: str | None, *, revision: str | None = None, progress: Progress | None = None
) -> Stated:
    """What a model's files state; for a hub id only `config.json` is downloaded.

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


def _read(path: Path) -> Stated:
    if path.is_dir() and (path / _CONFIG).exists() and not (path / MANIFEST_FILE).exists():
        path = path / _CONFIG
    if path.suffix == ".json":
        stated = read_json(path)
        config, stored = read_config(path, stated), read_quantization(text_config(stated))
        return Stated(config, stored.served if stored else None)
    checkpoint = open_checkpoint(path)
    return Stated(checkpoint.config, checkpoint.quantization)
