"""Experts in fp8 for tests, and their sums in float64."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from distaff.model.kernels.registry import ExpertWeights
from distaff.model.parameters import Quantization
from distaff.model.quantize import quantize_fp8, quantize_fp8_blocks, widen_fp8

FP8: tuple[Quantization, ...] = ("fp8", "fp8-blocks")
NAMES = ("gate", "up", "down")


@cache
def drawn(kind: Quantization, count: int, width: int, inner: int) -> ExpertWeights:
    """Weights of the size of those of a model, with scales of very different sizes within an output."""
    rng = np.random.default_rng([count, width, inner])
    rounded = quantize_fp8 if kind == "fp8" else quantize_fp8_blocks
    parts: dict[str, jax.Array] = {}
    for name, (inputs, outputs) in zip(NAMES, ((width, inner), (width, inner), (inner, width)), strict=True):
        sizes = 2.0 ** rng.integers(-3, 2, (count, -(-inputs // 128), outputs))
        w = rng.standard_normal((count, inputs, outputs)) * np.repeat(sizes, 128, axis=1)[:, :inputs]
        parts[name], parts[f"{name}_scale"] = rounded(jnp.asarray(w * inputs**-0.5, jnp.float32))
    return ExpertWeights(**parts)


def oracle(step: tuple[np.ndarray, np.ndarray, np.ndarray], experts: ExpertWeights) -> np.ndarray:
    """All rows through every expert, then each token's choices."""
    x_TD, expert_TX, weight_TX = step
    scales = (getattr(experts, f"{name}_scale") for name in NAMES)
    wide = (widen_fp8(getattr(experts, name), scale) for name, scale in zip(NAMES, scales, strict=True))
    gate_EDF, up_EDF, down_EFD = (np.asarray(w, np.float64) for w in wide)
    gate_ETF = x_TD.astype(np.float64) @ gate_EDF
    y_ETD = (gate_ETF / (1 + np.exp(-gate_ETF)) * (x_TD @ up_EDF)) @ down_EFD
    out_TD = np.zeros(x_TD.shape)
    for t, x in zip(*np.nonzero(expert_TX < experts.count), strict=True):
        out_TD[t] += weight_TX[t, x] * y_ETD[expert_TX[t, x], t]
    return out_TD
