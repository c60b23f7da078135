"""A tiny random Llama, its logits in plain float64 numpy, and a collector of the engine's events.

The reference computes the whole sequence at once, without cache, pages or batches, and shares none of
our code.
"""

import threading
from collections import defaultdict
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from distaff.model.config import ModelConfig
from distaff.model.parameters import parameter_shapes
from distaff.runtime.request import Request, SamplingParams, TokenEvent

CONFIG = ModelConfig(
    vocabulary=199, layers=2, width=32, feed_forward=48, heads=4, kv_heads=2, head_size=8, context=160
)
POISON = 198
"""An id with an embedding that is not a number; the head never prefers it."""
TOLERANCE = 1e-4
"""How far a token's logit can be below the reference's best one (of order 10) in float32."""


def make_weights() -> dict[str, np.ndarray]:
    """Random weights by name, large enough that every token before a position moves its logits."""
    generator = np.random.default_rng(7)
    weights = {name: generator.normal(size=shape) for name, shape in parameter_shapes(CONFIG).items()}
    for name, weight in weights.items():
        gain = 3.0 if name in ("embed", "head") else 1.5
        weight *= gain * weight.shape[0] ** -0.5 if weight.ndim == 2 else 0.3
        weight += 1.0 if weight.ndim == 1 else 0.0
    weights["embed"] *= 4
    weights["head"][:, POISON] = 0
    return weights


WEIGHTS = make_weights()


def make_parameters() -> dict[str, jax.Array]:
    """The same weights for the engine, with the poison in them."""
    embed = WEIGHTS["embed"].copy()
    embed[POISON] = np.nan
    return {name: jnp.asarray(w, jnp.float32) for name, w in (WEIGHTS | {"embed": embed}).items()}


def reference_logits(tokens: Sequence[int]) -> np.ndarray:
    """Logits after every prefix of the tokens: f64 `[T, V]`."""
    x = WEIGHTS["embed"][list(tokens)]
    for layer in range(CONFIG.layers):
        w = {n.split(".", 2)[2]: v for n, v in WEIGHTS.items() if n.startswith(f"layers.{layer}.")}
        x = x + _attention(_norm(x, w["attention_norm"]), w)
        h = _norm(x, w["feed_forward_norm"])
        gate = h @ w["feed_forward.gate"]
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w["feed_forward.up"])) @ w["feed_forward.down"]
    return _norm(x, WEIGHTS["norm"]) @ WEIGHTS["head"]


def _norm(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + CONFIG.norm_epsilon) * scale


def _attention(x: np.ndarray, w: dict[str, np.ndarray]) -> np.ndarray:
    length, group = len(x), CONFIG.heads // CONFIG.kv_heads
    q = _rotate((x @ w["attention.q"]).reshape(length, CONFIG.heads, -1))
    k = _rotate((x @ w["attention.k"]).reshape(length, CONFIG.kv_heads, -1)).repeat(group, 1)
    v = (x @ w["attention.v"]).reshape(length, CONFIG.kv_heads, -1).repeat(group, 1)
    scores = np.einsum("tnh,snh->nts", q, k) * CONFIG.head_size**-0.5
    scores = np.where(np.tri(length, dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("nts,snh->tnh", weights, v).reshape(length, -1) @ w["attention.o"]


def _rotate(x: np.ndarray) -> np.ndarray:
    """Rotary embedding: dimensions i and i + H/2 are rotated together."""
    half = CONFIG.head_size // 2
    angles = np.arange(len(x))[:, None] * CONFIG.rope_theta ** (-np.arange(half) / half)
    rotated = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)[:, None]
    return np.concatenate([rotated.real, rotated.imag], -1)


def assert_greedy(request: Request, tokens: Sequence[int]) -> None:
    """Every token is the reference's best after the tokens before it, penalties included.

    If the reference's two best are closer than the tolerance, both are accepted, but at most once per
    thousand tokens.
    """
    prompt = request.prompt
    logits = reference_logits([*prompt, *tokens])[len(prompt) - 1 : -1]
    earlier = np.tri(len(tokens), k=-1) @ np.eye(CONFIG.vocabulary)[list(tokens)]
    logits = adjusted(logits, earlier, request)
    chosen = logits[np.arange(len(tokens)), tokens]
    assert np.all(chosen >= logits.max(-1) - TOLERANCE)
    assert np.sum(np.argmax(logits, -1) != tokens) <= 1 + len(tokens) // 1000


def adjusted(logits: np.ndarray, earlier: np.ndarray, request: Request) -> np.ndarray:
    """The definition of every adjustment: logits `[T, V]`, with how often each id was generated before."""
    prompt, params = request.prompt, request.params
    repeated = earlier > 0
    repeated[:, list(prompt)] = True
    factor = params.repetition_penalty
    logits = np.where(repeated, np.where(logits > 0, logits / factor, logits * factor), logits)
    logits = logits - earlier * params.frequency_penalty - (earlier > 0) * params.presence_penalty
    for token, value in params.logit_bias:
        logits[:, token] += value
    if params.allowed_ids is not None:
        logits[:, [i for i in range(CONFIG.vocabulary) if i not in params.allowed_ids]] = -np.inf
    for token in params.stop_ids:
        logits[: params.min_tokens, token] = -np.inf
    if params.grammar is not None:
        for n, row in enumerate(logits):
            row[~ModuloGrammar.allowed(params.grammar, n)] = -np.inf
    return logits


class ModuloGrammar:
    """A grammar `k,n`: n tokens; for the i-th one, id mod k = i mod k."""

    def __init__(self, grammar: str) -> None:
        self._grammar, self._consumed = grammar, 0
        self.error: str | None = None

    @staticmethod
    def allowed(grammar: str, place: int) -> np.ndarray:
        every = int(grammar.split(",")[0])
        return np.arange(CONFIG.vocabulary) % every == place % every

    def fill(self, mask_W: np.ndarray) -> None:
        bits = self.allowed(self._grammar, self._consumed)
        bits = np.pad(bits, (0, 32 * len(mask_W) - len(bits)))
        mask_W[:] = np.packbits(bits, bitorder="little").view(np.uint32)

    def consume(self, token: int) -> None:
        if not self.allowed(self._grammar, self._consumed)[token]:
            self.error = f"{token} is not allowed"
        self._consumed += 1

    @property
    def complete(self) -> bool:
        return self._consumed == int(self._grammar.split(",")[1])


def random_prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    """Ids without the poison, the same for the same arguments."""
    generator = np.random.default_rng([seed, length])
    return tuple(generator.integers(0, POISON, length).tolist())


def ask(name: str, length: int, *, prompt_seed: int = 0, choice: int = 0, **params) -> Request:
    """A request with a random prompt of `length` tokens; greedy by default."""
    settings = SamplingParams(**{"temperature": 0.0, **params})
    return Request(id=name, prompt=random_prompt(length, prompt_seed), params=settings, choice=choice)


class EventCollector:
    """Collects an engine's events by request, and waits for their ends."""

    def __init__(self) -> None:
        self.events: defaultdict[str, list[TokenEvent]] = defaultdict(list)
        self._arrived = threading.Condition()

    def receive(self, events: Sequence[TokenEvent]) -> None:
        with self._arrived:
            for event in events:
                self.events[event.request_id].append(event)
            self._arrived.notify_all()

    def wait(self, name: str, *, events: int | None = None, timeout: float = 60) -> list[TokenEvent]:
        """A request's events up to its end, or as soon as there are `events` of them."""

        def enough() -> bool:
            received = self.events[name]
            return bool(received) and (received[-1].finish is not None or len(received) >= (events or 10**9))

        with self._arrived:
            assert self._arrived.wait_for(enough, timeout), f"request {name} has not ended after {timeout} s"
            return list(self.events[name])

    def tokens(self, name: str) -> list[int]:
        """All tokens of a request that ends without an error."""
        events = self.wait(name)
        assert events[-1].finish != "error", events[-1].error
        return tokens_of(events)


def tokens_of(events: Sequence[TokenEvent]) -> list[int]:
    """The tokens of some events, in order."""
    return [event.token for event in events if event.token is not None]
