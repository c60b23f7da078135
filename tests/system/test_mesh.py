"""A model over four devices, as an operator starts it: nine heads in groups of three, like SmolLM2."""

from pathlib import Path

import openai

from ..checkpoints.making import make_model, save_folder
from .conftest import running

SIZES = ("--slots", "2", "--context", "128", "--prefill-tokens", "64")
QUESTIONS = ["What is the capital of France?", "Name three rivers in Europe.", "Why is the sky blue?"]


def answers(url: str) -> list[tuple[str, list[float]]]:
    """Greedy answers, each with its tokens' log-probabilities."""
    found = []
    with openai.OpenAI(base_url=f"{url}/v1", api_key="-") as client:
        for question in QUESTIONS:
            answer = client.chat.completions.create(
                model="tgi",
                messages=[{"role": "user", "content": question}],
                temperature=0,
                max_tokens=24,
                logprobs=True,
            ).choices[0]
            assert answer.message.content is not None and answer.logprobs is not None
            scores = [entry.logprob for entry in answer.logprobs.content or ()]
            found.append((answer.message.content, scores))
    return found


def test_four_devices_answer_as_one(tmp_path: Path) -> None:
    """The same text, and log-probabilities that differ by rounding alone."""
    heads = dict(num_attention_heads=9, num_key_value_heads=3, head_dim=32, hidden_size=288)
    folder = save_folder(tmp_path / "nine", make_model(**heads))
    with running(str(folder), *SIZES) as single:
        single.wait_ready()
        expected = answers(single.url)
    with running(str(folder), "--mesh", "model=4", *SIZES) as divided:
        divided.wait_ready()
        found = answers(divided.url)
    for (text, scores), (expected_text, expected_scores) in zip(found, expected, strict=True):
        assert text == expected_text and len(scores) == len(expected_scores) > 0
        differences = [abs(a - b) for a, b in zip(scores, expected_scores, strict=True)]
        assert max(differences) < 1e-3
