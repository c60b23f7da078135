"""The cost of a mixture of experts on this CPU, compared with dense feed-forwards of the same rows.

    python -m benchmarks.experts [--quick]

For each size, number of tokens and routing it times, in turns, the kernel, a dense feed-forward at each
expert's number of rows, and one at the number of tokens, and compares minima, because other work on the
machine only adds time. Prints a table, and JSON on the last line.
"""

import argparse
import itertools
import json
import time
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from distaff.model.kernels.linear import split_k
from distaff.model.kernels.registry import ExpertWeights, choose

EXPERTS, CHOICES = 8, 2
SIZES = {"576x1536": (576, 1536), "1024x2048": (1024, 2048)}
TOKENS = (1, 2, 8, 32, 64, 256, 512)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.experts")
    parser.add_argument("--quick", action="store_true", help="few tokens and few turns")
    quick = parser.parse_args().quick
    jax.config.update("jax_platforms", "cpu")
    print("size       tokens routing  experts ms  dense sum ms  ratio  one dense ms  ratio")
    results = []
    for name, tokens in itertools.product(SIZES, TOKENS[:3] if quick else TOKENS):
        weights = random_weights(*SIZES[name])
        for routing, expert_TX in routings(tokens).items():
            times = {"size": name, "tokens": tokens, "routing": routing}
            times |= measure(weights, expert_TX, turns=5 if quick else 20)
            results.append(times)
            print(line(times), flush=True)
    print(json.dumps(results))


def line(times: Mapping[str, object]) -> str:
    """A line of the table."""
    return (
        "{size:<10} {tokens:>6} {routing:<8} {experts:>10.2f}  {dense_sum:>12.2f} {sum_ratio:>6.2f}"
        "  {one_dense:>12.2f} {one_ratio:>6.2f}"
    ).format(**times)


def random_weights(width: int, inner: int) -> ExpertWeights:
    """Unstacked experts of N(0, 1 / inputs), as the runtime has them on a CPU."""
    rng = np.random.default_rng(0)

    def stack(inputs: int, outputs: int) -> tuple[jax.Array, ...]:
        spread = np.float32(inputs**-0.5)
        shape = (1, inputs, outputs)
        drawn = (rng.standard_normal(shape, np.float32) * spread for _ in range(EXPERTS))
        return tuple(map(jnp.asarray, drawn))

    return ExpertWeights(gate=stack(width, inner), up=stack(width, inner), down=stack(inner, width))


def routings(tokens: int) -> dict[str, np.ndarray]:
    """Experts of each token, i32 `[T, X]`: assigned in turn, at random, and with one expert for every
    token."""
    rng = np.random.default_rng(1)
    turns = np.arange(tokens * CHOICES).reshape(tokens, CHOICES) % EXPERTS
    drawn = [rng.permutation(EXPERTS)[:CHOICES] for _ in range(tokens)]
    one = [[0, 1 + token % (EXPERTS - 1)] for token in range(tokens)]
    return {
        "even": turns.astype(np.int32),
        "random": np.asarray(drawn, np.int32),
        "skewed": np.asarray(one, np.int32),
    }


def measure(weights: ExpertWeights, expert_TX: np.ndarray, turns: int) -> dict[str, float]:
    """Milliseconds of the kernel, of one dense feed-forward per expert (their sum), and of a single one."""
    tokens = len(expert_TX)
    width = weights.gate[0].shape[1]
    x_TD = jnp.asarray(np.random.default_rng(2).standard_normal((tokens, width), np.float32))
    weight_TX = jnp.full(expert_TX.shape, 1 / CHOICES, jnp.float32)
    kernel, routed_TX = jax.jit(choose("cpu").experts), jnp.asarray(expert_TX)
    sizes = np.bincount(expert_TX.reshape(-1), minlength=EXPERTS).tolist()

    def dense(rows: int, e: int) -> None:
        expert = (weights.gate[e], weights.up[e], weights.down[e])
        _dense(x_TD[:rows], *expert).block_until_ready()

    timed = {"experts": lambda: kernel(x_TD, routed_TX, weight_TX, weights).block_until_ready()}
    timed |= {f"dense{e}": lambda e=e: dense(sizes[e], e) for e in range(EXPERTS) if sizes[e]}
    best = minima(timed | {"one_dense": lambda: dense(tokens, 0)}, turns)
    dense_sum = sum(seconds for name, seconds in best.items() if name.startswith("dense"))
    found = {"experts": best["experts"], "dense_sum": dense_sum, "one_dense": best["one_dense"]}
    found = {name: 1e3 * seconds for name, seconds in found.items()}
    ratios = {"sum_ratio": "dense_sum", "one_ratio": "one_dense"}
    return found | {name: found["experts"] / found[other] for name, other in ratios.items()}


@jax.jit
def _dense(x_TD: jax.Array, gate: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
    gate_TF, up_TF = split_k(x_TD, gate[0], up[0])
    return split_k(jax.nn.silu(gate_TF) * up_TF, down[0])[0]


def minima(timed: Mapping[str, Callable[[], object]], turns: int) -> dict[str, float]:
    """Seconds of each function's fastest of several calls, one call of each in turn."""
    best = dict.fromkeys(timed, float("inf"))
    for _ in range(2 + turns):  # the first turns compile and warm up, and are never the fastest
        for name, function in timed.items():
            begun = time.perf_counter()
            function()
            best[name] = min(best[name], time.perf_counter() - begun)
    return best


if __name__ == "__main__":
    main()
