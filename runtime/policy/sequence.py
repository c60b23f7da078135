"""A request on its way through the engine, and its share of a step.

Plain records without a clock or JAX: what scheduler, packing and engine speak of.
"""

from dataclasses import dataclass, field

from ..request import Request
from .constraints import Matcher
from .drafts import Drafter
from .pages import Content
from .scores import PromptScores


@dataclass(eq=False, slots=True)
class Sequence:
    """One request on its way through the engine.

    Attributes:
      limit: the most tokens it may reach, prompt included.
      tokens: the prompt and every generated token that the host has seen.
      computed: how many of its tokens have their keys and values computed by steps dispatched so far; while
        drafts are under way, drafts included.
      pending: samples dispatched but not yet seen; the newest of them is the input that follows `tokens`.
      pages: its pages, in order. slot: its row of the device's state, None while it waits.
      seated: it has a slot, and no row yet since it got it.
      contents: what its first pages hold once they are full, as far as somebody asked (see `prefix.py`).
      published: how many of its pages others can find.
      cached: how many tokens it found computed when it was first seated; None before that.
      submitted: when it came, by the engine's clock. waited: seconds from then to its first step.
      drafter: guesses its next tokens.
      matcher: where it stands in its grammar; None for a sequence that may say anything.
      scores: what was asked of the prompt's tokens; None where nothing was.
      ends: ids that end it. There may be as many as the vocabulary has, and each token is looked up.
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
    submitted: float = 0.0
    waited: float | None = None
    drafter: Drafter = field(default_factory=Drafter)
    matcher: Matcher | None = None
    scores: PromptScores | None = None
    finished: bool = False
    ends: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        params = self.request.params
        self.ends = frozenset(() if params.ignore_eos else params.stop_ids)

    @property
    def length(self) -> int:
        """Tokens including those sampled but not yet seen."""
        return len(self.tokens) + self.pending

    @property
    def missing(self) -> int:
        """Tokens that must still be computed before the next sample."""
        return self.length - self.computed

    @property
    def draftable(self) -> bool:
        """Whether drafts can stand for its next tokens: not where a choice depends on those before."""
        return self.matcher is None and not self.request.params.penalises


class SequenceFault(Exception):
    """The host has failed at a sequence, before the device was given anything of it. Its cause says how."""

    def __init__(self, sequence: Sequence) -> None:
        super().__init__(f"request {sequence.request.id!r} cannot be computed")
        self.sequence = sequence


def reason_of(error: BaseException) -> str:
    """An exception in the words of an error event."""
    return f"{type(error).__name__}: {error}"


@dataclass(frozen=True, slots=True)
class Row:
    """A sequence's share of one step: `count` tokens from position `start`.

    Attributes:
      samples: it ends in a sample. first: it is the sequence's first since it was seated.
      drafts: the last tokens of the count, if they are guesses: then each of them, and the token before
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
    def held(self) -> bool:
        """Its sample waits for a grammar's mask."""
        return self.samples and self.sequence.matcher is not None

    @property
    def scored(self) -> bool:
        """Something is asked of its tokens."""
        return self.sequence.scores is not None and self.start < len(self.sequence.request.prompt)


@dataclass(frozen=True, slots=True)
class Plan:
    """The host's decision for one step."""

    rows: list[Row]

    @property
    def tokens(self) -> int:
        """Tokens in the step, padding not counted."""
        return sum(row.count for row in self.rows)

    @property
    def is_decode(self) -> bool:
        """Every token has a sample of its own."""
        return all(row.samples and row.count == 1 + len(row.drafts) for row in self.rows)

    @property
    def drafted(self) -> bool:
        """Whether any token is a guess."""
        return any(row.drafts for row in self.rows)

    @property
    def scored(self) -> bool:
        """Something is asked of a prompt's tokens."""
        return any(row.scored for row in self.rows)
