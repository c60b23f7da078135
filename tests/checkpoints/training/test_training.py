"""Checkpoints of training runs: the trees of Distaff's module, of a plain NNX Llama and of MaxText."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from distaff.checkpoints import load_model, load_parameters, open_checkpoint
from distaff.checkpoints.errors import CheckpointError
from distaff.checkpoints.huggingface.config_writing import config_json
from distaff.checkpoints.modules import save_description
from distaff.model.config import ModelConfig, MoEConfig, RopeScaling
from distaff.model.module import CausalLM
from distaff.model.sharding import create_mesh
from distaff.model.transformer import random_parameters

from ..making import make_model, save_folder

LLAMA = ModelConfig(
    vocabulary=61, layers=3, width=32, feed_forward=48, heads=4, kv_heads=2, head_size=8, context=64
)
LLAMA3 = replace(LLAMA, rope=RopeScaling(kind="llama3", factor=8.0, original_context=8))
MIXTRAL = replace(LLAMA, moe=MoEConfig(experts=4, experts_per_token=2))
BIASED = replace(LLAMA, attention_bias=True, tied_head=True)


def module(config: ModelConfig = LLAMA) -> CausalLM:
    return CausalLM(config, random_parameters(config, 5, jnp.float32))


def save(folder: Path, tree: Any, config: ModelConfig | None = LLAMA) -> Path:
    """A checkpoint as Orbax writes it, with the configuration beside its arrays."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, tree)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config_json(config, "float32")))
    return folder


def assert_same(folder: Path, expected: CausalLM) -> None:
    found = load_model(folder)
    assert found.config == expected.config
    for name, values in expected.parameters().items():
        np.testing.assert_array_equal(found.parameters()[name], values, err_msg=name)


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in values.items():
        *path, last = name.split(".")
        inner = tree
        for key in path:
            inner = inner.setdefault(key, {})
        inner[last] = value
    return tree


@pytest.mark.parametrize("config", [LLAMA, MIXTRAL, BIASED], ids=["llama", "mixtral", "biased"])
def test_a_module_is_read_as_it_was_saved(config: ModelConfig, tmp_path: Path):
    """Its state, its state as a plain dictionary, and a train state with an optimizer."""
    model = module(config)
    optimizer = nnx.Optimizer(model, optax.adamw(1e-3), wrt=nnx.Param)
    trees = {
        "state": nnx.state(model),
        "plain": nnx.to_pure_dict(nnx.state(model, nnx.Param)),
        "train": {"step": jnp.int32(7), "model": nnx.state(model), "optimizer": nnx.state(optimizer)},
    }
    for name, tree in trees.items():
        assert_same(save(tmp_path / name, tree, config), model)


def test_the_newest_step_of_a_manager_is_read(tmp_path: Path):
    """config.json and tokenizer are beside the steps; an older step can be named."""
    source = save_folder(tmp_path / "source", make_model())
    first, second = load_model(source), load_model(source)
    second.norm[...] = second.norm[...] * 2
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        for step, model in ((9, first), (10, second)):
            manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(nnx.state(model))))
        manager.wait_until_finished()
    save_description(first, tmp_path / "run", source)
    assert_same(tmp_path / "run", second)
    assert_same(tmp_path / "run" / "9", first)
    opened, original = open_checkpoint(tmp_path / "run"), open_checkpoint(source)
    assert opened.generation == original.generation
    assert opened.fingerprint != open_checkpoint(tmp_path / "run" / "9").fingerprint
    mesh = create_mesh(2)
    placed = load_parameters(opened, np.dtype("float32"), mesh=mesh)
    assert len(placed["layers.0.attention.q"].sharding.device_set) == 2


def test_a_plain_nnx_llama_is_read(tmp_path: Path):
    """Kernels are `[inputs, outputs]`, under the module names of transformers."""
    model = module()
    inner = {
        "attention_norm": "input_layernorm.scale",
        "feed_forward_norm": "post_attention_layernorm.kernel",
        **{f"attention.{name}": f"self_attn.{name}_proj.kernel" for name in "qkvo"},
        **{f"feed_forward.{name}": f"mlp.{name}_proj.kernel" for name in ("gate", "up", "down")},
    }
    top = {"embed": "model.embed_tokens.embedding", "norm": "model.norm.scale", "head": "lm_head.kernel"}

    def theirs(name: str) -> str:
        layers, layer, rest = [*name.split(".", 2), "", ""][:3]
        return top[name] if name in top else f"model.{layers}.{layer}.{inner[rest]}"

    tree = nested({theirs(name): values for name, values in model.parameters().items()})
    assert_same(save(tmp_path / "nnx", {"params": tree}), model)


def maxtext(model: CausalLM, *, scanned: bool) -> dict[str, Any]:
    """The tree that MaxText has of a model."""
    config, found = model.config, dict[str, np.ndarray]()
    names = {
        "attention_norm": "pre_self_attention_layer_norm.scale",
        "feed_forward_norm": "post_self_attention_layer_norm.scale",
        **dict(zip(("attention.q", "attention.k"), ("query", "key"), strict=True)),
        "attention.v": "value",
        "attention.o": "out",
        "feed_forward.router": "MoeBlock_0.gate.kernel",
    }
    for name in ("attention.q", "attention.k", "attention.v", "attention.o"):
        names[name] = f"self_attention.{names[name]}.kernel"
    for ours, name in (("gate", "wi_0"), ("up", "wi_1"), ("down", "wo")):
        names[f"feed_forward.{ours}"] = f"MoeBlock_0.{name}" if config.moe else f"mlp.{name}.kernel"
    for name, array in model.parameters().items():
        values = np.asarray(array)
        if not name.startswith("layers."):
            continue
        _, layer, inner = name.split(".", 2)
        if inner in ("attention.q", "attention.k", "attention.v"):
            values = values.reshape(values.shape[0], -1, config.head_size)
        if inner == "attention.o":
            values = values.reshape(-1, config.head_size, values.shape[1])
        if inner in ("attention.q", "attention.k") and config.rope is not None:
            halves = np.split(values, 2, axis=-1)
            values = np.stack(halves, axis=-1).reshape(values.shape)
        if inner == "attention.q":
            values = values / np.float32(np.sqrt(config.head_size))
        found[f"decoder.layers_{layer}.{names[inner]}"] = values
    if scanned:
        stacked: dict[str, list[np.ndarray]] = {}
        for name, values in found.items():
            decoder, _, rest = name.split(".", 2)
            stacked.setdefault(f"{decoder}.layers.{rest}", []).append(values)
        found = {name: np.stack(values, axis=min(1, values[0].ndim)) for name, values in stacked.items()}
    top = {
        "token_embedder.embedding": np.asarray(model.parameters()["embed"]),
        "decoder.decoder_norm.scale": np.asarray(model.parameters()["norm"]),
        "decoder.logits_dense.kernel": np.asarray(model.parameters()["head"]),
    }
    return {"params": {"params": nested({**top, **found})}}


@pytest.mark.parametrize("scanned", [False, True], ids=["unscanned", "scanned"])
@pytest.mark.parametrize("name", ["llama", "llama 3", "mixtral"])
def test_maxtext_is_read(name: str, scanned: bool, tmp_path: Path):
    """With its scaled queries, its axis for heads, its order of rotated numbers, its layers in one array."""
    model = module({"llama": LLAMA, "llama 3": LLAMA3, "mixtral": MIXTRAL}[name])
    tree = maxtext(model, scanned=scanned)
    found = load_model(save(tmp_path / "maxtext", {**tree, "opt_state": tree, "step": 3}, model.config))
    for each, values in model.parameters().items():
        np.testing.assert_allclose(found.parameters()[each], values, rtol=1e-6, err_msg=each)


def test_other_trees_are_refused(tmp_path: Path):
    """With what differs from the nearest known one."""
    tree = nnx.to_pure_dict(nnx.state(module(), nnx.Param))
    other = save(tmp_path / "sizes", tree, replace(LLAMA, feed_forward=64))
    with pytest.raises(CheckpointError, match=r"feed_forward.gate has the shape \[32, 48\] instead of"):
        load_model(other)
    with pytest.raises(CheckpointError, match=r"layers.3.attention_norm is missing, .* and \d+ more"):
        load_model(save(tmp_path / "deeper", tree, replace(LLAMA, layers=5)))
    with pytest.raises(CheckpointError, match=r"nearest is Distaff's: head is not expected"):
        load_model(save(tmp_path / "tied", tree, replace(LLAMA, tied_head=True)))
    with pytest.raises(CheckpointError, match=r"it has no arrays of a model; expected Distaff's, a"):
        load_model(save(tmp_path / "others", {"weights": jnp.ones(3)}))
    scanned = maxtext(module(), scanned=True)
    with pytest.raises(CheckpointError, match=r"MaxText's, scanned at params.params: .* with 4 layers"):
        load_model(save(tmp_path / "scanned", scanned, replace(LLAMA, layers=4)))


def test_damaged_checkpoints_are_refused(tmp_path: Path):
    """And those without a configuration; the message says where it is expected."""
    tree = nnx.to_pure_dict(nnx.state(module(), nnx.Param))
    with pytest.raises(CheckpointError, match=r"an Orbax checkpoint without config.json; expected"):
        open_checkpoint(save(tmp_path / "alone", tree, None))
    cut = save(tmp_path / "cut", tree)
    (cut / "_METADATA").write_text("{")
    with pytest.raises(CheckpointError, match=r"cut: not a readable Orbax checkpoint"):
        open_checkpoint(cut)
    gone = save(tmp_path / "gone", tree)
    for file in (gone / "ocdbt.process_0" / "d").iterdir():
        file.unlink()
    with pytest.raises(CheckpointError, match=r"gone"):
        load_model(gone)
