"""int8: how far its distributions are from those of f32 on the real model, and that it is served."""

from functools import cache
from pathlib import Path

import numpy as np
from openai import OpenAI

from benchmarks.quality import compare, scorer, windows
from distaff.checkpoints import load_tokenizer, resolve
from distaff.runtime.scorer import Scorer

from ..checkpoints.making import make_model, save_folder
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


def test_it_is_served(tmp_path: Path) -> None:
    """`--quantize int8 --kv-cache-dtype int8`, requested like any model: one greedy text, alone and in
    company."""
    folder = save_folder(tmp_path / "tiny", make_model())
    flags = "--quantize int8 --kv-cache-dtype int8 --slots 4 --context 128 --prefill-tokens 64"
    with running(str(folder), *flags.split()) as server:
        server.wait_ready()
        with OpenAI(base_url=f"{server.url}/v1", api_key="-") as client:
            answers = [
                client.chat.completions.create(
                    model="tgi",
                    messages=[{"role": "user", "content": "Name the capital of France in one sentence."}],
                    temperature=0,
                    max_tokens=20,
                    n=n,
                    logprobs=True,
                )
                for n in (1, 4)
            ]
        choices = [choice for answer in answers for choice in answer.choices]
        assert len(choices) == 5 and len({choice.message.content for choice in choices}) == 1
        entries = [entry for choice in choices if choice.logprobs for entry in choice.logprobs.content or ()]
        assert entries and np.isfinite([entry.logprob for entry in entries]).all()
        assert server.metric("distaff_engine_generated_tokens_total") >= len(entries)
