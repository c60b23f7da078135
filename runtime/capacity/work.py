"""The work of one step on one device, counted from shapes: the analytic model.

It counts what no implementation can avoid: weights read once, the live cache read once, new keys and values
written, logits written and read, products, and collectives. It leaves out what a good program keeps on the
chip (activations, norms, rotary tables), the sampler's passes, and the host. Tests compare it with placed
arrays, XLA's cost analysis and compiled collectives.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax.numpy as jnp

from ...model.cache import page_bytes
from ...model.config import ModelConfig
from ...model.parameters import INT8, Quantization, has_head, is_linear, kind_of, stored_type
from ...model.sharding import pad_config, placements, share_config

SIZES = {"bfloat16": 2, "float32": 4, "int8": 1}
"""Bytes of a number."""

Span = tuple[int, int]
"""Tokens of one row in a step: their number, and the sequence's length including them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Collective:
    """A collective operation, `count` times per step; `bytes` is the size of one result on one device."""

    kind: str
    count: int
    bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """One device's part of one step.

    Attributes:
      bytes: read and written in the device's memory, by purpose.
      operations: multiplications and additions, by the type of the operands.
      collectives: the communication between devices.
    """

    bytes: Mapping[str, float]
    operations: Mapping[str, float]
    collectives: tuple[Collective, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class CostModel:
    """Counts the bytes and operations of a model that is divided among devices.

    Attributes:
      config: as published, not padded. shards: the number of devices. dtype: of activations and weights that
        are not quantised. quantization: of linear weights. page_size: tokens per page.
      int8_cache: keys and values are int8, not `dtype`.
    """

    config: ModelConfig
    shards: int
    dtype: str
    quantization: Quantization | None
    page_size: int
    int8_cache: bool = False

    def weight_bytes(self) -> int:
        """The bytes of all parameters on one device."""
        return sum(self._parameter_bytes().values())

    def _parameter_bytes(self) -> dict[str, int]:
        sizes = {}
        for name, where in placements(self.config, self.shards, self.quantization).items():
            width = jnp.dtype(stored_type(name, self.quantization) or self.dtype).itemsize
            parts = self.shards if where.axis is not None else 1
            sizes[name] = math.prod(where.shape) // parts * width
        return sizes

    def token_bytes(self) -> int:
        """The bytes of a token's keys and values on one device, over all layers."""
        share = share_config(self.config, self.shards)
        return page_bytes(share, 1, jnp.dtype("int8" if self.int8_cache else self.dtype))

    def decode(self, lengths: Sequence[int], rows: int | None = None) -> Work:
        """A step of one token for each sequence of these lengths, padded to `rows`."""
        rows = rows or len(lengths)
        return self.step([(1, length) for length in lengths], tokens=rows, sampled=rows)

    def step(self, spans: Sequence[Span], *, tokens: int, sampled: int) -> Work:
        """A step of `tokens` tokens, padding included, that samples `sampled` rows, padding included."""
        live = sum(count for count, _ in spans)
        return Work(
            bytes={
                "weights": self._weights_read(live),
                "cache read": sum(self._keys_read(end) for _, end in spans) * self.token_bytes(),
                "cache written": live * self.token_bytes(),
                "embedding": tokens * self.config.width * SIZES[self.dtype],
                "logits": 2 * sampled * self._vocabulary * SIZES["float32"],
            },
            operations=self._operations(spans, tokens, sampled),
            collectives=self._collectives(tokens, sampled),
        )

    @property
    def _vocabulary(self) -> int:
        return pad_config(self.config, self.shards).vocabulary

    def _weights_read(self, live: int) -> float:
        """Bytes of all weights except the embedding table, and only of experts that tokens are routed to."""
        total = 0.0
        for name, size in self._parameter_bytes().items():
            if name == "embed" and has_head(self.config, self.quantization):
                continue
            expert = self.config.moe is not None and "feed_forward." in name and "router" not in name
            total += size * (self._experts_used(live) if expert else 1.0)
        return total

    def _experts_used(self, tokens: int) -> float:
        """The expected share of experts with at least one token, if all are equally likely."""
        assert self.config.moe is not None
        missed = 1 - self.config.moe.experts_per_token / self.config.moe.experts
        return 1 - missed**tokens

    def _windows(self) -> Counter[int | None]:
        """The number of layers with each window."""
        full = len(self.config.full_layers)
        return Counter({self.config.window: self.config.layers - full}) + Counter({None: full})

    def _keys_read(self, end: int) -> float:
        """Tokens in the whole pages that hold a row's keys, on average over layers; with a window, only the
        keys inside it."""
        pages = {window: math.ceil(min(end, window or end) / self.page_size) for window in self._windows()}
        read = sum(pages[window] * layers for window, layers in self._windows().items())
        return read * self.page_size / self.config.layers

    def _operations(self, spans: Sequence[Span], tokens: int, sampled: int) -> dict[str, float]:
        operations: defaultdict[str, float] = defaultdict(float)
        live = sum(count for count, _ in spans)
        for name, where in placements(self.config, self.shards).items():
            if name == "embed" or len(where.shape) < 2:
                continue
            parts = self.shards if where.axis is not None else 1
            size = math.prod(where.shape) // parts
            linear = self._operands(name)
            if name == "head":
                operations[linear] += 2 * size * sampled
            elif len(where.shape) == 3:
                assert self.config.moe is not None
                operations[linear] += (
                    2 * size * live * self.config.moe.experts_per_token / self.config.moe.experts
                )
            else:
                operations[linear] += 2 * size * tokens
        if self.config.tied_head:
            operations[self._operands("head")] += (
                2 * self._vocabulary // self.shards * self.config.width * sampled
            )
        operations[self.dtype] += self._attention(spans)
        return dict(operations)

    def _operands(self, name: str) -> str:
        """The type of a weight's products. With groups it is int8 on CPUs only, whose rates are all alike;
        fp8 is widened."""
        kind = kind_of(name, self.quantization) if is_linear(name) else None
        return "int8" if kind == INT8 else self.dtype

    def _attention(self, spans: Sequence[Span]) -> float:
        """Scores and sums: four operations per query, key and element of the head."""
        share = share_config(self.config, self.shards)
        pairs = sum(
            layers * _visible_pairs(count, end, window)
            for window, layers in self._windows().items()
            for count, end in spans
        )
        return 4.0 * share.heads * share.head_size * pairs

    def _collectives(self, tokens: int, sampled: int) -> tuple[Collective, ...]:
        if self.shards == 1:
            return ()
        hidden = tokens * self.config.width * SIZES[self.dtype]
        logits = sampled * self._vocabulary * SIZES["float32"]
        return (
            Collective(kind="all-reduce", count=2 * self.config.layers + 1, bytes=hidden),
            Collective(kind="all-gather", count=1, bytes=logits),
        )


def _visible_pairs(count: int, end: int, window: int | None) -> int:
    """Pairs of a query and a visible key, over the last `count` positions of a sequence of `end`."""
    ends = range(end - count + 1, end + 1)
    if window is None or end <= window:
        return count * (ends[0] + ends[-1]) // 2
    return sum(min(position, window) for position in ends)
