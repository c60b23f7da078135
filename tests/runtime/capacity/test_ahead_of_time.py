"""The real steps, compiled for absent TPUs: they fit, work in place, and have the expected collectives.

Llama 3.1 8B is compiled completely. For the other models the decode step is compiled completely and the
prompt's step with two layers, because all layers are equal; `distaff plan` compiles all of them
(docs/capacity.md).

Every run traces and lowers every step; what libtpu makes of a lowered step is kept (see `keeping.py`).
"""

import importlib.util
from collections import Counter
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest

from distaff.checkpoints.config_only import read_config_only
from distaff.model.config import ModelConfig
from distaff.runtime.capacity.chips import parse_topology
from distaff.runtime.capacity.planning import program_spec
from distaff.runtime.capacity.program import ProgramBuilder
from distaff.runtime.capacity.report import Program
from distaff.runtime.capacity.sizing import PlanOptions, Sizing, find_chip
from distaff.runtime.capacity.walk import pages_fetched

from .keeping import KeepingBuilder

CONFIGS = Path(__file__).parents[2] / "configs"
MIB = 1 << 20
"""The maximum MiB of temporaries, by step: logits, and activations of 64 or 2,048 tokens."""
BUDGETS = {"decode": 256, "mixed": 1024}

pytestmark = [
    pytest.mark.accelerators,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None,
        reason="libtpu is not installed: pip install -e '.[tpu-aot]'",
    ),
    pytest.mark.timeout(600),
]


@dataclass(frozen=True)
class Case:
    """A model on a slice, with the settings of `distaff serve --slots 64 --context 8192`."""

    model: str
    topology: str
    int8: bool = False
    whole_prompts: bool = False

    def __str__(self) -> str:
        return f"{self.model}-{self.topology}{'-int8' if self.int8 else ''}"

    def sizing(self) -> Sizing:
        options = PlanOptions(
            topology=parse_topology(self.topology),
            quantization="int8" if self.int8 else None,
            context=8192,
            slots=64,
        )
        config = read_config_only(str(CONFIGS / f"{self.model}.json")).config
        return Sizing(config, options, find_chip(options))


CASES = [
    Case("llama-3.1-8b", "v5e:2x4", whole_prompts=True),
    Case("llama-3.1-70b", "v6e:4x4"),
    Case("llama-3.1-70b", "v5p:2x2x2"),
    Case("mixtral-8x7b", "v5e:2x4", int8=True),
    Case("mixtral-8x7b", "v6e:2x4"),
]


@cache
def compiled(case: Case, kind: str) -> tuple[Program, int]:
    """A case's largest step of a kind, and its number of layers."""
    sizing = case.sizing()
    decode, mixed = sizing.largest
    spec = program_spec(sizing)
    if kind == "mixed" and not case.whole_prompts:
        spec = replace(spec, config=replace(sizing.config, layers=2))
    program = KeepingBuilder(spec, compiles=True).build(decode if kind == "decode" else mixed)
    return program, spec.config.layers


@pytest.mark.parametrize("kind", ["decode", "mixed"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_real_step_compiles_for_the_chip(case: Case, kind: str) -> None:
    """Donated state, within its budget and the chip's memory, with the expected kernel and collectives."""
    program, layers = compiled(case, kind)
    sizing = case.sizing()
    memory, config = sizing.memory, sizing.config
    held = replace(sizing.costs, config=replace(config, layers=layers))
    cache, state = held.token_bytes() * sizing.shapes.page_size * (memory.pages + 1), memory.state
    assert program.aliased is not None and program.temporaries is not None and program.code is not None
    flags = memory.pages + 1  # a byte for each page; and small vectors of the state are padded to tiles
    assert 0 <= program.aliased - cache - state - flags <= 8192
    assert program.arguments is not None
    assert 0 <= program.arguments - program.aliased - held.weight_bytes() <= 2 * MIB  # and packed inputs
    assert program.temporaries <= BUDGETS[kind] * MIB
    used = memory.weights + memory.cache + state + program.temporaries + program.code
    assert used <= memory.limit
    assert program.kernels["ragged_paged_attention_kernel"] == layers
    tokens = 64 if kind == "decode" else 2048
    expected = held.step([(1, 1)], tokens=tokens, sampled=64).collectives
    assert Counter(program.collectives) == {(each.kind, each.count, each.bytes): 1 for each in expected}


def test_decoding_moves_little_more_than_it_must() -> None:
    """Llama 3.1 8B, 64 rows of 1,152 tokens on eight v5e: at most 1.15 times weights and live cache.

    Outside attention, the bytes that the compiled program moves to and from main memory; in attention, the
    pages that the kernel fetches. XLA's own "bytes accessed" is four times as much: it counts copies within
    the chip, complete tables and complete pools.
    """
    program, _ = compiled(CASES[0], "decode")
    sizing, spans = CASES[0].sizing(), [(1, 1152)] * 64
    fetched = pages_fetched(spans, tokens=64, page_size=sizing.shapes.page_size, table=sizing.shapes.table)
    needed = sizing.costs.decode([1152] * 64).bytes
    ideal = needed["weights"] + needed["cache read"]
    assert program.traffic is not None and program.accessed is not None
    outside = sum(program.traffic.values())
    assert (outside + fetched * sizing.memory.page) / ideal <= 1.15
    head = sizing.config.width * sizing.config.vocabulary * 2 / 8
    assert 1.0 <= program.traffic["weights"] / (needed["weights"] - head) <= 1.01
    assert program.traffic["head"] >= head
    assert program.accessed > 2 * outside


def test_a_second_compilation_does_not_use_the_cache() -> None:
    """JAX's compilation cache could write programs for absent devices but not read them, with a warning."""
    config = ModelConfig(
        vocabulary=256, layers=1, width=128, feed_forward=256, heads=2, kv_heads=2, head_size=128, context=512
    )
    options = PlanOptions(topology=parse_topology("v5e:1x1"), slots=8, prompt=64, completion=64)
    sizing = Sizing(config, options, find_chip(options))
    builder = ProgramBuilder(program_spec(sizing), compiles=True)
    first, second = (builder.build(sizing.shapes.buckets()[-1]) for _ in range(2))
    assert first.how == second.how and "compiled by libtpu" in first.how
