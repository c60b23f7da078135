"""What a plan says, as plain values: for the table, for JSON, for a script. No JAX.

Bytes and seconds throughout; what was not found out is None.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """What JAX and XLA make of one real step, on one device.

    Attributes:
      step: the bucket, as `decode(64)`. how: `compiled …` or `lowered …`. seconds: how long that took.
      arguments, temporaries, aliased, code: bytes that the compiled program needs, and what of the arguments
        it updates in place; None where it was only lowered.
      operations, accessed: XLA's own estimate, of the compiled or of the lowered program.
      collectives: `(kind, count, bytes of one)`.
      kernels: custom kernels by name, which that estimate does not see into.
      loops: dynamic loops, which it counts as one turn each.
      traffic: bytes to and from memory by what they are for, read off the compiled program (see `hlo.py`).
      kernel_bytes: what the TPU's attention kernel reads in the plan's step, by its own walk (see `walk.py`).
      ideal: bytes of the weights and of the live cache in that step, each once.
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
      limit: what a program may use. weights, state: the model, and what lives beside the cache.
      page, pages: of the KV pool: bytes of one, and how many there are. temporaries, code: of the step that
        needs most. measured: whether the last two come from a compiled program.
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
        """Of all pages, the trash page included."""
        return self.page * (self.pages + 1)

    @property
    def used(self) -> int:
        """All of it."""
        return self.weights + self.state + self.cache + self.temporaries + self.code


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One step at the roofline.

    Attributes:
      name: what it does. memory, compute, links: seconds. total: of the step. bound: what it waits for most.
      bytes, operations: by what they are for, on one device.
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
    """What a number of streams gets at best.

    Attributes:
      streams: sequences that decode together. token: seconds from token to token. speed: generated tokens/s
        while nothing else runs. sustained: tokens/s with the prompts' own steps between. chip: the latter,
        for each device.
    """

    streams: int
    token: float
    speed: float
    sustained: float
    chip: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The whole answer.

    Attributes:
      model, topology, quantize, kv_cache_dtype, dtype: what was asked. chips: how many.
      method: where the figures come from.
      context, slots, prompt, completion: tokens, sequences, tokens, tokens.
      fits: whether it runs. short: what is missing, where it does not. remedies: what would fit.
      memory: where the bytes go. full, typical: how many sequences the pages hold at the full context, and at
        `prompt + completion` tokens.
      steps: decode at `slots` rows, and the prompt's chunks. first_token: seconds of one prompt's chunks.
      rates: over numbers of streams, the last one the largest that fits. programs: what JAX and XLA say.
      kernels: `(operation, way)`. notes: what the reader must know.
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
        """Everything, as JSON has it."""
        sums = {"cache": self.memory.cache, "used": self.memory.used}
        found = asdict(self)
        return found | {"memory": found["memory"] | sums}
