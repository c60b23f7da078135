"""The bundled model over four devices, as an operator starts it: nine heads in groups of three."""

import openai
import pytest

from .conftest import Server, running

pytestmark = pytest.mark.serial
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


def test_four_devices_answer_as_one(f32_server: Server) -> None:
    """The same text, and log-probabilities that differ by rounding alone."""
    expected = answers(f32_server.url)
    sizes = ("--slots", "2", "--context", "256", "--prefill-tokens", "64")
    with running("--quantize", "none", "--mesh", "model=4", *sizes) as divided:
        divided.wait_ready()
        found = answers(divided.url)
    for (text, scores), (expected_text, expected_scores) in zip(found, expected, strict=True):
        assert text == expected_text
        differences = [abs(a - b) for a, b in zip(scores, expected_scores, strict=True)]
        assert max(differences) < 1e-3
