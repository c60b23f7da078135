"""One group of arrays written and restored by Orbax. The only file here that imports it (and with it jax)."""

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp


def write(folder: Path, arrays: Mapping[str, np.ndarray], slabbed: Collection[str] = ()) -> None:
    """Writes arrays by name under `folder`, which must not exist.

    `slabbed` are cut along their first axis, one chunk for each index of it.
    """
    arguments = {name: ocp.SaveArgs(shard_axes=(0,) if name in slabbed else ()) for name in arrays}
    with _quiet(), _checkpointer() as checkpointer:
        checkpointer.save(folder.absolute(), args=ocp.args.PyTreeSave(dict(arrays), save_args=arguments))


def restore(folder: Path, wishes: Mapping[str, ocp.RestoreArgs] | None = None) -> dict[str, Any]:
    """The arrays by name, bit for bit as they were written; on the host, or as each name's wish says."""
    arguments = ocp.args.PyTreeRestore(restore_args=dict(wishes)) if wishes else ocp.args.PyTreeRestore()
    with _quiet(), _checkpointer() as checkpointer:
        return checkpointer.restore(folder.absolute(), args=arguments)


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
