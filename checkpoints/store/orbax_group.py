"""Writes and restores one group of arrays with Orbax."""

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp


def write(folder: Path, arrays: Mapping[str, np.ndarray], slabbed: Collection[str] = ()) -> None:
    """Writes arrays by name under `folder`, which must not exist.

    The arrays `slabbed` are split along their first axis, one chunk per index.
    """
    arguments = {name: ocp.SaveArgs(shard_axes=(0,) if name in slabbed else ()) for name in arrays}
    with _quiet(), _checkpointer() as checkpointer:
        checkpointer.save(folder.absolute(), args=ocp.args.PyTreeSave(dict(arrays), save_args=arguments))


def restore(folder: Path, restore_args: Mapping[str, ocp.RestoreArgs] | None = None) -> dict[str, Any]:
    """The arrays by name, bit for bit as they were written; on the host, or according to each
    `restore_args`."""
    kind = ocp.args.PyTreeRestore
    arguments = kind(restore_args=dict(restore_args)) if restore_args else kind()
    with _quiet(), _checkpointer() as checkpointer:
        return checkpointer.restore(folder.absolute(), args=arguments)


def _checkpointer() -> ocp.Checkpointer:
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_zarr3=True, use_compression=False)
    return ocp.Checkpointer(handler)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences Orbax's warning, at every save, that there is no OCDBT to merge, which is intended."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
