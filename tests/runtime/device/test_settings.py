"""The sizes and types that follow from the engine's settings."""

import jax.numpy as jnp
import pytest

from distaff.model.errors import ConfigError
from distaff.runtime.device.settings import PLATFORMS, EngineSettings, compute_dtype, derive_shapes, pages_of

from .test_memory import CONFIG, CPU, gpu


def derive(**wanted):
    return derive_shapes(CONFIG, EngineSettings(**wanted), gpu(0, 0))


def test_defaults_come_from_model_and_platform():
    """The context is the model's, rounded up to whole pages; the rest suits the kind of device."""
    shapes, gpu_like = derive(), PLATFORMS["gpu"]
    assert (shapes.slots, shapes.budget) == (gpu_like.slots, gpu_like.budget)
    assert shapes.page_size == 16 and shapes.table == 7


def test_settings_replace_defaults():
    """More slots than the usual budget raise it, because each must fit into a step."""
    shapes = derive(slots=3000, context=33)
    assert (shapes.slots, shapes.budget, shapes.table) == (3000, 3000, 3)


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_step_holds_as_many_tokens_as_configured(deterministic):
    """The largest bucket has this size, independent of the platform."""
    shapes = derive(prefill_tokens=40, slots=8, deterministic=deterministic)
    assert shapes.budget == max(bucket.tokens for bucket in shapes.buckets()) == 40


def test_tokens_of_the_pool_are_whole_pages():
    """A GPU's pages hold 16 tokens; a remainder is not used."""
    assert [pages_of(tokens, gpu(0, 0)) for tokens in (16, 31, 32)] == [1, 1, 2]
    with pytest.raises(ConfigError, match="kv_tokens is 15; expected at least a page of 16 tokens"):
        pages_of(15, gpu(0, 0))


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"slots": 0}, "slots is 0; expected at least 1"),
        ({"context": -4}, "context is -4; expected at least 1"),
        ({"kv_pages": 0}, "kv_pages is 0; expected at least 1"),
        ({"prefill_tokens": 0}, "prefill_tokens is 0; expected at least 1"),
        ({"prefill_tokens": 7, "slots": 8}, "prefill_tokens is 7; expected at least one for each of 8 slots"),
        ({"context": 101}, "context is 101; the model was made for 100 at most"),
    ],
)
def test_invalid_settings_are_refused(wanted, message):
    """With the value and what was expected."""
    with pytest.raises(ConfigError) as refusal:
        derive(**wanted)
    assert str(refusal.value) == message


def test_the_compute_type_suits_the_device():
    """float32 on a CPU, bfloat16 elsewhere, unless configured; other names are refused."""
    assert compute_dtype(None, CPU) == jnp.dtype("float32")
    assert compute_dtype(None, gpu(0, 0)) == jnp.dtype("bfloat16")
    assert compute_dtype("float32", gpu(0, 0)) == jnp.dtype("float32")
    with pytest.raises(ConfigError, match="dtype is 'float16'; expected one of float32, bfloat16"):
        compute_dtype("float16", CPU)
