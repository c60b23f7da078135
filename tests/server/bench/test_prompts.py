"""Where prompts come from: their lengths, their differences, and files that cannot be used."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distaff.checkpoints import load_tokenizer, resolve
from distaff.server.bench.http_client import HttpClient
from distaff.server.bench.prompts import (
    WORDS,
    Custom,
    Lengths,
    RandomIds,
    RandomWords,
    ShareGpt,
    random_prompts,
)
from distaff.server.bench.target import Target
from distaff.server.exit_codes import USAGE, Failed

from ..conftest import Server
from .raw_server import RawServer, raw_server


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def target(server: Server | RawServer, *, chats: bool = False) -> Target:
    client = server.client() if isinstance(server, RawServer) else HttpClient(server.url)
    return Target(client, "/v1/completions", chats, "tgi", {})


@given(st.integers(1, 300), st.integers(1, 300), st.floats(0, 1), st.integers(0, 99))
def test_random_lengths_are_within_their_range(inputs: int, outputs: int, ratio: float, seed: int):
    """Uniform between length * (1 - ratio) and length * (1 + ratio), never 0."""
    for given_length, output in Lengths(inputs, outputs, ratio, 0).draw(20, random(seed)):
        assert 1 <= given_length and inputs * (1 - ratio) - 1 <= given_length <= inputs * (1 + ratio) + 1
        assert 1 <= output and outputs * (1 - ratio) - 1 <= output <= outputs * (1 + ratio) + 1


async def test_random_ids_have_the_length_and_share_the_prefix_alone():
    """The prefix is that of the seed, in every draw."""
    prompts = RandomIds(range(100, 400), Lengths(20, 5, 0.0, 7), seed=3)
    first, second = await prompts.draw(5, random(1)), await prompts.draw(5, random(2))
    found = [sample.prompt for sample in first + second]
    assert {tuple(prompt[:7]) for prompt in found} == {tuple(found[0][:7])}
    assert len({tuple(prompt[7:]) for prompt in found}) == 10
    assert all((len(each.prompt), each.tokens, each.output) == (27, 27, 5) for each in first)
    assert await prompts.draw(5, random(1)) == first


async def test_random_words_are_a_token_each():
    """Counted with the tokenizer of the bundled model; the length is left to the server's count."""
    tokenizer = load_tokenizer(resolve(None))
    samples = await RandomWords(Lengths(50, 5, 0.0, 10), seed=3).draw(20, random())
    assert {len(tokenizer.encode(sample.prompt)) for sample in samples} == {60}
    assert {sample.tokens for sample in samples} == {0}
    assert len(set(WORDS)) == len(WORDS)


async def test_ids_come_from_the_server_if_it_has_some(server: Server):
    """Chats take text alone, and so does a server without vLLM's route."""
    lengths = Lengths(5, 5, 0.0, 0)
    asked = target(server)
    prompts = await random_prompts(asked, lengths, 0)
    (sample,) = await prompts.draw(1, random())
    assert isinstance(sample.prompt, list) and set(sample.prompt) <= set(" ".join(WORDS).encode())
    assert isinstance(await random_prompts(target(server, chats=True), lengths, 0), RandomWords)
    asked.client.close()
    async with raw_server([b'HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{"tokens": []}']) as other:
        assert isinstance(await random_prompts(target(other), lengths, 0), RandomWords)
    async with raw_server([b"HTTP/1.1 404 X\r\nContent-Length: 0\r\n\r\n"]) as other:
        assert isinstance(await random_prompts(target(other), lengths, 0), RandomWords)


async def test_a_server_that_does_not_answer_is_waited_for_no_longer(monkeypatch: pytest.MonkeyPatch):
    """Before the load, where only silence would be seen."""
    monkeypatch.setattr("distaff.server.bench.target._FETCH_SECONDS", 0.05)
    async with raw_server([b"HTTP/1.1 200 OK\r\n"]) as other:
        with pytest.raises(Failed, match="/tokenize within 0 s"):
            await target(other).tokenize("a")


def written(path: Path, *rows: Any, lines: bool = True) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n" if lines else json.dumps(rows))
    return path


async def test_a_custom_file_is_repeated_in_another_order(tmp_path: Path):
    """Every prompt as often as the others."""
    path = written(tmp_path / "a.jsonl", {"prompt": "one"}, {"prompt": "two"}, {"prompt": "three", "id": 3})
    samples = await Custom(path, None).draw(6, random())
    assert sorted(sample.prompt for sample in samples) == ["one", "one", "three", "three", "two", "two"]
    assert {(sample.tokens, sample.output) for sample in samples} == {(0, 256)}
    assert {sample.output for sample in await Custom(path, 9).draw(2, random())} == {9}


def talk(question: str, answer: str) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}


async def test_sharegpt_has_the_lengths_of_its_file(server: Server, tmp_path: Path):
    """The fake server's tokens are bytes; what vLLM leaves out is left out."""
    rows = [
        *(talk("What is it?", "A stone."), talk("So?", "A stone."), talk("What is it?", "An")),
        *(talk("x" * 1025, "A stone."), talk("x" * 1000, "y" * 1049), {"conversations": []}, {"id": 1}),
    ]
    path, asked = written(tmp_path / "s.json", *rows, lines=False), target(server)
    samples = await ShareGpt(path, None, asked).draw(2, random())
    assert [(each.prompt, each.tokens, each.output) for each in samples] == 2 * [("What is it?", 11, 8)]
    found = {(each.prompt, each.output) for each in await ShareGpt(path, 3, asked).draw(3, random())}
    assert found == {("What is it?", 3), ("x" * 1000, 3)}
    asked.client.close()


async def test_sharegpt_without_a_tokenizer_needs_the_length(tmp_path: Path):
    """Otherwise nobody knows how long the answers are."""
    path = written(tmp_path / "s.json", talk("So?", "A stone."), lines=False)
    async with raw_server([b"HTTP/1.1 404 X\r\nContent-Length: 0\r\n\r\n"]) as other:
        with pytest.raises(Failed, match="--output-len"):
            await ShareGpt(path, None, target(other)).draw(1, random())
        (sample,) = await ShareGpt(path, 7, target(other)).draw(1, random())
        assert (sample.prompt, sample.output) == ("So?", 7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "a"}\n{"text": "b"}\n', r'line 2: expected \{"prompt"'),
        ('{"prompt": 3}\n', "line 1"),
        ("prompt\n", "line 1"),
        ("\n", "no prompts"),
        ("\udcff", "cannot be read"),
    ],
)
def test_a_custom_file_that_is_none_is_wrong_usage(tmp_path: Path, text: str, message: str):
    """With the file, the line, and what was expected."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(Failed, match=message) as caught:
        Custom(path, None)
    assert caught.value.code == USAGE and str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["{", '{"a": 1}', "[1]", '[{"conversations": [1, 2]}]', "[]"])
async def test_a_sharegpt_file_that_is_none_is_wrong_usage(server: Server, tmp_path: Path, text: str):
    """An empty one, too."""
    path = tmp_path / "s.json"
    path.write_text(text)
    with pytest.raises(Failed, match=r"expected ShareGPT|no prompts"):
        ShareGpt(path, None, target(server))
