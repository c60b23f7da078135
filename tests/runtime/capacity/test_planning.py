"""Plans: the sizes of the engine, notes about unknown figures, and remedies that help."""

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distaff.checkpoints.config_only import read_config_only
from distaff.model.config import ModelConfig, MoEConfig
from distaff.model.errors import ConfigError
from distaff.model.parameters import Quantization
from distaff.model.sharding import pad_config
from distaff.runtime.capacity import compilers, planning
from distaff.runtime.capacity.chips import CHIPS, parse_topology
from distaff.runtime.capacity.planning import make_plan
from distaff.runtime.capacity.sizing import PlanOptions, Sizing, find_chip
from distaff.runtime.device.memory import OutOfMemory, size_pool

CONFIGS = Path(__file__).parents[2] / "configs"
LLAMA_8B = read_config_only(str(CONFIGS / "llama-3.1-8b.json")).config
MIXTRAL = read_config_only(str(CONFIGS / "mixtral-8x7b.json")).config
TINY = ModelConfig(
    vocabulary=512, layers=2, width=256, feed_forward=512, heads=4, kv_heads=2, head_size=128, context=2048
)


def options(topology: str, **others) -> PlanOptions:
    return PlanOptions(topology=parse_topology(topology), **others)


def sized(config: ModelConfig, asked: PlanOptions) -> Sizing:
    return Sizing(config, asked, find_chip(asked))


class Free:
    """A device with some memory in use, as JAX reports it."""

    def __init__(self, platform: str, limit: int, used: int) -> None:
        self.platform = platform
        self._stats = {"bytes_limit": limit, "bytes_in_use": used}

    def memory_stats(self) -> Mapping[str, int]:
        return self._stats


@pytest.mark.parametrize("topology", ["v5e:2x2", "v5e:2x4", "v6e:4x4", "v5p:2x2x1", "h100:1", "l4:2"])
@pytest.mark.parametrize("slots", [1, 64, 256])
@pytest.mark.parametrize("kind", [None, "int4"])
def test_the_pool_is_the_engines_own(topology: str, slots: int, kind: Quantization | None) -> None:
    """As many pages as the engine has on devices with this memory, with the weights loaded."""
    sizing = sized(LLAMA_8B, options(topology, slots=slots, context=8192, quantization=kind))
    memory, shards = sizing.memory, sizing.options.topology.size
    devices = [Free(sizing.chip.platform, memory.limit, memory.weights)] * shards
    padded = pad_config(LLAMA_8B, shards)
    try:
        expected = size_pool(padded, sizing.shapes, jnp.dtype("bfloat16"), devices, None, itemsize=2)
    except OutOfMemory:
        expected = None
    assert expected == memory.pages or (expected is None and sizing.shortage() is not None)


@given(st.sampled_from([0.5, 2, 8, 15, 16, 20, 40]), st.sampled_from([1, 32, 512]), st.booleans())
def test_remedies_help(gigabytes: float, slots: int, int8: bool) -> None:
    """If something does not fit, it does with each remedy."""
    asked = options(
        "v5e:1x1", memory=gigabytes * 1e9, slots=slots, context=8192, quantization="int8" if int8 else None
    )
    sizing = sized(LLAMA_8B, asked)
    if sizing.shortage() is None:
        assert sizing.memory.used <= sizing.memory.limit and sizing.sequences(8192) >= 1
        return
    for remedy in sizing.remedies():
        flag, value = remedy.split()
        changed = {
            "--topology": lambda word: {"topology": parse_topology(word)},
            "--quantize": lambda word: {"quantization": word},
            "--kv-cache-dtype": lambda word: {"int8_cache": True},
            "--context": lambda word: {"context": int(word)},
            "--slots": lambda word: {"slots": int(word)},
        }[flag](value)
        assert sized(LLAMA_8B, replace(asked, **changed)).shortage() is None, remedy


def test_a_plan_that_does_not_fit_is_a_result() -> None:
    """Llama 3.1 70B on eight v5e: with figures and two remedies, and nothing is compiled."""
    config = read_config_only(str(CONFIGS / "llama-3.1-70b.json")).config
    found = make_plan("70b", config, options("v5e:2x4", context=8192))
    assert not found.fits and found.programs == () and found.rates == ()
    assert found.short == "the weights take 16.43 GiB of 15.75 GiB on each device"
    assert found.remedies == ("--topology v5e:4x4", "--quantize int8")


@pytest.mark.parametrize(
    ("topology", "slots", "short"),
    [
        ("h100:1", 64, None),
        ("v6e:1x1", 64, None),
        ("v6e:1x1", 128, "temporaries take 31.28 GiB of 31.25 GiB"),
        ("l4:1", 1, "the weights take 27.41 GiB of 22.35 GiB"),
    ],
)
def test_mixtral_in_4_bits_is_planned(topology: str, slots: int, short: str | None) -> None:
    """46.7 billion weights: 5 bits each, 8.5 in the head, 16 in the embedding, the routers and the norms."""
    sizing = sized(MIXTRAL, options(topology, quantization="int4", context=8192, slots=slots))
    layer = 4096 * (4096 * 2 + 1024 * 2) + 8 * 3 * 4096 * 14336
    wide = 32000 * 4096 + 32 * (4096 * 8 + 2 * 4096) + 4096
    assert sizing.memory.weights == 32 * layer * 5 // 8 + 32000 * 4096 * 17 // 16 + 2 * wide
    found = sizing.shortage()
    assert found is None if short is None else found is not None and short in found


def test_4_bits_are_a_remedy_for_a_mixture() -> None:
    """Where 8 are too many."""
    wide = sized(MIXTRAL, options("h100:1", memory=40e9, context=4096, slots=8))
    assert wide.shortage() is not None and "--quantize int4" in list(wide.remedies())


def test_unsupported_options_are_refused() -> None:
    """A context beyond the model's, and requests beyond the context."""
    with pytest.raises(ConfigError, match="context is 4096; the model was made for 2048"):
        make_plan("tiny", TINY, options("h100:1", context=4096))
    with pytest.raises(
        ConfigError, match="prompt 1024 and completion 256; expected at most the context, 512"
    ):
        make_plan("tiny", TINY, options("h100:1", context=512))


@pytest.mark.parametrize("topology", ["h100:2", "v5e:2x2", "cpu:2"])
@pytest.mark.parametrize("experts", [None, MoEConfig(experts=4, experts_per_token=2)])
def test_steps_are_lowered_without_a_compiler(topology: str, experts: MoEConfig | None) -> None:
    """With the platform's own kernels and the collectives that the analytic model counts."""
    config = replace(TINY, moe=experts)
    found = make_plan("tiny", config, options(topology, compile=False, slots=8))
    assert found.fits and not found.memory.measured and "not compiled" in found.method
    platform = {"v5e": "tpu", "h100": "cuda", "cpu": "cpu"}[topology.partition(":")[0]]
    assert found.method.startswith(f"lowered for {platform}")
    asked = options(topology, compile=False, slots=8)
    sizing = sized(config, asked)
    for made, bucket in zip(found.programs, sizing.largest, strict=True):
        expected = sizing.costs.step([(1, 1)], tokens=bucket.tokens, sampled=8).collectives
        assert made.step == str(bucket)
        assert set(made.collectives) == {(each.kind, each.count, each.bytes) for each in expected}
        assert bool(made.kernels) == (platform != "cpu") and made.temporaries is None
        assert made.accessed and made.operations


def test_a_missing_compiler_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without libtpu there is still a plan for a TPU, with a note."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not compilers.can_compile(CHIPS["v5e"])
    found = make_plan("tiny", TINY, options("v5e:2x2", slots=8))
    assert found.notes[0].startswith("libtpu is not installed (extra tpu-aot)")


def test_a_kernel_that_does_not_support_the_shapes_is_noted() -> None:
    """Heads of 64 use the portable loop on a TPU, and the plan has a note."""
    config = replace(TINY, head_size=64)
    found = make_plan("tiny", config, options("v5e:2x2", compile=False, slots=8))
    assert any("attention runs in the portable loop" in note for note in found.notes)
    assert all(made.loops >= config.layers for made in found.programs)


def test_overflow_in_the_compiler_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """XLA's message for a program that is too large becomes the plan's reason; other errors stay errors."""

    def refuse(message: str) -> None:
        def build(*_: object) -> None:
            raise planning.jax.errors.JaxRuntimeError(message)

        monkeypatch.setattr(planning.ProgramBuilder, "build", build)

    refuse("RESOURCE_EXHAUSTED: Ran out of memory on HBM\nmore")
    found = make_plan("tiny", TINY, options("v5e:2x2", compile=False))
    assert (found.fits, found.short) == (False, "Ran out of memory on HBM")
    refuse("INTERNAL: something else")
    with pytest.raises(planning.jax.errors.JaxRuntimeError, match="something else"):
        make_plan("tiny", TINY, options("v5e:2x2", compile=False))


def test_more_streams_are_faster_together_and_slower_each() -> None:
    """For all numbers of streams; prompts reduce the rate; the plan can be converted to JSON."""
    found = make_plan("8b", LLAMA_8B, options("v6e:2x4", context=8192, compile=False))
    assert [rate.streams for rate in found.rates] == [1, 2, 4, 8, 16, 32, 64, 128]
    for few, many in zip(found.rates, found.rates[1:], strict=False):
        assert many.speed > few.speed and many.token >= few.token
    assert all(rate.sustained < rate.speed for rate in found.rates)
    assert found.first_token == pytest.approx(sum(step.total for step in found.steps[1:]))
    read = json.loads(json.dumps(found.to_json()))
    assert read["memory"]["used"] == found.memory.used <= found.memory.limit
    assert read["rates"][-1]["streams"] == 128


def test_given_figures_replace_a_chips_own() -> None:
    """A device with twice the rates, except for its links, takes half as long."""
    chip = CHIPS["h100"]
    doubled = options(
        "h100:1", bandwidth=2 * chip.bandwidth, rate=2 * chip.rate["bfloat16"], compile=False, context=8192
    )
    plain = make_plan("8b", LLAMA_8B, replace(doubled, bandwidth=None, rate=None))
    assert make_plan("8b", LLAMA_8B, doubled).rates[0].token == pytest.approx(plain.rates[0].token / 2)
