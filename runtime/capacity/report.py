"""The contents of a plan as plain values, for the table, for JSON and for scripts. No JAX.

All values are in bytes and seconds; unknown ones are None.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """What JAX and XLA report about one real step, on one device.

    Attributes:
      step: the bucket, such as `decode(64)`. how: `compiled …` or `lowered …`. seconds: the time for that.
      arguments, temporaries, aliased, code: bytes that the compiled program needs; `aliased` are the
        arguments that it updates in place. None if it was only lowered.
      operations, accessed: XLA's own estimate for the compiled or lowered program.
      collectives: `(kind, count, bytes of one)`.
      kernels: custom kernels by name, which that estimate does not include.
      loops: dynamic loops, which it counts as one iteration each.
      traffic: bytes to and from memory by purpose, from the program compiled for a TPU (see `hlo.py`).
      kernel_bytes: bytes that the TPU's attention kernel reads in the planned step (see `walk.py`).
      ideal: bytes of the weights and of the live cache in that step, each read once.
    """

    step: str
    how: str
    seconds: float
    arguments: int | None = None
    temporaries: int | None = None
    aliased: int | None = None
    code: int | None = None
    operations: float | None = None
    accessed: float | None = None
    collectives: tuple[tuple[str, int, int], ...] = ()
    kernels: Mapping[str, int] = field(default_factory=dict)
    loops: int = 0
    traffic: Mapping[str, float] | None = None
    kernel_bytes: int | None = None
    ideal: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes on each device.

    Attributes:
      limit: what a program can use. weights, state: the model, and the state besides the cache.
      page, pages: of the KV pool: bytes of one, and the number of pages. temporaries, code: of the largest
        step. measured: whether the last two come from a compiled program.
    """

    limit: int
    weights: int
    state: int
    page: int
    pages: int
    temporaries: int
    code: int
    measured: bool

    @property
    def cache(self) -> int:
        """Bytes of all pages, the trash page included."""
        return self.page * (self.pages + 1)

    @property
    def used(self) -> int:
        """The sum of all parts."""
        return self.weights + self.state + self.cache + self.temporaries + self.code


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One step at the roofline.

    Attributes:
      name: what it does. memory, compute, links: seconds. total: of the step. bound: the slowest part.
      bytes, operations: by purpose, on one device.
    """

    name: str
    memory: float
    compute: float
    links: float
    total: float
    bound: str
    bytes: Mapping[str, float]
    operations: Mapping[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """The best possible speed with a number of streams.

    Attributes:
      streams: sequences that decode together. token: seconds from token to token. speed: generated tokens/s
        while nothing else runs. sustained: tokens/s including the steps for prompts. chip: the latter, per
        device.
    """

    streams: int
    token: float
    speed: float
    sustained: float
    chip: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The whole plan.

    Attributes:
      model, topology, quantize, kv_cache_dtype, dtype: the options. chips: the number of devices.
      method: the source of the figures.
      context, slots, prompt, completion: tokens, sequences, tokens, tokens.
      fits: whether it runs. short: what is missing if it does not. remedies: options that would fit.
      memory: the bytes by purpose. full, typical: the number of sequences that fit in the pages at the full
        context, and at `prompt + completion` tokens.
      steps: decode at `slots` rows, and the prompt's chunks. first_token: seconds of one prompt's chunks.
      rates: by number of streams; the last is the largest that fits. programs: what JAX and XLA report.
      kernels: `(operation, backend)` pairs. notes: remarks for the reader.
    """

    model: str
    topology: str
    chips: int
    quantize: str | None
    kv_cache_dtype: str | None
    dtype: str
    method: str
    context: int
    slots: int
    prompt: int
    completion: int
    fits: bool
    short: str | None
    remedies: tuple[str, ...]
    memory: Memory
    full: int
    typical: int
    steps: tuple[Step, ...] = ()
    first_token: float | None = None
    rates: tuple[Rate, ...] = ()
    programs: tuple[Program, ...] = ()
    kernels: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Everything, as a JSON object."""
        sums = {"cache": self.memory.cache, "used": self.memory.used}
        found = asdict(self)
        return found | {"memory": found["memory"] | sums}
