"""The reference for the model: the same weights in `transformers`, and a driver for ours.

`build_reference` makes a `LlamaForCausalLM` (`MistralForCausalLM` if there is a window) from a
`ModelConfig`, with random weights large enough that every part of the network changes the logits;
`parameters_from` returns the same weights for ours. `Driver` lays out sequences in pages and runs steps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from jax.sharding import Mesh, NamedSharding

from distaff.model.cache import TILE, Batch, Cache, Tiles, create_cache
from distaff.model.config import ModelConfig
from distaff.model.kernels.zeros import zeros
from distaff.model.parameters import Quantization, parameter_shapes
from distaff.model.sharding import CACHE, REPLICATED, create_mesh, over_shares, pad_config, place_all
from distaff.model.target import Target
from distaff.model.transformer import Skeleton

FLOAT32 = jnp.dtype("float32")

torch.set_num_threads(1)
"""Its threads spin while they wait; with XLA's threads on two cores a forward pass takes ten times as
long."""

_LINEARS = {
    **{f"attention.{name}": f"self_attn.{name}_proj" for name in "qkvo"},
    **{f"feed_forward.{name}": f"mlp.{name}_proj" for name in ("gate", "up", "down")},
    "feed_forward.router": "mlp.gate",
}
_NORMS = {"attention_norm": "input_layernorm", "feed_forward_norm": "post_attention_layernorm"}
_TOP = {"embed": "model.embed_tokens.weight", "norm": "model.norm.weight", "head": "lm_head.weight"}


def reference_config(config: ModelConfig) -> transformers.PretrainedConfig:
    """The `transformers` configuration of the same model."""
    dynamic = config.rope is not None and config.rope.kind == "dynamic"
    common = dict(
        vocab_size=config.vocabulary,
        hidden_size=config.width,
        intermediate_size=config.feed_forward,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_size,
        max_position_embeddings=config.rope.original_context if dynamic else config.context,
        rms_norm_eps=config.norm_epsilon,
        tie_word_embeddings=config.tied_head,
        rope_parameters=rope_parameters(config),
        attn_implementation="eager",
        bos_token_id=None,
        eos_token_id=None,
    )
    if config.moe is not None:
        return transformers.MixtralConfig(
            sliding_window=config.window,
            num_local_experts=config.moe.experts,
            num_experts_per_tok=config.moe.experts_per_token,
            **common,
        )
    if config.window is not None:
        return transformers.MistralConfig(sliding_window=config.window, **common)
    return transformers.LlamaConfig(
        attention_bias=config.attention_bias, mlp_bias=config.feed_forward_bias, **common
    )


def rope_parameters(config: ModelConfig) -> dict:
    """`rope_parameters` with the names of `transformers`."""
    rope = config.rope
    if rope is None:
        return {"rope_type": "default", "rope_theta": config.rope_theta}
    spelled = {"rope_type": rope.kind, "rope_theta": config.rope_theta, "factor": rope.factor}
    if rope.kind in ("llama3", "yarn"):
        spelled["original_max_position_embeddings"] = rope.original_context
    if rope.kind == "llama3":
        spelled |= {"low_freq_factor": rope.low_frequency, "high_freq_factor": rope.high_frequency}
    if rope.kind == "yarn":
        spelled |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow, "truncate": rope.truncate}
        optional = ("attention_factor", "mscale", "mscale_all_dim")
        spelled |= {name: getattr(rope, name) for name in optional if getattr(rope, name) is not None}
    return spelled


def build_reference(config: ModelConfig, seed: int) -> transformers.PreTrainedModel:
    """The reference model: logits of order 1 to 10, no bias and no norm scale at its default."""
    return draw_weights(transformers.AutoModelForCausalLM.from_config(reference_config(config)), seed)


def draw_weights(model: transformers.PreTrainedModel, seed: int) -> transformers.PreTrainedModel:
    """Gives a model weights with which every part of the network changes the logits."""
    generator = torch.Generator().manual_seed(seed)
    model.eval().requires_grad_(False)
    for name, weight in model.named_parameters():
        drawn = torch.randn(weight.shape, generator=generator)
        if "norm" in name:
            drawn = 1.0 + 0.3 * drawn
        elif name.endswith("bias"):
            drawn = 0.5 * drawn
        else:
            drawn = drawn * _gain(name) * weight.shape[-1] ** -0.5
        weight.copy_(drawn)
    return model


def _gain(name: str) -> float:
    """A factor above unit gain: scores and logits are spread out, so that an error in either shows."""
    if "q_proj" in name or "k_proj" in name:
        return 1.5
    return 3.0 if "lm_head" in name or "embed" in name else 1.0


def parameters_from(model: transformers.PreTrainedModel, config: ModelConfig) -> dict[str, jax.Array]:
    """The reference's weights, by our names and in our layout."""
    theirs = {name: weight.numpy() for name, weight in model.state_dict().items()}
    return {name: jnp.asarray(_ours(theirs, name)) for name in parameter_shapes(config)}


def _ours(theirs: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """One of our parameters; experts are stacked there as well, gate above up."""
    layer, _, rest = name.rpartition("feed_forward.")
    experts = f"model.{layer}mlp.experts."
    if layer and f"{experts}down_proj" in theirs:
        if rest == "down":
            return theirs[f"{experts}down_proj"].swapaxes(1, 2)
        if rest in ("gate", "up"):
            both = theirs[f"{experts}gate_up_proj"].swapaxes(1, 2)
            return np.split(both, 2, axis=2)[rest == "up"]
    w = theirs[reference_name(name)]
    return w.T if is_linear(name) else w


def reference_from(config: ModelConfig, parameters: Mapping[str, jax.Array]) -> transformers.PreTrainedModel:
    """The reference model with our weights, in the same memory."""
    tensors = {name: torch.from_dlpack(weight) for name, weight in parameters.items()}
    state = {reference_name(name): w.T if is_linear(name) else w for name, w in tensors.items()}
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(reference_config(config))
    model.load_state_dict(state, strict=not config.tied_head, assign=True)
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    return model.eval().requires_grad_(False)


def reference_name(name: str) -> str:
    """What `transformers` calls one of our parameters."""
    if name in _TOP:
        return _TOP[name]
    layers, layer, rest = name.split(".", 2)
    if rest in _NORMS:
        return f"model.{layers}.{layer}.{_NORMS[rest]}.weight"
    kind = "bias" if rest.endswith("_bias") else "weight"
    return f"model.{layers}.{layer}.{_LINEARS[rest.removesuffix('_bias')]}.{kind}"


def is_linear(name: str) -> bool:
    """Whether `transformers` stores it as `[outputs, inputs]`; ours is `[inputs, outputs]`."""
    return name == "head" or name.rpartition(".")[2] in {"q", "k", "v", "o", "gate", "up", "down", "router"}


def reference_logits(
    model: transformers.PreTrainedModel, prompt: Sequence[int], steps: int
) -> tuple[np.ndarray, list[int]]:
    """Logits at every prompt position and after each of `steps` greedy tokens, and those tokens."""
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)  # `dynamic` remembers old lengths
    out = model(torch.tensor([list(prompt)]), use_cache=True)
    logits, tokens = [out.logits[0]], []
    for _ in range(steps):
        tokens.append(int(logits[-1][-1].argmax()))
        out = model(torch.tensor([tokens[-1:]]), cache=out.cache, use_cache=True)
        logits.append(out.logits[0])
    return torch.cat(logits).numpy(), tokens


class Driver:
    """Runs steps of two fixed shapes with page tables of its own, as the runtime does, but simpler.

    Every row owns `columns` pages, assigned in shuffled order. A mixed step takes chunks of any length for
    any rows (a chunk of one token is a single, longer ones are tiles); a decode step takes one token per row.
    Rows that are not given are padding.
    """

    def __init__(
        self,
        config: ModelConfig,
        parameters: Mapping[str, jax.Array],
        *,
        dtype: jnp.dtype = FLOAT32,
        tokens: int = 96,
        rows: int = 3,
        columns: int = 16,
        page_size: int = 8,
        seed: int = 0,
        mesh: Mesh | None = None,
        quantization: Quantization | None = None,
        kernels: Mapping[str, str] | None = None,
        joined: bool = False,
        optimized: bool = True,
    ) -> None:
        """Places the weights; a step is compiled when it first runs.

        Args:
          joined: as on a GPU, linear maps of the same inputs have one weight.
          optimized: False halves the time of compilation. For tests of what is computed, within a tolerance;
            tests of equal bits need the compiler's usual sums.
        """
        mesh = mesh or create_mesh(1)
        pages = 1 + rows * columns
        shuffled = np.random.default_rng(seed).permutation(np.arange(1, pages))
        self.tables = shuffled.reshape(rows, columns).astype(np.int32)
        self.tokens, self.rows, self.page_size = tokens, rows, page_size
        self.done, self.prompts = [0] * rows, [0] * rows
        target = Target.of(mesh, kernels, quantization)
        target = replace(target, kernels=replace(target.kernels, joined=joined))
        self.skeleton = Skeleton.of(config, target)
        self.leaves = self.skeleton.flatten(place_all(parameters, config, mesh, quantization))
        cache = create_cache(pad_config(config, mesh.size), pages, page_size, dtype, zeros)
        self.cache = jax.device_put(cache, NamedSharding(mesh, CACHE))
        specs = self.skeleton.specs(), CACHE, REPLICATED, REPLICATED
        step = over_shares(self._step, mesh, specs, (REPLICATED, CACHE))
        self.jitted = jax.jit(
            step, compiler_options=None if optimized else {"xla_backend_optimization_level": 0}
        )

    def _step(
        self, leaves: tuple[jax.Array, ...], cache: Cache, tokens_T: jax.Array, batch: Batch
    ) -> tuple[jax.Array, Cache]:
        model = self.skeleton.merge(leaves)
        hidden_TD, cache = model.hidden(tokens_T, cache, batch)
        return model.logits(hidden_TD), cache

    def start(self, row: int, prompt_length: int) -> None:
        """Empties a row for a sequence with a prompt of this length (`dynamic` rope needs it)."""
        self.done[row], self.prompts[row] = 0, prompt_length

    def mixed(self, chunks: Mapping[int, Sequence[int]]) -> dict[int, np.ndarray]:
        """Runs the next tokens of some rows, any number each; returns their logits `[len, V]` by row."""
        lengths = list(map(len, chunks.values()))
        ends = np.cumsum([0, *lengths]).tolist()
        starts = dict(zip(chunks, ends, strict=False))
        lay = self._lay_out(self.tokens, {starts[row]: (row, chunk) for row, chunk in chunks.items()})
        lay["tables"] = self.tables[[*chunks, *(set(range(self.rows)) - set(chunks))]]
        lay["starts"] = np.pad(ends, (0, self.rows - len(chunks)), mode="edge")
        singles = [start if n == 1 else self.tokens for start, n in zip(ends, lengths, strict=False)]
        singles += [self.tokens] * (self.rows - len(chunks))
        runs = [(start, n, i) for i, (start, n) in enumerate(zip(ends, lengths, strict=False)) if n > 1]
        tile = min(TILE, self.tokens)
        tiles = make_tiles(runs, tile=tile, capacity=self.tokens // tile + self.rows)
        logits_TV = self._run(lay, len(chunks), np.asarray(singles, np.int32), tiles)
        return {row: logits_TV[starts[row] :][: len(chunk)] for row, chunk in chunks.items()}

    def decode(self, tokens: Mapping[int, int]) -> dict[int, np.ndarray]:
        """Runs one next token of some rows; returns their logits `[1, V]` by row."""
        lay = self._lay_out(self.rows, {row: (row, [token]) for row, token in tokens.items()})
        lay["tables"], lay["starts"] = self.tables, np.arange(self.rows + 1)
        logits_BV = self._run(lay, self.rows, np.arange(self.rows, dtype=np.int32), None)
        return {row: logits_BV[row : row + 1] for row in tokens}

    def _lay_out(self, size: int, chunks: Mapping[int, tuple[int, Sequence[int]]]) -> dict[str, np.ndarray]:
        """Tokens, positions, lengths and cache entries of a step, from `{start: (row, tokens)}`."""
        lay = {name: np.zeros(size, np.int32) for name in ("tokens", "lengths", "entries")}
        lay["positions"] = np.full(size, -1, np.int32)
        for start, (row, chunk) in chunks.items():
            where = slice(start, start + len(chunk))
            position = self.done[row] + np.arange(len(chunk))
            page = self.tables[row, position // self.page_size]
            lay["tokens"][where], lay["positions"][where] = chunk, position
            lay["lengths"][where] = np.maximum(self.prompts[row], position + 1)
            lay["entries"][where] = page * self.page_size + position % self.page_size
            self.done[row] += len(chunk)
        return lay

    def _run(
        self, lay: Mapping[str, np.ndarray], rows: int, singles: np.ndarray, tiles: Tiles | None
    ) -> np.ndarray:
        batch = Batch(
            positions_T=jnp.asarray(lay["positions"]),
            lengths_T=jnp.asarray(lay["lengths"]),
            entries_T=jnp.asarray(lay["entries"]),
            tables_BM=jnp.asarray(lay["tables"], jnp.int32),
            starts_R=jnp.asarray(lay["starts"], jnp.int32),
            rows=jnp.int32(rows),
            singles_B=jnp.asarray(singles),
            tiles=tiles,
        )
        self.last = self.leaves, self.cache, jnp.asarray(lay["tokens"]), batch
        logits, self.cache = self.jitted(*self.last)
        return np.asarray(logits)


def make_tiles(runs: Sequence[tuple[int, int, int]], *, tile: int, capacity: int) -> Tiles:
    """Tiles over runs `(start, length, row)` of tokens, each split into pieces of at most `tile`."""
    pieces = [
        (start + cut, min(tile, length - cut), row)
        for start, length, row in runs
        for cut in range(0, length, tile)
    ]
    assert len(pieces) <= capacity
    columns = np.zeros((3, capacity), np.int32)
    columns[:, : len(pieces)] = np.asarray(pieces, np.int32).reshape(-1, 3).T
    start_C, length_C, row_C = map(jnp.asarray, columns)
    return Tiles(start_C=start_C, length_C=length_C, row_C=row_C, count=jnp.int32(len(pieces)))
