"""A checkpoint of a training run: a folder that Orbax wrote, with the model's config.json beside it.

Only the model's parameters are read, one array at a time; the optimizer's state is left where it is.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ...model.config import ModelConfig
from ...model.parameters import Quantization
from ..checkpoint import total_bytes
from ..errors import CheckpointError
from ..files import files_below, read_json
from ..generation import GenerationDefaults, read_generation
from ..huggingface.huggingface_config import read_config
from .orbax_item import Item, Path_
from .trees import find_tree

_ABOVE = 3
"""How many folders above the item may have the config.json: those of a step and of a manager among them."""


class TrainingFolder:
    """An opened checkpoint; see `Checkpoint`.

    Raises:
      CheckpointError: there is no config.json, or the tree is none that is known.
      ConfigError: the model needs mathematics that is not implemented.
    """

    def __init__(self, path: Path, item: Path) -> None:
        """Reads metadata only; `item` is where the arrays are, at or below `path`."""
        self.path = path
        home = _home(path, item)
        self.config: ModelConfig = read_config(home / "config.json", read_json(home / "config.json"))
        self.generation: GenerationDefaults = read_generation(home)
        self.quantization: Quantization | None = None
        self.nbytes = total_bytes(self.config, None)
        self._item = Item(item)
        self._tree, self._origins = find_tree(str(item), self.config, self._item.shapes)
        self.fingerprint = _fingerprint(self.config, item)

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """See `Checkpoint.tensors`. Arrays of all layers stay in host memory until the last layer is read."""
        kept: dict[Path_, np.ndarray] = {}
        for name, origin in self._origins.items():
            values = kept.get(origin.path)
            if values is None:
                values = self._item.read([origin.path])[origin.path]
                if origin.layer is not None:
                    kept[origin.path] = values
            yield name, self._tree.convert(name, origin.take(values), self.config)


def _home(path: Path, item: Path) -> Path:
    """The folder with config.json: of the item, or above it."""
    folders = [item.absolute(), *item.absolute().parents[:_ABOVE]]
    for folder in folders:
        if (folder / "config.json").exists():
            return folder
    raise CheckpointError(
        f"{path}: an Orbax checkpoint without config.json; expected the model's config.json and tokenizer "
        "files in this folder, as `distaff.checkpoints.save_description` writes them"
    )


def _fingerprint(config: ModelConfig, item: Path) -> str:
    """A digest of the configuration and of every file's name, size and time of change."""
    files = [(name, (stat := (item / name).stat()).st_size, stat.st_mtime_ns) for name in files_below(item)]
    return hashlib.sha256(json.dumps([asdict(config), sorted(files)]).encode()).hexdigest()
