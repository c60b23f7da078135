"""A model's configuration: sizes, rotary scaling, attention window. No weights, no JAX.

`ModelConfig` has everything that the computation depends on, and nothing else (tokenizers, end tokens and
default sampling belong to the checkpoint). The loaders in `checkpoints/` translate the names of other formats
into these, and the layers read them.

Axis letters, used as suffixes of array names in mathematical code (`q_TNH`) everywhere in Distaff:

    B rows of a batch (slots)     T query tokens        S key positions      D model width
    F feed-forward width          N query heads         K key/value heads    G = N / K
    H head size                   V vocabulary          L layers             P pages
    E experts                     X experts per token
"""

from dataclasses import dataclass, fields
from typing import Literal

from .errors import ConfigError

RopeKind = Literal["linear", "dynamic", "llama3", "yarn", "longrope"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the context the model was trained on.

    Attributes:
      kind: `linear` (position interpolation), `dynamic` (NTK-aware, by sequence length), `llama3`
        (Llama 3.1's band-wise interpolation), `yarn` (Peng et al. 2023, arXiv:2309.00071) or `longrope` (Ding
        et al. 2024, arXiv:2402.13753).
      factor: how many times longer the context becomes.
      original_context: the trained context (positions). `llama3` and `yarn` compute with it; `dynamic` scales
        sequences that are longer, and `longrope` divides their frequencies by other factors.
      low_frequency, high_frequency: `llama3`'s band limits, in periods per trained context.
      beta_fast, beta_slow: `yarn`'s ramp limits, in rotations per trained context.
      attention_factor: `yarn`'s and `longrope`'s factor on cos and sin; None derives it from `factor`, the
        two mscales and `original_context`.
      mscale, mscale_all_dim: `yarn`'s attention-factor parameters (DeepSeek's form); None where unused.
      truncate: whether `yarn` rounds its ramp limits to whole dimensions.
      short_factors, long_factors: `longrope`'s divisors of each frequency, for sequences of at most
        `original_context` tokens and for longer ones.
      query_growth: a query at position p is multiplied by 1 + query_growth * ln(1 + floor(p /
        original_context)) (Ministral 3, Llama 4); None: not at all.

    Raises:
      ConfigError: a number is not positive, or `llama3`'s band is empty.
    """

    kind: RopeKind
    factor: float
    original_context: int
    low_frequency: float = 1.0
    high_frequency: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    query_growth: float | None = None

    def __post_init__(self) -> None:
        _check_positive(self, "rope.")
        if self.kind == "llama3" and self.high_frequency <= self.low_frequency:
            raise ConfigError(
                f"rope.high_frequency is {self.high_frequency}; expected more than low_frequency, "
                f"{self.low_frequency}"
            )
        for value in (*self.short_factors, *self.long_factors):
            if not 0 < value < float("inf"):
                raise ConfigError(f"a factor of longrope is {value!r}; expected a positive number")

    def reach(self, stated: int) -> int:
        """The longest context, if a checkpoint states `stated` positions.

        With `llama3` and `longrope` that is the stated number. With other kinds, some checkpoints state the
        stretched context and some the trained one, so it is the larger of the stated number and `factor`
        times the trained context, as in vLLM.
        """
        return (
            stated
            if self.kind in ("llama3", "longrope")
            else max(stated, int(self.original_context * self.factor))
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class MoEConfig:
    """A mixture of experts that replaces each feed-forward (Mixtral: Jiang et al. 2024, arXiv:2401.04088).

    Attributes:
      experts: E. experts_per_token: X, the number of experts that each token is routed to.
      normalized: the weights of a token's experts add up to 1; otherwise they are its probabilities among all
        experts.

    Raises:
      ConfigError: a number is not positive, or a token is routed to more experts than exist.
    """

    experts: int
    experts_per_token: int
    normalized: bool = True

    def __post_init__(self) -> None:
        _check_positive(self, "moe.")
        if self.experts_per_token > self.experts:
            raise ConfigError(
                f"moe.experts_per_token is {self.experts_per_token}; expected at most experts, {self.experts}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """A Llama-shaped decoder, in the axis letters of this module.

    Attributes:
      vocabulary: V. layers: L. width: D. feed_forward: F, of each expert in a mixture of experts.
      heads: N. kv_heads: K. head_size: H.
      context: the maximum number of positions (prompt and completion together).
      norm_epsilon: added to the mean square in RMSNorm.
      rope_theta: rotary base. rope: None for plain rotary embedding.
      tied_head: the output head is the embedding, transposed.
      attention_bias: q, k and v have biases, and o too, unless output_bias is False.
      feed_forward_bias: gate, up and down have biases.
      window: a query attends to itself and the `window - 1` positions before it; None: to all positions.
      full_layers: the layers, from 0, that have no window. unrotated_layers: those without rotary embedding.
      moe: the mixture of experts; None for one dense feed-forward.
      head_norms: queries and keys are normalised, head by head, before they are rotated.
      rotary_size: how many dimensions of a head are rotated, the first ones; None: all.
      embedding_scale, residual_scale: factors of the embedding, and of what each block adds to the stream.
      attention_scale: the factor of scores; None: 1 / sqrt(H). logits_divisor: divides the logits.

    Raises:
      ConfigError: a size is not positive, heads do not divide evenly, the rope cannot be computed, experts
        have biases, or a layer does not exist.
    """

    vocabulary: int
    layers: int
    width: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_size: int
    context: int
    norm_epsilon: float = 1e-5
    rope_theta: float = 10_000.0
    rope: RopeScaling | None = None
    tied_head: bool = False
    attention_bias: bool = False
    feed_forward_bias: bool = False
    window: int | None = None
    moe: MoEConfig | None = None
    output_bias: bool = True
    full_layers: tuple[int, ...] = ()
    unrotated_layers: tuple[int, ...] = ()
    head_norms: bool = False
    rotary_size: int | None = None
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    attention_scale: float | None = None
    logits_divisor: float = 1.0

    def __post_init__(self) -> None:
        _check_positive(self)
        if self.heads % self.kv_heads:
            raise ConfigError(
                f"heads is {self.heads} and kv_heads {self.kv_heads}; expected heads to be a multiple"
            )
        if self.moe is not None and self.feed_forward_bias:
            raise ConfigError("feed_forward_bias is True; experts have no biases")
        if self.head_size % 2:
            raise ConfigError(f"head_size is {self.head_size}; rotary embedding needs an even number")
        if self.rotated % 2 or self.rotated > self.head_size:
            raise ConfigError(
                f"rotary_size is {self.rotary_size}; expected an even number up to {self.head_size}"
            )
        for layer in (*self.full_layers, *self.unrotated_layers):
            if not 0 <= layer < self.layers:
                raise ConfigError(f"layer {layer} is listed; expected one of {self.layers} layers")
        if self.rope is not None and self.rope.kind == "dynamic" and self.head_size == 2:
            raise ConfigError("head_size is 2; dynamic rope scaling needs at least 4")
        if self.rope is not None and self.rope.kind == "yarn" and self.rope_theta <= 1:
            raise ConfigError(f"rope_theta is {self.rope_theta}; yarn needs more than 1")
        if self.rope is not None and self.rope.kind == "longrope":
            self._check_factors(self.rope)

    def _check_factors(self, rope: RopeScaling) -> None:
        for name in ("short_factors", "long_factors"):
            if len(getattr(rope, name)) != self.rotated // 2:
                raise ConfigError(
                    f"{name} has {len(getattr(rope, name))} numbers; expected {self.rotated // 2}, one for "
                    "each rotary frequency"
                )

    @property
    def rotated(self) -> int:
        """The number of dimensions of a head that are rotated."""
        return self.rotary_size or self.head_size


def _check_positive(part: RopeScaling | MoEConfig | ModelConfig, prefix: str = "") -> None:
    """Raises ConfigError unless every number in a dataclass is positive and finite."""
    for field in fields(part):
        value = getattr(part, field.name)
        if type(value) in (int, float) and not 0 < value < float("inf"):
            raise ConfigError(f"{prefix}{field.name} is {value!r}; expected a positive number")
