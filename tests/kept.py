"""Files that are expensive to make, kept beside JAX's compilation cache between runs of the tests."""

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import jax


def kept(folder: str, suffix: str, parts: Iterable[bytes], write: Callable[[Path], object]) -> Path:
    """A file that `write` has made for these `parts`, now or in an earlier run.

    Args:
      folder, suffix: of the file. parts: everything that determines its content.
      write: writes it to the path that it receives.
    """
    digest = hashlib.sha256(b"\0".join(parts)).hexdigest()
    path = Path(jax.config.jax_compilation_cache_dir) / folder / f"{digest}{suffix}"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        write(partial)
        partial.replace(path)
    return path
