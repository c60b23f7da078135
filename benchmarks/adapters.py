"""What LoRA adapters cost in a decode batch: `python -m benchmarks.adapters`.

Three cases in one process, in turns: an engine without room for adapters; one with room, none in use; the
same with an adapter for each row of the batch, some in turn. Prints tokens per second and their ratios.
"""

import argparse
import statistics
import time
from collections.abc import Sequence

import numpy as np

from distaff.model.adapter import Adapter
from distaff.model.parameters import is_linear, parameter_shapes
from distaff.runtime import LLM, Request, SamplingParams

PROMPT = 32


def drawn(llm: LLM, seed: int, rank: int) -> Adapter:
    """An adapter of all linear maps of the layers, with small random factors."""
    rng = np.random.default_rng(seed)
    shapes = {
        name: shape
        for name, shape in parameter_shapes(llm.config).items()
        if is_linear(name) and name != "head" and len(shape) == 2
    }
    return Adapter(
        rank=rank,
        weights={
            name: (
                rng.standard_normal((inputs, rank), np.float32) * 0.01,
                rng.standard_normal((rank, outputs), np.float32) * 0.01,
            )
            for name, (inputs, outputs) in shapes.items()
        },
    )


def requests(llm: LLM, rows: int, tokens: int, adapters: Sequence[str], turn: str) -> list[Request]:
    """One request for each row, with the adapters in turn."""
    params = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True)
    rng = np.random.default_rng(0)
    return [
        Request(
            id=f"{turn} {row}",
            prompt=tuple(rng.integers(1, llm.config.vocabulary, PROMPT).tolist()),
            params=params,
            adapter=adapters[row % len(adapters)] if adapters else "",
        )
        for row in range(rows)
    ]


def pace(llm: LLM, rows: int, tokens: int, adapters: Sequence[str], turn: str) -> float:
    """Generated tokens per second of a whole batch, its prompts included."""
    batch = requests(llm, rows, tokens, adapters, turn)
    started = time.perf_counter()
    llm.engine.generate(batch)
    return rows * tokens / (time.perf_counter() - started)


def wait_until_compiled(llm: LLM) -> None:
    """Waits for the steps that are compiled in the background."""
    while (stats := llm.engine.stats).buckets_ready < stats.buckets:
        time.sleep(0.2)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--quantize")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    shared = dict(quantize=options.quantize, slots=options.rows, context=256, speculation=False)
    with (
        LLM(options.model, **shared) as base,
        LLM(options.model, **shared, max_adapters=options.adapters, max_adapter_rank=options.rank) as roomy,
    ):
        names = [f"adapter {n}" for n in range(options.adapters)]
        for seed, name in enumerate(names):
            roomy.engine.add_adapter(name, drawn(roomy, seed, options.rank))
        wait_until_compiled(base)
        wait_until_compiled(roomy)
        cases = {
            "without room for adapters": (base, []),
            f"room for {options.adapters}, none in use": (roomy, []),
            f"{options.adapters} of rank {options.rank} in the batch": (roomy, names),
        }
        found: dict[str, list[float]] = {case: [] for case in cases}
        for turn in range(options.rounds + 1):
            for case, (llm, used) in cases.items():
                rate = pace(llm, options.rows, options.tokens, used, f"{turn} {case}")
                if turn:
                    found[case].append(rate)
        first = next(iter(found.values()))
        print("| case | tokens/s, median | ratio |\n|---|---|---|")
        for case, rates in found.items():
            ratio = statistics.median(a / b for a, b in zip(rates, first, strict=True))
            print(f"| {case} | {statistics.median(rates):.0f} | {ratio:.3f} |")


if __name__ == "__main__":
    main()
