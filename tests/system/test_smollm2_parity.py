"""The bundled model says what `transformers` says with the same weights, in f32.

Our side prefills and then decodes 24 chats together against the paged cache, greedily. The reference reads
each finished chat once: where its best next token at every position is the token that we took, its own
greedy decoding takes the same path. Logits agree to 1e-4 of the reference's largest, as on random models.
Where the reference's two best logits are closer than TIE of its largest, rounding decides; such positions
are counted, and at most one in a thousand may be one.
"""

from dataclasses import dataclass

import numpy as np
import torch

from distaff.checkpoints import load_parameters, load_tokenizer, open_checkpoint, resolve

from ..model.reference import Driver, reference_from

TOLERANCE = 1e-4
TIE = 2e-5
"""Some four times the largest difference of any logit (5e-6): rounding turns nothing further apart."""

STEPS = 64
TOGETHER = 4
"""Prompts in one prefill step."""

QUESTIONS = [
    "What is a distaff?",
    "Name three rivers in Europe.",
    "Write a haiku about rain.",
    "Why is the sky blue?",
    "What is 17 + 25?",
    "Translate 'good morning' to French.",
    "Explain recursion to a child.",
    "Who wrote Hamlet?",
    "List the planets in order.",
    "def fibonacci(n):",
    "How do I boil an egg?",
    "Give me a short poem about wool.",
    "What does HTTP stand for?",
    "Summarise: the cat sat on the mat, and then it slept.",
    "Tell me a joke about bread.",
    "Was ist die Hauptstadt von Österreich?",
    "猫は何を食べますか?",
    "Write one sentence with the word 'loom'. 🧶",
]
SYSTEMS = ["You are a pirate.", "Answer in one word.", "You are a careful teacher of mathematics."]


@dataclass(frozen=True)
class Chat:
    """A prompt, the ids we decoded after it, and our logits at every position of both but the last."""

    prompt: list[int]
    reply: list[int]
    logits: np.ndarray


def conversations() -> list[list[dict[str, str]]]:
    """Plain questions, questions under a system message, and second turns."""
    plain = [[{"role": "user", "content": question}] for question in QUESTIONS]
    led = [[{"role": "system", "content": text}, *plain[i]] for i, text in enumerate(SYSTEMS)]
    answer = {"role": "assistant", "content": "Gladly."}
    again = {"role": "user", "content": "Say more about that."}
    return plain + led + [[*plain[i], answer, again] for i in range(3)]


def decode_together(driver: Driver, prompts: list[list[int]], steps: int = STEPS) -> list[Chat]:
    """Prefills a few prompts at a time, then decodes all rows step by step, taking the best token."""
    logits: list[list[np.ndarray]] = []
    for first in range(0, len(prompts), TOGETHER):
        chunks = dict(enumerate(prompts[first : first + TOGETHER], first))
        for row, prompt in chunks.items():
            driver.start(row, len(prompt))
        logits += [[found] for found in driver.mixed(chunks).values()]
    replies = [[int(found[-1][-1].argmax())] for found in logits]
    for _ in range(steps - 1):
        for row, found in driver.decode({row: reply[-1] for row, reply in enumerate(replies)}).items():
            logits[row].append(found)
            replies[row].append(int(found[-1].argmax()))
    return [
        Chat(*parts, np.concatenate(found)) for *parts, found in zip(prompts, replies, logits, strict=True)
    ]


def test_chats_equal_transformers() -> None:
    """24 chats: every logit within tolerance, and 64 greedy tokens each the same but for counted ties."""
    path = resolve("smollm2")
    checkpoint, tokenizer = open_checkpoint(path), load_tokenizer(path)
    parameters = load_parameters(checkpoint, "float32")
    prompts = [tokenizer.encode_chat(messages) for messages in conversations()]
    driver = Driver(checkpoint.config, parameters, tokens=384, rows=len(prompts), columns=10, page_size=16)
    reference, ties = reference_from(checkpoint.config, parameters), 0
    for chat in decode_together(driver, prompts):
        expected = reference(torch.tensor([chat.prompt + chat.reply[:-1]])).logits[0].numpy()
        largest = np.abs(expected).max()
        assert np.abs(chat.logits - expected).max() <= TOLERANCE * largest
        decisive = expected[len(chat.prompt) - 1 :]
        second, best = np.partition(decisive, -2, axis=-1)[:, -2:].T
        tied = best - second < TIE * largest
        assert ((decisive.argmax(-1) == chat.reply) | tied).all()
        ties += int(tied.sum())
    assert len(prompts) >= 20 and ties <= len(prompts) * STEPS / 1000
