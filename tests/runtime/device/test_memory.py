"""The size of the KV pool."""

import logging
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from distaff.model import host_memory
from distaff.model.cache import Int8Pool, create_cache, page_bytes
from distaff.model.config import ModelConfig
from distaff.model.kernels.gpu.triton_attention import fits
from distaff.model.kernels.zeros import zeros
from distaff.runtime.device.buckets import Shapes
from distaff.runtime.device.memory import OutOfMemory, free_bytes, reserved_bytes, size_pool, state_bytes

CONFIG = ModelConfig(
    vocabulary=99, layers=3, width=32, feed_forward=48, heads=4, kv_heads=2, head_size=8, context=100
)
SHAPES = Shapes(slots=4, budget=32, page_size=16, table=7, tile=8)
PAGE = 3 * 16 * 2 * 2 * 8 * 4
CPU = SimpleNamespace(platform="cpu")


def accelerator(platform: str, limit: int, used: int) -> SimpleNamespace:
    stats = {"bytes_limit": limit, "bytes_in_use": used}
    return SimpleNamespace(platform=platform, memory_stats=lambda: stats)


gpu, tpu = partial(accelerator, "gpu"), partial(accelerator, "tpu")


def size(device, pages=None) -> int:
    return size_pool(CONFIG, SHAPES, jnp.dtype("float32"), [device], pages)


@pytest.fixture
def host(monkeypatch, tmp_path):
    """Sets the free bytes of the host, and the files of its control group."""

    def give(available: int, **files: str):
        monkeypatch.setattr(
            host_memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=available)
        )
        monkeypatch.setattr(host_memory, "_CGROUP", tmp_path)
        for name, text in files.items():
            (tmp_path / f"memory.{name}").write_text(text)

    return give


def test_a_page_is_keys_and_values_of_all_layers():
    """The unit of the other tests."""
    assert (
        page_bytes(CONFIG, 16, jnp.dtype("float32"))
        == PAGE
        == 2 * page_bytes(CONFIG, 16, jnp.dtype("bfloat16"))
    )


def test_an_int8_page_has_a_scale_for_each_key_and_value():
    """A byte per number and four for each head's scale, as in the pool's arrays."""
    pools = create_cache(CONFIG, 5, 16, jnp.dtype("int8"), zeros)
    assert page_bytes(CONFIG, 16, jnp.dtype("int8")) == 3 * 16 * 2 * 2 * (8 + 4)
    assert sum(x.nbytes for x in jax.tree.leaves(pools)) == 5 * page_bytes(CONFIG, 16, jnp.dtype("int8"))


@pytest.mark.parametrize(("pages", "chosen"), [(4, 4), (27, 27), (28, 28), (29, 28), (10_000, 28)])
def test_the_pool_takes_its_share_and_no_more_than_is_useful(pages, chosen):
    """Nine tenths of an accelerator's free memory, at most every slot at full length."""
    assert size(tpu(limit=5000 + int(pages * PAGE / 0.9) + 9, used=5000)) == chosen


def test_most_of_a_gpu_is_used():
    """Llama 3.1 8B in bf16 on 80 GB: at least 92 % of the card, with what is outside JAX's 95 %."""
    card, weights = 80e9, 16.06e9
    config = ModelConfig(
        vocabulary=128256, layers=32, width=4096, feed_forward=14336, heads=32, kv_heads=8, head_size=128,
        context=131072,
    )  # fmt: skip
    shapes = Shapes(slots=128, budget=2048, page_size=16, table=8192, tile=64)
    page = page_bytes(config, 16, jnp.dtype("bfloat16"))
    device = gpu(limit=int(0.95 * card), used=int(weights))
    pages = size_pool(config, shapes, jnp.dtype("bfloat16"), [device], None, itemsize=2)
    reserved = reserved_bytes("gpu", config, shapes, 1, 2)
    assert 0.92 * card <= weights + pages * page + reserved <= 0.95 * card
    assert state_bytes(config, 128) + 2 * 345e6 <= reserved <= 1.5e9  # 345 MB is what XLA needs for this step


@pytest.mark.parametrize(("room", "chosen"), [(4, 4), (7, 4), (8, 8), (15, 8), (16, 16)])
def test_the_hosts_share_is_an_eighth_in_steady_steps(host, room, chosen):
    """The host needs memory for other things, and a later start must get the same shapes."""
    host(available=8 * room * PAGE + 7)
    assert size(CPU) == chosen


@pytest.mark.parametrize(
    ("device", "packed", "chosen"),
    [(CPU, 12, 12), (CPU, 15, 15), (CPU, 16, 4), (tpu(10**9, 10**9 - 10 * PAGE), 9, 9)],
)
def test_a_packs_pool_is_taken_where_it_fits(host, caplog, device, packed, chosen):
    """Within twice the host's share, which may have been a little larger when the pack was made."""
    host(available=8 * 7 * PAGE + 8 * PAGE // 2)
    dtype = jnp.dtype("float32")
    assert size_pool(CONFIG, SHAPES, dtype, [device], None, packed=packed) == chosen
    assert ("does not fit" in caplog.text) == (chosen != packed)
    assert size_pool(CONFIG, SHAPES, dtype, [device], 5, packed=packed) == 5


def test_replicas_divide_the_hosts_share_but_not_accelerators(host):
    """Two engines on one host take as much as one; each accelerator belongs to one engine."""
    host(available=8 * 16 * PAGE)
    dtype = jnp.dtype("float32")
    assert size_pool(CONFIG, SHAPES, dtype, [CPU], None, replicas=2) == 8
    device = tpu(limit=int(16 * PAGE / 0.9) + 9, used=0)
    assert size_pool(CONFIG, SHAPES, dtype, [device], None, replicas=2) == 16


@pytest.mark.parametrize("pages", [4, 50, 80])
def test_the_users_number_is_used(host, pages):
    """Below and above the derived number."""
    host(available=8 * 10 * PAGE)
    assert size(CPU, pages) == pages


@pytest.mark.parametrize("pages", [81, 10**9, 10**15])
def test_the_users_number_is_refused_if_it_is_more_than_is_free(host, pages):
    """Before anything of the pool's length is allocated, such as the list of its pages."""
    host(available=8 * 10 * PAGE)
    with pytest.raises(OutOfMemory, match=f"{pages} KV pages .* expected at most 80 pages"):
        size(CPU, pages)


def test_a_device_without_memory_figures_is_assumed_to_have_room():
    assert size(SimpleNamespace(platform="gpu", memory_stats=lambda: None), 50) == 50


@pytest.mark.parametrize(("pages", "room"), [(None, 2), (3, 3)])
def test_too_little_is_refused(host, pages, room):
    """There must be a page per slot; the message has the number, what was expected, and a remedy."""
    host(available=8 * 3 * PAGE)
    expected = rf"room for {room} KV pages .* expected at least one for each of 4 slots"
    with pytest.raises(OutOfMemory, match=expected):
        size(CPU, pages)


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({"max": "6000\n", "current": "1000\n"}, 5000),
        ({"max": "60000\n", "current": "1000\n"}, 9000),
        ({"max": "max\n", "current": "1000\n"}, 9000),
        ({"max": "6000\n"}, 9000),
        ({}, 9000),
    ],
)
def test_the_control_groups_limit_is_used(host, files, free):
    """In a container, if there is a limit and it is smaller."""
    host(available=9000, **files)
    assert free_bytes(CPU) == free


def test_the_sizes_are_logged_in_one_line(caplog):
    """With all numbers that determine the choice."""
    caplog.set_level(logging.INFO, logger=size_pool.__module__)
    size(tpu(limit=64 << 20, used=0))
    (record,) = caplog.records
    assert record.getMessage() == (
        "KV pool: 28 pages of 16 tokens = 448 tokens, 0 MiB (derived; 4 slots x 112 tokens need 28 pages, "
        f"90% of 64 MiB free hold {int((64 << 20) * 0.9) // PAGE // 256 * 256})"
    )


@pytest.mark.parametrize(("gigabytes", "layer"), [(30, 1.48), (70, 2), (90, 4.69)])
def test_an_int8_pool_is_one_that_the_gpus_kernel_reaches(gigabytes, layer):
    """Up to 2 GiB of numbers in a layer, or more than 4 GiB: never between."""
    config = ModelConfig(
        vocabulary=128256, layers=16, width=2048, feed_forward=8192, heads=32, kv_heads=8, head_size=64,
        context=131072,
    )  # fmt: skip
    shapes = Shapes(slots=256, budget=2048, page_size=16, table=8192, tile=64)
    device = gpu(limit=int(gigabytes * 1e9), used=0)
    pages = size_pool(config, shapes, jnp.dtype("int8"), [device], None, itemsize=2)
    pool = jax.eval_shape(
        lambda: create_cache(replace(config, layers=1), pages + 1, 16, jnp.dtype("int8"), zeros)
    )[0]
    q = jax.ShapeDtypeStruct((256, 32, 64), "bfloat16")
    assert fits(q, pool)
    assert pool.values.size / 2**30 == pytest.approx(layer, rel=0.01)


@pytest.mark.parametrize(
    ("numbers", "reached"), [(2**31, True), (2**31 + 1, False), (2**32, False), (2**32 + 1, True)]
)
def test_the_gpus_kernel_takes_no_pool_that_it_cannot_reach(numbers, reached):
    """An int8 pool set by the user: the portable kernel computes it."""
    shape = (numbers // 128, 1, 2, 64) if numbers % 128 == 0 else (numbers // 128 + 1, 1, 2, 64)
    pool = Int8Pool(jax.ShapeDtypeStruct(shape, "int8"), jax.ShapeDtypeStruct(shape[:-1], "float32"))
    assert fits(jax.ShapeDtypeStruct((4, 2, 64), "bfloat16"), pool) == reached
