"""The model lowers for TPU and CUDA on a machine that has neither, with the kernels of each.

Lowering runs every operation's rules for that platform; it does not run the platform's compiler.
"""

import re
from collections import Counter

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, use_abstract_mesh

from distaff.model.cache import Batch, Cache, Tiles, create_cache
from distaff.model.config import ModelConfig, MoEConfig, RopeScaling
from distaff.model.kernels.registry import choose
from distaff.model.kernels.zeros import zeros
from distaff.model.parameters import Quantization
from distaff.model.target import Target
from distaff.model.transformer import Skeleton

pytestmark = pytest.mark.accelerators
TOKENS, ROWS, COLUMNS, TILES = 128, 8, 4, 10
SIZES = dict(vocabulary=256, layers=2, width=128, feed_forward=256, heads=4, kv_heads=2, head_size=64)
MODELS = {
    "llama": ModelConfig(**SIZES, context=512, tied_head=True),
    "dynamic-window": ModelConfig(
        **SIZES,
        context=512,
        window=100,
        attention_bias=True,
        feed_forward_bias=True,
        rope=RopeScaling(kind="dynamic", factor=2.0, original_context=64),
    ),
    "mixtral": ModelConfig(
        **{**SIZES, "head_size": 128}, context=512, window=100, moe=MoEConfig(experts=4, experts_per_token=2)
    ),
}


def integers(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def abstract_batch(kind: str) -> Batch:
    """A batch of rows alone, or one with tiles."""
    tokens = ROWS if kind == "rows" else TOKENS
    names = ("start_C", "length_C", "row_C")
    tiles = Tiles(**{name: integers(TILES) for name in names}, count=integers())
    return Batch(
        positions_T=integers(tokens),
        lengths_T=integers(tokens),
        entries_T=integers(tokens),
        tables_BM=integers(ROWS, COLUMNS),
        starts_R=integers(ROWS + 1),
        rows=integers(),
        singles_B=integers(ROWS),
        tiles=None if kind == "rows" else tiles,
    )


MARKS = {
    "tpu": {"attention": "tpu_custom_call", "experts": "ragged_dot"},
    "cuda": {"attention": "paged_attention_", "experts": "experts_swiglu_"},
}
"""Text that shows that the platform's own kernel is in a lowered step."""

TPU_WIDENS = {"fp8": "bf16", "fp8-blocks": "f32"}
"""The type that fp8 is converted to. In blocks it is scaled in f32 and then rounded."""

DEVICES = {
    "tpu": AbstractDevice("TPU v5 lite", 1, "tpu"),
    "cuda": AbstractDevice("NVIDIA H100 80GB HBM3", None, "gpu"),
}
"""The device that Pallas queries if there is none; a real mesh has its own."""


def lower(
    config: ModelConfig,
    kind: str,
    dtype: str,
    platform: str,
    *,
    quantization: Quantization | None = None,
    cached: str | None = None,
) -> tuple[jax.stages.Lowered, Cache]:
    """A step with the platform's kernels, down to the logits; and the shapes of its cache."""
    batch, width = abstract_batch(kind), jnp.dtype(dtype)
    skeleton = Skeleton.of(config, Target(kernels=choose(platform), quantization=quantization))
    cache = jax.eval_shape(lambda: create_cache(config, 32, 64, jnp.dtype(cached or width), zeros))

    def step(leaves, cache, tokens_T, batch):
        model = skeleton.merge(leaves)
        hidden_TD, cache = model.hidden(tokens_T, cache, batch)
        return model.logits(hidden_TD), cache

    device = DEVICES[platform]
    with use_abstract_mesh(AbstractMesh((1,), ("model",), (AxisType.Auto,), abstract_device=device)):
        traced = jax.jit(step).trace(skeleton.abstract(width), cache, batch.positions_T, batch)
        return traced.lower(lowering_platforms=(platform,)), cache


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["rows", "tiles"])
@pytest.mark.parametrize("name", MODELS)
def test_step_lowers_for_accelerators(name: str, kind: str, dtype: str, platform: str) -> None:
    """A step of rows and a step with tiles lower in both dtypes, with the kernels that the platform has."""
    config = MODELS[name]
    lowered, cache = lower(config, kind, dtype, platform)
    text, marks = lowered.as_text(), MARKS[platform]
    own = platform == "cuda" or config.head_size == 128
    assert (marks["attention"] in text) == own
    assert marks["experts"] in text or config.moe is None
    logits, cache_out = lowered.out_info
    tokens = ROWS if kind == "rows" else TOKENS
    assert logits.shape == (tokens, config.vocabulary) and logits.dtype == jnp.float32
    assert [(pool.shape, pool.dtype) for pool in cache_out] == [(pool.shape, pool.dtype) for pool in cache]


@pytest.mark.parametrize(("dtype", "exact"), [("float32", True), ("bfloat16", False)])
@pytest.mark.parametrize("name", MODELS)
def test_products_of_f32_are_exact_on_a_gpu(name: str, dtype: str, exact: bool) -> None:
    """All of them, where f32 is computed: JAX's default there is TF32."""
    text = lower(MODELS[name], "tiles", dtype, "cuda")[0].as_text()
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    of_f32 = [line for line in products if re.search(r": \(tensor<[\dx]*xf32>, tensor<[\dx]*xf32>\)", line)]
    assert products and (of_f32 or not exact)
    assert all(("HIGHEST" in line) == exact for line in of_f32)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize("kind", ["rows", "tiles"])
def test_an_int8_cache_lowers(kind: str, platform: str) -> None:
    """Its pools come out with their types. JAX's TPU kernel cannot read them, so the portable one does; ours
    for GPUs can."""
    lowered, cache = lower(MODELS["llama"], kind, "bfloat16", platform, cached="int8")
    assert jax.tree.map(lambda x: (x.shape, x.dtype), lowered.out_info[1]) == jax.tree.map(
        lambda x: (x.shape, x.dtype), cache
    )
    assert {leaf.dtype.name for leaf in jax.tree.leaves(cache)} == {"int8", "float32"}
    assert (MARKS[platform]["attention"] in lowered.as_text()) == (platform == "cuda")


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize("kind", ["rows", "tiles"])
@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_int8_stays_int8(name: str, kind: str, platform: str) -> None:
    """Every product with weights except the router's is int8 x int8 -> int32, including experts'; none is
    widened first. The experts' products for GPUs are inside kernels, which the text does not show."""
    text = lower(MODELS[name], kind, "bfloat16", platform, quantization="int8")[0].as_text()
    products = re.findall(
        r"(?:dot_general|ragged_dot).*: \(tensor<(\S+)>, tensor<(\S+)>.*-> tensor<(\S+)>", text
    )
    kinds = Counter(tuple(shape.rpartition("x")[2] for shape in product) for product in products)
    # On a GPU q, k, v are one product; gate and up too, or experts are in a kernel.
    fewer = {"llama": 3, "mixtral": 5}[name] if platform == "cuda" else 0
    assert kinds["i8", "i8", "i32"] == 7 + 1 - fewer  # one layer is traced; a tied head is a separate weight
    assert not [kind for kind in kinds if "i8" in kind[:2] and kind != ("i8", "i8", "i32")]
    assert not re.search(r"convert.*tensor<\S+xi8>\) -> tensor<\S+x(?:bf16|f32)>", text)


@pytest.mark.parametrize("kind", ["rows", "tiles"])
@pytest.mark.parametrize("quantization", ["fp8", "fp8-blocks"])
@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_fp8_is_widened_to_the_type_of_a_tpus_computation(
    name: str, quantization: Quantization, kind: str
) -> None:
    """And the whole of a weight only if its scales come last. A stack of experts is not widened."""
    text = lower(MODELS[name], kind, "bfloat16", "tpu", quantization=quantization)[0].as_text()
    widened = re.findall(r"stablehlo.convert.*tensor<(\S+)xf8E4M3FN>\) -> tensor<(\S+)x(\w+)>", text)
    assert len(widened) == 7 and {dtype for _, _, dtype in widened} == {TPU_WIDENS[quantization]}
    assert not [shape for shape, _, _ in widened if shape.startswith("4x")]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["rows", "tiles"])
@pytest.mark.parametrize("quantization", ["fp8", "fp8-blocks"])
@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_fp8_stays_bytes_on_a_gpu(name: str, quantization: Quantization, kind: str, dtype: str) -> None:
    """Linear maps and experts are in kernels; only the tied head and the router are other products."""
    text = lower(MODELS[name], kind, dtype, "cuda", quantization=quantization)[0].as_text()
    assert len(re.findall(r'name = "fp8_\d+x\d+_in_\d+"', text)) == {"llama": 4, "mixtral": 2}[name]
    assert (MARKS["cuda"]["experts"] in text) == (name == "mixtral")
    assert text.count("stablehlo.dot_general") == {"llama": 1, "mixtral": 2}[name]
    assert not re.search(r"stablehlo.convert.*f8E4M3FN", text)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize("kind", ["rows", "tiles"])
def test_experts_in_groups_lower(kind: str, platform: str) -> None:
    """On a GPU in kernels of their own; on a TPU one of four is widened, here a single tile, and never the
    stack."""
    text = lower(MODELS["mixtral"], kind, "bfloat16", platform, quantization="int4")[0].as_text()
    assert (MARKS["cuda"]["experts"] in text) == (platform == "cuda")
    assert MARKS["tpu"]["experts"] not in text and MARKS[platform]["attention"] in text
    assert ("tensor<64x256xbf16>" in text) == (platform == "tpu")
    assert "tensor<4x64x256xui8>" in text
    assert not re.search(r"tensor<4x(64x256|128x128|128x256|256x128|4x32x256|8x32x128)x(bf16|f32)>", text)


@pytest.mark.parametrize("kind", ["rows", "tiles"])
@pytest.mark.parametrize("quantization", ["int4", "int8-groups"])
def test_groups_stay_packed_on_a_gpu(kind: str, quantization: Quantization) -> None:
    """Every linear map and the head are products of the kernel for groups; there is no other product."""
    text = lower(MODELS["llama"], kind, "bfloat16", "cuda", quantization=quantization)[0].as_text()
    assert len(re.findall(r'name = "grouped_\d+x\d+_in_\d+"', text)) == 4 + 1  # one layer is traced
    assert "stablehlo.dot_general" not in text
