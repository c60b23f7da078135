"""File helpers: names, reading JSON objects, digests, and atomic writes.

Does not interpret contents. The one idea: no file has its final name before its bytes are on the disk.
"""

import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .errors import CheckpointError

_BLOCK = 256 * 1024
"""Bytes that are hashed at a time: little, because the buffer of each file is cleared first."""

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
"""The names of a folder's weights: of all in one file, and of the list of several files."""

Progress = Callable[[str, int, int], None]
"""Called with `(phase, bytes done, bytes in total)`."""


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises CheckpointError if there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({type(error).__name__})") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a JSON {type(value).__name__}; expected an object")
    return value


def sha256(path: Path, on_block: Callable[[int], None] | None = None) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal; `on_block` receives the size of every block."""
    digest, buffer = hashlib.sha256(), bytearray(_BLOCK)
    view = memoryview(buffer)
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(view[:count])
            if on_block:
                on_block(count)
    return digest.hexdigest()


def sha256_all(paths: list[Path], on_block: Callable[[int], None] | None = None) -> list[str]:
    """The digests of many files, computed on all cores (hashlib releases the interpreter lock)."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda path: sha256(path, on_block), paths))


def write_whole(path: Path, content: bytes) -> None:
    """Writes a temporary file, syncs it and renames it to `path`, which so appears complete or not at all."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Makes a folder, its files and its sub-folders durable."""
    for parent, _, names in os.walk(folder):
        for name in names:
            with open(Path(parent, name), "rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(parent))


def files_below(folder: Path) -> list[str]:
    """The relative POSIX paths of all files in a tree, sorted. Links and devices are refused.

    Raises:
      CheckpointError: something in the tree is not a plain file or folder.
    """
    found, pending = [], [""]
    while pending:
        parent = pending.pop()
        with os.scandir(os.path.join(folder, parent)) as entries:  # a `Path` for each of thousands is slow
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(f"{parent}{entry.name}/")
                elif entry.is_file(follow_symlinks=False):
                    found.append(parent + entry.name)
                else:
                    raise CheckpointError(f"{entry.path}: not a plain file")
    return sorted(found)
