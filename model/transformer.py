"""The Llama and Mixtral decoder: token ids, a batch layout and the cache in; hidden states and the cache out.

One class for every model that `ModelConfig` describes. The computation is a Flax module; the runtime calls it
through `Skeleton`, which takes the parameters as a flat tuple of arrays, because dispatching a step with a
flat tuple is tens of times cheaper than with a module. The code computes one device's share (`sharding.py`).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec

from .attention import Attention
from .cache import Batch, Cache, Pool
from .config import ModelConfig
from .host_memory import Freed
from .joining import join, join_placements, parts_of
from .kernels.panels import PANEL, unpack_grouped_rows, unpack_rows
from .kernels.registry import NATIVE
from .layers import FeedForward, Linears
from .layout import EMBEDDING, Form, form_of
from .lora import Lora
from .moe import MixtureOfExperts
from .parameters import has_embedding, has_head, parameter_shapes, stored_type
from .rotary import Rotary, rotary_tables
from .sharding import Placement, all_gather, first_of_share, pad_config, placements, psum, unstack
from .target import Target

Leaf = jax.Array | tuple[jax.Array, ...]
"""A parameter, or a layer's unstacked experts (see `Skeleton.flatten`)."""

AfterLayer = Callable[[int, jax.Array], jax.Array]
"""Receives a layer's number, from 0, and the residual stream `[T, D]` after it; returns the stream with which
the next layer continues."""


class Layer(nnx.Module):
    """Pre-norm attention and feed-forward, or experts, each added to the residual stream."""

    def __init__(self, config: ModelConfig, layer: int, target: Target, *, dtype: jnp.dtype) -> None:
        self.attention_norm = nnx.Param(jnp.ones(config.width, dtype))
        self.attention = Attention(config, layer, target.within("attention"), dtype=dtype)
        self.feed_forward_norm = nnx.Param(jnp.ones(config.width, dtype))
        inner = target.within("feed_forward")
        if config.moe is None:
            self.feed_forward = FeedForward(config, inner, dtype=dtype)
        else:
            self.feed_forward = MixtureOfExperts(config, config.moe, inner, dtype=dtype)
        self.rms_norm, self.epsilon = target.kernels.rms_norm, config.norm_epsilon
        self.scale = config.residual_scale

    def __call__(
        self, x_TD: jax.Array, pool: Pool, batch: Batch, rotary: Rotary, lora: Lora | None = None
    ) -> tuple[jax.Array, Pool]:
        """Returns the residual stream `[T, D]` and the layer's pool. `lora`: the adapters of this layer."""
        with jax.named_scope("attention"):
            normed_TD = self.rms_norm(x_TD, self.attention_norm[...], self.epsilon)
            own = None if lora is None else lora.within("attention")
            out_TD, pool = self.attention(normed_TD, pool, batch, rotary, own)
            x_TD = x_TD + self._scaled(out_TD)
        with jax.named_scope("feed_forward"):
            normed_TD = self.rms_norm(x_TD, self.feed_forward_norm[...], self.epsilon)
            if isinstance(self.feed_forward, MixtureOfExperts):
                out_TD = self.feed_forward(normed_TD, batch.positions_T >= 0)
            else:
                own = None if lora is None else lora.within("feed_forward")
                out_TD = self.feed_forward(normed_TD, batch.tokens, own)
            return x_TD + self._scaled(out_TD), pool

    def _scaled(self, out_TD: jax.Array) -> jax.Array:
        return out_TD if self.scale == 1.0 else out_TD * self.scale


@partial(jax.jit, static_argnums=0)
def _traced_once(
    graph: nnx.GraphDef[Layer],
    state: nnx.State,
    x_TD: jax.Array,
    pool: Pool,
    batch: Batch,
    rotary: Rotary,
    lora: Lora | None,
) -> tuple[jax.Array, Pool]:
    """Calls a layer through `jit`, so that layers of one shape are traced and lowered once instead of L
    times.

    For 30 layers that takes 0.1 s instead of 0.5 s per bucket at start-up; the compiled step is the same.
    """
    return nnx.merge(graph, state)(x_TD, pool, batch, rotary, lora)


class Transformer(Linears):
    """A Llama or Mixtral model that knows its parameters' shapes; `Skeleton.merge` gives it their values."""

    def __init__(self, config: ModelConfig, target: Target | None = None, *, dtype: jnp.dtype) -> None:
        super().__init__(target or Target())
        if has_embedding(config, self.target.quantization):
            self.embed = nnx.Param(jax.ShapeDtypeStruct((config.vocabulary, config.width), dtype))
        targets = [self.target.within(f"layers.{layer}") for layer in range(config.layers)]
        layers = [Layer(config, layer, target, dtype=dtype) for layer, target in enumerate(targets)]
        self.layers = nnx.List(layers)
        self.norm = nnx.Param(jnp.ones(config.width, dtype))
        if has_head(config, self.target.quantization):
            self.add("head", (config.width, config.vocabulary), dtype=dtype)
        self.config = config

    def hidden(
        self,
        tokens_T: jax.Array,
        cache: Cache,
        batch: Batch,
        after_layer: AfterLayer | None = None,
        lora: Lora | None = None,
    ) -> tuple[jax.Array, Cache]:
        """Runs a step's tokens through all layers.

        Args:
          tokens_T: i32 `[T]`, ids below V.
          cache: the pools before the step. batch: where the tokens are.
          after_layer: is called after each layer; None changes nothing. lora: the tokens' adapters.

        Returns:
          Final hidden states `[T, D]`, normalised, and the pools after the step.
        """
        x_TD = self._embedded(tokens_T)
        if self.config.embedding_scale != 1.0:
            x_TD = x_TD * self.config.embedding_scale
        rotary = rotary_tables(self.config, batch.positions_T, batch.lengths_T)
        pools = []
        with self._precision():
            for number, (layer, pool) in enumerate(zip(self.layers, cache, strict=True)):
                own = None if lora is None else lora.within(f"layers.{number}")
                x_TD, pool = _traced_once(*nnx.split(layer), x_TD, pool, batch, rotary, own)
                x_TD = x_TD if after_layer is None else after_layer(number, x_TD)
                pools.append(pool)
        rms_norm = self.target.kernels.rms_norm
        return rms_norm(x_TD, self.norm[...], self.config.norm_epsilon), tuple(pools)

    def _precision(self) -> AbstractContextManager[Any]:
        """Where f32 is computed, its products are exact to f32."""
        precision = self.target.kernels.precision
        exact = precision is not None and self.norm[...].dtype == jnp.float32
        return jax.default_matmul_precision(precision) if exact else nullcontext()

    def _embedded(self, tokens_T: jax.Array) -> jax.Array:
        """The tokens' rows of the embedding, on whichever device they are."""
        config, shards = self.config, self.target.shards
        rows = pad_config(config, shards).vocabulary // shards
        place_T = tokens_T - first_of_share(rows, shards)
        place_T = jnp.where(place_T < 0, rows, place_T)
        if not has_embedding(config, self.target.quantization):
            w, scale, _ = self.grouped("head")
            return psum(unpack_grouped_rows(w, scale, place_T).astype(self.norm[...].dtype), shards)
        embed = self.embed[...]
        if embed.ndim == 3:
            return psum(unpack_rows(embed, place_T), shards)
        return psum(embed.at[place_T].get(mode="fill", fill_value=0), shards)

    def logits(
        self, hidden_BD: jax.Array, rows: jax.Array | None = None, lora: Lora | None = None
    ) -> jax.Array:
        """The logits of every next token: f32 `[B, V]`, whole on every device.

        Args:
          rows: i32 `[]`, only the logits of the first rows are needed; None for all.
          lora: the adapters of these rows.
        """
        with jax.named_scope("head"), self._precision():
            scores_BV = self._scores(hidden_BD, rows)
            if lora is not None:
                scores = {"head": scores_BV}
                self._adapt(hidden_BD, rows, scores, lora)
                scores_BV = scores["head"]
            logits_BV = all_gather(scores_BV, self.target.shards)
            logits_BV = logits_BV[:, : self.config.vocabulary]
            divisor = self.config.logits_divisor
            return logits_BV if divisor == 1.0 else logits_BV / divisor

    def _scores(self, hidden_BD: jax.Array, rows: jax.Array | None) -> jax.Array:
        if has_head(self.config, self.target.quantization):
            (scores_BV,) = self.products(hidden_BD, rows, "head")
            return scores_BV
        embed = self.embed[...]
        if embed.ndim == 3:
            (scores_BV,) = self.target.kernels.linear(hidden_BD, embed, rows=rows)
            return scores_BV
        return jnp.einsum("BD,VD->BV", hidden_BD, embed, preferred_element_type=jnp.float32)


@dataclass(frozen=True)
class Skeleton:
    """A model without its parameters.

    Attributes:
      config: of the model. target: what it is built for.
      names: the parameters' names, in the order of the flat tuple: those of `parameters.parameter_shapes`,
        except for joined ones (see `joining.py`).
      after_layer: what a step does after each layer, see `Transformer.hidden`; None: nothing.
    """

    config: ModelConfig
    target: Target
    names: tuple[str, ...]
    _graph: nnx.GraphDef[Transformer]
    _tree: Any
    after_layer: AfterLayer | None = None

    @classmethod
    def of(cls, config: ModelConfig, target: Target | None = None) -> "Skeleton":
        """Builds the module from shapes only; allocates almost nothing."""
        target = target or Target()
        module = Transformer(config, target, dtype=jnp.dtype("float32"))
        graph, state = nnx.split(module)
        paths, tree = jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(state))
        names = tuple(".".join(str(getattr(key, "key", key)) for key in path) for path, _ in paths)
        return cls(config, target, names, graph, tree)

    def flatten(self, parameters: dict[str, jax.Array]) -> tuple[Leaf, ...]:
        """The parameters as the flat tuple that `merge` takes, laid out as the target needs them.

        Takes each parameter, or those that are joined into one, out of `parameters` and waits until it is
        laid out. So one that nobody else holds is freed before the next one is laid out.
        """
        table, freed = self._table(), Freed()
        leaves: list[Leaf] = []
        for name in self.names:
            weight = join([parameters.pop(part) for part in parts_of(name)], table[name])
            leaves.append(self._laid_out(weight, table[name], name))
            if leaves[-1] is not weight:
                freed.add(weight.nbytes)
        return tuple(leaves)

    def _laid_out(self, weight: jax.Array, where: Placement, name: str) -> Leaf:
        form = self._form(name, weight.ndim)
        laid = weight if form is None else self.target.layout(form).apply(weight, where, form)
        stacked = laid is weight and weight.ndim == 3
        return unstack(weight) if self.target.unstacked and stacked else jax.block_until_ready(laid)

    def placements(self) -> dict[str, Placement]:
        """The placement of each parameter of the flat tuple, as it is laid out."""
        placed = {}
        for name, where in self._table().items():
            form = self._form(name, len(where.shape))
            placed[name] = where if form is None else self.target.layout(form).place(where, form)
        return placed

    def types(self, dtype: jnp.dtype) -> dict[str, jnp.dtype]:
        """The type of each parameter as it is laid out, if the computation's is `dtype`: bytes in panels are
        unsigned."""
        placed, table, found = self.placements(), self._table(), {}
        for name, where in table.items():
            stored = jnp.dtype(stored_type(parts_of(name)[0], self.target.quantization) or dtype)
            packed = len(placed[name].shape) > len(where.shape) and stored in (jnp.int8, jnp.float8_e4m3fn)
            found[name] = jnp.dtype("uint8") if packed else stored
        return found

    def abstract(self, dtype: jnp.dtype) -> tuple[Any, ...]:
        """The shapes and types of the flat tuple of a model whose computation is in `dtype`."""
        table, types = self.placements(), self.types(dtype)
        whole = [jax.ShapeDtypeStruct(table[name].shape, types[name]) for name in self.names]
        if not self.target.unstacked:
            return tuple(whole)
        stored = self._table()
        return tuple(
            self._unstacked(leaf, table[name])
            if len(table[name].shape) == len(stored[name].shape) == 3
            else leaf
            for name, leaf in zip(self.names, whole, strict=True)
        )

    def _unstacked(self, leaf: jax.ShapeDtypeStruct, where: Placement) -> tuple[jax.ShapeDtypeStruct, ...]:
        """As `sharding.unstack`."""
        together = self.target.shards if where.axis == 0 else 1
        one = jax.ShapeDtypeStruct((together, *leaf.shape[1:]), leaf.dtype)
        return (one,) * (leaf.shape[0] // together)

    def _table(self) -> dict[str, Placement]:
        stored = placements(self.config, self.target.shards, self.target.quantization)
        return {name: join_placements([stored[part] for part in parts_of(name)]) for name in self.names}

    def _form(self, name: str, rank: int) -> Form | None:
        """The form of a parameter to which a layout applies: a linear map, experts, a router, or an embedding
        that is the head too."""
        quantization = self.target.quantization
        if name == "embed":
            return None if has_head(self.config, quantization) else EMBEDDING
        return form_of(parts_of(name)[0], rank, quantization)

    def is_batch_invariant(self, dtype: jnp.dtype) -> bool:
        """Whether a token's bits depend on its sequence alone, not on the shape of the step or on other
        sequences: a property of the native kernels, if they compute all norms, linear maps, experts,
        attention and draws.

        A computation in a `dtype` other than f32 does not have it.
        """
        stored, placed, backends = self._table(), self.placements(), dict(self.target.kernels.names)
        forms = {name: self._form(name, len(where.shape)) for name, where in stored.items()}
        in_panels = all(placed[name] != stored[name] for name, form in forms.items() if form)
        needed = {"attention", "rms_norm", "row_sum", "draw"}
        needed |= {form.operation for form in forms.values() if form}
        native = all(backends[name] == NATIVE for name in needed)
        return native and in_panels and self.config.head_size % PANEL == 0 and dtype == jnp.float32

    def specs(self) -> tuple[PartitionSpec, ...]:
        """The partition spec of each parameter of the flat tuple."""
        table = self.placements()
        return tuple(table[name].spec for name in self.names)

    def merge(self, leaves: tuple[Leaf, ...]) -> Transformer:
        """The module with these parameters; cheap, for use inside a jitted function."""
        return nnx.merge(self._graph, nnx.State(jax.tree.unflatten(self._tree, leaves)))


def random_parameters(config: ModelConfig, seed: int, dtype: jnp.dtype) -> dict[str, jax.Array]:
    """Parameters by name, drawn from N(0, 0.02), as Llama is initialised; for tests and benchmarks of models
    without a checkpoint."""
    rng = np.random.default_rng(seed)

    def drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if len(shape) > 1:
            return 0.02 * rng.standard_normal(shape, np.float32)
        return np.full(shape, not name.endswith("_bias"), np.float32)

    return {name: jnp.asarray(drawn(name, at), dtype) for name, at in parameter_shapes(config).items()}
