"""The real steps, compiled for GPUs that are not here: kernels, memory, copies, launches, registers.

All sizes are the model's own but for the number of layers, which is two, because all layers are equal. XLA
does not tune without a GPU, so its products are Triton's (see `compilers.py`) or, on request, cuBLAS's.
"""

import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
from jax.sharding import NamedSharding

from distaff.checkpoints.config_only import read_config_only
from distaff.model.parameters import Quantization
from distaff.runtime.capacity import planning
from distaff.runtime.capacity.chips import CHIPS, parse_topology
from distaff.runtime.capacity.compilers import can_compile
from distaff.runtime.capacity.planning import make_plan, program_spec
from distaff.runtime.capacity.sizing import PlanOptions, Sizing, find_chip
from distaff.runtime.device.memory import temporary_bytes

from .gpu_text import launches_of, moves_of, waits_of
from .keeping import KeepingBuilder, KeptStep

CONFIGS = Path(__file__).parents[2] / "configs"
LAYERS = 2
MIB = 1 << 20

pytestmark = [
    pytest.mark.accelerators,
    pytest.mark.skipif(
        not can_compile(CHIPS["h100"]),
        reason="XLA's compiler for GPUs is not installed: make test-accelerators",
    ),
    pytest.mark.timeout(600),
]


@dataclass(frozen=True)
class Case:
    """A model on a GPU, with the settings of `distaff serve --slots 64 --context 8192`, or others."""

    model: str
    topology: str = "h100:1"
    quantization: Quantization | None = None
    int8_cache: bool = False
    slots: int = 64
    context: int = 8192

    def __str__(self) -> str:
        marks = f"-{self.quantization}" * bool(self.quantization) + "-int8cache" * self.int8_cache
        return f"{self.model}-{self.topology}{marks}"

    @property
    def size(self) -> int:
        return parse_topology(self.topology).size

    def sizing(self) -> Sizing:
        options = PlanOptions(
            topology=parse_topology(self.topology),
            quantization=self.quantization,
            int8_cache=self.int8_cache,
            context=self.context,
            slots=self.slots,
        )
        config = replace(read_config_only(str(CONFIGS / f"{self.model}.json")).config, layers=LAYERS)
        return Sizing(config, options, find_chip(options))


CASES = [
    Case("llama-3.1-8b"),
    Case("llama-3.1-8b", quantization="int8"),
    Case("llama-3.1-8b", int8_cache=True),
    Case("llama-3.1-8b", topology="h100:2"),
    Case("mixtral-8x7b"),
    Case("mixtral-8x7b", quantization="int8"),
]
ALONE = Case("llama-3.1-8b", slots=1, context=32768)
"""One long stream."""


OURS = re.compile("paged_attention_|experts_|grouped_|fp8_|^draw")
"""The names of our kernels: one or two for attention, two for experts, some for weights in groups or in fp8,
one for draws."""
KNOWN_WAITS = 7
"""Of general steps, for counts, marks, adjusted logits, draws, log-probabilities, stored logits, and scores
of prompts. Plain ones have none."""
LAUNCHES = {"llama-3.1-8b": (17, 23, 43), "mixtral-8x7b": (25, 35, 43)}
"""The most launches of a layer, of a layer in int8, and of everything else."""


def most_launches(case: Case) -> int:
    """Of a plain step with LAYERS layers."""
    in_layer, in_int8_layer, beside = LAUNCHES[case.model]
    return LAYERS * (in_int8_layer if case.quantization else in_layer) + beside


@cache
def compiled(case: Case, kind: str, *, plain: bool = True, cublas: bool = False) -> KeptStep:
    """A case's largest step of a kind."""
    builder = KeepingBuilder(program_spec(case.sizing()), compiles=True)
    builder.options = {"xla_gpu_enable_triton_gemm": False} if cublas else {}
    decode, mixed = case.sizing().largest
    bucket = replace(decode if kind == "decode" else mixed, plain=plain)
    assert bucket in case.sizing().shapes.buckets()
    return builder.compile(builder.lower(builder.trace(bucket)))


@pytest.mark.parametrize("kind", ["decode", "mixed"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_real_step_compiles_for_the_gpu(case: Case, kind: str) -> None:
    """Donated state, temporaries within the estimate, our kernels, few launches, and the host never waits."""
    step, sizing = compiled(case, kind), case.sizing()
    memory, text = step.memory_analysis(), step.as_text()
    pool = sizing.costs.token_bytes() * sizing.shapes.page_size * (sizing.memory.pages + 1)
    state = pool + sizing.memory.state + sizing.memory.pages + 1
    assert 0 <= memory.alias_size_in_bytes - state <= 8192
    reserved = max(temporary_bytes(sizing.config, each, case.size, itemsize=2) for each in sizing.largest)
    assert memory.temp_size_in_bytes <= reserved
    kernels = [name for name in step.assembled if OURS.search(name)]
    assert len(kernels) == (1 if kind == "decode" else 2) + (2 if sizing.config.moe else 0) + 1
    calls = LAYERS * (len(kernels) - 1) + 1  # one of them draws
    assert text.count('custom_call_target="__gpu$xla.gpu.triton"') == calls
    assert sum(launches_of(text).values()) <= most_launches(case)
    assert not waits_of(text)


@pytest.mark.parametrize("kind", ["decode", "mixed"])
def test_a_general_step_waits_for_its_conditions_only(kind: str) -> None:
    """Its state is donated, and its temporaries are within the estimate, too."""
    step, sizing = compiled(CASES[0], kind, plain=False), CASES[0].sizing()
    memory = step.memory_analysis()
    assert memory.alias_size_in_bytes > sizing.memory.pages * sizing.memory.page
    assert memory.temp_size_in_bytes <= max(
        temporary_bytes(sizing.config, each, 1, itemsize=2) for each in sizing.largest
    )
    assert len(waits_of(step.as_text())) <= KNOWN_WAITS


@pytest.mark.parametrize("kind", ["decode", "mixed"])
@pytest.mark.parametrize("topology", ["h100:1", "l4:2"])
@pytest.mark.parametrize("model", ["llama-3.1-8b", "mixtral-8x7b"])
def test_weights_in_groups_are_read_by_kernels(model: str, topology: str, kind: str) -> None:
    """Four products of a layer, or two and those of experts, and the head."""
    check_bytes(Case(model, topology, quantization="int4"), kind, "grouped_", heads=1)


@pytest.mark.parametrize("kind", ["decode", "mixed"])
@pytest.mark.parametrize("topology", ["h100:1", "l4:2", "a100:2"])
@pytest.mark.parametrize("model", ["llama-3.1-8b", "mixtral-8x7b"])
@pytest.mark.parametrize("quantization", ["fp8", "fp8-blocks"])
def test_fp8_weights_are_read_by_kernels(
    quantization: Quantization, model: str, topology: str, kind: str
) -> None:
    """The same without the head, which is wide; on GPUs without a type of fp8 too."""
    check_bytes(Case(model, topology, quantization=quantization), kind, "fp8_", heads=0)


def check_bytes(case: Case, kind: str, prefix: str, *, heads: int) -> None:
    """Kernels without spilled registers; temporaries are within the estimate, which knows nothing of widened
    weights, and the host never waits."""
    step, sizing = compiled(case, kind), case.sizing()
    text, moe = step.as_text(), sizing.config.moe is not None
    attention = text.count('custom_call_target="__gpu$xla.gpu.triton"') - (1 + heads + LAYERS * 4)
    assert attention in (LAYERS, 2 * LAYERS, 4 * LAYERS) and not waits_of(text)
    assert any(name.startswith(prefix) for name in step.assembled)
    assert any(name.startswith("experts_") for name in step.assembled) == moe
    ours = {name: report for name, report in step.assembled.items() if OURS.search(name)}
    assert all("0 bytes spill stores" in report for report in ours.values())
    estimate = temporary_bytes(sizing.config, sizing.largest[kind == "mixed"], case.size, itemsize=2)
    assert step.memory_analysis().temp_size_in_bytes <= estimate


@pytest.mark.parametrize(
    "case, kind, cublas",
    [(case, kind, False) for case in CASES for kind in ("decode", "mixed")]
    + [(case, "decode", True) for case in (CASES[0], CASES[3])],
    ids=str,
)
def test_no_weight_and_no_pool_is_moved(case: Case, kind: str, cublas: bool) -> None:
    """Nothing of a weight's or a pool's shape is copied, transposed or joined at every step.

    XLA joins the weights of products of the same rows: in Triton's products while they are read; for cuBLAS
    it writes them.
    """
    sizing = case.sizing()
    builder = KeepingBuilder(program_spec(sizing), compiles=False)
    placed = zip(builder.leaves, builder._skeleton.specs(), strict=True)
    shares = [NamedSharding(builder.mesh, spec).shard_shape(leaf.shape) for leaf, spec in placed]
    shapes = {tuple(sorted(axis for axis in share if axis > 1)) for share in shares}
    config, pages = sizing.config, sizing.memory.pages + 1
    pool = pages, sizing.shapes.page_size, 2 * config.kv_heads // case.size, config.head_size
    shapes.add(tuple(sorted(pool)))
    moved = moves_of(compiled(case, kind, cublas=cublas).as_text(), MIB)
    assert not [move for move in moved if move[0] in shapes or " leaves[" in move[2]]


@pytest.mark.parametrize("kind", ["decode", "mixed"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels_keep_their_registers(case: Case, kind: str) -> None:
    """None of ours spills; of XLA's own at most a few words."""
    for name, report in compiled(case, kind).assembled.items():
        spilled = sum(map(int, re.findall(r"(\d+) bytes spill stores", report)))
        assert spilled <= (0 if OURS.search(name) else 64), f"{name}: {report}"


def test_a_long_stream_is_divided_among_programs() -> None:
    """32 programs for each key head, and a second kernel that adds them up; few launches all the same."""
    step = compiled(ALONE, "decode")
    kernels = {name: report for name, report in step.assembled.items() if "paged_attention" in name}
    assert kernels.keys() == {"paged_attention_1x16_in_32", "paged_attention_sum_of_32"}
    assert all("0 bytes spill stores" in report for report in kernels.values())
    text = step.as_text()
    assert text.count('custom_call_target="__gpu$xla.gpu.triton"') == LAYERS * len(kernels) + 1
    assert sum(launches_of(text).values()) <= most_launches(ALONE)


def test_a_plan_for_a_gpu_has_the_compilers_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Temporaries of the compiled steps instead of an estimate, and the kernels by name."""
    monkeypatch.setattr(planning, "ProgramBuilder", KeepingBuilder)
    sizing = CASES[0].sizing()
    plan = make_plan("two layers", sizing.config, sizing.options)
    assert plan.fits and plan.method.startswith("compiled by jax-cuda13-plugin ") and plan.memory.measured
    steps = [compiled(CASES[0], kind, plain=False) for kind in ("decode", "mixed")]
    sizes = [step.memory_analysis().temp_size_in_bytes for step in steps]
    assert plan.memory.temporaries == max(sizes)
    assert all("paged_attention_1x16" in program.kernels for program in plan.programs)
