"""Which kernel is chosen where, and what a wrong wish is told."""

import pytest

from distaff.model.errors import ConfigError
from distaff.model.kernels import block_attention, block_experts, linear, ragged_attention, ragged_experts
from distaff.model.kernels import triton_attention as triton
from distaff.model.kernels.registry import _CHOICES, _WAYS, choose

EXPECTED = {
    "cpu": (block_attention.attend, block_experts.block_experts, linear.halves, linear.int8_turned),
    "tpu": (ragged_attention.attend, ragged_experts.ragged_experts, linear.plain, linear.int8_plain),
    "cuda": (triton.attend, block_experts.wide_block_experts, linear.plain, linear.int8_plain),
    "rocm": (block_attention.attend, block_experts.block_experts, linear.plain, linear.int8_plain),
}


@pytest.mark.parametrize("platform", EXPECTED)
def test_each_platform_has_its_kernels(platform: str) -> None:
    """One that is unknown gets the portable ones."""
    found = choose(platform)
    assert (found.attention, found.experts, found.linear, found.int8_linear) == EXPECTED[platform]


def test_jax_says_gpu_for_cuda() -> None:
    assert choose("gpu") == choose("cuda")


@pytest.mark.parametrize(("operation", "way"), [(op, way) for op, ways in _WAYS.items() for way in ways])
def test_every_way_can_be_asked_for(operation: str, way: str) -> None:
    """An override replaces that operation's kernel and no other, and is named in what the log shows."""
    found, ours = choose("cpu", {operation: way}), dict(choose("cpu").names)
    assert dict(found.names) == ours | {operation: way}
    module, _, function = _WAYS[operation][way].partition(":")
    kernel = getattr(found, operation)
    assert kernel.__module__.endswith(f".{module}") and kernel.__name__ == function


def test_what_platforms_choose_exists() -> None:
    for choices in _CHOICES.values():
        assert all(way in _WAYS[operation] for operation, way in choices.items())


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        (
            {"softmax": "fast"},
            "kernel softmax=fast; expected an operation of attention, experts, linear, int",
        ),
        ({"attention": "flash"}, "kernel attention=flash; expected one of blocks, ragged, triton"),
    ],
)
def test_a_wrong_wish_is_told_what_there_is(wish: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose("cpu", wish)
