"""Errors of an engine process's start that an operator can mend: a setting, or too little memory.

The engine and the checkpoint reader raise errors about values. Here these become errors with an exit code of
their own, because the same error about a request or a file means something else.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from ...model.errors import ConfigError, DistaffError
from .. import exit_codes
from ..exit_codes import Failed
from ..flags import ServeFlags

log = logging.getLogger(__name__)

_EXHAUSTED = "RESOURCE_EXHAUSTED"
"""Parts of XLA's messages when a device or the host runs out of memory."""
_LONGEST_REASON = 300


class SettingRefused(DistaffError):
    """An operator's setting that the model or the machine does not support."""


@contextmanager
def settings_refused() -> Iterator[None]:
    """Turns errors that a valid checkpoint cannot cause into errors about a setting."""
    try:
        yield
    except ConfigError as error:
        raise SettingRefused(str(error)) from error


@contextmanager
def memory_refused(flags: ServeFlags) -> Iterator[None]:
    """Turns an out-of-memory error into one line, with flags that need less memory.

    Raises:
      Failed: with the exit code for a model that does not fit.
    """
    from jax.errors import JaxRuntimeError

    from ...runtime.device.memory import OutOfMemory

    try:
        yield
    except (OutOfMemory, MemoryError, JaxRuntimeError) as error:
        if isinstance(error, JaxRuntimeError) and _EXHAUSTED not in str(error):
            raise
        log.debug("out of memory", exc_info=error)
        reason = (str(error).splitlines() or ["out of memory"])[0][:_LONGEST_REASON]
        message = f"does not fit: {reason}; to use less memory: {', '.join(flags.that_need_less_memory())}"
        raise Failed(message, exit_codes.DOES_NOT_FIT) from None
