"""The state of a request in the engine, and its share of a step.

Plain records without a clock or JAX, which scheduler, packing and engine share.
"""

from dataclasses import dataclass, field

import numpy as np

from ..request import CacheMiss, Request
from .adapters import HostAdapter
from .constraints import Matcher
from .drafts import Drafter
from .pages import Content
from .scores import PromptScores


@dataclass(eq=False, slots=True)
class Sequence:
    """The state of one request in the engine.

    Attributes:
      limit: the maximum number of tokens, prompt included.
      tokens: the prompt and every generated token that the host has read.
      computed: how many tokens have their keys and values computed by the steps dispatched so far; drafts in
        flight are included.
      pending: samples dispatched but not yet read; the newest of them is the input that follows `tokens`.
      pages: its pages, in order. slot: its row of the device's state, None while it waits.
      new_slot: it has a slot, but no row yet since it received it.
      contents: the content of its first pages when they are full, as far as computed (see `prefix.py`).
      published: how many of its pages others can find.
      cached: how many of its tokens were in the cache when it first received a slot; None before that.
      miss: why not more of them were. written: how many of the prompt's it adds, in full pages.
      submitted: when it arrived, by `time.monotonic`. waited: seconds from then to its first step.
      drafter: proposes its next tokens.
      matcher: its position in its grammar; None without a grammar.
      scores: the requested results for the prompt's tokens; None if there are none.
      device_seconds, page_seconds: what it has used here, see `accounts.py`.
      adapter: computes it; None: the base model alone. place: the adapter's place on the device, while it
        has a slot; -1: none.
      ends: ids that end it; a set, because there can be many and each new token is looked up.
    """

    request: Request
    seed: int
    limit: int
    arrival: int
    tokens: list[int] = field(default_factory=list)
    computed: int = 0
    pending: int = 0
    pages: list[int] = field(default_factory=list)
    slot: int | None = None
    new_slot: bool = False
    contents: list[Content] = field(default_factory=list)
    published: int = 0
    cached: int | None = None
    miss: CacheMiss | None = None
    written: int = 0
    submitted: float = 0.0
    waited: float | None = None
    drafter: Drafter = field(default_factory=Drafter)
    matcher: Matcher | None = None
    scores: PromptScores | None = None
    device_seconds: float = 0.0
    page_seconds: float = 0.0
    finished: bool = False
    adapter: HostAdapter | None = None
    place: int = -1
    ends: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        params = self.request.params
        self.ends = frozenset(() if params.ignore_eos else params.stop_ids)

    @property
    def length(self) -> int:
        """Tokens including those sampled but not yet read."""
        return len(self.tokens) + self.pending

    @property
    def missing(self) -> int:
        """Tokens that must still be computed before the next sample."""
        return self.length - self.computed

    @property
    def draftable(self) -> bool:
        """Whether drafts are possible: not if a choice depends on the tokens before it."""
        return self.matcher is None and not self.request.params.penalises


class SequenceFault(Exception):
    """An error on the host in one sequence, before anything of it was dispatched; see its cause."""

    def __init__(self, sequence: Sequence) -> None:
        super().__init__(f"request {sequence.request.id!r} cannot be computed")
        self.sequence = sequence


def reason_of(error: BaseException) -> str:
    """An exception as the text of an error event."""
    return f"{type(error).__name__}: {error}"


@dataclass(frozen=True, slots=True)
class Row:
    """A sequence's share of one step: `count` tokens from position `start`.

    Attributes:
      samples: it ends in a sample. first: it is the sequence's first row in this slot.
      drafts: the last tokens of the count, if they are drafts: then each of them, and the token before
        them, has a sample of its own.
    """

    sequence: Sequence
    slot: int
    start: int
    count: int
    samples: bool
    first: bool = False
    drafts: tuple[int, ...] = ()

    @property
    def awaits_mask(self) -> bool:
        """Whether its sample waits for a grammar's mask."""
        return self.samples and self.sequence.matcher is not None

    @property
    def scored(self) -> bool:
        """Whether its prompt tokens are scored."""
        return self.sequence.scores is not None and self.start < len(self.sequence.request.prompt)

    @property
    def plain(self) -> bool:
        """Whether it is greedy or just draws: no adjusted logits, log-probabilities, masks or scores."""
        params = self.sequence.request.params
        return not (params.adjusts or params.logprobs is not None or self.awaits_mask or self.scored)


@dataclass(frozen=True, slots=True)
class Copies:
    """Copies between the pool and host memory.

    Attributes:
      restored: pages of the pool with their bytes, u8 `[bytes of a page]`; before a step.
      saved: pages of the pool with their content; after a step.
    """

    restored: list[tuple[int, np.ndarray]]
    saved: list[tuple[int, Content]]


@dataclass(frozen=True, slots=True)
class Plan:
    """The host's decision for one step, and the copies that go with it.

    Attributes:
      held: the sequences that hold pages during the step, those of the rows first, and how many.
      loads: the adapters that are loaded before it, with their places.
    """

    rows: list[Row]
    copies: Copies | None = None
    held: list[tuple[Sequence, int]] = field(default_factory=list)
    loads: list[tuple[int, HostAdapter]] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Tokens in the step, padding not counted."""
        return sum(row.count for row in self.rows)

    @property
    def is_decode(self) -> bool:
        """Whether every token has a sample of its own."""
        return all(row.samples and row.count == 1 + len(row.drafts) for row in self.rows)

    @property
    def plain(self) -> bool:
        """Whether every row is plain."""
        return all(row.plain for row in self.rows)

    @property
    def adapted(self) -> bool:
        """Whether any row has an adapter."""
        return any(row.sequence.adapter is not None for row in self.rows)

    @property
    def drafted(self) -> bool:
        """Whether any token is a draft."""
        return any(row.drafts for row in self.rows)

    @property
    def scored(self) -> bool:
        """Whether any prompt tokens are scored."""
        return any(row.scored for row in self.rows)
