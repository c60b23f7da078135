"""The quality of quantisation: the divergence of next-token distributions from those of f32, on real text.

`python -m benchmarks.quality` reads windows of English prose from Python's own documentation (in the standard
library, so nothing is downloaded), and for each position compares the whole distributions: the mean
Kullback-Leibler divergence KL(f32 || other) in nats, and how often both have the same best token; for int8,
int4 and fp8 weights, for an int8 cache, and for int8 weights with that cache. The last line is JSON.

The bundled model has 4 bits already, so int4 costs it little; `--unrounded` takes wide weights that round to
it instead (see `quality_unrounded.py`).
"""

import argparse
import json
import pydoc_data.topics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import jax
import numpy as np

from distaff.checkpoints import ChatTokenizer, load_parameters, load_tokenizer, open_checkpoint, resolve
from distaff.checkpoints.checkpoint import Checkpoint
from distaff.checkpoints.reading import quantized
from distaff.runtime.scorer import Scorer

from .quality_unrounded import UnroundedCheckpoint

VARIANTS = {
    "int8 weights": {"quantize": "int8"},
    "int4 weights": {"quantize": "int4"},
    "fp8 weights": {"quantize": "fp8"},
    "int8 cache": {"int8_cache": True},
    "int8 weights and cache": {"quantize": "int8", "int8_cache": True},
}


@dataclass(frozen=True, slots=True)
class Quality:
    """Over all positions of all windows; KL in nats."""

    windows: int
    positions: int
    mean_kl: float
    median_kl: float
    p99_kl: float
    top1_agreement: float


def windows(tokenizer: ChatTokenizer, count: int, length: int) -> list[list[int]]:
    """`count` runs of `length` tokens, spread evenly over the documentation, which has 700 kB."""
    text = "\n\n".join(pydoc_data.topics.topics.values())
    tokens = tokenizer.encode(text)
    starts = np.linspace(0, len(tokens) - length, count).astype(int)
    return [tokens[start : start + length] for start in starts]


def opened(model: str | None, quantize: str | None, unrounded: bool) -> Checkpoint:
    """A model as it is, or rounded; or wide weights that round to it, as they are, or rounded."""
    if not unrounded:
        return open_checkpoint(resolve(model), quantize)
    wide = UnroundedCheckpoint(open_checkpoint(resolve(model), "as-is"))
    return quantized(wide, quantize) if quantize else wide


def scorer(
    model: str | None, *, quantize: str | None = None, int8_cache: bool = False, unrounded: bool = False
) -> Scorer:
    """A model in f32, or with quantised linear weights, or with int8 keys and values."""
    checkpoint = opened(model, quantize, unrounded)
    parameters = load_parameters(checkpoint, np.float32)
    return Scorer.of(checkpoint.config, parameters, kv_cache_dtype="int8" if int8_cache else None)


def compare(reference: Scorer, other: Scorer, texts: Sequence[Sequence[int]]) -> Quality:
    """Compares one model's distributions with another's."""
    divergences, agreements = [], []
    for divergence_T, agreement_T in _each(reference, other, texts):
        divergences.append(divergence_T)
        agreements.append(agreement_T)
    all_T = np.concatenate(divergences)
    return Quality(
        windows=len(texts),
        positions=len(all_T),
        mean_kl=float(all_T.mean()),
        median_kl=float(np.median(all_T)),
        p99_kl=float(np.quantile(all_T, 0.99)),
        top1_agreement=float(np.concatenate(agreements).mean()),
    )


def _each(
    reference: Scorer, other: Scorer, texts: Sequence[Sequence[int]]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for text in texts:
        p_TV, q_TV = (jax.nn.log_softmax(each.logits(text), axis=-1) for each in (reference, other))
        divergence_T = (jax.numpy.exp(p_TV) * (p_TV - q_TV)).sum(-1)
        yield np.asarray(divergence_T), np.asarray(p_TV.argmax(-1) == q_TV.argmax(-1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", help="as of `distaff serve`; default: the bundled one")
    parser.add_argument("--windows", type=int, default=300)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--unrounded", action="store_true", help="wide weights that round to the model's")
    arguments = parser.parse_args()
    texts = windows(load_tokenizer(resolve(arguments.model)), arguments.windows, arguments.length)
    made = partial(scorer, arguments.model, unrounded=arguments.unrounded)
    reference, results = made(), {}
    for name, options in VARIANTS.items():
        found = compare(reference, made(**options), texts)
        results[name] = asdict(found)
        print(
            f"{name} against f32, {found.positions} positions: mean KL {found.mean_kl:.5f} nats "
            f"(median {found.median_kl:.5f}, 99th percentile {found.p99_kl:.4f}), "
            f"same best token {found.top1_agreement:.1%}",
            flush=True,
        )
    print(json.dumps(results))


if __name__ == "__main__":
    main()
