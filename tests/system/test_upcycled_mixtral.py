"""A Mixtral upcycled from the bundled Llama says what the Llama says: routing, experts and sum on real text.

Every expert is the dense feed-forward in another order, so the reference is the dense model itself. Eight
chats are decoded greedily by both, all rows together; up to the first position where the dense model's two
best logits are as good as equal, the texts are the same and logits agree to 1e-4 of the largest.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import openai
import pytest

from distaff.checkpoints import load_parameters, load_tokenizer, open_checkpoint, resolve
from distaff.model.kernels.registry import choose
from distaff.model.target import Target
from distaff.model.transformer import Skeleton

from ..model.reference import Driver
from ..tools.upcycle import upcycle
from .conftest import running
from .test_smollm2_parity import TIE, TOLERANCE, Chat, conversations, decode_together

EXPERTS, CHOSEN, CHATS, STEPS = 4, 2, 8, 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("upcycled") / "smollm2-mixtral"
    upcycle(resolve("smollm2"), folder, experts=EXPERTS, chosen=CHOSEN)
    yield folder
    for file in folder.iterdir():
        file.unlink()


def driver_for(path: Path) -> Driver:
    checkpoint = open_checkpoint(path)
    parameters = load_parameters(checkpoint, "float32")
    return Driver(
        checkpoint.config, parameters, tokens=384, rows=CHATS, columns=8, page_size=16, optimized=False
    )


def overhear(driver: Driver) -> list[set[int]]:
    """Has a driver note, layer after layer, the experts that tokens are sent to."""
    heard: list[set[int]] = []
    kernels = choose("cpu")

    def experts(x_TD, expert_TX, weight_TX, weights):
        jax.debug.callback(lambda sent: heard.append(set(sent.ravel().tolist())), expert_TX, ordered=True)
        return kernels.experts(x_TD, expert_TX, weight_TX, weights)

    target = Target(kernels=replace(kernels, experts=experts))
    driver.skeleton = Skeleton.of(driver.skeleton.config, target)
    return heard


def test_it_says_what_the_dense_model_says(folder: Path) -> None:
    """Eight chats: the same greedy text and logits, while every expert of every layer is at work."""
    tokenizer = load_tokenizer(folder)
    prompts = [tokenizer.encode_chat(chat) for chat in conversations()[:CHATS]]
    expected = decode_together(driver_for(resolve("smollm2")), prompts, STEPS)
    mixture = driver_for(folder)
    heard = overhear(mixture)
    found = decode_together(mixture, prompts, STEPS)
    jax.effects_barrier()
    ties = sum(parts_at_a_tie(*pair) for pair in zip(found, expected, strict=True))
    assert ties <= CHATS * STEPS / 1000
    layers = mixture.skeleton.config.layers
    used = [set.union(*heard[layer::layers]) for layer in range(layers)]
    assert used == [{*range(EXPERTS + 1)}] * layers  # and padding is sent to none: number EXPERTS


def parts_at_a_tie(found: Chat, expected: Chat) -> bool:
    """Whether two replies part, which they may where the two best logits are as good as equal."""
    steps = zip(found.reply, expected.reply, strict=True)
    apart = next((i for i, (ours, theirs) in enumerate(steps) if ours != theirs), None)
    known = len(expected.logits) if apart is None else len(expected.prompt) + apart
    largest = np.abs(expected.logits).max()
    assert np.abs(found.logits[:known] - expected.logits[:known]).max() <= TOLERANCE * largest
    if apart is None:
        return False
    second, best = np.partition(expected.logits[len(expected.prompt) - 1 + apart], -2)[-2:]
    assert best - second < TIE * largest, f"{found.reply} instead of {expected.reply}"
    return True


def test_it_is_served_like_any_other(folder: Path) -> None:
    """`distaff serve` with its chat template, through OpenAI's client."""
    with running(str(folder), "--slots", "1", "--context", "128", "--prefill-tokens", "64") as server:
        server.wait_ready()
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-") as client:
            answer = client.chat.completions.create(
                model="smollm2-mixtral",
                messages=[{"role": "user", "content": "What is the capital of France?"}],
                temperature=0,
                max_tokens=12,
            )
    assert answer.choices[0].message.content == "The capital of France is Paris."
