"""The cost of a mixture of experts on this CPU, native and portable, and of dense feed-forwards of its rows.

    python -m benchmarks.experts [--quick]

For each size, type of weights, number of tokens and routing it times, in turns, both backends, a dense
feed-forward at each expert's number of rows, and one at the number of tokens, and compares minima, because
other work on the machine only adds time. Prints a table, and JSON on the last line.
"""

import argparse
import itertools
import json
import time
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from distaff.model.kernels.block_experts import block_experts
from distaff.model.kernels.cpu.native_experts import native_experts
from distaff.model.kernels.cpu.native_linear import int8_linear, linear
from distaff.model.kernels.native_library import instruction_sets
from distaff.model.kernels.registry import ExpertWeights
from distaff.model.layout import EXPERTS as PANELS
from distaff.model.layout import INT8_EXPERTS as INT8_PANELS
from distaff.model.quantize import quantize_weight
from distaff.model.sharding import unstack

EXPERTS, CHOICES = 8, 2
SIZES = {"576x1536": (576, 1536), "1024x2048": (1024, 2048)}
KINDS = ("float32", "int8")
TOKENS = (1, 2, 8, 32, 64, 256, 512)
NAMES = ("gate", "up", "down")
Weight = tuple[jax.Array, jax.Array | None]
"""With its scales if it is int8."""


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.experts")
    parser.add_argument("--quick", action="store_true", help="few tokens and few turns")
    quick = parser.parse_args().quick
    jax.config.update("jax_platforms", "cpu")
    print(f"native: {', '.join(instruction_sets()) or 'not built, so it is blocks'}")
    print("size       weights tokens routing  native ms  blocks ms  ratio  dense sum ms  one dense ms")
    results = []
    for name, kind in itertools.product(SIZES, KINDS):
        forms = random_weights(*SIZES[name], kind)
        for tokens in TOKENS[:3] if quick else TOKENS:
            for routing, expert_TX in routings(tokens).items():
                times: dict[str, object] = {
                    "size": name,
                    "weights": kind,
                    "tokens": tokens,
                    "routing": routing,
                }
                times |= measure(forms, expert_TX, turns=5 if quick else 20)
                results.append(times)
                print(line(times), flush=True)
    print(json.dumps(results))


def line(times: Mapping[str, object]) -> str:
    """A line of the table."""
    return (
        "{size:<10} {weights:<7} {tokens:>6} {routing:<8} {native:>9.2f}  {blocks:>9.2f} {ratio:>6.2f}"
        "  {dense_sum:>12.2f}  {one_dense:>12.2f}"
    ).format(**times)


def random_weights(width: int, inner: int, kind: str) -> dict[str, ExpertWeights]:
    """Experts of N(0, 1 / inputs), as the runtime has them for each backend on a CPU."""
    rng, scales = np.random.default_rng(0), {}
    blocks, native = {}, {}
    for name, (inputs, outputs) in zip(NAMES, ((width, inner), (width, inner), (inner, width)), strict=True):
        w = jnp.asarray(rng.standard_normal((EXPERTS, inputs, outputs), np.float32) * inputs**-0.5)
        if kind == "int8":
            w, scales[f"{name}_scale"] = quantize_weight(w)
        blocks[name] = unstack(w)
        native[name] = jax.jit((INT8_PANELS if kind == "int8" else PANELS).pack)(w)
    forms = {"blocks": ExpertWeights(**blocks, **scales), "native": ExpertWeights(**native, **scales)}
    return forms if instruction_sets() else forms | {"native": forms["blocks"]}


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


def measure(forms: Mapping[str, ExpertWeights], expert_TX: np.ndarray, turns: int) -> dict[str, float]:
    """Milliseconds of both backends, of a dense feed-forward per expert (their sum), and of a single one."""
    tokens, width = len(expert_TX), forms["blocks"].gate[0].shape[1]
    x_TD = jnp.asarray(np.random.default_rng(2).standard_normal((tokens, width), np.float32))
    step = x_TD, jnp.asarray(expert_TX), jnp.full(expert_TX.shape, 1 / CHOICES, jnp.float32)
    sizes = np.bincount(expert_TX.reshape(-1), minlength=EXPERTS).tolist()
    dense = [expert_of(forms["native"], e) for e in range(EXPERTS)]
    timed = {f"dense{e}": lambda e=e: _dense(x_TD[: sizes[e]], dense[e]) for e in range(EXPERTS) if sizes[e]}
    timed |= {"one_dense": lambda: _dense(x_TD, dense[0])}
    native, blocks = jax.jit(native_experts), jax.jit(block_experts)
    timed["native"] = lambda: native(*step, forms["native"])
    timed["blocks"] = lambda: blocks(*step, forms["blocks"])
    best = {name: 1e3 * seconds for name, seconds in minima(timed, turns).items()}
    found = {name: best[name] for name in ("native", "blocks", "one_dense")}
    found["dense_sum"] = sum(best[name] for name in best if name.startswith("dense"))
    return found | {"ratio": found["blocks"] / found["native"]}


def expert_of(experts: ExpertWeights, e: int) -> list[Weight]:
    """The weights of one expert."""
    parts = []
    for name in NAMES:
        w, scale_EF = getattr(experts, name), getattr(experts, f"{name}_scale")
        parts.append((w[e][0] if isinstance(w, tuple) else w[e], None if scale_EF is None else scale_EF[e]))
    return parts


@jax.jit
def _dense(x_TD: jax.Array, expert: list[Weight]) -> jax.Array:
    gate, up, down = expert
    gate_TF, up_TF = _products(x_TD, gate, up)
    return _products(jax.nn.silu(gate_TF) * up_TF, down)[0]


def _products(x_TD: jax.Array, *weights: Weight) -> tuple[jax.Array, ...]:
    rounded = [(w, scale_F) for w, scale_F in weights if scale_F is not None]
    return int8_linear(x_TD, *rounded) if rounded else linear(x_TD, *(w for w, _ in weights))


def minima(timed: Mapping[str, Callable[[], jax.Array]], turns: int) -> dict[str, float]:
    """Seconds of each function's fastest of several calls, one call of each in turn."""
    best = dict.fromkeys(timed, float("inf"))
    for _ in range(2 + turns):  # the first turns compile and warm up, and are never the fastest
        for name, function in timed.items():
            begun = time.perf_counter()
            function().block_until_ready()
            best[name] = min(best[name], time.perf_counter() - begun)
    return best


if __name__ == "__main__":
    main()
