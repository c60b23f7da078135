"""Models whose linear weights are quantised in several ways: names, shapes, types, and the network itself."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from distaff.model.config import ModelConfig
from distaff.model.kernels.registry import choose
from distaff.model.parameters import (
    FP8,
    FP8_BLOCKS,
    INT4,
    INT8,
    INT8_GROUPS,
    Kind,
    Mixed,
    combined,
    is_linear,
    kind_of,
    parameter_shapes,
    stored_type,
    within,
)
from distaff.model.quantize import dequantize_groups, quantization_of, quantize
from distaff.model.sharding import create_mesh, place_all
from distaff.model.target import Target
from distaff.model.transformer import Transformer, random_parameters
from distaff.runtime.scorer import Scorer

F32 = jnp.dtype("float32")
SIZES = dict(vocabulary=96, width=64, feed_forward=256, heads=4, kv_heads=2, head_size=16, context=32)
UNTIED = ModelConfig(layers=3, **SIZES)
TIED = replace(UNTIED, tied_head=True)
LINEARS = [name for name in parameter_shapes(UNTIED) if is_linear(name)]
KINDS: tuple[Kind | None, ...] = (INT4, INT8_GROUPS, INT8, FP8, FP8_BLOCKS, None)
Kinds = dict[str, Kind | None]

SEVERAL: Kinds = {
    **dict.fromkeys(LINEARS, INT4),
    "layers.0.attention.k": INT8_GROUPS,
    "layers.0.feed_forward.down": INT8,
    "layers.1.attention.q": None,
    "layers.1.attention.v": INT8,
    "layers.1.feed_forward.up": None,
    "layers.2.attention.o": None,
    "layers.2.attention.k": FP8,
    "layers.2.feed_forward.down": FP8_BLOCKS,
    "head": None,
}


@given(st.lists(st.sampled_from(KINDS), min_size=len(LINEARS), max_size=len(LINEARS)))
def test_each_weight_has_the_kind_that_was_combined(drawn: list[Kind | None]) -> None:
    """By its whole name, by that of its parts, and by its name within a layer and a block."""
    kinds = dict(zip(LINEARS, drawn, strict=True))
    quantization = combined(kinds)
    for name, kind in kinds.items():
        assert kind_of(name, quantization) == kind_of(f"{name}_scale", quantization) == kind
        layer, block, inner = name.rsplit(".", 2) if name != "head" else ("", "", name)
        if layer:
            assert kind_of(f"{block}.{inner}", within(layer, quantization)) == kind
            assert kind_of(inner, within(block, within(layer, quantization))) == kind


@pytest.mark.parametrize("kind", [INT4, INT8_GROUPS, INT8])
def test_weights_of_one_kind_have_its_word(kind: Kind) -> None:
    """With int4 the head has 8 bits; a tied head that is wide is an exception."""
    alike = {name: kind_of(name, kind) for name in LINEARS}
    assert combined(alike) == kind
    assert combined({name: None for name in LINEARS}) is None
    del alike["head"]
    assert combined(alike) == Mixed(kind, (("head", None),))
    assert within("layers.0", Mixed(kind, (("head", None),))) == kind


@pytest.mark.parametrize("kind", [FP8, FP8_BLOCKS])
def test_with_fp8_the_head_is_wide(kind: Kind) -> None:
    alike = {name: kind_of(name, kind) for name in LINEARS}
    assert alike.pop("head") is None
    assert combined(alike) == combined({**alike, "head": None}) == kind
    assert combined({**alike, "head": kind}) == Mixed(kind, (("head", kind),))


def test_it_is_written_in_words() -> None:
    few = Mixed(INT4, (("head", None), ("layers.0.attention.k", INT8_GROUPS)))
    assert str(few) == "int4 but for head wide, layers.0.attention.k int8-groups"


@pytest.mark.parametrize("config", [UNTIED, TIED], ids=["untied", "tied"])
def test_list_equals_module_and_types(config: ModelConfig) -> None:
    """The list of parameters, the module's, and those that `quantize` makes; their types say how."""
    quantization = combined(SEVERAL)
    module = nnx.eval_shape(lambda: Transformer(config, Target(quantization=quantization), dtype=F32))
    found = nnx.to_flat_state(nnx.state(module, nnx.Param))
    shapes = parameter_shapes(config, quantization)
    assert {".".join(map(str, path)): param.shape for path, param in found} == shapes
    made = quantize(random_parameters(config, 0, F32), quantization)
    assert {name: values.shape for name, values in made.items()} == shapes
    for name, values in made.items():
        assert values.dtype.name == (stored_type(name, quantization) or "float32")
    assert quantization_of(made) == quantization


def dequantized(made: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The same model with wide weights."""
    wide = {name: values for name, values in made.items() if not name.endswith(("_scale", "_low"))}
    for name in (name for name in made if f"{name}_scale" in made):
        scale, low = made[f"{name}_scale"], made.get(f"{name}_low")
        if scale.dtype == F32:
            wide[name] = made[name].astype(F32) * (
                scale[None, :] if scale.ndim == 1 else jnp.repeat(scale, 128, 0)
            )
        else:
            wide[name] = dequantize_groups(made[name], scale, low)
    return wide


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("config", [UNTIED, TIED], ids=["untied", "tied"])
def test_logits_are_those_of_the_same_weights_widened(config: ModelConfig, shards: int) -> None:
    """Up to the rounding of activations to 8 bits: a step of 1 in 127 of the largest, which is three times
    the deviation or more, is an error of 0.7 % or more of it in each product, and the stream adds up the
    errors of 15. A weight that is read as another kind is off by about 100 %."""
    parameters = random_parameters(config, 1, F32)
    scaled = {name: 8 * values if is_linear(name) else values for name, values in parameters.items()}
    made = quantize(scaled, combined(SEVERAL))
    tokens = list(range(3, 20))
    mesh = create_mesh(shards)
    placed = place_all(made, config, mesh, combined(SEVERAL))
    found = Scorer.of(config, placed, mesh).logits(tokens)
    expected = Scorer.of(config, dequantized(made)).logits(tokens)
    assert np.sqrt(np.square(found - expected).mean()) < 0.06 * expected.std()


@settings(max_examples=6)
@given(st.integers(0, 2**20))
def test_parts_of_several_kinds_are_not_joined(seed: int) -> None:
    """Where weights of the same inputs are joined, those of one kind still are."""
    rng = np.random.default_rng(seed)
    usual = [kind for kind in KINDS if kind != FP8_BLOCKS]  # there are no whole blocks
    kinds: Kinds = {name: usual[rng.integers(len(usual))] for name in LINEARS}
    target = Target(kernels=replace(choose("cpu"), joined=True), quantization=combined(kinds))
    module = nnx.eval_shape(lambda: Transformer(UNTIED, target, dtype=F32))
    for layer, found in enumerate(module.layers):
        for block, parts, joined in (("attention", "q k v", "qkv"), ("feed_forward", "gate up", "gate_up")):
            alike = len({kinds[f"layers.{layer}.{block}.{part}"] for part in parts.split()}) == 1
            assert hasattr(getattr(found, block), joined) == alike
