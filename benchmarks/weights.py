"""The bundled model's weights in the formats of the other servers: the same numbers, dequantised once.

GGUF in F32 and Q8_0 for llama.cpp, in addition to the shipped file; a Hugging Face folder for transformers.
Everything else in the GGUF (tokenizer, template, sizes) is copied from the shipped one. Made once and kept in
`build/bench`.
"""

import json
from pathlib import Path

import gguf
import numpy as np
from gguf.constants import GGMLQuantizationType as Kind
from gguf.quants import dequantize, quantize
from safetensors.numpy import save_file

from distaff.checkpoints import load_tokenizer, open_checkpoint, resolve
from distaff.checkpoints.names import HUGGINGFACE
from distaff.model.config import ModelConfig

FOLDER = Path("build/bench")


def shipped() -> Path:
    """The bundled GGUF, Q4_1, unchanged."""
    return resolve(None)


def gguf_file(kind: str) -> Path:
    """The weights as a GGUF of kind `F32` or `Q8_0`: matrices in that kind, vectors in F32."""
    path = FOLDER / f"{shipped().stem.split('.')[0]}.{kind}.gguf"
    if not path.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        _write(partial, gguf.GGUFReader(shipped()), Kind[kind])
        partial.rename(path)
    return path


def _write(path: Path, reader: gguf.GGUFReader, kind: Kind) -> None:
    writer = gguf.GGUFWriter(path, arch="llama")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type"):
            continue
        sub = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub)
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if values.ndim > 1 and kind is not Kind.F32:
            writer.add_tensor(tensor.name, quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(tensor.name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def transformers_folder() -> Path:
    """The weights in f32 as transformers reads them, with the tokenizer."""
    folder = FOLDER / "transformers"
    if not (folder / "model.safetensors").exists():
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint = open_checkpoint(resolve(None))
        load_tokenizer(resolve(None)).save(folder)
        (folder / "config.json").write_text(json.dumps(_config(checkpoint)))
        save_file(_tensors(checkpoint), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _tensors(checkpoint) -> dict[str, np.ndarray]:
    found = {}
    for name, values in checkpoint.tensors():
        _, layer, inner = name.split(".", 2) if name.startswith("layers.") else ("", "", name)
        linear = values.ndim == 2 and name != "embed"
        theirs = HUGGINGFACE[inner].format(layer=layer)
        found[theirs] = np.ascontiguousarray(values.T if linear else values, dtype=np.float32)
    return found


def _config(checkpoint) -> dict:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        **config_sizes(checkpoint.config),
        "eos_token_id": sorted(checkpoint.generation.eos_ids),
    }


def config_sizes(config: ModelConfig) -> dict[str, object]:
    """The config.json keys of any model without rope scaling and biases."""
    return {
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "intermediate_size": config.feed_forward,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tied_head,
    }
