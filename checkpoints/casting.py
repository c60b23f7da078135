"""Copies a tensor into another type, order and memory in one pass, and finds numbers that are not finite.

Foreign linears are `[outputs, inputs]`, ours `[inputs, outputs]`. numpy copies a transposed matrix line by
line, and each number that it writes is in another cache line than the one before.

The one idea: a strip of as many rows as fill a cache line of the copy is converted and checked while it is in
the processor's cache, and then written with all its columns in one call. That is five times as fast, and each
call is long enough for other threads to have the interpreter meanwhile.
"""

from collections.abc import Iterator
from math import prod

import ml_dtypes
import numpy as np

_EXPONENTS = {
    "float32": (np.uint32, 0x7F800000),
    "bfloat16": (np.uint16, 0x7F80),
    "float16": (np.uint16, 0x7C00),
    "float8_e4m3fn": (np.uint8, 0x7F),
}
"""By type: the integer type of its bits, and the bits that are all set only in NaN and infinity. Those of
e4m3 are also of its fraction; it has no infinity."""

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_FLOAT32 = np.dtype(np.float32)
_ALIGNMENT = 64
"""Bytes of a cache line, and the alignment of memory that JAX uses on a CPU without a copy."""
_CHUNK = 1 << 18


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An empty array whose memory JAX can use on a CPU without a copy."""
    size = prod(shape) * dtype.itemsize
    space = np.empty(size + _ALIGNMENT, np.uint8)
    start = -space.ctypes.data % _ALIGNMENT
    return space[start : start + size].view(dtype).reshape(shape)


def cast(values: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, bool]:
    """A tensor in a type, row-major and aligned, and whether all its numbers are finite.

    It is the array itself if that is so already. Numbers that the type cannot hold become infinite. Integers
    are always finite.
    """
    ready = values.dtype == dtype and values.flags.c_contiguous and values.ctypes.data % _ALIGNMENT == 0
    out = values if ready else aligned(values.shape, dtype)
    if values.size and not ready and _is_transposed(values):
        return out, write_transposed(values, out)
    finite = True
    source = np.ascontiguousarray(values).reshape(-1)
    for start in range(0, source.size, _CHUNK):
        bits = _bits(source[start : start + _CHUNK], dtype)
        finite &= all_finite(bits.view(dtype))
        if not ready:
            out.reshape(-1)[start : start + _CHUNK].view(bits.dtype)[...] = bits
    return out, finite


def write_transposed(values: np.ndarray, out: np.ndarray) -> bool:
    """Writes `values`, whose last two axes are swapped in memory, to a row-major array of their shape.

    Returns whether all of them are finite in its type.
    """
    finite, step = True, max(1, _ALIGNMENT // out.itemsize)
    for source, copy in zip(_matrices(_swapped(values)), _matrices(out), strict=True):
        for start in range(0, len(source), step):
            bits = _bits(source[start : start + step], out.dtype)
            finite &= all_finite(bits.view(out.dtype))
            copy.view(bits.dtype)[:, start : start + step] = bits.T
    return finite


def _is_transposed(values: np.ndarray) -> bool:
    """Whether the last two axes of an array are swapped in memory."""
    return values.ndim > 1 and not values.flags.c_contiguous and _swapped(values).flags.c_contiguous


def all_finite(values: np.ndarray) -> bool:
    """Whether no element is NaN or infinite. Checks exponent bits, which is fast for bfloat16 as well."""
    if values.dtype.name not in _EXPONENTS:
        return True
    bits, exponent = _EXPONENTS[values.dtype.name]
    flat = values.reshape(-1).view(bits)
    chunks = (flat[start : start + _CHUNK] for start in range(0, len(flat), _CHUNK))
    return not any((chunk & bits(exponent)).max() == exponent for chunk in chunks)


def _bits(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Row-major values in a type, as unsigned integers, which numpy copies without the interpreter.

    bfloat16 is the upper half of float32.
    """
    integers = np.dtype(f"u{dtype.itemsize}")
    if (values.dtype, dtype) == (_BFLOAT16, _FLOAT32):
        wide = values.view(np.uint16).astype(integers)
        wide <<= np.uint32(16)
        return wide
    with np.errstate(over="ignore"):
        return values.astype(dtype, copy=False).view(integers)


def _swapped(values: np.ndarray) -> np.ndarray:
    return np.swapaxes(values, -1, -2)


def _matrices(values: np.ndarray) -> Iterator[np.ndarray]:
    """The matrices of an array of two or more axes."""
    return iter(values.reshape(-1, *values.shape[-2:]))
