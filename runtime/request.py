"""What is asked of the engine and what it answers, in token ids. No text, no HTTP, no JAX.

These few frozen types cross every boundary: research scripts build them, the server sends them over the
wire, the engine consumes them. One `Request` is one sequence; a caller who wants several choices of one
prompt submits several requests with the same seed and the choices 0, 1, 2 …
"""

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, Literal

from ..model.errors import DistaffError

MAX_TOP_LOGPROBS = 20
"""The most alternatives per token that a step reports (OpenAI's limit)."""

MAX_BIAS = 100
"""The largest bias of a logit, up or down (OpenAI's limit)."""

MAX_TEMPERATURE = 1e6
"""The highest temperature; at a tenth of it every token is as likely as any other already."""

NOT_FINITE, IMPOSSIBLE = -1, -2
"""What a step samples in place of a token: the logits are no numbers; no token may be drawn."""

FinishReason = Literal["stop", "length", "error"]


class InvalidRequest(DistaffError):
    """A request that can never be served. `param` names the field at fault."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


class EngineError(DistaffError):
    """The engine cannot take or finish a request."""


class Overloaded(EngineError):
    """There is no room; the same request may succeed later, at the soonest in `retry_after` seconds."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NotReady(EngineError):
    """The engine is loading, restarting or draining, and probably takes requests in `retry_after` seconds."""

    def __init__(self, message: str, retry_after: float = 5.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class EngineFailed(EngineError):
    """The engine was lost, or failed this request, after it had been accepted."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """The values that a numeric parameter can have.

    Attributes:
      low, high: the smallest and the largest value; `high` can name a parameter that holds it.
      kind: int or float. An int is also a valid float.
      packed: every row of a step's input has a place for it, under its own name, as i32 or f32.
    """

    low: float
    high: float | str
    kind: type
    packed: bool = False

    def check(self, params: "SamplingParams", name: str) -> None:
        """Raises InvalidRequest unless the parameter of this name is None or within the bounds."""
        value = getattr(params, name)
        if self.kind is int and value is not None and not isinstance(value, int):
            raise InvalidRequest(f"{name} is {value!r}; expected an integer", name)
        high = getattr(params, self.high) or math.inf if isinstance(self.high, str) else self.high
        _check_range(name, value, self.low, high)


def _number(default: float | None, low: float, high: float | str, kind: type, *, packed: bool = False) -> Any:
    return field(default=default, metadata={"bounds": Bounds(low, high, kind, packed)})


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """How one sequence is continued.

    Each numeric parameter is declared once, here: checks, layout and packing of a step's input follow from
    the declaration. What the sampler reads also has a field in `device.sampling.RowParams`.

    Attributes:
      max_tokens: the most tokens to generate, at least 1; None goes on to the context's end.
      temperature: 0 takes the most likely token.
      top_p: nucleus, 0 < top_p <= 1 (0 means the most likely token). top_k: 0 for no limit.
      min_p: drops tokens less likely than min_p times the most likely one.
      frequency_penalty, presence_penalty: `logit -= count * frequency + (count > 0) * presence`, counted
        over generated tokens.
      repetition_penalty: logits of tokens in the prompt or generated are divided by it where positive, else
        multiplied (Keskar et al. 2019, arXiv:1909.05858); before the other two.
      logit_bias: `(id, value)` pairs; the value is added to the logit.
      allowed_ids: no other id is generated; None for no such limit.
      min_tokens: none of stop_ids is generated before so many tokens, at most max_tokens; unless the grammar
        allows nothing else.
      seed: any integer of 64 bits; None draws one on admission.
      grammar: what may be generated, in the words of the engine's grammar compiler (see `constraints.py`).
      logprobs: None for none, else how many alternatives to report beside the chosen token. They are of the
        model's own distribution, before temperature and penalties.
      prompt_logprobs: the same for the prompt's tokens; they come with the first event.
      pool_prompt: the mean of the prompt's final hidden states comes with the first event.
      stop_ids: ids that end the sequence (the model's end tokens); the ending id is not one of its tokens.
      ignore_eos: generate on past stop_ids.
    """

    max_tokens: int | None = _number(None, 1, math.inf, int)
    temperature: float = _number(1.0, 0.0, MAX_TEMPERATURE, float, packed=True)
    top_p: float = _number(1.0, 0.0, 1.0, float, packed=True)
    top_k: int = _number(0, 0, 2**31 - 1, int, packed=True)
    min_p: float = _number(0.0, 0.0, 1.0, float, packed=True)
    frequency_penalty: float = _number(0.0, -2.0, 2.0, float, packed=True)
    presence_penalty: float = _number(0.0, -2.0, 2.0, float, packed=True)
    repetition_penalty: float = _number(1.0, 0.01, 100.0, float, packed=True)
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_ids: tuple[int, ...] | None = None
    min_tokens: int = _number(0, 0, "max_tokens", int)
    seed: int | None = _number(None, -(2**63), 2**64 - 1, int)
    grammar: str | None = None
    logprobs: int | None = _number(None, 0, MAX_TOP_LOGPROBS, int)
    prompt_logprobs: int | None = _number(None, 0, MAX_TOP_LOGPROBS, int)
    pool_prompt: bool = False
    stop_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        for name, limits in bounds(type(self)).items():
            limits.check(self, name)
        for _, value in self.logit_bias:
            _check_range("logit_bias", value, -MAX_BIAS, MAX_BIAS)

    @property
    def penalises(self) -> bool:
        """Whether what is generated must be counted."""
        return bool(self.frequency_penalty or self.presence_penalty or self.repetition_penalty != 1.0)

    @property
    def adjusts(self) -> bool:
        """Whether logits are changed before the draw, a grammar apart."""
        biased = bool(self.logit_bias) or self.allowed_ids is not None
        return self.penalises or biased or bool(self.min_tokens and self.stop_ids)

    @property
    def scores_prompt(self) -> bool:
        """Whether something is asked of every token of the prompt."""
        return self.prompt_logprobs is not None or self.pool_prompt


def _check_range(name: str, value: float | None, low: float, high: float) -> None:
    """Raises InvalidRequest unless value is None or low <= value <= high."""
    if value is not None and not low <= value <= high:
        raise InvalidRequest(f"{name} is {value!r}; expected {low} to {high}", name)


@cache
def bounds(params: type[SamplingParams] = SamplingParams) -> dict[str, Bounds]:
    """The numeric parameters and their bounds, in the order in which they are checked."""
    return {each.name: each.metadata["bounds"] for each in fields(params) if "bounds" in each.metadata}


def packed_parameters(params: type[SamplingParams] = SamplingParams) -> dict[str, type]:
    """The parameters that have a place in the rows of a step's input, each with int or float."""
    return {name: limits.kind for name, limits in bounds(params).items() if limits.packed}


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One sequence to continue.

    Attributes:
      id: unique among the requests in flight.
      prompt: token ids, at least one.
      params: how to continue it.
      choice: which of several continuations of one prompt this is (0 for the only one); with the seed and
        the position it keys every random draw.
      cache_salt: only requests with the same salt find each other's prompts in the cache.
      generated: what has been generated after the prompt before, by this engine or another: the sequence
        continues behind it as if it had never been interrupted. `params` are those of the whole sequence,
        and should name the seed. What the first event says of the prompt is not said again.
      client: whose request it is; where pages are short, those of the client that holds most are taken.
    """

    id: str
    prompt: tuple[int, ...]
    params: SamplingParams = field(default_factory=SamplingParams)
    choice: int = 0
    cache_salt: str = ""
    generated: tuple[int, ...] = ()
    client: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLogprobs:
    """Natural logarithms of probabilities under the model's own distribution.

    Attributes:
      chosen: of the token that was taken.
      top: the most likely `(token id, logprob)` pairs, descending, as many as were asked for.
    """

    chosen: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenEvent:
    """What a request hears after a step: a token, an end, or both.

    The last event of a request, and only that one, has `finish`. A sequence that ran into one of its
    stop_ids ends with `finish="stop"`, no token, and that id in `end`, whose the log-probabilities are; one
    whose grammar allows nothing more ends with the last token and `finish="stop"`; one that reached its
    length ends with the last token and `finish="length"`; one that failed ends with `finish="error"` and the
    reason in `error`, in `param` the parameter at fault if the request itself is, and `lost` if the engine as
    a whole failed, or never took it: another engine can continue it. An aborted request hears nothing more.
    The first event says how many tokens of the prompt were found in the cache, how many seconds the request
    waited for its first step, and what was asked of the prompt: the log-probability of each token but the
    first, the mean of all hidden states. No event of a request with `generated` tokens says any of this.
    """

    request_id: str
    token: int | None = None
    logprobs: TokenLogprobs | None = None
    finish: FinishReason | None = None
    end: int | None = None
    error: str | None = None
    param: str | None = None
    lost: bool = False
    cached_tokens: int = 0
    waited: float | None = None
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None
    pooled: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineStats:
    """A snapshot of the engine's load, sent with every step.

    Attributes:
      waiting: requests without a slot. running: requests with one.
      free_pages, total_pages: of the KV pool, the trash page not counted.
      steps: device steps since the start. preemptions: rows thrown back for want of pages.
      prompt_tokens, generated_tokens: processed since the start (recomputed prompts count again).
      cached_tokens: of prompts, found in the cache and not processed.
      drafted_tokens, accepted_tokens: guessed, and guessed right.
      compilations: executables that the engine's thread has built; anything but 0 is a defect.
      buckets_ready, buckets: shapes of a step that are compiled, and those that will be.
      decode_seconds: of a step in which every slot decodes, as a trial took it. prompt_seconds: of a full
        step, per token of the prompts in it. 0.0 where they are not known.
      seconds: of the engine's thread, by phase (see `phases.py`).
    """

    waiting: int = 0
    running: int = 0
    free_pages: int = 0
    total_pages: int = 0
    steps: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    cached_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    compilations: int = 0
    buckets_ready: int = 0
    buckets: int = 0
    decode_seconds: float = 0.0
    prompt_seconds: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)

    @classmethod
    def total(cls, snapshots: Sequence["EngineStats"]) -> "EngineStats":
        """The sum of several engines' snapshots; it says nothing of steps, which differ."""
        names = [each.name for each in fields(cls) if not each.name.endswith("seconds")]
        phases = {phase for stats in snapshots for phase in stats.seconds}
        return cls(
            seconds={phase: sum(stats.seconds.get(phase, 0.0) for stats in snapshots) for phase in phases},
            **{name: sum(getattr(stats, name) for stats in snapshots) for name in names},
        )


def draw_seed() -> int:
    """A fresh unsigned 64-bit seed, for a request that names none."""
    return secrets.randbits(64)
