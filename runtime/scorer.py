"""Scores whole texts at once, without sampling: logits, log-probabilities and hidden states of given tokens.

For research and tests. It runs the same `Transformer` with a temporary cache, not through the engine, and
compiles each shape on first use: texts of a similar length, a power of two, are computed together.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh

from ..model.cache import TILE, Batch, Tiles, create_cache
from ..model.config import ModelConfig
from ..model.quantize import quantization_of
from ..model.sharding import REPLICATED, create_mesh, over_shares, share_config
from ..model.target import Target
from ..model.transformer import AfterLayer, Leaf, Skeleton, Transformer
from .device.settings import cache_dtype

_PAGE = 16
_SHORTEST = 16
_HEAD_ROWS = 64
_TOKENS = 1024
"""The most tokens of several texts that are computed together."""


@dataclass(frozen=True)
class _Shape:
    """What is compiled: the network, its devices, and the type of its cache."""

    skeleton: Skeleton
    mesh: Mesh
    cache_dtype: jnp.dtype


class Scorer:
    """Scores texts of up to the model's context under fixed parameters."""

    def __init__(
        self, skeleton: Skeleton, leaves: tuple[Leaf, ...], mesh: Mesh, cache_dtype: jnp.dtype
    ) -> None:
        """Compiles nothing yet.

        Args:
          leaves: the parameters, as `skeleton.flatten` returns them. mesh: the devices that hold them.
          cache_dtype: of keys and values.
        """
        self._shape, self._leaves = _Shape(skeleton, mesh, cache_dtype), leaves

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        parameters: Mapping[str, jax.Array],
        mesh: Mesh | None = None,
        kv_cache_dtype: str | None = None,
    ) -> "Scorer":
        """A scorer of a model without an engine.

        Args:
          mesh: the devices that hold the parameters; None for a single device.
          kv_cache_dtype: see `EngineSettings`.
        """
        mesh = mesh or create_mesh(1, list(parameters["norm"].devices()))
        skeleton = Skeleton.of(config, Target.of(mesh, quantization=quantization_of(parameters)))
        dtype = cache_dtype(kv_cache_dtype, parameters["norm"].dtype)
        return cls(skeleton, skeleton.flatten(dict(parameters)), mesh, dtype)

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """The model's scores after each token: f32 `[T, V]`; row t holds the scores of token t + 1."""
        return next(self._run(_logits, [tokens]))[1]

    def logprobs(self, tokens: Sequence[int]) -> np.ndarray:
        """Log-probability of each token but the first, given those before it: f32 `[T - 1]`."""
        return self.next_tokens([tokens])[0][0]

    def next_tokens(self, texts: Sequence[Sequence[int]]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each text's tokens but the first: the log-probability, given those before it, f32 `[T - 1]`, and
        whether it is the most likely one, bool `[T - 1]`."""
        found = dict(self._run(_next_tokens, texts))
        return [(found[n][:-1, 0], found[n][:-1, 1] > 0) for n in range(len(texts))]

    def residuals(
        self, texts: Sequence[Sequence[int]], layers: tuple[int, ...], edits: AfterLayer | None = None
    ) -> list[np.ndarray]:
        """The residual stream of each text after some layers, numbered from 0: f32 `[T, layers, D]`.

        Args:
          edits: changes it before, see `Transformer.hidden`; hashable.
        """
        found = dict(self._run(_Residuals(layers, edits), texts))
        return [found[n] for n in range(len(texts))]

    def _run(self, score: "_Score", texts: Sequence[Sequence[int]]) -> Iterator[tuple[int, np.ndarray]]:
        """Yields each text's number and its scores `[T, …]`, in any order."""
        for numbers, tokens_BT in _together(texts):
            scores = np.asarray(_run(score, self._shape, self._leaves, tokens_BT, _lengths(texts, numbers)))
            for number, score_TX in zip(numbers, scores, strict=False):
                yield number, score_TX[: len(texts[number])]


def _together(texts: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], np.ndarray]]:
    """Texts of one padded length, a few at a time: their numbers, and their tokens, i32 `[B, T]`.

    T and B are powers of two.
    """
    by_size: dict[int, list[int]] = {}
    for number, tokens in enumerate(texts):
        by_size.setdefault(max(_SHORTEST, _power_of_two(len(tokens))), []).append(number)
    for size, numbers in sorted(by_size.items()):
        most = max(1, _TOKENS // size)
        for start in range(0, len(numbers), most):
            some = numbers[start : start + most]
            tokens_BT = np.zeros((_power_of_two(len(some)), size), np.int32)
            for row, number in enumerate(some):
                tokens_BT[row, : len(texts[number])] = texts[number]
            yield some, tokens_BT


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()


def _lengths(texts: Sequence[Sequence[int]], numbers: Sequence[int]) -> np.ndarray:
    """How many tokens each row has, i32 `[B]`; 1 for rows without a text."""
    lengths = [len(texts[number]) for number in numbers]
    return np.array(lengths + [1] * (_power_of_two(len(lengths)) - len(lengths)), np.int32)


_Score = Callable[[Transformer, jax.Array, jax.Array, jnp.dtype], jax.Array]
"""From a model, tokens `[B, T]`, lengths `[B]` and the cache's type to scores `[B, T, …]`."""


@partial(jax.jit, static_argnums=(0, 1))
def _run(
    score: _Score, shape: _Shape, leaves: tuple[jax.Array, ...], tokens_BT: jax.Array, lengths_B: jax.Array
) -> jax.Array:
    """Computes a score, each device on its share."""

    def share(leaves: tuple[jax.Array, ...], tokens_BT: jax.Array, lengths_B: jax.Array) -> jax.Array:
        return score(shape.skeleton.merge(leaves), tokens_BT, lengths_B, shape.cache_dtype)

    specs = shape.skeleton.specs(), REPLICATED, REPLICATED
    return over_shares(share, shape.mesh, specs, REPLICATED)(leaves, tokens_BT, lengths_B)


def _logits(
    model: Transformer, tokens_BT: jax.Array, lengths_B: jax.Array, cache_dtype: jnp.dtype
) -> jax.Array:
    hidden_TD = _hidden(model, tokens_BT, lengths_B, cache_dtype)
    return model.logits(hidden_TD).reshape(*tokens_BT.shape, -1)


def _next_tokens(
    model: Transformer, tokens_BT: jax.Array, lengths_B: jax.Array, cache_dtype: jnp.dtype
) -> jax.Array:
    """The log-probability of each next token, and 1 where it is the most likely one: f32 `[B, T, 2]`.

    Computes some rows at a time, so that the logits of a long text never exist all at once.
    """
    hidden_TD = _hidden(model, tokens_BT, lengths_B, cache_dtype)
    next_T = jnp.roll(tokens_BT, -1, axis=1).reshape(-1)

    def score(rows: tuple[jax.Array, jax.Array]) -> jax.Array:
        hidden_RD, target_R = rows
        logits_RV = model.logits(hidden_RD)
        logprob_RV = jax.nn.log_softmax(logits_RV, axis=-1)
        logprob_R = jnp.take_along_axis(logprob_RV, target_R[:, None], axis=1)[:, 0]
        greedy_R = jnp.argmax(logits_RV, axis=-1).astype(jnp.int32) == target_R
        return jnp.stack([logprob_R, greedy_R.astype(jnp.float32)], axis=1)

    rows = min(_HEAD_ROWS, len(next_T))
    chunks = (hidden_TD.reshape(-1, rows, hidden_TD.shape[1]), next_T.reshape(-1, rows))
    return lax.map(score, chunks).reshape(*tokens_BT.shape, 2)


@dataclass(frozen=True)
class _Residuals:
    """The score of `Scorer.residuals`."""

    layers: tuple[int, ...]
    edits: AfterLayer | None

    def __call__(
        self, model: Transformer, tokens_BT: jax.Array, lengths_B: jax.Array, cache_dtype: jnp.dtype
    ) -> jax.Array:
        found: dict[int, jax.Array] = {}

        def keep(layer: int, x_TD: jax.Array) -> jax.Array:
            x_TD = x_TD if self.edits is None else self.edits(layer, x_TD)
            found[layer] = x_TD.astype(jnp.float32)
            return x_TD

        _hidden(model, tokens_BT, lengths_B, cache_dtype, keep)
        streams = [found[layer].reshape(*tokens_BT.shape, -1) for layer in self.layers]
        return jnp.stack(streams, axis=2)


def _hidden(
    model: Transformer,
    tokens_BT: jax.Array,
    lengths_B: jax.Array,
    cache_dtype: jnp.dtype,
    after_layer: AfterLayer | None = None,
) -> jax.Array:
    """Final hidden states of some sequences in a cache of their own: `[B * T, D]`."""
    rows, size = tokens_BT.shape
    batch = _batch(rows, size, lengths_B)
    config = share_config(model.config, model.target.shards)
    pages = 1 + rows * (size // _PAGE)
    cache = create_cache(config, pages, _PAGE, cache_dtype, model.target.kernels.zeros)
    return model.hidden(tokens_BT.reshape(-1), cache, batch, after_layer)[0]


def _batch(rows: int, size: int, lengths_B: jax.Array) -> Batch:
    """A mixed step in which each row's prompt has `size` tokens; what follows its length is not read."""
    tile, place_T = min(TILE, size), jnp.arange(rows * size, dtype=jnp.int32)
    start_C = jnp.arange(0, rows * size, tile, dtype=jnp.int32)
    pages = size // _PAGE
    return Batch(
        positions_T=place_T % size,
        lengths_T=jnp.repeat(lengths_B, size),
        entries_T=place_T + _PAGE,
        tables_BM=jnp.arange(1, rows * pages + 1, dtype=jnp.int32).reshape(rows, pages),
        starts_R=jnp.arange(rows + 1, dtype=jnp.int32) * size,
        rows=jnp.int32(rows),
        singles_B=jnp.full(rows, rows * size, jnp.int32),
        tiles=Tiles(
            start_C=start_C,
            length_C=jnp.full_like(start_C, tile),
            row_C=start_C // size,
            count=jnp.int32(len(start_C)),
        ),
    )
