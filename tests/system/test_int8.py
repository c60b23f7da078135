"""int8 on the real model: how far its distributions are from those of f32, and that it is served."""

from functools import cache

import numpy as np
from openai import OpenAI

from benchmarks.quality import compare, scorer, windows
from distaff.checkpoints import load_tokenizer, resolve
from distaff.runtime.scorer import Scorer

from .conftest import running


class Remembering:
    """A scorer that computes each text's logits once."""

    def __init__(self, scorer: Scorer) -> None:
        self._logits = cache(lambda text: scorer.logits(list(text)))

    def logits(self, text: list[int]) -> np.ndarray:
        return self._logits(tuple(text))


def test_int8_says_nearly_what_f32_says() -> None:
    """Over 1,280 positions of real text: mean KL at most 0.02 nats, the same best token in nine of ten."""
    texts = windows(load_tokenizer(resolve(None)), 10, 128)
    reference = Remembering(scorer(None))
    found = compare(reference, scorer(None, quantize="int8"), texts)
    assert found.positions == 10 * 128
    assert 0 < found.mean_kl <= 0.02
    assert found.top1_agreement >= 0.9
    cached = compare(reference, scorer(None, int8_cache=True), texts)
    assert 0 < cached.mean_kl <= 0.002


def test_it_is_served() -> None:
    """`--quantize int8 --kv-cache-dtype int8`, asked by the client as any model, alone and in company."""
    flags = "--quantize int8 --kv-cache-dtype int8 --slots 4 --context 512 --prefill-tokens 64"
    with running(*flags.split()) as server:
        server.wait_ready()
        client = OpenAI(base_url=f"{server.url}/v1", api_key="-")
        answers = [
            client.chat.completions.create(
                model="tgi",
                messages=[{"role": "user", "content": "Name the capital of France in one sentence."}],
                temperature=0,
                max_tokens=20,
                n=n,
            )
            for n in (1, 4)
        ]
        said = {choice.message.content for answer in answers for choice in answer.choices}
        assert all("Paris" in (text or "") for text in said)
        assert np.isfinite(server.metric("distaff_engine_generated_tokens_total"))
