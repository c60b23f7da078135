"""lm-eval says of our server what it says of transformers: the same model, tasks of our own, item by item.

Its `local-completions` asks for one token behind an echoed prompt and slices the scores, so an entry too few
or too many shows as a wrong log-likelihood. The model is random, and made to prefer special tokens: much of
what it generates has no text.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ..checkpoints.making import byte_level, edit_json, make_model, save_folder
from .conftest import running

pytestmark = pytest.mark.clients
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


@pytest.fixture
def said(folder: Path, tmp_path: Path) -> Iterator[tuple[dict[str, list[Any]], ...]]:
    """Of our server, and of transformers; lm-eval finds nothing but what is here."""
    local = {"pretrained": str(folder), "dtype": "float32", "device": "cpu", "max_length": WINDOW}
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")}
    command, flags = [sys.executable, str(SCRIPT)], ["--slots", "8", "--context", "512"]
    with subprocess.Popen(command, **pipes, text=True, env=environment, cwd=tmp_path) as process:
        try:
            print(json.dumps(["hf", local]), file=process.stdin, flush=True)
            with running(str(folder), *flags, "--log-level", "warning") as server:
                server.wait_ready()
                remote = {
                    "model": "tgi",
                    "base_url": f"{server.url}/v1/completions",
                    "tokenizer": str(folder),
                }
                remote |= {"batch_size": 16, "max_length": WINDOW + 2}
                output, errors = process.communicate(json.dumps(["local-completions", remote]), timeout=120)
        finally:
            process.kill()
    lines = [line.removeprefix("result: ") for line in output.splitlines() if line.startswith("result: ")]
    assert len(lines) == 2, errors
    expected, found = map(json.loads, lines)
    yield found, expected


def test_lm_eval_says_what_it_says_of_transformers(said: tuple[dict[str, list[Any]], ...]) -> None:
    """Log-likelihoods, which answers are the greedy ones, whole texts' likelihoods, and what is generated."""
    found, expected = said
    choices, wanted = ([answer for item in each["choices"] for [answer] in item] for each in said)
    assert [value for value, _ in choices] == pytest.approx([value for value, _ in wanted], abs=2e-3)
    assert [greedy for _, greedy in choices] == [greedy for _, greedy in wanted]
    assert {greedy for _, greedy in wanted} == {True, False}
    assert np.ravel(found["rolling"]) == pytest.approx(np.ravel(expected["rolling"]), abs=5e-3)
    assert found["generation"] == expected["generation"]
    assert len({str(item) for item in found["generation"]}) > 3
