"""A GGUF in one file or several: the metadata of the first file, and the tensors of all files.

Split files are named `NAME-00001-of-00003.gguf` and have `split.no` and `split.count` (llama.cpp's
`gguf-split`). A model is named by its first file, which has the metadata.
"""

import re
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .gguf_header import GGUFHeader, GGUFTensor, read_gguf_header

_NAME = re.compile(r"(?P<prefix>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


def read_gguf_parts(path: Path) -> dict[Path, GGUFHeader]:
    """The headers of a GGUF's files; the first one has the metadata.

    Raises:
      CheckpointError: a file is missing or damaged, or the files do not belong together.
    """
    first = read_gguf_header(path)
    count, number = first.metadata.get("split.count", 0), first.metadata.get("split.no", 0)
    if count in (0, 1):
        return {path: first}
    name = _NAME.fullmatch(path.name)
    if name is None or type(count) is not int or int(name["count"]) != count:
        raise CheckpointError(f"{path}: split.count is {count!r}; expected a name ending in -00001-of-N.gguf")
    names = [f"{name['prefix']}-{i + 1:05}-of-{count:05}.gguf" for i in range(count)]
    if number != 0 or path.name != names[0]:
        raise CheckpointError(f"{path}: part {number} of a model; expected its first file, {names[0]}")
    parts = {path: first}
    for i, other in enumerate(names[1:], start=1):
        parts[path.with_name(other)] = _read_part(path.with_name(other), i, count)
    _check_total(path, first.metadata, parts)
    return parts


def tensors_of(parts: dict[Path, GGUFHeader]) -> dict[str, GGUFTensor]:
    """The tensors of all files, by name.

    Raises:
      CheckpointError: a tensor is in two files.
    """
    tensors: dict[str, GGUFTensor] = {}
    for path, header in parts.items():
        for name, tensor in header.tensors.items():
            if name in tensors:
                raise CheckpointError(f"{path}: tensor {name} is also in {tensors[name].file.name}")
            tensors[name] = tensor
    return tensors


def _read_part(path: Path, number: int, count: int) -> GGUFHeader:
    if not path.exists():
        raise CheckpointError(f"{path}: missing; part {number + 1} of {count}")
    header = read_gguf_header(path)
    found = (header.metadata.get("split.no"), header.metadata.get("split.count"))
    if found != (number, count):
        raise CheckpointError(f"{path}: split.no and split.count are {found}; expected {(number, count)}")
    return header


def _check_total(path: Path, metadata: dict[str, Any], parts: dict[Path, GGUFHeader]) -> None:
    found = sum(len(header.tensors) for header in parts.values())
    stated = metadata.get("split.tensors.count", found)
    if stated != found:
        raise CheckpointError(f"{path}: split.tensors.count is {stated!r}; the files hold {found}")
