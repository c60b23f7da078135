"""Which kernel each platform gets, and the error for an unknown operation or backend."""

import pytest

from distaff.model.errors import ConfigError
from distaff.model.kernels import block_attention, block_experts, fp8, grouped, linear
from distaff.model.kernels.cpu import native_attention, native_experts, native_linear
from distaff.model.kernels.gpu import triton_attention as triton
from distaff.model.kernels.gpu import triton_experts, triton_fp8, triton_grouped
from distaff.model.kernels.registry import _BACKENDS, _CHOICES, choose
from distaff.model.kernels.tpu import ragged_attention, ragged_experts

EXPECTED = {
    "cpu": (
        block_attention.attend,
        block_experts.block_experts,
        linear.split_k,
        linear.int8_transposed,
        fp8.fp8_plain,
        linear.grouped_plain,
    ),
    "tpu": (
        ragged_attention.attend,
        ragged_experts.ragged_experts,
        linear.plain,
        linear.int8_plain,
        fp8.fp8_whole,
        grouped.grouped_unrounded,
    ),
    "cuda": (
        triton.attend,
        triton_experts.triton_experts,
        linear.plain,
        linear.int8_transposed,
        triton_fp8.fp8_linear,
        triton_grouped.grouped_linear,
    ),
    "rocm": (
        block_attention.attend,
        block_experts.block_experts,
        linear.plain,
        linear.int8_plain,
        fp8.fp8_plain,
        linear.grouped_plain,
    ),
}
NATIVE = (
    native_attention.attend,
    native_experts.native_experts,
    native_linear.linear,
    native_linear.int8_linear,
    native_linear.fp8_linear,
    native_linear.grouped_linear,
)


def chosen(platform: str) -> tuple[object, ...]:
    found = choose(platform)
    products = found.linear, found.int8_linear, found.fp8_linear, found.grouped_linear
    return found.attention, found.experts, *products


@pytest.fixture
def not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a C++ compiler."""
    monkeypatch.setattr("distaff.model.kernels.registry.instruction_sets", list)


@pytest.mark.usefixtures("not_built")
@pytest.mark.parametrize("platform", EXPECTED)
def test_each_platform_has_its_kernels(platform: str) -> None:
    """An unknown platform gets the portable ones."""
    assert chosen(platform) == EXPECTED[platform]


@pytest.mark.parametrize("platform", EXPECTED)
def test_only_a_cpu_gets_the_native_kernels(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distaff.model.kernels.registry.instruction_sets", lambda: ["portable"])
    assert chosen(platform) == (NATIVE if platform == "cpu" else EXPECTED[platform])


@pytest.mark.usefixtures("not_built")
def test_native_kernels_that_were_not_built_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"linear=native; .* found no C\+\+ compiler"):
        choose("cpu", {"linear": "native"})


def test_jax_names_cuda_gpu() -> None:
    assert choose("gpu") == choose("cuda")


@pytest.mark.parametrize(
    ("operation", "backend"), [(op, name) for op, names in _BACKENDS.items() for name in names]
)
def test_every_backend_can_be_requested(
    operation: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An override replaces that operation's kernel and no other, and the log shows its name. So it is also
    where the native kernels were not built."""
    monkeypatch.setattr("distaff.model.kernels.registry.instruction_sets", lambda: ["portable"])
    found, ours = choose("cpu", {operation: backend}), dict(choose("cpu").names)
    assert dict(found.names) == ours | {operation: backend}
    module, _, function = _BACKENDS[operation][backend].partition(":")
    kernel = getattr(found, operation)
    assert kernel.__module__.endswith(f".{module}") and kernel.__name__ == function


def test_what_platforms_choose_exists() -> None:
    for choices in _CHOICES.values():
        assert all(backend in _BACKENDS[operation] for operation, backend in choices.items())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"softmax": "fast"},
            "kernel softmax=fast; expected an operation of attention, experts, linear, int",
        ),
        ({"attention": "flash"}, "kernel attention=flash; expected one of blocks, ragged, triton, native"),
    ],
)
def test_an_unknown_override_is_refused_with_the_choices(overrides: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose("cpu", overrides)
