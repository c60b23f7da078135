"""The layouts of quantised folders that are tested, each with its `quantization_config`."""

from typing import Any

import ml_dtypes
import numpy as np

from .packing import FP8, Format, awq, fp8, gptq, int8, pack_quantized


def compressed(form: str, activations: dict[str, Any] | None = None, **weights: Any) -> dict[str, Any]:
    """The `quantization_config` of llm-compressor."""
    stated = {
        "num_bits": 4,
        "type": "int",
        "symmetric": True,
        "strategy": "channel",
        "dynamic": False,
        **weights,
    }
    group = {"targets": ["Linear"], "weights": stated, "input_activations": activations, "format": None}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "quantization_status": "compressed",
        "kv_cache_scheme": None,
        "sparsity_config": {},
        "version": "0.9.2",
    }


def gptq_config(**changes: Any) -> dict[str, Any]:
    """The `quantization_config` of AutoGPTQ."""
    stated = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}
    return {**stated, "damp_percent": 0.01, "true_sequential": True, **changes}


TOKENS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
STATIC = {**TOKENS, "strategy": "tensor", "dynamic": False}
ONE = np.full(1, 0.02, np.float32)
BF16 = ml_dtypes.bfloat16

AWQ = {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "gemm"}
BLOCKS = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}

FORMATS: dict[str, Format] = {
    "w4a16-g128": Format(
        config=compressed("pack-quantized", strategy="group", group_size=128),
        pack=pack_quantized(), kind="int4", size=128,
    ),
    "w4a16-g32-zeros": Format(
        config=compressed("pack-quantized", strategy="group", group_size=32, symmetric=False),
        pack=pack_quantized(zeros="words"), kind="int4", size=32, zeros=True,
    ),
    "w4a16-g64-old-zeros": Format(
        config=compressed("pack-quantized", strategy="group", group_size=64, symmetric=False),
        pack=pack_quantized(zeros="int8"), kind="int4", size=64, zeros=True, scale=BF16,
    ),
    "w4a16-channel": Format(config=compressed("pack-quantized"), pack=pack_quantized(), kind="int4"),
    "w4a16-ordered": Format(
        config=compressed("pack-quantized", strategy="group", group_size=32, actorder="group"),
        pack=pack_quantized(), kind="int8-groups", exact=False, size=32, order=True,
    ),
    "w8a16-g32": Format(
        config=compressed("pack-quantized", num_bits=8, strategy="group", group_size=32),
        pack=pack_quantized(8), kind="int8-groups", bits=8, size=32,
    ),
    "gptq": Format(config=gptq_config(), pack=gptq(), kind="int4", size=128),
    "gptq-zeros": Format(
        config=gptq_config(group_size=64, sym=False), pack=gptq(), kind="int4", size=64, zeros=True
    ),
    "gptq-v2": Format(
        config=gptq_config(group_size=32, sym=False, checkpoint_format="gptq_v2"),
        pack=gptq(less=0), kind="int4", size=32, zeros=True,
    ),
    "gptq-channel": Format(config=gptq_config(group_size=-1, desc_act=True), pack=gptq(), kind="int4"),
    "gptq-ordered": Format(
        config=gptq_config(group_size=32, desc_act=True),
        pack=gptq(), kind="int8-groups", exact=False, size=32, order=True,
    ),
    "gptq-8": Format(
        config=gptq_config(bits=8, group_size=64), pack=gptq(8), kind="int8-groups", bits=8, size=64
    ),
    "gptq-8-zeros": Format(
        config=gptq_config(bits=8, group_size=32, sym=False),
        pack=gptq(8), kind="int8-groups", exact=False, bits=8, size=32, zeros=True,
    ),
    "awq": Format(config=AWQ, pack=awq, kind="int4", size=64, zeros=True),
    "w8a8": Format(
        config=compressed("int-quantized", TOKENS, num_bits=8), pack=int8(), kind="int8", bits=8, scale=BF16
    ),
    "w8a8-static": Format(
        config=compressed("int-quantized", STATIC, num_bits=8),
        pack=int8(input_scale=ONE), kind="int8", bits=8, scale=np.float32,
    ),
    "w8a8-shifted": Format(
        config=compressed("int-quantized", {**TOKENS, "symmetric": False}, num_bits=8),
        pack=int8(), kind="int8", bits=8,
    ),
    "w8a16": Format(
        config=compressed("int-quantized", num_bits=8), pack=int8(), kind="int8-groups", bits=8
    ),
    "fp8-blocks": FP8(
        config=BLOCKS, pack=fp8("weight_scale_inv", rows=128), kind="fp8-blocks", block=(128, 128)
    ),
    "fp8-wide-blocks": FP8(
        config=BLOCKS | {"weight_block_size": [96, 256]},
        pack=fp8("weight_scale_inv", rows=96), kind="fp8-blocks", block=(96, 256), scale=BF16,
    ),
    "fp8-blocks-of-96": FP8(
        config=BLOCKS | {"weight_block_size": [96, 96]},
        pack=fp8("weight_scale_inv", rows=96), kind=None, block=(96, 96),
    ),
    "fp8-e5m2": FP8(
        config={"quant_method": "fp8", "activation_scheme": "dynamic"},
        pack=fp8("weight_scale", ()), kind=None, number=ml_dtypes.float8_e5m2,
    ),
    "fp8-tensor": FP8(
        config={"quant_method": "fp8", "activation_scheme": "static"},
        pack=fp8("weight_scale", (), input_scale=ONE),
    ),
    "fp8-mistral": FP8(
        config={"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None},
        pack=fp8("weight_scale_inv", (), activation_scale=ONE), scale=BF16,
    ),
    "fp8-compressed": FP8(
        config=compressed("float-quantized", TOKENS, num_bits=8, type="float"),
        pack=fp8("weight_scale"), block=(1, None), scale=BF16,
    ),
    "fp8-compressed-blocks": FP8(
        config=compressed(
            "float-quantized", {**TOKENS, "type": "float", "strategy": "group", "group_size": 128},
            num_bits=8, type="float", strategy="block", block_structure=[128, 128],
        ),
        pack=fp8("weight_scale", rows=128), kind="fp8-blocks", block=(128, 128), scale=BF16,
    ),
    "fp8-naive": FP8(
        config=compressed("naive-quantized", STATIC, num_bits=8, type="float", strategy="tensor"),
        pack=fp8("weight_scale", (1,), input_scale=ONE),
    ),
}  # fmt: skip
