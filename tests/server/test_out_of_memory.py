"""No memory left, as JAX says it, is a line with what takes less, and the exit code of what does not fit."""

import jax.numpy as jnp
import pytest
from jax.errors import JaxRuntimeError

from distaff.runtime.device.memory import OutOfMemory
from distaff.server import exit_codes
from distaff.server.exit_codes import Failed
from distaff.server.flags import ServeFlags
from distaff.server.worker.refusals import memory_refused


def test_what_jax_cannot_allocate_does_not_fit():
    with pytest.raises(Failed) as failed, memory_refused(ServeFlags(kv_pages=9, kv_cache_dtype="int8")):
        jnp.zeros(1 << 50, jnp.uint8).block_until_ready()
    assert failed.value.code == exit_codes.of(failed.value) == exit_codes.DOES_NOT_FIT
    message = str(failed.value)
    assert message.startswith("does not fit: RESOURCE_EXHAUSTED: ") and "\n" not in message
    assert "--quantize int8, fewer --kv-pages than 9, fewer --slots" in message
    assert "--kv-cache-dtype" not in message


@pytest.mark.parametrize("error", [OutOfMemory("room for 1 KV page"), MemoryError()])
def test_so_is_what_we_or_the_host_find_out(error: Exception):
    with pytest.raises(
        Failed, match=r"^does not fit: .*--quantize int8, --kv-cache-dtype int8, fewer --slots"
    ):
        with memory_refused(ServeFlags()):
            raise error


def test_another_error_of_the_device_is_none_of_memory():
    with pytest.raises(JaxRuntimeError), memory_refused(ServeFlags()):
        raise JaxRuntimeError("INTERNAL: a bad cable")
