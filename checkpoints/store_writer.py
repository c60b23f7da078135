"""Writes a store from any checkpoint: group by group, resumable, and visible only when it is complete.

Everything is written to `DST.partial`. After each group its files are synced and their digests are recorded
in `resume.json` there; a later run keeps the groups with matching files. The rename to DST comes last.
"""

import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ..model.config import ModelConfig
from ..model.parameters import parameter_shapes
from .checkpoint import Checkpoint
from .errors import CheckpointError
from .files import Progress, files_below, read_json, sha256_all, sync_folder, sync_tree, write_whole
from .generation import GENERATION_FILE, GenerationDefaults
from .quantizing.quantized import QuantizedCheckpoint
from .quantizing.rounding import RoundingErrors
from .reading import open_checkpoint
from .store.manifest import MANIFEST_FILE, WEIGHTS_FOLDER, FileRecord, Manifest, TensorRecord, read_manifest
from .store.slabs import cut, slabs_for
from .store.store import group_of, inner_name
from .tokenizer import ChatTokenizer, load_tokenizer

log = logging.getLogger(__name__)

_RESUME_FILE = "resume.json"


def convert(
    source: Path,
    destination: Path,
    progress: Progress | None = None,
    *,
    generation: GenerationDefaults | None = None,
    quantize: str | None = None,
) -> None:
    """Writes the checkpoint at `source` as a store to `destination`; phase `convert`, in bytes of weights.

    `generation` replaces the source's recommendation; `quantize`: see `open_checkpoint`. What it rounds is
    logged, layer by layer, with the error.

    A destination that already is this source's store is not changed.

    Raises:
      CheckpointError: the source is damaged, or the destination exists and is something else.
    """
    checkpoint = open_checkpoint(source, quantize)
    errors = RoundingErrors()
    if isinstance(checkpoint, QuantizedCheckpoint):
        checkpoint.errors = errors
    write_store(checkpoint, load_tokenizer(source), destination, progress, generation)
    for line in errors.lines():
        log.info("%s", line)


def write_store(
    checkpoint: Checkpoint,
    tokenizer: ChatTokenizer,
    destination: Path,
    progress: Progress | None = None,
    generation: GenerationDefaults | None = None,
) -> None:
    """As `convert`, of an opened checkpoint, with this tokenizer beside it."""
    if destination.exists():
        _check_same(destination, checkpoint)
        return
    partial = destination.with_name(destination.name + ".partial")
    groups = _begin(partial, checkpoint)
    tensors = _write_weights(partial, checkpoint, groups, progress)
    tokenizer.save(partial)
    write_whole(partial / GENERATION_FILE, (generation or checkpoint.generation).to_json())
    (partial / _RESUME_FILE).unlink()
    manifest = Manifest(
        config=checkpoint.config,
        source=checkpoint.fingerprint,
        tensors=tensors,
        files=_record(partial, partial),
    )
    write_whole(partial / MANIFEST_FILE, manifest.to_json())
    sync_tree(partial)
    partial.replace(destination)
    sync_folder(destination.parent)


def _check_same(destination: Path, checkpoint: Checkpoint) -> None:
    if not (destination / MANIFEST_FILE).exists():
        raise CheckpointError(f"{destination}: exists and is not a store; expected a new name")
    if read_manifest(destination).source != checkpoint.fingerprint:
        raise CheckpointError(f"{destination}: exists and was made from another source; expected a new name")


Groups = dict[str, dict[str, FileRecord]]
"""Finished groups, each with its files relative to the store."""


def _begin(partial: Path, checkpoint: Checkpoint) -> Groups:
    """Opens or resumes a partial store; files that do not match its notes are removed."""
    noted = _read_notes(partial, checkpoint.fingerprint)
    if not noted:
        shutil.rmtree(partial, ignore_errors=True)
    (partial / WEIGHTS_FOLDER).mkdir(parents=True, exist_ok=True)
    kept = {group: files for group, files in noted.items() if _intact(partial, group, files)}
    for path in (partial / WEIGHTS_FOLDER).iterdir():
        if path.name not in kept:
            shutil.rmtree(path)
    for path in partial.iterdir():
        if path.is_file():
            path.unlink()
    _write_notes(partial, checkpoint.fingerprint, kept)
    return kept


def _read_notes(partial: Path, fingerprint: str) -> Groups:
    try:
        notes = read_json(partial / _RESUME_FILE)
        if notes["source"] != fingerprint:
            return {}
        return {
            group: {name: FileRecord(**record) for name, record in files.items()}
            for group, files in notes["groups"].items()
        }
    except (CheckpointError, KeyError, TypeError, AttributeError):
        return {}


def _write_notes(partial: Path, fingerprint: str, groups: Groups) -> None:
    notes = {
        "source": fingerprint,
        "groups": {
            group: {name: asdict(record) for name, record in files.items()} for group, files in groups.items()
        },
    }
    write_whole(partial / _RESUME_FILE, json.dumps(notes).encode())


def _intact(partial: Path, group: str, files: dict[str, FileRecord]) -> bool:
    folder = partial / WEIGHTS_FOLDER / group
    return folder.is_dir() and _record(partial, folder) == files


def _record(root: Path, folder: Path) -> dict[str, FileRecord]:
    """Size and digest of every file below `folder`, by path relative to `root`."""
    paths = [folder / name for name in files_below(folder)]
    digests = sha256_all(paths)
    return {
        path.relative_to(root).as_posix(): FileRecord(path.stat().st_size, digest)
        for path, digest in zip(paths, digests, strict=True)
    }


def _write_weights(
    partial: Path, checkpoint: Checkpoint, groups: Groups, progress: Progress | None
) -> dict[str, TensorRecord]:
    """Writes the missing groups; returns the records of all tensors, in order."""
    tensors: dict[str, TensorRecord] = {}
    done = 0
    for group, arrays in _groups(checkpoint.tensors()):
        records = {name: _record_of(name, values, checkpoint.config) for name, values in arrays.items()}
        tensors |= records
        done += sum(values.nbytes for values in arrays.values())
        if group not in groups:
            groups[group] = _write_group(partial, group, arrays, records)
            _write_notes(partial, checkpoint.fingerprint, groups)
        if progress:
            progress("convert", done, checkpoint.nbytes)
    assert list(tensors) == list(parameter_shapes(checkpoint.config, checkpoint.quantization))
    return tensors


def _groups(tensors: Iterator[tuple[str, np.ndarray]]) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Collects consecutive tensors of one group."""
    group, arrays = "", {}
    for name, values in tensors:
        if arrays and group_of(name) != group:
            yield group, arrays
            arrays = {}
        group = group_of(name)
        arrays[name] = values
    yield group, arrays


def _record_of(name: str, values: np.ndarray, config: ModelConfig) -> TensorRecord:
    from ..model.sharding import divided_axis

    axis = divided_axis(name, values.ndim, config)
    slabs = slabs_for(name, values.shape, values.itemsize, axis, config)
    return TensorRecord(values.shape, values.dtype.name, axis if slabs > 1 else None, slabs)


def _write_group(
    partial: Path, group: str, arrays: dict[str, np.ndarray], records: dict[str, TensorRecord]
) -> dict[str, FileRecord]:
    from .store.orbax_group import write

    folder = partial / WEIGHTS_FOLDER / group
    slabbed = {inner_name(name) for name, record in records.items() if record.axis is not None}
    write(folder, {inner_name(name): _cut(v, records[name]) for name, v in arrays.items()}, slabbed)
    sync_tree(folder)
    return _record(partial, folder)


def _cut(values: np.ndarray, record: TensorRecord) -> np.ndarray:
    return np.ascontiguousarray(values) if record.axis is None else cut(values, record.axis, record.slabs)
