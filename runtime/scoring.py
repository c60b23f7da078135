"""A whole text at once, without sampling: logits and log-probabilities of tokens that are already there.

For research and tests. It runs the same `Transformer` over a scratch cache of its own, beside the engine
and not through it, and compiles a length (a power of two) when it is first met.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..model.cache import TILE, Batch, Tiles, create_cache
from ..model.config import ModelConfig
from ..model.transformer import Skeleton, Transformer

_PAGE = 16
_SHORTEST = 16
_HEAD_ROWS = 64


class Scorer:
    """Scores texts of up to the model's context under fixed parameters."""

    def __init__(self, config: ModelConfig, parameters: Mapping[str, jax.Array]) -> None:
        self._skeleton = Skeleton.of(config)
        self._leaves = self._skeleton.flatten(parameters)

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """The model's scores after each token: f32 `[T, V]`; row t holds the scores of token t + 1."""
        padded_T = _pad(tokens)
        return np.asarray(_logits(self._skeleton, self._leaves, padded_T, len(tokens)))[: len(tokens)]

    def logprobs(self, tokens: Sequence[int]) -> np.ndarray:
        """Log-probability of each token but the first, given those before it: f32 `[T - 1]`."""
        padded_T = _pad(tokens)
        scores_T = _logprobs(self._skeleton, self._leaves, padded_T, len(tokens))
        return np.asarray(scores_T)[: len(tokens) - 1]


def _pad(tokens: Sequence[int]) -> np.ndarray:
    size = max(_SHORTEST, 1 << (len(tokens) - 1).bit_length())
    return np.pad(np.asarray(tokens, np.int32), (0, size - len(tokens)))


@partial(jax.jit, static_argnums=0)
def _logits(skeleton: Skeleton, leaves: tuple[jax.Array, ...], tokens_T: jax.Array, length: int):
    model = skeleton.merge(leaves)
    return model.logits(_hidden(model, tokens_T, length))


@partial(jax.jit, static_argnums=0)
def _logprobs(skeleton: Skeleton, leaves: tuple[jax.Array, ...], tokens_T: jax.Array, length: int):
    """Some rows at a time, so that the logits of a long text are never all there at once."""
    model = skeleton.merge(leaves)
    hidden_TD = _hidden(model, tokens_T, length)
    next_T = jnp.roll(tokens_T, -1)

    def score(rows: tuple[jax.Array, jax.Array]) -> jax.Array:
        hidden_RD, target_R = rows
        logprob_RV = jax.nn.log_softmax(model.logits(hidden_RD), axis=-1)
        return jnp.take_along_axis(logprob_RV, target_R[:, None], axis=1)[:, 0]

    rows = min(_HEAD_ROWS, tokens_T.shape[0])
    chunks = (hidden_TD.reshape(-1, rows, hidden_TD.shape[1]), next_T.reshape(-1, rows))
    return lax.map(score, chunks).reshape(-1)


def _hidden(model: Transformer, tokens_T: jax.Array, length: int | jax.Array) -> jax.Array:
    """Final hidden states of one sequence in a cache of its own: `[T, D]`."""
    tokens, tile = tokens_T.shape[0], min(TILE, tokens_T.shape[0])
    place_T = jnp.arange(tokens, dtype=jnp.int32)
    pages = -(-tokens // _PAGE)
    start_C = jnp.arange(0, tokens, tile, dtype=jnp.int32)
    batch = Batch(
        positions_T=place_T,
        lengths_T=jnp.full_like(place_T, length),
        slots_T=place_T + _PAGE,
        tables_BM=jnp.arange(1, pages + 1, dtype=jnp.int32)[None, :],
        singles_B=jnp.full(1, tokens, jnp.int32),
        tiles=Tiles(
            start_C=start_C,
            length_C=jnp.full_like(start_C, tile),
            row_C=jnp.zeros_like(start_C),
            count=jnp.int32(start_C.shape[0]),
        ),
    )
    cache = create_cache(model.config, pages + 1, _PAGE, model.embed[...].dtype)
    return model(tokens_T, cache, batch)[0]
