"""Finds the item of an Orbax checkpoint that holds a tree of arrays, and reads some of its arrays.

An item is a folder with `_METADATA`. It is the folder that was named, or an item of a step, such as `default`
or `state`. If the folder is a `CheckpointManager`'s, it is an item of the newest step.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError

METADATA_FILE = "_METADATA"
_ITEMS = ("default", "state", "train_state", "model", "params", "items")
"""Names of items that hold a model, the usual ones of Orbax and of training programs."""

Path_ = tuple[str, ...]
"""The keys from the root of a tree to a leaf."""


def find_item(path: Path) -> Path | None:
    """The folder of the item, without reading it; None if this is no checkpoint of Orbax."""
    if not path.is_dir():
        return None
    if (path / METADATA_FILE).exists():
        return path
    items = [path / name for name in _ITEMS if (path / name / METADATA_FILE).exists()]
    if items:
        return items[0]
    steps = sorted((int(step.name), step) for step in path.iterdir() if step.name.isdecimal())
    found = (find_item(step) for _, step in reversed(steps))
    return next((item for item in found if item), None)


class Item:
    """The arrays of an item.

    Attributes:
      shapes: of each array, by its path.
    """

    def __init__(self, folder: Path) -> None:
        """Reads the metadata. Raises CheckpointError: it is damaged."""
        import orbax.checkpoint as ocp

        self.folder = folder
        self._checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
        try:
            metadata = self._checkpointer.metadata(folder.absolute()).item_metadata
            assert metadata is not None, "no metadata"
            leaves = _flat(metadata.tree)
        except Exception as error:  # Orbax and TensorStore have no common base
            raise CheckpointError(f"{folder}: not a readable Orbax checkpoint ({_brief(error)})") from None
        self.shapes: dict[Path_, tuple[int, ...]] = {
            path: tuple(leaf.shape)
            for path, leaf in leaves.items()
            if getattr(leaf, "shape", None) is not None
        }

    def read(self, paths: Sequence[Path_]) -> dict[Path_, np.ndarray]:
        """The arrays at some paths, on the host. Raises CheckpointError: they cannot be read."""
        import orbax.checkpoint as ocp

        wanted = {path: ocp.RestoreArgs(restore_type=np.ndarray) for path in paths}
        arguments = ocp.args.PyTreeRestore(
            item=_nested(dict.fromkeys(paths, 0)), restore_args=_nested(wanted), partial_restore=True
        )
        try:
            return _flat(self._checkpointer.restore(self.folder.absolute(), args=arguments))
        except Exception as error:
            raise CheckpointError(f"{self.folder}: {_brief(error)}") from None


def _brief(error: Exception) -> str:
    """The first line of an error of Orbax, which can be very long."""
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0][:200]


def _flat(tree: Any, path: Path_ = ()) -> dict[Path_, Any]:
    """The leaves of nested mappings and lists, by their paths."""
    if isinstance(tree, list | tuple) and not hasattr(tree, "shape"):
        tree = {str(number): inner for number, inner in enumerate(tree)}
    if not isinstance(tree, dict):
        return {path: tree}
    leaves: dict[Path_, Any] = {}
    for key, inner in tree.items():
        leaves |= _flat(inner, (*path, str(key)))
    return leaves


def _nested(leaves: dict[Path_, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        inner = tree
        for key in path[:-1]:
            inner = inner.setdefault(key, {})
        inner[path[-1]] = leaf
    return tree
