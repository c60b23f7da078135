"""Writes a Hugging Face folder, which `transformers` and we can read: weights, configuration, tokenizer.

One safetensors file has all weights. The folder is written under another name and renamed when it is whole.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from ...model.parameters import parameter_shapes
from ..checkpoint import Checkpoint
from ..errors import CheckpointError
from ..files import SINGLE_FILE, sync_folder, sync_tree, write_whole
from ..generation import GENERATION_FILE, GenerationDefaults
from ..names import HUGGINGFACE, HUGGINGFACE_EXPERTS, HUGGINGFACE_QWEN_EXPERTS, origin_of
from ..tokenizer import ChatTokenizer
from .config_writing import Written, config_json

_EXPERTS = {"mixtral": HUGGINGFACE_EXPERTS, "qwen3_moe": HUGGINGFACE_QWEN_EXPERTS}


def write_folder(checkpoint: Checkpoint, destination: Path, tokenizer: ChatTokenizer | None = None) -> None:
    """Writes a checkpoint of wide weights to a new folder.

    Args:
      tokenizer: is written beside the weights; None for a folder without one.

    Raises:
      CheckpointError: the destination exists. ConfigError: no model of transformers computes it.
    """
    if destination.exists():
        raise CheckpointError(f"{destination}: exists; expected a new name")
    tensors = dict(checkpoint.tensors())
    config = config_json(checkpoint.config, tensors["norm"].dtype.name, checkpoint.generation.eos_ids)
    partial = destination.with_name(destination.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    table = {**HUGGINGFACE, **_EXPERTS.get(config["model_type"], {})}
    shapes = parameter_shapes(checkpoint.config)
    named = dict(each for name, values in tensors.items() for each in _parts(table, name, values, shapes))
    save_file(named, partial / SINGLE_FILE, metadata={"format": "pt"})
    write_description(partial, config, checkpoint.generation, tokenizer)
    sync_tree(partial)
    partial.replace(destination)
    sync_folder(destination.parent)


def write_description(
    folder: Path, config: Written, generation: GenerationDefaults, tokenizer: ChatTokenizer | None
) -> None:
    """Writes everything but the weights to a folder: config.json, generation_config.json, the tokenizer."""
    write_whole(folder / "config.json", (json.dumps(config, indent=2) + "\n").encode())
    write_whole(folder / GENERATION_FILE, generation.to_json())
    if tokenizer is not None:
        tokenizer.save(folder)


def _parts(
    table: dict[str, str], name: str, values: np.ndarray, shapes: dict[str, tuple[int, ...]]
) -> Iterator[tuple[str, np.ndarray]]:
    """A parameter as the tensors that other libraries know: one, or one for each expert."""
    origin = origin_of(table, name, shapes)
    stored = values.swapaxes(-1, -2) if origin.transposed and values.ndim > 1 else values
    parts = stored if values.ndim == 3 else [stored]
    for foreign, part in zip(origin.names, parts, strict=True):
        yield foreign, np.ascontiguousarray(part)
