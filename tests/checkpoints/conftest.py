"""A tiny model as a Hugging Face folder: whole, and in two shards."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from .making import make_model, save_folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_folder(tmp_path_factory.mktemp("hf"), make_model())


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.fixture
def sharded(folder: Path) -> Path:
    """The same in two shards and an index, as transformers names them."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    placement = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
        placement |= dict.fromkeys(part, file)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": placement})
    )
    return folder
