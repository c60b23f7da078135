"""Scores a whole text at once, without sampling: logits and log-probabilities of given tokens.

For research and tests. It runs the same `Transformer` with a temporary cache, not through the engine, and
compiles each length (a power of two) on first use.
"""

from collections.abc import Callable, Mapping, Sequence
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
from ..model.transformer import Leaf, Skeleton, Transformer
from .device.settings import cache_dtype

_PAGE = 16
_SHORTEST = 16
_HEAD_ROWS = 64


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
        self._skeleton, self._leaves, self._mesh, self._cache_dtype = skeleton, leaves, mesh, cache_dtype

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
        padded_T = _pad(tokens)
        return np.asarray(self._run(_logits, padded_T, len(tokens)))[: len(tokens)]

    def logprobs(self, tokens: Sequence[int]) -> np.ndarray:
        """Log-probability of each token but the first, given those before it: f32 `[T - 1]`."""
        padded_T = _pad(tokens)
        return np.asarray(self._run(_logprobs, padded_T, len(tokens)))[: len(tokens) - 1]

    def _run(self, score: "_Score", tokens_T: np.ndarray, length: int) -> jax.Array:
        return _run(score, self._skeleton, self._mesh, self._cache_dtype, self._leaves, tokens_T, length)


def _pad(tokens: Sequence[int]) -> np.ndarray:
    size = max(_SHORTEST, 1 << (len(tokens) - 1).bit_length())
    return np.pad(np.asarray(tokens, np.int32), (0, size - len(tokens)))


_Score = Callable[[Transformer, jax.Array, jax.Array, jnp.dtype], jax.Array]


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _run(
    score: _Score,
    skeleton: Skeleton,
    mesh: Mesh,
    cache_dtype: jnp.dtype,
    leaves: tuple[jax.Array, ...],
    tokens_T: jax.Array,
    length: jax.Array,
) -> jax.Array:
    """Computes a score, each device on its share."""

    def share(leaves: tuple[jax.Array, ...], tokens_T: jax.Array, length: jax.Array) -> jax.Array:
        return score(skeleton.merge(leaves), tokens_T, length, cache_dtype)

    specs = skeleton.specs(), REPLICATED, REPLICATED
    return over_shares(share, mesh, specs, REPLICATED)(leaves, tokens_T, length)


def _logits(model: Transformer, tokens_T: jax.Array, length: jax.Array, cache_dtype: jnp.dtype) -> jax.Array:
    return model.logits(_hidden(model, tokens_T, length, cache_dtype))


def _logprobs(
    model: Transformer, tokens_T: jax.Array, length: jax.Array, cache_dtype: jnp.dtype
) -> jax.Array:
    """Computes some rows at a time, so that the logits of a long text never exist all at once."""
    hidden_TD = _hidden(model, tokens_T, length, cache_dtype)
    next_T = jnp.roll(tokens_T, -1)

    def score(rows: tuple[jax.Array, jax.Array]) -> jax.Array:
        hidden_RD, target_R = rows
        logprob_RV = jax.nn.log_softmax(model.logits(hidden_RD), axis=-1)
        return jnp.take_along_axis(logprob_RV, target_R[:, None], axis=1)[:, 0]

    rows = min(_HEAD_ROWS, tokens_T.shape[0])
    chunks = (hidden_TD.reshape(-1, rows, hidden_TD.shape[1]), next_T.reshape(-1, rows))
    return lax.map(score, chunks).reshape(-1)


def _hidden(model: Transformer, tokens_T: jax.Array, length: jax.Array, cache_dtype: jnp.dtype) -> jax.Array:
    """Final hidden states of one sequence in a cache of its own: `[T, D]`."""
    tokens, tile = tokens_T.shape[0], min(TILE, tokens_T.shape[0])
    place_T = jnp.arange(tokens, dtype=jnp.int32)
    pages = -(-tokens // _PAGE)
    start_C = jnp.arange(0, tokens, tile, dtype=jnp.int32)
    batch = Batch(
        positions_T=place_T,
        lengths_T=jnp.full_like(place_T, length),
        entries_T=place_T + _PAGE,
        tables_BM=jnp.arange(1, pages + 1, dtype=jnp.int32)[None, :],
        starts_R=jnp.array([0, tokens], jnp.int32),
        rows=jnp.int32(1),
        singles_B=jnp.full(1, tokens, jnp.int32),
        tiles=Tiles(
            start_C=start_C,
            length_C=jnp.full_like(start_C, tile),
            row_C=jnp.zeros_like(start_C),
            count=jnp.int32(start_C.shape[0]),
        ),
    )
    config = share_config(model.config, model.target.shards)
    cache = create_cache(config, pages + 1, _PAGE, cache_dtype, model.target.kernels.zeros)
    return model.hidden(tokens_T, cache, batch)[0]
