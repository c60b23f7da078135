"""Loads the native CPU kernels and registers them with XLA, if they were built.

setup.py builds them where there is a C++ compiler. Elsewhere, and on other operating systems, the portable
kernels serve.
"""

import ctypes
import hashlib
import logging
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import jax

log = logging.getLogger(__name__)

_TARGETS = (
    "linear", "int8_linear", "fp8_linear", "grouped_linear", "attention", "row_sum", "rms_norm", "draw",
    "experts", "zeros", "adapters",
)  # fmt: skip


@cache
def library() -> ctypes.CDLL | None:
    """The library, registered with XLA; None if it was not built or cannot be loaded."""
    paths = [Path(__file__).with_name(f"_native{suffix}") for suffix in EXTENSION_SUFFIXES]
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        return None
    names = [f"distaff_{operation}" for operation in _TARGETS]
    try:
        loaded = ctypes.CDLL(str(path))
        handlers = [jax.ffi.pycapsule(getattr(loaded, name)) for name in names]
    except (OSError, AttributeError) as error:  # damaged, or built from older sources
        log.warning("the native kernels cannot be loaded: %s; install the package again", error)
        return None
    for name, handler in zip(names, handlers, strict=True):
        jax.ffi.register_ffi_target(name, handler, platform="cpu")
    loaded.distaff_instruction_sets.restype = ctypes.c_char_p
    return loaded


def digest() -> str:
    """Eight hexadecimal digits of the SHA-256 of the library's file; empty without kernels."""
    loaded = library()
    return "" if loaded is None else hashlib.sha256(Path(loaded._name).read_bytes()).hexdigest()[:8]


def instruction_sets() -> list[str]:
    """The instruction sets that the kernels can use on this CPU, the one in use first; [] without kernels."""
    loaded = library()
    return [] if loaded is None else loaded.distaff_instruction_sets().decode().split()
