"""Parity with `transformers`: the same random weights must give the same logits, prompt and cached decoding.

The tolerance is 1e-4 of the largest reference logit. Both sides compute in f32 and differ in the order of
their sums and in the last bit of powers and cosines; over some hundreds of random models that was at
most a tenth of the tolerance. An error in the mathematics is far above it: weights are drawn so that
attention is sharp, biases and norm scales are nowhere at their defaults, and epsilons are large enough to
matter.
"""

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from distaff.model.config import ModelConfig, MoEConfig, RopeScaling

from .reference import Driver, build_reference, parameters_from, reference_logits

TOLERANCE = 1e-4
STEPS = 6
ROPES = ("default", "linear", "dynamic", "llama3", "yarn")


@st.composite
def scalings(draw: st.DrawFn, kind: str) -> RopeScaling | None:
    """A rope of this kind, with a trained context shorter than most prompts below."""
    if kind == "default":
        return None
    options = {}
    if kind == "llama3":
        options |= {"low_frequency": draw(st.sampled_from([0.5, 1.0]))}
        options |= {"high_frequency": draw(st.sampled_from([2.0, 4.0]))}
    if kind == "yarn":
        options |= {"truncate": draw(st.booleans()), "beta_fast": draw(st.sampled_from([4.0, 32.0]))}
        options |= {"beta_slow": draw(st.sampled_from([0.25, 1.0]))}
        factors = [{}, {"attention_factor": 0.8}, {"mscale": 1.0, "mscale_all_dim": 0.7}, {"mscale": 2.0}]
        options |= draw(st.sampled_from(factors))
    context, factor = draw(st.sampled_from([16, 40, 100])), draw(st.sampled_from([1.5, 4.0, 8.0]))
    return RopeScaling(kind=kind, factor=factor, original_context=context, **options)


@st.composite
def configs(draw: st.DrawFn, kind: str, family: str) -> ModelConfig:
    """Any small model; `transformers` has windows (Mistral, Mixtral) only without biases, and cannot decode
    with 1."""
    llama = family == "llama"
    windows = {"llama": [None], "mistral": [2, 7, 40, 130], "mixtral": [None, 7, 40]}
    heads, kv_heads = draw(st.sampled_from([(4, 4), (4, 1), (4, 2), (6, 2), (3, 1), (1, 1)]))
    biases = draw(st.sampled_from([(True, True), (True, False), (False, True), (False, False)]))
    return ModelConfig(
        vocabulary=draw(st.sampled_from([61, 128])),
        layers=draw(st.sampled_from([1, 2, 3])),
        width=draw(st.sampled_from([24, 48])),
        feed_forward=draw(st.sampled_from([20, 64])),
        heads=heads,
        kv_heads=kv_heads,
        head_size=draw(st.sampled_from([4, 6, 10, 16, 64] + [2] * (kind != "dynamic"))),
        context=512,
        norm_epsilon=draw(st.sampled_from([1e-6, 1e-3, 0.1])),
        rope_theta=draw(st.sampled_from([100.0, 10_000.0, 500_000.0])),
        rope=draw(scalings(kind)),
        tied_head=draw(st.booleans()),
        attention_bias=llama and biases[0],
        feed_forward_bias=llama and biases[1],
        window=draw(st.sampled_from(windows[family])),
        moe=draw(mixtures()) if family == "mixtral" else None,
    )


@st.composite
def mixtures(draw: st.DrawFn) -> MoEConfig:
    """2 to 16 experts, 1 to 4 of them per token."""
    experts = draw(st.sampled_from([2, 3, 4, 8, 16]))
    return MoEConfig(experts=experts, experts_per_token=draw(st.integers(1, min(4, experts))))


@st.composite
def cases(draw: st.DrawFn, kind: str, family: str) -> tuple[ModelConfig, tuple[int, int], int]:
    """A model, the lengths of two prompts that share its steps, and a seed."""
    lengths = draw(st.integers(1, 90)), draw(st.integers(2, 170))
    return draw(configs(kind, family)), lengths, draw(st.integers(0, 2**31))


@pytest.mark.parametrize(
    ("kind", "family", "examples"),
    [(kind, "llama", 7) for kind in ROPES]
    + [(kind, "mistral", 3) for kind in ROPES]
    + [("default", "mixtral", 14), ("llama3", "mixtral", 2)],
)
def test_logits_equal_transformers(kind: str, family: str, examples: int) -> None:
    """Every prompt logit and every logit of cached decoding equals the reference's, for any model.

    The draws are the same in every run, so that their executables come from the compilation cache.
    """

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],  # shrinking would compile hundreds of models for the same result
        suppress_health_check=list(HealthCheck),
    )
    @given(cases(kind, family))
    def check(case: tuple[ModelConfig, tuple[int, int], int]) -> None:
        assert deviation(*case) <= TOLERANCE

    check()


def deviation(config: ModelConfig, lengths: tuple[int, int], seed: int) -> float:
    """The largest difference from the reference over two sequences, relative to its largest logit."""
    model = build_reference(config, seed)
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(0, config.vocabulary, length).tolist() for length in lengths]
    expected = [reference_logits(model, prompt, STEPS) for prompt in prompts]
    driver = Driver(
        config, parameters_from(model, config), tokens=192, columns=30, seed=seed, optimized=False
    )
    found = run_staggered(driver, prompts, [tokens for _, tokens in expected])
    pairs = [(ours, logits) for ours, (logits, _) in zip(found, expected, strict=True)]
    return max(float(np.abs(ours - logits).max() / np.abs(logits).max()) for ours, logits in pairs)


def run_staggered(driver: Driver, prompts: list[list[int]], replies: list[list[int]]) -> list[np.ndarray]:
    """Both sequences in the same steps: rows 2 and 0, the second's prompt in two chunks around a decode."""
    (first, second), (reply, other) = prompts, replies
    cut = len(second) // 2
    driver.start(2, len(first))
    driver.start(0, len(second))
    steps = [driver.mixed({2: first, 0: second[:cut]}), driver.mixed({0: second[cut:], 2: reply[:1]})]
    for token, following in zip(other, reply[1:], strict=False):
        steps.append(driver.decode({0: token, 2: following}))
    steps.append(driver.decode({0: other[-1]}))
    return [np.concatenate([step[row] for step in steps if row in step]) for row in (2, 0)]
