"""Modules from checkpoints and back: what transformers and a server read is what was trained."""

from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from distaff.checkpoints import load_model, load_tokenizer, open_checkpoint, save_model
from distaff.checkpoints.errors import CheckpointError
from distaff.checkpoints.huggingface.config_writing import config_json
from distaff.checkpoints.huggingface.huggingface_config import read_config
from distaff.model.config import ModelConfig, MoEConfig, RopeScaling
from distaff.model.errors import ConfigError
from distaff.model.module import CausalLM
from distaff.model.sharding import create_mesh
from distaff.model.transformer import random_parameters

from .making import make_model, save_folder

TOKENS = np.array([[1, 5, 9, 200, 3, 17, 4]], np.int32)

PLAIN = ModelConfig(
    vocabulary=320, layers=2, width=64, feed_forward=96, heads=4, kv_heads=2, head_size=16, context=128
)
MIXTURE = MoEConfig(experts=4, experts_per_token=2)
CONFIGS = {
    "llama": PLAIN,
    "biased llama": replace(PLAIN, attention_bias=True, feed_forward_bias=True, tied_head=True),
    "llama 3": replace(PLAIN, rope=RopeScaling(kind="llama3", factor=8.0, original_context=32), context=256),
    "dynamic": replace(PLAIN, rope=RopeScaling(kind="dynamic", factor=2.0, original_context=64)),
    "linear": replace(PLAIN, rope=RopeScaling(kind="linear", factor=2.0, original_context=128), context=256),
    "yarn": replace(PLAIN, rope=RopeScaling(kind="yarn", factor=4.0, original_context=32)),
    "mistral": replace(PLAIN, window=4),
    "ministral": replace(
        PLAIN, rope=RopeScaling(kind="yarn", factor=4.0, original_context=32, query_growth=0.1)
    ),
    "mixtral": replace(PLAIN, moe=MIXTURE),
    "qwen 2": replace(PLAIN, attention_bias=True, output_bias=False, window=4, full_layers=(0,)),
    "qwen 3": replace(PLAIN, head_norms=True),
    "qwen 3 moe": replace(PLAIN, head_norms=True, moe=replace(MIXTURE, normalized=False)),
    "smollm 3": replace(PLAIN, unrotated_layers=(1,)),
    "granite": replace(
        PLAIN, embedding_scale=2.0, residual_scale=0.5, attention_scale=0.2, logits_divisor=3.0
    ),
}


def logits_of(folder: Path) -> np.ndarray:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    with torch.no_grad():
        return model(torch.tensor(TOKENS.astype(np.int64))).logits.numpy()


def drawn(config: ModelConfig) -> CausalLM:
    parameters = random_parameters(config, 0, jnp.float32)
    return CausalLM(config, {name: w * 10 if w.ndim > 1 else w for name, w in parameters.items()})


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_a_checkpoint_becomes_a_module_and_a_folder_again(family: str, tmp_path: Path):
    """transformers computes the same from the module's folder, and its files have the same tensors."""
    theirs = save_folder(tmp_path / "theirs", make_model(family))
    model = load_model(theirs)
    save_model(model, tmp_path / "ours", theirs)
    expected = logits_of(theirs)
    np.testing.assert_allclose(model(jnp.asarray(TOKENS)), expected, rtol=0, atol=1e-4 * expected.std())
    np.testing.assert_array_equal(logits_of(tmp_path / "ours"), expected)
    assert open_checkpoint(tmp_path / "ours").generation == open_checkpoint(theirs).generation
    ours, tokenizer = load_tokenizer(tmp_path / "ours"), load_tokenizer(theirs)
    assert ours.encode("The dog's 12345") == tokenizer.encode("The dog's 12345")
    assert ours.chat_template == tokenizer.chat_template


@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_computes_what_the_module_does(name: str, tmp_path: Path):
    """Of every family that a configuration can belong to."""
    config = CONFIGS[name]
    model = drawn(config)
    save_model(model, tmp_path / "saved")
    expected = logits_of(tmp_path / "saved")
    np.testing.assert_allclose(model(jnp.asarray(TOKENS)), expected, rtol=0, atol=1e-4 * expected.std())
    again = load_model(tmp_path / "saved")
    assert again.config == config
    for each, values in again.parameters().items():
        np.testing.assert_array_equal(values, model.parameters()[each])


def test_a_module_becomes_a_store(tmp_path: Path):
    """With the tokenizer of its source; the same again changes nothing, another model is refused."""
    source = save_folder(tmp_path / "source", make_model())
    model = load_model(source, dtype="bfloat16")
    for _ in range(2):
        save_model(model, tmp_path / "store", source, store=True)
    again = load_model(tmp_path / "store", dtype="bfloat16")
    assert again.config == model.config
    for each, values in again.parameters().items():
        assert values.dtype == jnp.bfloat16
        np.testing.assert_array_equal(values, model.parameters()[each])
    assert load_tokenizer(tmp_path / "store").encode("fox") == load_tokenizer(source).encode("fox")
    with pytest.raises(CheckpointError, match=r"was made from another source"):
        save_model(load_model(source), tmp_path / "store", source, store=True)


def test_a_module_on_a_mesh(tmp_path: Path):
    """It has the same weights and logits; a number of devices that divides nothing evenly is refused."""
    source = save_folder(tmp_path / "source", make_model())
    alone, divided = load_model(source), load_model(source, mesh=create_mesh(2))
    expected = np.asarray(alone(jnp.asarray(TOKENS)))
    np.testing.assert_allclose(divided(jnp.asarray(TOKENS)), expected, rtol=0, atol=1e-4 * expected.std())
    assert not divided.parameters()["layers.0.attention.q"].is_fully_replicated
    save_model(divided, tmp_path / "saved")
    np.testing.assert_array_equal(logits_of(tmp_path / "saved"), logits_of(source))
    with pytest.raises(ConfigError, match=r"the mesh has 3 devices; expected a number that divides the 2"):
        load_model(source, mesh=create_mesh(3))


def test_what_cannot_be_saved_is_refused(tmp_path: Path):
    """And leaves nothing behind."""
    model = drawn(PLAIN)
    with pytest.raises(CheckpointError, match=r"a store needs a tokenizer"):
        save_model(model, tmp_path / "store", store=True)
    (tmp_path / "there").mkdir()
    with pytest.raises(CheckpointError, match=r"there: exists; expected a new name"):
        save_model(model, tmp_path / "there")
    both = replace(PLAIN, head_norms=True, residual_scale=0.5)
    with pytest.raises(ConfigError, match=r"residual_scale=0.5.* has no config.json"):
        save_model(drawn(both), tmp_path / "both")
    model.norm[...] = model.norm[...].at[3].set(jnp.nan)
    with pytest.raises(CheckpointError, match=r"norm contains NaN or infinity"):
        save_model(model, tmp_path / "broken")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_a_configuration_keeps_its_end_tokens():
    """They are in config.json, as transformers expects them."""
    written = config_json(PLAIN, "float32", (2, 7))
    assert written["eos_token_id"] == [2, 7] and written["architectures"] == ["LlamaForCausalLM"]
    assert read_config(Path("config.json"), written) == PLAIN
