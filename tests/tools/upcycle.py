"""A Mixtral that must say what a Llama says: `python -m tests.tools.upcycle DST [--experts 8]`.

Sparse upcycling (Komatsuzaki et al. 2022, arXiv:2212.05055) without the training: attention, embedding and
norms are the source's; every expert is its dense feed-forward with the hidden units in another order, which
changes no output; the routers are random. Whoever a token is sent to, and with whatever weights, the sum is
the dense model's, so a text that differs shows a fault in routing, in an expert's weights, or in the sum.

Writes a Hugging Face folder in the layout Mistral published, one file a layer.
"""

import argparse
import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from benchmarks.weights import config_sizes
from distaff.checkpoints import load_tokenizer, open_checkpoint, resolve
from distaff.checkpoints.names import HUGGINGFACE, HUGGINGFACE_EXPERTS
from distaff.checkpoints.store.store import group_of
from distaff.model.config import ModelConfig

NAMES = {**HUGGINGFACE, **HUGGINGFACE_EXPERTS}


def upcycle(source: Path, folder: Path, *, experts: int = 8, chosen: int = 2, seed: int = 0) -> None:
    """Writes a Mixtral made of the Llama at `source`: f32, `experts` times its feed-forward."""
    checkpoint = open_checkpoint(source)
    folder.mkdir(parents=True, exist_ok=True)
    placed, total = {}, 0
    groups = groupby(checkpoint.tensors(), lambda pair: group_of(pair[0]))
    for number, (_, tensors) in enumerate(groups):
        file = f"model-{number:05d}.safetensors"
        arrays = dict(mixed(tensors, checkpoint.config, experts, np.random.default_rng([seed, number])))
        save_file(arrays, folder / file, {"format": "pt"})
        placed |= dict.fromkeys(arrays, file)
        total += sum(array.nbytes for array in arrays.values())
    index = {"metadata": {"total_size": total}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(mixtral_config(checkpoint.config, experts, chosen)))
    load_tokenizer(source).save(folder)
    (folder / "generation_config.json").write_bytes(checkpoint.generation.to_json())


def mixed(
    tensors: Iterator[tuple[str, np.ndarray]], config: ModelConfig, experts: int, rng: np.random.Generator
) -> Iterator[tuple[str, np.ndarray]]:
    """A layer's tensors under Mixtral's names: a router, and each feed-forward once an expert."""
    orders = [rng.permutation(config.feed_forward) for _ in range(experts)]
    for name, values in tensors:
        inner, layer = name, ""
        if name.startswith("layers."):
            _, layer, inner = name.split(".", 2)
        values = np.asarray(values, np.float32)
        if not inner.startswith("feed_forward."):
            yield NAMES[inner].format(layer=layer), contiguous(values if name == "embed" else values.T)
            continue
        for expert, order in enumerate(orders):
            shuffled = values[order] if inner.endswith("down") else values[:, order]
            yield NAMES[inner].format(layer=layer, expert=expert), contiguous(shuffled.T)
        if inner.endswith("gate"):
            spread = config.width**-0.5  # scores of order one: decided, and different from token to token
            router = rng.normal(scale=spread, size=(experts, config.width))
            yield NAMES["feed_forward.router"].format(layer=layer), router.astype(np.float32)


def contiguous(values: np.ndarray) -> np.ndarray:
    """Safetensors writes memory as it lies."""
    return np.ascontiguousarray(values)


def mixtral_config(config: ModelConfig, experts: int, chosen: int) -> dict[str, object]:
    """config.json of the result."""
    if config.moe or config.rope or config.attention_bias or config.feed_forward_bias:
        raise SystemExit(f"{config}: expected a dense Llama without rope scaling and biases")
    return {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        **config_sizes(config),
        "sliding_window": config.window,
        "num_local_experts": experts,
        "num_experts_per_tok": chosen,
        "hidden_act": "silu",
        "torch_dtype": "float32",
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("destination", type=Path, metavar="DST", help="the folder to write")
    parser.add_argument("--source", help="a Llama by path or name; the bundled SmolLM2 if not given")
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--experts-per-token", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    wish = parser.parse_args()
    if not 1 <= wish.experts_per_token <= wish.experts:
        parser.error(f"--experts-per-token {wish.experts_per_token}; expected 1 to {wish.experts}")
    upcycle(
        resolve(wish.source),
        wish.destination,
        experts=wish.experts,
        chosen=wish.experts_per_token,
        seed=wish.seed,
    )
    print(wish.destination)


if __name__ == "__main__":
    main()
