"""End tokens from every file that names one, and sampling defaults as far as a request can state them."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from distaff.checkpoints.errors import CheckpointError
from distaff.checkpoints.generation import GenerationDefaults, read_generation

from .making import byte_level


def write(folder: Path, **files: dict[str, Any]) -> Path:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    "files, expected",
    [
        ({}, ()),
        ({"generation_config": {"eos_token_id": 7}}, (7,)),
        ({"generation_config": {"eos_token_id": [9, 7]}}, (9, 7)),
        ({"generation_config": {"eos_token_id": [9, 7]}, "config": {"eos_token_id": 5}}, (9, 7, 5)),
        ({"config": {"eos_token_id": [5, 5]}}, (5,)),
        ({"tokenizer_config": {"eos_token": "<|im_end|>"}}, (2,)),
        (
            {"tokenizer_config": {"eos_token": {"content": "<|im_end|>"}}, "config": {"eos_token_id": 0}},
            (0, 2),
        ),
        ({"tokenizer_config": {"eos_token": "no such token"}}, ()),
    ],
)
def test_end_ids(tmp_path: Path, files: dict[str, Any], expected: tuple[int, ...]) -> None:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    assert read_generation(write(tmp_path, **files)).eos_ids == expected


@pytest.mark.parametrize(
    "stated, expected",
    [
        ({"temperature": 0.6, "top_p": 0.9, "top_k": 40, "min_p": 0.1}, (0.6, 0.9, 40, 0.1)),
        ({"do_sample": True, "temperature": 0.6}, (0.6, None, None, None)),
        ({"do_sample": False, "temperature": 0.6, "top_p": 0.9}, (0.0, 0.9, None, None)),
        (
            {"repetition_penalty": 1.3, "max_new_tokens": 5, "transformers_version": "5"},
            (None, None, None, None),
        ),
    ],
)
def test_sampling(tmp_path: Path, stated: dict[str, Any], expected: tuple[Any, ...]) -> None:
    found = read_generation(write(tmp_path, generation_config=stated))
    assert (found.temperature, found.top_p, found.top_k, found.min_p) == expected


@pytest.mark.parametrize(
    "key, value",
    [
        ("temperature", -1),
        ("temperature", math.nan),
        ("temperature", "hot"),
        ("top_p", 1.5),
        ("top_k", 2.5),
        ("top_k", True),
        ("min_p", -0.1),
        ("eos_token_id", -1),
        ("eos_token_id", "2"),
        ("eos_token_id", [1, None]),
    ],
)
def test_refusals_name_the_key(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=rf"generation_config\.json: {key} is "):
        read_generation(write(tmp_path, generation_config={key: value}))


@pytest.mark.parametrize(
    "defaults",
    [
        GenerationDefaults(),
        GenerationDefaults(eos_ids=(3, 1), temperature=0.0),
        GenerationDefaults(eos_ids=(1,), temperature=0.7, top_p=0.9, top_k=0, min_p=0.05),
    ],
)
def test_written_and_read(tmp_path: Path, defaults: GenerationDefaults) -> None:
    (tmp_path / "generation_config.json").write_bytes(defaults.to_json())
    assert read_generation(tmp_path) == defaults
