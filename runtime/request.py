"""The engine's requests and events, in token ids. No text, no HTTP, no JAX.

Research scripts build these frozen types, the server sends them over the wire, the engine consumes them. One
`Request` is one sequence. Several choices of one prompt are several requests with the same seed and the
choices 0, 1, 2 …
"""

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, Literal

from ..model.errors import DistaffError

MAX_TOP_LOGPROBS = 20
"""The maximum number of alternatives per token that a step reports (OpenAI's limit)."""
MAX_BIAS = 100
"""The largest bias of a logit, up or down (OpenAI's limit)."""
MAX_TEMPERATURE = 1e6
"""The highest temperature; at a tenth of it all tokens are already equally likely."""
NOT_FINITE, IMPOSSIBLE = -1, -2
"""Sampled in place of a token: the logits are not finite; no token is allowed."""

FinishReason = Literal["stop", "length", "error"]


class InvalidRequest(DistaffError):
    """A request that can never be served. `param` names the invalid field."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


class EngineError(DistaffError):
    """The engine cannot take or finish a request."""


class Overloaded(EngineError):
    """There is no capacity; the same request can succeed later, after at least `retry_after` seconds."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NotReady(EngineError):
    """The engine is loading, restarting or draining. Requests may succeed in `retry_after` seconds."""

    def __init__(self, message: str, retry_after: float = 5.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class EngineFailed(EngineError):
    """The engine ended, or failed this request, after accepting it."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """The values that a numeric parameter can have.

    Attributes:
      low, high: the smallest and the largest value; `high` can name a parameter that holds it.
      kind: int or float. packed: every row of a step's input has a place of that name for it, i32 or f32.
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
      max_tokens: the most tokens to generate, at least 1; None continues to the end of the context.
      temperature: 0 takes the most likely token.
      top_p: nucleus, 0 < top_p <= 1 (0 means the most likely token). top_k: 0 for no limit.
      min_p: drops tokens less likely than min_p times the most likely one.
      frequency_penalty, presence_penalty: `logit -= count * frequency + (count > 0) * presence`, counted
        over generated tokens.
      repetition_penalty: logits of tokens in the prompt or generated are divided by it where positive, else
        multiplied (Keskar et al. 2019, arXiv:1909.05858); before the other two.
      logit_bias: `(id, value)` pairs; the value is added to the logit.
      allowed_ids: no other id is generated; None for no such limit.
      min_tokens: at most max_tokens; before that many tokens none of stop_ids is generated, unless the
        grammar allows nothing else.
      seed: any integer of 64 bits; None draws one when the request is accepted.
      grammar: the allowed text, in the format of the engine's grammar compiler (see `constraints.py`).
      logprobs: None for none, else how many alternatives to report with the chosen token. They are of the
        model's own distribution, before temperature and penalties.
      prompt_logprobs: the same for the prompt's tokens; they come with the first event.
      pool_prompt: the mean of the prompt's final hidden states comes with the first event.
      stop_ids: ids that end the sequence (the model's end tokens); the ending id is not one of its tokens.
      ignore_eos: continue after stop_ids.
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
        """Whether the generated tokens must be counted."""
        return bool(self.frequency_penalty or self.presence_penalty or self.repetition_penalty != 1.0)

    @property
    def adjusts(self) -> bool:
        """Whether logits are changed before the draw, other than by a grammar."""
        biased = bool(self.logit_bias) or self.allowed_ids is not None
        return self.penalises or biased or bool(self.min_tokens and self.stop_ids)

    @property
    def scores_prompt(self) -> bool:
        """Whether the request needs a result for every token of the prompt."""
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


Rank = tuple[bool, int]
"""Whether a request is a background one, and its priority."""


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
      generated: the tokens after the prompt that this engine or another has already generated. The sequence
        continues after them as if it had never been interrupted. `params` are those of the whole sequence,
        and should include the seed. What the first event reports of the prompt is not reported again.
      interrupted: it had begun on a server that was lost, with or without tokens.
      client: the owner of the request; when pages run out, the client that holds the most loses pages first.
      session: the conversation that it belongs to; requests of one prefer the same engine. Empty for none.
      keep_seconds: so long after its end its pages are evicted only after those of others.
      background: it runs only where other requests leave room, and makes way for them.
      priority: requests with a lower value are served earlier (vLLM's order), and others make way for them.
      weight: the client's part of what is shared, relative to those of other clients; greater than 0.
      adapter: the id of the LoRA adapter that computes it; empty for the base model.

    The server sees to background, priority and weight. An engine, which receives no more requests than it has
    slots, only takes pages from the worst rank first.
    """

    id: str
    prompt: tuple[int, ...]
    params: SamplingParams = field(default_factory=SamplingParams)
    choice: int = 0
    cache_salt: str = ""
    generated: tuple[int, ...] = ()
    interrupted: bool = False
    client: str = ""
    session: str = ""
    keep_seconds: float = 0.0
    background: bool = False
    priority: int = 0
    weight: float = 1.0
    adapter: str = ""

    @property
    def rank(self) -> Rank:
        """Its place in the strict order of requests: a lower rank comes first."""
        return self.background, self.priority


MissReason = Literal["new", "changed", "evicted", "scored", "off"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheMiss:
    """Why the rest of a prompt was not in the cache.

    Attributes:
      at: the first token of the prompt that was not found; it begins a page.
      reason: nothing has continued this prefix (`new`), other prompts have continued it in another way
        (`changed`), its pages were evicted, its tokens are scored, or the prefix cache is off.
    """

    at: int
    reason: MissReason


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLogprobs:
    """Natural logarithms of probabilities under the model's own distribution.

    Attributes:
      chosen: of the chosen token.
      top: the most likely `(token id, logprob)` pairs, descending, as many as requested.
    """

    chosen: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenEvent:
    """What a request receives after a step: a token, an end, or both.

    Only the last event of a request has `finish`. How a sequence ends:

    - It generated one of its stop_ids: `finish="stop"`, no token, the id in `end`; `logprobs` are of that id.
    - Its grammar is complete: the last token and `finish="stop"`.
    - It reached its length: the last token and `finish="length"`.
    - It failed: `finish="error"` and the reason in `error`. `param` is the invalid parameter, if any.
      `lost` means that the whole engine failed or never accepted it: another engine can continue it.

    An aborted request receives no more events. The first event also reports how many tokens of the prompt
    were in the cache, how many it has written there, why not all of its full pages were found, how long the
    request waited for its first step in seconds, and the requested results for the prompt: log-probabilities
    of all but its first token, the mean of all hidden states. A request
    with `generated` tokens receives none of these.

    Each event reports what the request has used of this engine so far: `device_seconds`, its shares of the
    steps that have ended, and `page_seconds`, the pages that it held times the seconds of these steps.
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
    written_tokens: int = 0
    miss: CacheMiss | None = None
    waited: float | None = None
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None
    pooled: tuple[float, ...] | None = None
    device_seconds: float = 0.0
    page_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineStats:
    """A snapshot of the engine's load, sent with every step.

    Attributes:
      waiting: requests without a slot. running: requests with one.
      free_pages, kept_pages, total_pages: of the KV pool, the trash page not counted. Pages that are kept
        for a conversation are free, too: they are evicted after all others.
      steps: device steps since the start. preemptions: rows that lost their pages and were queued again.
      prompt_tokens, generated_tokens: processed since the start (recomputed prompts count again).
      cached_tokens: tokens of prompts that were in the cache and not processed.
      restored_pages: KV pages that came back from host memory.
      drafted_tokens, accepted_tokens: draft tokens, and those that were right.
      device_seconds: the time of all steps. page_seconds: the pages that sequences held, times that time.
      compilations: executables that the engine's thread has built; more than 0 is a defect.
      buckets_ready, buckets: compiled shapes of a step, and all shapes.
      decode_seconds: the time of a step in which every slot decodes, from a trial. prompt_seconds: that of a
        full step, per token of its prompts. 0.0 if unknown.
      seconds: the time of the engine's thread, by phase (see `phases.py`).
    """

    waiting: int = 0
    running: int = 0
    free_pages: int = 0
    kept_pages: int = 0
    total_pages: int = 0
    steps: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    cached_tokens: int = 0
    restored_pages: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    device_seconds: float = 0.0
    page_seconds: float = 0.0
    compilations: int = 0
    buckets_ready: int = 0
    buckets: int = 0
    decode_seconds: float = 0.0
    prompt_seconds: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)

    @classmethod
    def total(cls, snapshots: Sequence["EngineStats"]) -> "EngineStats":
        """The sum of several engines' snapshots. The times of steps differ, so they are 0.0: unknown."""
        apart = {"decode_seconds", "prompt_seconds", "seconds"}
        names = [each.name for each in fields(cls) if each.name not in apart]
        phases = {phase for stats in snapshots for phase in stats.seconds}
        return cls(
            seconds={phase: sum(stats.seconds.get(phase, 0.0) for stats in snapshots) for phase in phases},
            **{name: sum(getattr(stats, name) for stats in snapshots) for name in names},
        )


def draw_seed() -> int:
    """A fresh unsigned 64-bit seed, for a request without one."""
    return secrets.randbits(64)
