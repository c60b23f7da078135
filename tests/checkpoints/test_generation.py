"""End tokens from every file that has one, and sampling defaults that a request can set."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

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
        # An id that the model cannot generate is not an end token.
        (
            {"config": {"vocab_size": 8, "eos_token_id": [7, 8]}, "generation_config": {"eos_token_id": 9}},
            (7,),
        ),
        ({"config": {"vocab_size": 2}, "tokenizer_config": {"eos_token": "<|im_end|>"}}, ()),
        ({"generation_config": {"eos_token_id": [-1, "2", None, True, 2.0, 3]}}, (3,)),
    ],
)
def test_end_ids(tmp_path: Path, files: dict[str, Any], expected: tuple[int, ...]) -> None:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    assert read_generation(write(tmp_path, **files)).eos_ids == expected


@pytest.mark.parametrize(
    "stated, expected",
    [
        (
            {"temperature": 0.6, "top_p": 0.9, "top_k": 40, "min_p": 0.1, "repetition_penalty": 1.3},
            (0.6, 0.9, 40, 0.1, 1.3),
        ),
        ({"do_sample": True, "temperature": 0.6}, (0.6, None, None, None, None)),
        ({"do_sample": False, "temperature": 0.6, "top_p": 0.9}, (0.0, 0.9, None, None, None)),
        ({"top_k": 50.0, "transformers_version": "5"}, (None, None, 50, None, None)),
    ],
)
def test_sampling(tmp_path: Path, stated: dict[str, Any], expected: tuple[Any, ...]) -> None:
    found = read_generation(write(tmp_path, generation_config=stated))
    assert (
        found.temperature, found.top_p, found.top_k, found.min_p, found.repetition_penalty,
    ) == expected  # fmt: skip


def remarks(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    "key, value",
    [
        ("temperature", -1),
        ("temperature", math.nan),
        ("temperature", "hot"),
        ("top_p", 1.5),
        ("top_k", 2.5),
        ("top_k", -1),
        ("top_k", math.inf),
        ("top_k", True),
        ("min_p", -0.1),
        ("repetition_penalty", 0),
        ("max_new_tokens", 5),
        ("min_new_tokens", 5),
        ("num_beams", 4),
        ("bad_words_ids", [[3]]),
        ("suppress_tokens", [3]),
        ("no_repeat_ngram_size", 3),
        ("penalty_alpha", 0.6),
        ("stop_strings", ["x"]),
    ],
)
def test_values_that_are_not_used_are_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, key: str, value: Any
) -> None:
    write(tmp_path, generation_config={key: value})
    assert read_generation(tmp_path) == read_generation(tmp_path) == GenerationDefaults()
    (line,) = remarks(caplog)
    assert line.startswith(f"{tmp_path / 'generation_config.json'}: {key} is {value!r}; ")
    assert line.endswith("it is not used")


def test_values_that_recommend_nothing_are_not_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """All of transformers' defaults."""
    config = GenerationConfig(bos_token_id=1, pad_token_id=2, do_sample=False)
    (tmp_path / "generation_config.json").write_text(config.to_json_string(use_diff=False))
    read_generation(tmp_path)
    assert remarks(caplog) == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe"])
def test_a_damaged_file_counts_as_absent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    (tmp_path / "generation_config.json").write_bytes(content)
    write(tmp_path, config={"eos_token_id": 7})
    assert read_generation(tmp_path) == GenerationDefaults(eos_ids=(7,))
    assert len(remarks(caplog)) == 1 and "generation_config.json" in caplog.text


@pytest.mark.parametrize(
    "defaults",
    [
        GenerationDefaults(),
        GenerationDefaults(eos_ids=(3, 1), temperature=0.0),
        GenerationDefaults(eos_ids=(1,), temperature=0.7, top_p=0.9, top_k=0, min_p=0.05),
        GenerationDefaults(repetition_penalty=1.1),
    ],
)
def test_written_and_read(tmp_path: Path, defaults: GenerationDefaults) -> None:
    (tmp_path / "generation_config.json").write_bytes(defaults.to_json())
    assert read_generation(tmp_path) == defaults
