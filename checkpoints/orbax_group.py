"""One group of arrays written and restored by Orbax. The only file here that imports it (and with it jax)."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp


def write(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays by name under `folder`, which must not exist."""
    with _quiet(), _checkpointer() as checkpointer:
        checkpointer.save(folder.absolute(), dict(arrays))


def restore(folder: Path) -> dict[str, np.ndarray]:
    """The arrays by name, bit for bit as they were written."""
    with _quiet(), _checkpointer() as checkpointer:
        return checkpointer.restore(folder.absolute())


def _checkpointer() -> ocp.Checkpointer:
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_zarr3=True, use_compression=False)
    return ocp.Checkpointer(handler)


@contextmanager
def _quiet() -> Iterator[None]:
    """Orbax warns at every save that there is no OCDBT to merge, which is what we asked for."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
