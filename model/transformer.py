"""The Llama decoder: token ids, a batch layout and the cache in; hidden states and the cache out.

One class for every model that `ModelConfig` describes. The computation is written against the module;
the runtime drives it through `Skeleton`, which takes the parameters as a flat tuple of arrays, because
dispatching a step with a flat tuple is tens of times cheaper than with a module.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from .attention import Attention
from .cache import Batch, Cache
from .config import ModelConfig
from .layers import FeedForward, random_weight, rms_norm
from .rotary import rotary_tables


class Layer(nnx.Module):
    """Pre-norm attention and feed-forward, each added to the residual stream."""

    def __init__(self, config: ModelConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.attention_norm = nnx.Param(jnp.ones(config.width, dtype))
        self.attention = Attention(config, dtype=dtype, rngs=rngs)
        self.feed_forward_norm = nnx.Param(jnp.ones(config.width, dtype))
        self.feed_forward = FeedForward(config, dtype=dtype, rngs=rngs)
        self.epsilon = config.norm_epsilon

    def __call__(
        self, x_TD: jax.Array, pool: jax.Array, batch: Batch, rotary: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the residual stream `[T, D]` and the layer's pool."""
        with jax.named_scope("attention"):
            normed_TD = rms_norm(x_TD, self.attention_norm[...], self.epsilon)
            out_TD, pool = self.attention(normed_TD, pool, batch, rotary)
            x_TD = x_TD + out_TD
        with jax.named_scope("feed_forward"):
            normed_TD = rms_norm(x_TD, self.feed_forward_norm[...], self.epsilon)
            return x_TD + self.feed_forward(normed_TD), pool


@partial(jax.jit, static_argnums=0)
def _traced_once(
    graph: nnx.GraphDef[Layer],
    state: nnx.State,
    x_TD: jax.Array,
    pool: jax.Array,
    batch: Batch,
    rotary: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """Calls a layer through `jit`, so that layers of one shape are traced and lowered once and not L times.

    For 30 layers that is 0.1 s instead of 0.5 s a bucket at start-up; the compiled step is the same.
    """
    return nnx.merge(graph, state)(x_TD, pool, batch, rotary)


class Transformer(nnx.Module):
    """A Llama model with randomly initialised parameters in `dtype`."""

    def __init__(self, config: ModelConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.embed = random_weight(rngs, (config.vocabulary, config.width), dtype)
        self.layers = nnx.List([Layer(config, dtype=dtype, rngs=rngs) for _ in range(config.layers)])
        self.norm = nnx.Param(jnp.ones(config.width, dtype))
        if not config.tied_head:
            self.head = random_weight(rngs, (config.width, config.vocabulary), dtype)
        self.config = config

    def __call__(self, tokens_T: jax.Array, cache: Cache, batch: Batch) -> tuple[jax.Array, Cache]:
        """Runs a step's tokens through all layers.

        Args:
          tokens_T: i32 `[T]`, ids below V.
          cache: the pools before the step. batch: where the tokens stand.

        Returns:
          Final hidden states `[T, D]`, normed, and the pools after the step.
        """
        x_TD = self.embed[...][tokens_T]
        rotary = rotary_tables(self.config, batch.positions_T, batch.lengths_T)
        pools = []
        for layer, pool in zip(self.layers, cache, strict=True):
            x_TD, pool = _traced_once(*nnx.split(layer), x_TD, pool, batch, rotary)
            pools.append(pool)
        return rms_norm(x_TD, self.norm[...], self.config.norm_epsilon), tuple(pools)

    def logits(self, hidden_BD: jax.Array) -> jax.Array:
        """The model's scores of every next token: f32 `[B, V]`."""
        with jax.named_scope("head"):
            if self.config.tied_head:
                return jnp.einsum("BD,VD->BV", hidden_BD, self.embed[...], preferred_element_type=jnp.float32)
            return jnp.dot(hidden_BD, self.head[...], preferred_element_type=jnp.float32)


@dataclass(frozen=True)
class Skeleton:
    """A model without its parameters.

    Attributes:
      config: what the model is.
      names: the parameters' names (see `parameters.parameter_shapes`), in the order of the flat tuple.
    """

    config: ModelConfig
    names: tuple[str, ...]
    _graph: nnx.GraphDef[Transformer]
    _tree: Any

    @classmethod
    def of(cls, config: ModelConfig) -> "Skeleton":
        """Traces the module's structure; allocates nothing."""
        module = nnx.eval_shape(lambda: Transformer(config, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0)))
        graph, state = nnx.split(module)
        paths, tree = jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(state))
        names = tuple(".".join(str(getattr(key, "key", key)) for key in path) for path, _ in paths)
        return cls(config, names, graph, tree)

    def flatten(self, parameters: Mapping[str, jax.Array]) -> tuple[jax.Array, ...]:
        """The parameters as the flat tuple that `merge` takes."""
        return tuple(parameters[name] for name in self.names)

    def merge(self, leaves: tuple[jax.Array, ...]) -> Transformer:
        """The module with these parameters; cheap, meant for use inside a jitted function."""
        return nnx.merge(self._graph, nnx.State(jax.tree.unflatten(self._tree, leaves)))


def random_parameters(config: ModelConfig, seed: int, dtype: jnp.dtype) -> dict[str, jax.Array]:
    """Randomly initialised parameters by name, for tests and benchmarks of models without a checkpoint."""
    state = nnx.state(Transformer(config, dtype=dtype, rngs=nnx.Rngs(seed)))
    leaves = jax.tree.leaves(nnx.to_pure_dict(state))
    return dict(zip(Skeleton.of(config).names, leaves, strict=True))
