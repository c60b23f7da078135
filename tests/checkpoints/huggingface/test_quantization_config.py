"""`quantization_config`: what is not supported is refused by name, before any weight is read."""

from typing import Any

import pytest

from distaff.checkpoints.huggingface.tensors.quantization_config import read_quantization
from distaff.model.errors import ConfigError

from .formats import AWQ, BLOCKS, FORMATS, compressed, gptq_config

INSTEAD = "the model without quantization_config works, with --quantize int8, int4 or fp8"
PACKED = compressed("pack-quantized", strategy="group", group_size=128)


def weights(**changes: Any) -> dict[str, Any]:
    return compressed("pack-quantized", **{"strategy": "group", "group_size": 128, **changes})


@pytest.mark.parametrize(
    "stated, reason",
    [
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True},
            "quant_method 'bitsandbytes'; expected one of awq",
        ),
        *[({"quant_method": name}, f"quant_method '{name}'") for name in ("hqq", "quanto", "eetq", "aqlm")],
        *[({"quant_method": name}, f"quant_method '{name}'") for name in ("vptq", "mxfp4", "fbgemm_fp8")],
        (
            {"quant_method": "of-next-year"},
            "quant_method 'of-next-year'; expected one of awq, compressed-tensors",
        ),
        ({"bits": 4}, "quantization_config is {'bits': 4}; expected one of"),
        ("int4", "quantization_config is 'int4'"),
        (gptq_config(bits=3), "(gptq): bits is 3; expected 4 or 8"),
        (gptq_config(bits="4"), "bits is '4'"),
        (gptq_config(group_size=48), "group_size is 48; expected -1 or a multiple of 32"),
        (gptq_config(group_size=0), "group_size is 0"),
        (
            gptq_config(checkpoint_format="marlin"),
            "checkpoint_format is 'marlin'; expected 'gptq' or 'gptq_v2'",
        ),
        (gptq_config(is_marlin_format=True), "is_marlin_format is True"),
        (gptq_config(dynamic={"+:.*down.*": {"bits": 8}}), "dynamic is {'+:.*down.*': {'bits': 8}}"),
        (gptq_config(desc_act="yes"), "desc_act is 'yes'; expected true or false"),
        (AWQ | {"bits": 8}, "(awq): bits is 8; expected 4"),
        (AWQ | {"version": "gemv"}, "version is 'gemv'; expected 'gemm'"),
        (AWQ | {"zero_point": False}, "zero_point is False"),
        (AWQ | {"backend": "llm-awq"}, "backend"),
        (BLOCKS | {"weight_block_size": [128]}, "weight_block_size is [128]; expected two positive integers"),
        (BLOCKS | {"activation_scheme": "other"}, "activation_scheme is 'other'"),
        (
            PACKED | {"format": "nvfp4-pack-quantized"},
            "(compressed-tensors): format is 'nvfp4-pack-quantized'",
        ),
        (PACKED | {"format": "marlin-24"}, "format is 'marlin-24'; expected 'pack-quantized'"),
        (PACKED | {"config_groups": {}}, "config_groups is {}"),
        (PACKED | {"config_groups": {"a": 1}}, "config_groups.a is 1"),
        (PACKED | {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config"),
        (PACKED | {"transform_config": {"config_groups": {"u": 1}}}, "transform_config"),
        (weights(num_bits=2), "num_bits is 2; expected 4 or 8"),
        (weights(type="float"), "group_0.weights.num_bits is 4; expected 8"),
        (weights(group_size=16), "group_size is 16"),
        (weights(strategy="tensor_group"), "group_0.weights.strategy is 'tensor_group'"),
        (weights(dynamic=True), "group_0.weights.dynamic is True"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(stated: Any, reason: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        read_quantization({"quantization_config": stated})
    assert reason in str(refusal.value) and str(refusal.value).endswith(INSTEAD)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", FORMATS)
def test_every_place_in_config_json(name: str) -> None:
    """Under its first name too, and in the part of a model of several kinds of input."""
    stated = FORMATS[name].config
    found = read_quantization({"quantization_config": stated})
    assert found and read_quantization({"compression_config": stated}) == found
    assert read_quantization({"text_config": {"quantization_config": stated}}) == found


@pytest.mark.parametrize("config", [{}, {"quantization_config": None}, {"text_config": {}}])
def test_a_model_without_it_has_none(config: dict[str, Any]) -> None:
    assert read_quantization(config) is None


def test_targets_by_name_pattern_and_class() -> None:
    """A name is stronger than a pattern, and that than all linear maps, in whatever order they stand."""
    (group,) = PACKED["config_groups"].values()
    eight = {**group["weights"], "num_bits": 8, "group_size": 32}
    groups = {
        "others": group,
        "down": {"targets": ["re:.*down_proj"], "weights": eight},
        "one": {"targets": ["model.layers.1.mlp.down_proj"], "weights": {**eight, "group_size": 64}},
        "activations": {"targets": ["re:.*"], "weights": None},
    }
    found = read_quantization({"quantization_config": PACKED | {"config_groups": groups}})
    assert found is not None
    sizes = {name: found.of(f"model.layers.{name}").group for name in ("0.mlp.up_proj", "0.mlp.down_proj")}
    assert sizes == {"0.mlp.up_proj": 128, "0.mlp.down_proj": 32}
    assert found.of("model.layers.1.mlp.down_proj").group == 64
    del groups["others"]
    found = read_quantization({"quantization_config": PACKED | {"config_groups": groups}})
    with pytest.raises(ConfigError, match="up_proj is quantised; no target of config_groups"):
        assert found and found.of("model.layers.0.mlp.up_proj")
