"""Makes a plan for a model, devices and options: what fits, the best speed, and what JAX and XLA report.

Times come from the analytic model at the roofline; memory comes from the compiled program if there is a
compiler.
"""

from collections.abc import Iterator
from dataclasses import replace

import jax

from ...model.config import ModelConfig
from ..device.buckets import Bucket
from .compilers import can_compile
from .program import ProgramBuilder, ProgramSpec
from .report import Memory, Plan, Program
from .sizing import PlanOptions, Sizing, find_chip
from .timing import Timing
from .walk import pages_fetched
from .work import Span

RAGGED = "ragged_paged_attention_kernel"
"""The name of the TPU's attention kernel in a trace."""

_ABSENT = {
    "tpu": "libtpu is not installed (extra tpu-aot)",
    "gpu": "XLA's compiler for GPUs is not installed (extra cuda-aot)",
}


def make_plan(model: str, config: ModelConfig, options: PlanOptions) -> Plan:
    """Plans a model; `model` is its name in the plan.

    Raises:
      ConfigError: an option that the model or the engine does not support.
    """
    sizing = Sizing(config, options, find_chip(options))
    memory, programs, short = sizing.memory, (), sizing.shortage()
    kernels: tuple[tuple[str, str], ...] = ()
    if short is None:
        builder = ProgramBuilder(program_spec(sizing), compiles=options.compile and can_compile(sizing.chip))
        kernels = builder.kernels
        try:
            programs = tuple(_build(builder, sizing, bucket) for bucket in sizing.largest)
            memory = _measured(sizing, programs)
            short = sizing.shortage(memory)
        except jax.errors.JaxRuntimeError as error:
            short = _overflow(error)
    return _answer(model, sizing, memory, programs, kernels, short)


def program_spec(sizing: Sizing) -> ProgramSpec:
    """The program that an engine of these sizes would compile."""
    return ProgramSpec(
        config=sizing.config,
        chip=sizing.chip,
        topology=sizing.options.topology,
        dtype=sizing.dtype,
        quantization=sizing.options.quantization,
        int8_cache=sizing.options.int8_cache,
        shapes=sizing.shapes,
        pages=sizing.memory.pages,
    )


def _build(builder: ProgramBuilder, sizing: Sizing, bucket: Bucket) -> Program:
    """A step's program, with the ideal bytes of a step: every slot half way, or one chunk."""
    program = builder.build(bucket)
    options, shapes = sizing.options, sizing.shapes
    chunk = min(options.prompt, bucket.tokens)
    spans: list[Span] = [(chunk, chunk)]
    if bucket.kind == "decode":
        spans = [(1, options.prompt + options.completion // 2)] * bucket.rows
    needed = sizing.costs.step(spans, tokens=bucket.tokens, sampled=bucket.rows).bytes
    program = replace(program, ideal=needed["weights"] + needed["cache read"])
    if RAGGED not in program.kernels:
        return program
    pages = pages_fetched(spans, tokens=bucket.tokens, page_size=shapes.page_size, table=shapes.table)
    return replace(program, kernel_bytes=pages * sizing.memory.page)


def _measured(sizing: Sizing, programs: tuple[Program, ...]) -> Memory:
    """The memory, with figures of the compiled programs instead of estimates."""
    if any(program.temporaries is None for program in programs):
        return sizing.memory
    return replace(
        sizing.memory,
        temporaries=max(program.temporaries or 0 for program in programs),
        code=sum(program.code or 0 for program in programs),
        measured=True,
    )


def _overflow(error: Exception) -> str:
    """The compiler's message for a program that does not fit; raises any other error again."""
    if "RESOURCE_EXHAUSTED" not in str(error):
        raise error
    return str(error).splitlines()[0].partition(": ")[2]


def _answer(
    model: str,
    sizing: Sizing,
    memory: Memory,
    programs: tuple[Program, ...],
    kernels: tuple[tuple[str, str], ...],
    short: str | None,
) -> Plan:
    options = sizing.options
    found = Plan(
        model=model,
        topology=str(options.topology),
        chips=options.topology.size,
        quantize=str(options.quantization) if options.quantization else None,
        kv_cache_dtype="int8" if options.int8_cache else None,
        dtype=sizing.dtype,
        method=programs[0].how if programs else "counted from shapes alone",
        context=sizing.context,
        slots=sizing.shapes.slots,
        prompt=options.prompt,
        completion=options.completion,
        fits=short is None,
        short=short,
        remedies=() if short is None else tuple(sizing.remedies()),
        memory=memory,
        full=sizing.sequences(sizing.context),
        typical=sizing.sequences(options.prompt + options.completion),
        kernels=kernels,
        programs=programs,
    )
    if short is not None:
        return found
    timing = Timing(sizing)
    notes = tuple(_notes(sizing, found, timing.streams()[-1]))
    return replace(
        found, steps=timing.steps(), first_token=timing.first_token, rates=timing.rates(), notes=notes
    )


def _notes(sizing: Sizing, found: Plan, streams: int) -> Iterator[str]:
    if not found.memory.measured:
        absent = None if can_compile(sizing.chip) else _ABSENT.get(sizing.chip.platform)
        yield f"{absent or 'nothing was compiled'}: temporaries are a guess"
    ragged = dict(found.kernels).get("attention") == "ragged"
    if ragged and any(RAGGED not in program.kernels for program in found.programs):
        yield (
            "attention runs in the portable loop, since the TPU kernel does not take these shapes "
            f"(page tables of {sizing.shapes.slots} x {sizing.shapes.table}, heads of "
            f"{sizing.config.head_size}; see docs/kernels.md)"
        )
    if streams < found.slots:
        yield f"the pool holds fewer requests of this length than there are slots, {found.slots}"
