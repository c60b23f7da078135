"""The model as an ordinary Flax module, for training and research: tokens in, logits out, no cache.

It is the `Transformer` that the runtime serves, with the same layers and parameter names. Only the kernels
differ: those of `differentiable` have gradients. Each sequence of a batch is one page of a temporary cache.
"""

from collections.abc import Mapping
from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import nnx

from .cache import Batch, create_cache
from .config import ModelConfig
from .errors import ConfigError
from .kernels.dense_attention import attend
from .kernels.registry import Kernels, choose
from .parameters import parameter_shapes
from .target import Target
from .transformer import Transformer


def differentiable(platform: str) -> Kernels:
    """Kernels of portable XLA that JAX can differentiate; `platform` is JAX's name of it."""
    plain = dict.fromkeys(("linear", "rms_norm", "row_sum", "zeros"), "plain")
    kernels = choose(platform, {**plain, "experts": "ragged"})
    return replace(kernels, attention=attend, joined=False)


class CausalLM(Transformer):
    """A Llama or Mixtral model with its weights, as an NNX module.

    It can be called under `jax.jit`, differentiated, split, merged and updated as any NNX module. On a mesh
    XLA divides the computation as the parameters are (see `sharding.place_all`).

    Parameters have the names of `parameters.parameter_shapes`: `model.layers[0].attention.q` is `[D, N * H]`.
    """

    def __init__(self, config: ModelConfig, parameters: Mapping[str, jax.Array]) -> None:
        """Holds these parameters.

        Args:
          parameters: by the names of `parameter_shapes`, of these shapes, all of one floating-point type.

        Raises:
          ConfigError: one is missing, unknown, or of another shape.
        """
        _check(config, parameters)
        norm = parameters["norm"]
        platform = next(iter(norm.devices())).platform
        super().__init__(config, Target(kernels=differentiable(platform)), dtype=norm.dtype)
        for name, values in parameters.items():
            *path, last = name.split(".")
            inner: nnx.Module = self
            for key in path:
                inner = inner[int(key)] if isinstance(inner, nnx.List) else getattr(inner, key)
            setattr(inner, last, nnx.Param(values))

    def __call__(self, tokens_BT: jax.Array, lengths_B: jax.Array | None = None) -> jax.Array:
        """The logits of every next token: f32 `[B, T, V]`.

        Args:
          tokens_BT: i32 `[B, T]`, ids below V, each sequence from its first position on.
          lengths_B: i32 `[B]`, how many of the T tokens belong to each sequence; None for all. What comes
            after them has no influence on the logits before, and finite logits of its own.
        """
        rows, size = tokens_BT.shape
        batch = _batch(rows, size, jnp.full(rows, size, jnp.int32) if lengths_B is None else lengths_B)
        kernels = self.target.kernels
        cache = create_cache(self.config, rows, size, self.norm[...].dtype, kernels.zeros)
        hidden_TD, _ = self.hidden(tokens_BT.reshape(-1), cache, batch)
        return self.logits(hidden_TD).reshape(rows, size, -1)

    def parameters(self) -> dict[str, jax.Array]:
        """The parameters by name, in the order of `parameter_shapes`."""
        state = dict(nnx.to_flat_state(nnx.state(self, nnx.Param)))
        found = {".".join(map(str, path)): leaf[...] for path, leaf in state.items()}
        return {name: found[name] for name in parameter_shapes(self.config)}


def _batch(rows: int, size: int, lengths_B: jax.Array) -> Batch:
    """A batch of sequences of up to `size` tokens, each in a page of its own."""
    place_T, row_T = jnp.tile(jnp.arange(size), rows), jnp.repeat(jnp.arange(rows), size)
    lengths_T = lengths_B.astype(jnp.int32)[row_T]
    return Batch(
        positions_T=jnp.where(place_T < lengths_T, place_T, -1),
        lengths_T=lengths_T,
        entries_T=jnp.arange(rows * size),
        tables_BM=jnp.arange(rows)[:, None],
        starts_R=jnp.arange(rows + 1) * size,
        rows=jnp.int32(rows),
        singles_B=jnp.full(rows, rows * size),
        tiles=None,
    )


def _check(config: ModelConfig, parameters: Mapping[str, jax.Array]) -> None:
    shapes = parameter_shapes(config)
    for name in sorted({*shapes, *parameters}):
        found, expected = parameters.get(name), shapes.get(name)
        if found is None or expected is None or found.shape != expected:
            given = "missing" if found is None else f"of the shape {list(found.shape)}"
            wanted = "no such parameter" if expected is None else f"the shape {list(expected)}"
            raise ConfigError(f"parameter {name} is {given}; expected {wanted}")
