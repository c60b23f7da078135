"""lm-eval says of our server what it says of transformers: the same model, tasks of our own, item by item.

Its `local-completions` asks for one token behind an echoed prompt and slices the scores, so an entry too few
or too many shows as a wrong log-likelihood. The model is random, and made to prefer special tokens: much of
what it generates has no text.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..checkpoints.making import byte_level, edit_json, make_model, save_folder
from .conftest import running

SCRIPT = Path(__file__).with_name("lm_eval_run.py")
START, END = 1, 2
WINDOW = 128
"""Tokens that a backend looks at together: the longest text takes two windows. Of what `local-completions` is
told it leaves one for the token that is generated, and another one of each window of a text."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = make_model(vocab_size=byte_level().get_vocab_size(), max_position_embeddings=1024)
    model.lm_head.weight.data[[START, END]] *= 3
    folder = save_folder(tmp_path_factory.mktemp("lm-eval"), model)
    edit_json(folder / "tokenizer_config.json", eos_token="<|im_end|>")
    edit_json(folder / "generation_config.json", eos_token_id=END, pad_token_id=0)
    return folder


@contextlib.contextmanager
def evaluating(backend: str, home: Path, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """lm-eval at work, which finds nothing but what is here."""
    environment = os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), backend, json.dumps(options)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, env=environment, cwd=home) as process:
        try:
            yield process
        finally:
            process.kill()


def result(process: subprocess.Popen[str]) -> dict[str, list[Any]]:
    """Each task's items."""
    said, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return json.loads(said.splitlines()[-1])


@pytest.fixture
def said(folder: Path, tmp_path: Path) -> Iterator[tuple[dict[str, list[Any]], ...]]:
    """Of our server, and of transformers."""
    local = {"pretrained": str(folder), "dtype": "float32", "device": "cpu", "max_length": WINDOW}
    flags = ["--slots", "8", "--context", "512", "--log-level", "warning"]
    with evaluating("hf", tmp_path, **local) as reference, running(str(folder), *flags) as server:
        server.wait_ready()
        remote = {"model": "tgi", "base_url": f"{server.url}/v1/completions", "tokenizer": str(folder)}
        with evaluating(
            "local-completions", tmp_path, **remote, batch_size=16, max_length=WINDOW + 2
        ) as ours:
            yield result(ours), result(reference)


def test_lm_eval_says_what_it_says_of_transformers(said: tuple[dict[str, list[Any]], ...]) -> None:
    """Log-likelihoods, which answers are the greedy ones, whole texts' likelihoods, and what is generated."""
    found, expected = said
    for task, tolerance in (("choices", 2e-3), ("rolling", 5e-3)):
        numbers = [[float(answer[0][0]) for answer in item] for item in found[task]]
        wanted = [[float(answer[0][0]) for answer in item] for item in expected[task]]
        for item, other in zip(numbers, wanted, strict=True):
            assert item == pytest.approx(other, abs=tolerance)
    greedy, wanted_greedy = ([[a[0][1] for a in item] for item in each["choices"]] for each in said)
    assert greedy == wanted_greedy and {flag for item in greedy for flag in item} == {True, False}
    assert found["generation"] == expected["generation"]
    assert len({str(item) for item in found["generation"]}) > 3
