"""Tiny checkpoints in every format, made by the libraries that define the formats."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file, save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from distaff.checkpoints.huggingface.huggingface_config import read_config
from distaff.checkpoints.huggingface.huggingface_folder import HuggingFaceFolder
from distaff.checkpoints.names import HUGGINGFACE, origin_of
from distaff.model.errors import DistaffError
from distaff.model.parameters import parameter_shapes

SIZES: dict[str, Any] = dict(
    vocab_size=320,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
)

TEXTS = [
    "The quick brown fox jumps over the lazy dog. It's 2024, and we're here!",
    "Straßenbahn über die Brücke, naïve café; 世界你好 🙂 один два три",
    "    def f(x):\n        return x  + 1\n\n\n" + "The dog's 12345 words. " * 3,
]

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def make_model(family: str = "llama", **changes: Any) -> transformers.PreTrainedModel:
    """A random model of transformers, float32; every parameter is far from its initial value."""
    import torch  # here, because the tokenizers below are also used without it

    config_class, model_class = {
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
        "mixtral": (transformers.MixtralConfig, transformers.MixtralForCausalLM),
    }[family]
    torch.manual_seed(1)
    model = model_class(config_class(**{**SIZES, **changes}))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def save_folder(folder: Path, model: transformers.PreTrainedModel, **options: Any) -> Path:
    """A Hugging Face folder with weights, a byte-level tokenizer and a ChatML template."""
    model.save_pretrained(folder, **options)
    return _save_tokenizer(folder)


def save_random_folder(folder: Path, **changes: Any) -> Path:
    """The same with a random Llama, without torch."""
    folder.mkdir()
    config, rng = {"model_type": "llama", **SIZES, **changes}, np.random.default_rng(1)
    (folder / "config.json").write_text(json.dumps(config))
    shapes = parameter_shapes(read_config(folder / "config.json", config))
    origins = [origin_of(HUGGINGFACE, name, shapes) for name in shapes]
    drawn = {origin.names[0]: rng.standard_normal(origin.shape, np.float32) for origin in origins}
    save_file(drawn, folder / "model.safetensors")
    return _save_tokenizer(folder)


def _save_tokenizer(folder: Path) -> Path:
    tokenizer = byte_level()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}, "chat_template": CHATML}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def edit_json(path: Path, **changes: Any) -> None:
    """Changes keys of a JSON file; None removes one."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def byte_level() -> Tokenizer:
    """A trained byte-level BPE like SmolLM2's: single digits, then GPT-2's split."""
    tokenizer = Tokenizer(models.BPE())
    split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=310,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False), AddedToken("<|mark|>", normalized=False)])
    return tokenizer


SENTENCEPIECE_TOKENS = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]


def sentencepiece(scheme: str = "prepend") -> Tokenizer:
    """A BPE with byte fallback like Llama 2's: `prepend` is its normalizer form, `first` its Metaspace
    form."""
    words = ["▁the", "▁dog", "▁a", "▁is", "Hello", "▁Hello", "in", "er", "▁▁"]
    letters = dict.fromkeys(c for word in words for c in word)
    vocabulary = {token: i for i, token in enumerate([*SENTENCEPIECE_TOKENS, *letters])}
    for word in words:
        for cut in range(1, len(word)):
            vocabulary.setdefault(word[: cut + 1], len(vocabulary))
    pieces = [token for token in vocabulary if token not in SENTENCEPIECE_TOKENS]
    merges = [
        (token[:cut], token[cut:])
        for token in pieces
        for cut in range(1, len(token))
        if token[:cut] in pieces and token[cut:] in pieces
    ]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    if scheme == "prepend":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in ("<unk>", "<s>", "</s>")])
    return tokenizer


def llama3_like() -> Tokenizer:
    """A byte-level BPE with Llama 3's split and whole-word lookup, as in its tokenizer.json."""
    tokenizer = byte_level()
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated"), last]
    )
    tokenizer.model.ignore_merges = True
    return tokenizer


GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.": "blk.",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def permute(values: np.ndarray, heads: int) -> np.ndarray:
    """The permutation of llama.cpp's converter (`convert_hf_to_gguf.py`, LlamaModel.permute)."""
    rows = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return rows.swapaxes(1, 2).reshape(values.shape)


def gguf_tensors(model: transformers.PreTrainedModel) -> dict[str, np.ndarray]:
    """A model's parameters under GGUF's names, with q and k permuted as in llama.cpp."""
    tensors = {}
    for name, parameter in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        values = parameter.numpy()
        for part, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
            if part in name:
                values = permute(values, getattr(model.config, heads))
        for theirs, ours in GGUF_NAMES.items():
            name = name.replace(theirs, ours)
        tensors[name] = values
    return tensors


def gguf_experts(model: transformers.PreTrainedModel, *, unstacked: bool) -> dict[str, np.ndarray]:
    """The model's tensors under GGUF's names, experts stacked or one tensor each."""
    tensors = {}
    for name, values in gguf_tensors(model).items():
        prefix, _, inner = name.partition(".mlp.")
        if not inner:
            tensors[name] = values
        elif inner == "gate.weight":
            tensors[f"{prefix}.ffn_gate_inp.weight"] = values
        else:
            parts = np.split(values, 2, axis=1) if "gate_up" in inner else [values]
            names = ("gate", "up") if "gate_up" in inner else ("down",)
            for kind, part in zip(names, parts, strict=True):
                if not unstacked:
                    tensors[f"{prefix}.ffn_{kind}_exps.weight"] = part
                    continue
                tensors |= {f"{prefix}.ffn_{kind}.{e}.weight": part[e] for e in range(len(part))}
    return tensors


def gguf_metadata(model: transformers.PreTrainedModel, **changes: Any) -> dict[str, Any]:
    config = model.config
    metadata = {
        "llama.block_count": config.num_hidden_layers,
        "llama.context_length": config.max_position_embeddings,
        "llama.embedding_length": config.hidden_size,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "llama.rope.freq_base": config.rope_parameters["rope_theta"],
        "llama.vocab_size": config.vocab_size,
        "llama.rope.dimension_count": config.head_dim or config.hidden_size // config.num_attention_heads,
        **byte_level_metadata(byte_level(), "smollm"),
        **changes,
    }
    return {key: value for key, value in metadata.items() if value is not None}


def byte_level_metadata(tokenizer: Tokenizer, pre: str) -> dict[str, Any]:
    """The metadata that llama.cpp's converter writes for a byte-level BPE, padded to the model's
    vocabulary."""
    pipeline = json.loads(tokenizer.to_str())
    added = tokenizer.get_added_tokens_decoder()
    texts = [tokenizer.id_to_token(i) or "" for i in range(tokenizer.get_vocab_size())]
    kinds = [1 if i not in added else 3 if added[i].special else 4 for i in range(len(texts))]
    padding = [f"[PAD{i}]" for i in range(len(texts), SIZES["vocab_size"])]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": texts + padding,
        "tokenizer.ggml.token_type": kinds + [5] * len(padding),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in pipeline["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": CHATML,
    }


def write_gguf(
    path: Path,
    metadata: dict[str, Any],
    tensors: dict[str, np.ndarray],
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    architecture: str = "llama",
    raw: dict[str, gguf.GGMLQuantizationType] | None = None,
) -> Path:
    """A GGUF by the gguf package; norms and biases stay float32. Tensors in `raw` are blocks already."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        add = {
            bool: writer.add_bool,
            str: writer.add_string,
            int: writer.add_uint32,
            float: writer.add_float32,
        }
        if isinstance(value, list):
            writer.add_array(key, value)
        else:
            add[type(value)](key, value)
    for name, values in tensors.items():
        if raw and name in raw:
            writer.add_tensor(name, values, raw_dtype=raw[name])
            continue
        used = kind if values.ndim > 1 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quants.quantize(values, used), raw_dtype=used)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def refuse(folder: Path, *reasons: str) -> None:
    """Opening a folder fails with one line that contains all `reasons`."""
    with pytest.raises(DistaffError) as refusal:
        HuggingFaceFolder(folder)
    for text in reasons:
        assert text in str(refusal.value)
    assert "\n" not in str(refusal.value)


def change_tensors(file: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> None:
    """Changes a safetensors file's tensors."""
    tensors = load_file(file)
    change(tensors)
    save_file(
        {name: np.ascontiguousarray(values) for name, values in tensors.items()}, file, {"format": "pt"}
    )
