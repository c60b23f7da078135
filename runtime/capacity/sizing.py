"""What fits: the engine's own rules for shapes and pool, applied to devices that need not exist here."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from ...model.config import ModelConfig
from ...model.errors import ConfigError
from ...model.parameters import INT4, INT8, Quantization
from ...model.sharding import pad_config
from ..device.buckets import Bucket, Shapes
from ..device.memory import (
    fitting_pages,
    reached_pages,
    reserved_bytes,
    state_bytes,
    temporary_bytes,
)
from ..device.settings import EngineSettings, derive_shapes, platform_of
from .chips import CHIPS, Chip, Topology, larger
from .host import measure_host
from .report import Memory
from .work import SIZES, CostModel


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanOptions:
    """The options of a plan.

    Attributes:
      topology: the devices. quantization: of linear weights. int8_cache: of keys and values.
      context, slots: as in `distaff serve`; None derives them.
      prompt, completion: tokens of a typical request.
      memory, bandwidth, rate: bytes, bytes/s, operations/s of one device, instead of its own.
      compile: whether to compile steps if there is a compiler.
    """

    topology: Topology
    quantization: Quantization | None = None
    int8_cache: bool = False
    context: int | None = None
    slots: int | None = None
    prompt: int = 1024
    completion: int = 256
    memory: float | None = None
    bandwidth: float | None = None
    rate: float | None = None
    compile: bool = True


def find_chip(options: PlanOptions) -> Chip:
    """The topology's chip, with the given figures instead of its own."""
    chip = CHIPS.get(options.topology.chip) or measure_host(options.topology.size)
    return replace(
        chip,
        memory=options.memory or chip.memory,
        bandwidth=options.bandwidth or chip.bandwidth,
        rate=chip.rate if options.rate is None else {dtype: options.rate for dtype in chip.rate},
    )


@dataclass(frozen=True, slots=True)
class _Kind:
    """A device of a platform, for the functions of the engine's settings."""

    platform: str

    def memory_stats(self) -> None:
        """Returns no figures."""


class Sizing:
    """The sizes of an engine.

    Attributes:
      config, options, chip: the model, the options and the device. shapes: of all steps. context: the longest
        sequence, in tokens. dtype: of activations. costs: the bytes and operations of its steps.

    Raises:
      ConfigError: an option that the model or the engine does not support.
    """

    def __init__(self, config: ModelConfig, options: PlanOptions, chip: Chip) -> None:
        self.config, self.options, self.chip = config, options, chip
        kind = _Kind(chip.platform)
        settings = EngineSettings(slots=options.slots, context=options.context, grammars=True, scores=True)
        self.shapes: Shapes = derive_shapes(config, settings, kind)
        self.context = options.context or config.context
        if options.prompt + options.completion > self.context:
            raise ConfigError(
                f"prompt {options.prompt} and completion {options.completion}; "
                f"expected at most the context, {self.context}, together"
            )
        self.dtype = platform_of(kind).dtype
        self.costs = CostModel(
            config=config,
            shards=options.topology.size,
            dtype=self.dtype,
            quantization=options.quantization,
            page_size=self.shapes.page_size,
            int8_cache=options.int8_cache,
        )

    @property
    def largest(self) -> tuple[Bucket, Bucket]:
        """The largest steps: decode at all slots, and a whole budget of prompts."""
        mixed, decode = self.shapes.buckets()[:2]
        return decode, mixed

    @cached_property
    def memory(self) -> Memory:
        """The bytes by purpose, derived from shapes."""
        weights, page = self.costs.weight_bytes(), self.costs.token_bytes() * self.shapes.page_size
        shards, itemsize, platform = self.options.topology.size, SIZES[self.dtype], self.chip.platform
        config, padded = self.config, pad_config(self.config, shards)
        free = int(self.chip.memory) - weights
        free = max(0, free - reserved_bytes(platform, padded, self.shapes, shards, itemsize))
        fitting = fitting_pages(free, page, platform)
        if self.options.int8_cache:
            fitting = reached_pages(fitting, platform, padded, self.shapes, shards)
        useful = self.shapes.slots * self.shapes.table
        return Memory(
            limit=int(self.chip.memory),
            weights=weights,
            state=state_bytes(config, self.shapes.slots),
            page=page,
            pages=min(useful, fitting),
            temporaries=max(temporary_bytes(config, each, shards, itemsize) for each in self.largest),
            code=0,
            measured=False,
        )

    def shortage(self, memory: Memory | None = None) -> str | None:
        """What is missing, as a sentence; None if it fits."""
        memory, shapes = memory or self.memory, self.shapes
        if memory.weights > memory.limit:
            return f"the weights take {gib(memory.weights)} of {gib(memory.limit)} on each device"
        if memory.pages < max(shapes.table, shapes.slots):
            return (
                f"besides the weights there is room for {memory.pages} pages of {shapes.page_size} tokens; "
                f"{shapes.slots} slots need one each, and a sequence of {self.context} tokens {shapes.table}"
            )
        if memory.used > memory.limit:
            return f"weights, cache and a step's temporaries take {gib(memory.used)} of {gib(memory.limit)}"
        return None

    def sequences(self, tokens: int) -> int:
        """The number of sequences of this length that fit in the pool."""
        return self.memory.pages // -(-tokens // self.shapes.page_size)

    def remedies(self) -> Iterator[str]:
        """Options that would fit, by the sizes: more devices, fewer bits, shorter or fewer sequences."""
        options = self.options
        for topology in larger(options.topology):
            if self._fits(topology=topology):
                yield f"--topology {topology}"
                break
        for quantization in (INT8, INT4):
            if options.quantization is None and self._fits(quantization=quantization):
                yield f"--quantize {quantization}"
                break
        if not options.int8_cache and self._fits(int8_cache=True):
            yield "--kv-cache-dtype int8"
        context = self.context // 2
        while context >= options.prompt + options.completion:
            if self._fits(context=context):
                yield f"--context {context}"
                break
            context //= 2
        if self.shapes.slots > 1 and self._fits(slots=self.shapes.slots // 2):
            yield f"--slots {self.shapes.slots // 2}"

    def _fits(self, **changes: object) -> bool:
        options = replace(self.options, **changes)  # type: ignore[arg-type]
        try:
            return Sizing(self.config, options, self.chip).shortage() is None
        except ConfigError:  # weights that have no whole groups
            return False


def gib(size: float) -> str:
    """Bytes as text, in GiB."""
    return f"{size / (1 << 30):.2f} GiB"
