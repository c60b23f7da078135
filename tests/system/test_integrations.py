"""The client examples against the real model, each started as a reader would start it.

A model of 135 million parameters answers, so what is held is the mechanics: text comes, pieces join to the
whole, sources are passages of the text, tools are called, objects have their types. Whether an answer is true
is not.
"""

import ast
import json
import re
import select
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, BertModel

from .conftest import Server

pytestmark = pytest.mark.serial
ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
CLIENTS = ROOT / ".venv-clients" / "bin" / "python"
NOTES = (EXAMPLES / "data" / "spinning.txt").read_text()
FIBRES = ("wool", "flax", "cotton")

Said = dict[str, list[Any]]
"""What an example printed: its lines are `name: Python literal`, and a name may come again."""


def run(command: list[str | Path], **options: Any) -> str:
    """What a program prints that ends well within two minutes."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def said(output: str) -> Said:
    lines = re.findall(r"^(\w+): (.+)$", output, re.MULTILINE)
    return {name: [ast.literal_eval(text) for other, text in lines if other == name] for name, _ in lines}


def is_streamed(heard: Said, whole: str = "whole", pieces: str = "pieces") -> None:
    """A text came whole, and came again in several pieces that are the same text."""
    (text,), (parts,) = heard[whole], heard[pieces]
    assert text.strip()
    assert "".join(parts) == text
    assert sum(bool(part) for part in parts) > 1


def is_yarn(fields: dict[str, Any], names: set[str]) -> None:
    assert set(fields) == names
    assert fields["fibre"] in FIBRES
    assert isinstance(fields["dyed"], bool)


def used_its_tool(heard: Said) -> None:
    """The tool was called by name with one of its three fibres, and ran as often as it was called."""
    for calls, results, answer in zip(heard["called"], heard["returned"], heard["answer"], strict=True):
        assert calls and len(results) == len(calls)
        for (name, arguments), result in zip(calls, results, strict=True):
            fibre = (json.loads(arguments) if isinstance(arguments, str) else arguments)["fibre"]
            assert (name, result) == ("staple", {"wool": "10 cm", "flax": "70 cm", "cotton": "3 cm"}[fibre])
        assert answer.strip()


def openai_agent(heard: Said) -> None:
    """The same by either protocol."""
    used_its_tool(heard)
    assert len(heard["called"]) == 2


def anthropic_messages(heard: Said) -> None:
    """The prompt has the tokens that were counted before."""
    is_streamed(heard)
    assert heard["counted"][0] == heard["usage"][0][0] and heard["usage"][0][1] > 0
    used_its_tool(heard)


def langchain_chat(heard: Said) -> None:
    is_streamed(heard)
    assert heard["tokens"][0] > 0
    assert all(text.strip() for text in heard["batch"][0])


def langchain_tools(heard: Said) -> None:
    used_its_tool(heard)
    is_yarn(heard["structured"][0], {"fibre", "dyed"})


def langchain_rag(heard: Said) -> None:
    """The sources lie in the text where they say, and the one about distaffs, which was asked for, leads."""
    assert heard["answer"][0].strip()
    assert len(heard["source"]) == 3
    for name, start, passage in heard["source"]:
        assert (name, NOTES[start:][: len(passage)]) == ("spinning.txt", passage)
    assert "A distaff is a staff" in heard["source"][0][2]


def llama_index_chat(heard: Said) -> None:
    is_streamed(heard)
    is_streamed(heard, "completed", "completed_pieces")


def llama_index_citations(heard: Said) -> None:
    """The sources are numbered passages of the text, the best one first, which is the one asked for."""
    assert heard["answer"][0].strip()
    for number, (name, _, passage) in enumerate(heard["source"], 1):
        header, _, text = passage.partition("\n")
        assert (name, header) == ("spinning.txt", f"Source {number}:")
        assert text.strip() in NOTES
    assert "A distaff is a staff" in heard["source"][0][2]
    scores = [score for _, score, _ in heard["source"]]
    assert len(scores) > 1 and scores == sorted(scores, reverse=True)


def litellm_chat(heard: Said) -> None:
    is_streamed(heard)
    assert heard["rebuilt"] == heard["whole"]
    assert heard["rebuilt_usage"] == heard["usage"] and min(heard["usage"][0]) > 0


def instructor_extract(heard: Said) -> None:
    for mode in ("tools", "json_schema"):
        (fields,) = heard[mode]
        is_yarn(fields, {"fibre", "plies", "dyed"})
        assert fields["plies"] in range(1, 5)


def text_generation_client(heard: Said) -> None:
    is_streamed(heard)
    assert heard["last"] == heard["whole"]
    ((reason, count, tokens),) = heard["details"]
    assert reason in ("length", "eos_token") and 0 < count == tokens <= 20


CHECKS: dict[str, Callable[[Said], None]] = {
    "anthropic_messages": anthropic_messages,
    "hf_inference": is_streamed,
    "instructor_extract": instructor_extract,
    "langchain_chat": langchain_chat,
    "langchain_rag": langchain_rag,
    "langchain_tools": langchain_tools,
    "litellm_chat": litellm_chat,
    "llama_index_chat": llama_index_chat,
    "llama_index_citations": llama_index_citations,
    "openai_agent": openai_agent,
    "text_generation_client": text_generation_client,
}


@pytest.fixture
def outside() -> Iterator[socket.socket]:
    """The proxy for all that is not on this machine. Nobody serves there, and nobody should call."""
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        yield proxy


@pytest.mark.parametrize(
    ("example", "python"),
    [pytest.param(example, CLIENTS, id=example, marks=pytest.mark.clients) for example in CHECKS]
    + [pytest.param("hf_inference", Path(sys.executable), id="hf_inference-2")],
)
def test_an_example_keeps_its_promise(
    example: str, python: Path, f32_server: Server, outside: socket.socket, tmp_path: Path
) -> None:
    """It ends well, prints what it should, and asks for nothing outside.

    The InferenceClient runs with either environment's huggingface_hub, 0.36 and the server's 2.
    """
    proxy = f"http://127.0.0.1:{outside.getsockname()[1]}"
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "DISTAFF_URL": f"{f32_server.url}/v1",
        **{name: proxy for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")},
        **{name: "127.0.0.1" for name in ("NO_PROXY", "no_proxy")},
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
    done = run([python, EXAMPLES / f"{example}.py"], env=environment, cwd=tmp_path)
    CHECKS[example](said(done))
    assert not select.select([outside], [], [], 0)[0], "it asked for something outside"


SCRIPTS = {"research", "perplexity", "linear_probe", "train"}
"""Those without a server; `test_llm.py` runs them."""


def test_every_client_example_is_run() -> None:
    """An example that no test starts would rot."""
    files = {path.stem for path in EXAMPLES.glob("*.py")}
    assert files - SCRIPTS - {"minilm", "inspect_tasks"} == set(CHECKS)


@pytest.mark.clients
def test_minilm_is_the_model_that_transformers_computes() -> None:
    """The examples' embeddings are the real ones: for short, foreign, long and cut texts."""
    texts = ["A distaff holds fibre.", "Größe 42: ça va? 你好", NOTES[:900], "wool " * 400]
    script = """import json, sys
from minilm import MiniLM, get_model_path
model = MiniLM()
print(json.dumps([str(get_model_path()), [model(text) for text in json.load(sys.stdin)]]))"""
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(EXAMPLES)}
    done = run([CLIENTS, "-c", script], env=environment, input=json.dumps(texts))
    path, vectors = json.loads(done)
    tokenizer, model = AutoTokenizer.from_pretrained(path), BertModel.from_pretrained(path).eval()
    for text, vector in zip(texts, vectors, strict=True):
        inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=256)
        with torch.no_grad():
            mean = model(**inputs).last_hidden_state[0].mean(0)
        torch.testing.assert_close(torch.tensor(vector), mean / mean.norm(), atol=2e-6, rtol=0)
