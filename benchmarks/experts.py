"""The cost of a mixture of experts on this CPU, native and portable, and of dense feed-forwards of its rows.

    python -m benchmarks.experts [--quick]

For each size, number of tokens and routing it times, in turns, each type of weights in both backends, a dense
feed-forward at each expert's number of rows, and one at the number of tokens, and compares minima, because
other work on the machine only adds time. Prints a table, and JSON on the last line.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distaff.model.kernels.block_experts import block_experts
from distaff.model.kernels.cpu.native_experts import native_experts
from distaff.model.kernels.cpu.native_linear import grouped_linear, int8_linear, linear
from distaff.model.kernels.native_library import instruction_sets
from distaff.model.kernels.registry import ExpertWeights
from distaff.model.layout import form_of
from distaff.model.parameters import Kind
from distaff.model.quantize import quantize_linear
from distaff.model.sharding import unstack

EXPERTS, CHOICES = 8, 2
SIZES = {"576x1536": (576, 1536), "1024x2048": (1024, 2048)}
Place = tuple[str, str]
"""A type of weights, and what is timed with it."""
KINDS: dict[str, Kind | None] = {"float32": None, "int8": "int8", "int4": "int4"}
TOKENS = (1, 2, 8, 32, 64, 256, 512)
NAMES = ("gate", "up", "down")
Weight = tuple[jax.Array, jax.Array | None, jax.Array | None]
"""A weight, its scales if it is int8 or in groups, and its lows if it has 4 bits."""


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.experts")
    parser.add_argument("--quick", action="store_true", help="few tokens and few turns")
    quick = parser.parse_args().quick
    jax.config.update("jax_platforms", "cpu")
    print(f"native: {', '.join(instruction_sets()) or 'not built, so it is blocks'}")
    print("size       weights tokens routing  native ms  blocks ms  ratio  dense sum ms  one dense ms")
    results = []
    for name in SIZES:
        forms = {kind: random_weights(*SIZES[name], quantization) for kind, quantization in KINDS.items()}
        for tokens in TOKENS[:3] if quick else TOKENS:
            for routing, expert_TX in routings(tokens).items():
                for kind, times in measure(forms, expert_TX, turns=5 if quick else 20).items():
                    case = {"size": name, "weights": kind, "tokens": tokens, "routing": routing}
                    results.append(case | times)
                    print(line(results[-1]), flush=True)
    print(json.dumps(results))


def line(times: Mapping[str, object]) -> str:
    """A line of the table."""
    return (
        "{size:<10} {weights:<7} {tokens:>6} {routing:<8} {native:>9.2f}  {blocks:>9.2f} {ratio:>6.2f}"
        "  {dense_sum:>12.2f}  {one_dense:>12.2f}"
    ).format(**times)


def random_weights(width: int, inner: int, quantization: Kind | None) -> dict[str, ExpertWeights]:
    """Experts of N(0, 1 / inputs), as the runtime has them for each backend on a CPU."""
    rng, blocks, native = np.random.default_rng(0), {}, {}
    for name, (inputs, outputs) in zip(NAMES, ((width, inner), (width, inner), (inner, width)), strict=True):
        w = jnp.asarray(rng.standard_normal((EXPERTS, inputs, outputs), np.float32) * inputs**-0.5)
        parts = quantize_linear(name, w, quantization) if quantization else {name: w}
        for part, values in parts.items():
            form = form_of(f"layers.0.feed_forward.{part}", values.ndim, quantization)
            separate = part == name and quantization != "int4"
            blocks[part] = unstack(values) if separate else values
            native[part] = jax.jit(form.pack)(values) if form else values
    forms = {"blocks": ExpertWeights(**blocks), "native": ExpertWeights(**native)}
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


def measure(
    forms: Mapping[str, Mapping[str, ExpertWeights]], expert_TX: np.ndarray, turns: int
) -> dict[str, dict[str, float]]:
    """For each type of weights, milliseconds of both backends, of a dense feed-forward per expert (their
    sum), and of a single one; all are called in turn."""
    timed = {
        (kind, name): function
        for kind, form in forms.items()
        for name, function in _timed(form, expert_TX).items()
    }
    best = {place: 1e3 * seconds for place, seconds in minima(timed, turns).items()}
    found: dict[str, dict[str, float]] = {}
    for kind in forms:
        times = {name: best[kind, name] for name in ("native", "blocks", "one_dense")}
        times["dense_sum"] = sum(best[at] for at in best if at[0] == kind and at[1].startswith("dense"))
        found[kind] = times | {"ratio": times["blocks"] / times["native"]}
    return found


def _timed(form: Mapping[str, ExpertWeights], expert_TX: np.ndarray) -> dict[str, Callable[[], jax.Array]]:
    tokens, width = len(expert_TX), width_of(form["blocks"])
    x_TD = jnp.asarray(np.random.default_rng(2).standard_normal((tokens, width), np.float32))
    step = x_TD, jnp.asarray(expert_TX), jnp.full(expert_TX.shape, 1 / CHOICES, jnp.float32)
    sizes = np.bincount(expert_TX.reshape(-1), minlength=EXPERTS).tolist()
    dense = [expert_of(form["native"], e) for e in range(EXPERTS)]
    timed = {f"dense{e}": lambda e=e: _dense(x_TD[: sizes[e]], dense[e]) for e in range(EXPERTS) if sizes[e]}
    timed |= {"one_dense": lambda: _dense(x_TD, dense[0])}
    native, blocks = jax.jit(native_experts), jax.jit(block_experts)
    timed["native"] = lambda: native(*step, form["native"])
    timed["blocks"] = lambda: blocks(*step, form["blocks"])
    return timed


def width_of(experts: ExpertWeights) -> int:
    """D, of experts that are no panels."""
    down = experts.down
    return (down[0] if isinstance(down, tuple) else down).shape[-1]


def expert_of(experts: ExpertWeights, e: int) -> list[Weight]:
    """The weights of one expert."""

    def own(name: str) -> Any:
        part = getattr(experts, name)
        return part if part is None else part[e][0] if isinstance(part, tuple) else part[e]

    return [(own(name), own(f"{name}_scale"), own(f"{name}_low")) for name in NAMES]


@jax.jit
def _dense(x_TD: jax.Array, expert: list[Weight]) -> jax.Array:
    gate, up, down = expert
    gate_TF, up_TF = _products(x_TD, gate, up)
    return _products(jax.nn.silu(gate_TF) * up_TF, down)[0]


def _products(x_TD: jax.Array, *weights: Weight) -> tuple[jax.Array, ...]:
    if weights[0][1] is None:
        return linear(x_TD, *(w for w, *_ in weights))
    scaled = [(w, scale, low) for w, scale, low in weights if scale is not None]
    if scaled[0][1].ndim > 1:
        return grouped_linear(x_TD, *scaled)
    return int8_linear(x_TD, *((w, scale_F) for w, scale_F, _ in scaled))


def minima(timed: Mapping[Place, Callable[[], jax.Array]], turns: int) -> dict[Place, float]:
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
