"""The header of a GGUF file: metadata and the position of each tensor. Neither weights nor our names.

Format: the GGUF specification in ggml's documentation, versions 2 and 3, little-endian. Not parsed with the
reader of the `gguf` package, because that keeps an array per metadata element (2 s and 100 MB for a
vocabulary, 0.1 s here) and trusts the counts in a hostile file. The one idea: no count may exceed the bytes
that the file has.
"""

import mmap
import struct
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from ..errors import CheckpointError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_ALIGNMENT = 32


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """One tensor's entry: its shape in row-major order; its bytes are `[offset, offset + size)` of the
    file."""

    file: Path
    name: str
    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class GGUFHeader:
    """Everything before the weights.

    Attributes:
      length: bytes before the first tensor. stamp: of the file, before it was read.
    """

    metadata: dict[str, Any]
    tensors: dict[str, GGUFTensor]
    length: int
    stamp: tuple[int, int]


def read_gguf_header(path: Path) -> GGUFHeader:
    """Metadata and tensor entries of a GGUF file; every entry is inside the file, none overlap.

    Raises:
      CheckpointError: not GGUF, truncated, or inconsistent. The message names the file, and the tensor or
        key.
    """
    try:
        before = stamp(path)
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Parser(path, data).header(before)
    except (OSError, ValueError) as error:  # mmap refuses an empty file with ValueError
        raise CheckpointError(f"{path}: not readable as GGUF ({type(error).__name__})") from None


def stamp(path: Path) -> tuple[int, int]:
    """A file's size and modification time."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


class _Parser:
    """A cursor over the file. `at` is what is being read, for messages."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.position, self.at = path, data, 0, "header"

    def fail(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {self.at}: {what}")

    def take(self, form: str) -> tuple[Any, ...]:
        end = self.position + struct.calcsize("<" + form)
        if end > len(self.data):
            raise self.fail(f"the file ends at byte {len(self.data)}; it is truncated")
        values = struct.unpack_from("<" + form, self.data, self.position)
        self.position = end
        return values

    def text(self) -> str:
        (length,) = self.take("Q")
        end = self.position + length
        if end > len(self.data):
            raise self.fail(f"the file ends at byte {len(self.data)}; it is truncated")
        raw = self.data[self.position : end]
        self.position = end
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self.fail("a text is not UTF-8") from None

    def count(self, what: str, least: int) -> int:
        """A count of items of at least `least` bytes each."""
        (value,) = self.take("Q")
        if value * least > len(self.data) - self.position:
            raise self.fail(f"the header states {value} {what}; the file is too short for them")
        return value

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self.array()
        if kind not in _SCALARS:
            raise self.fail(f"value type {kind}; expected 0 to 12")
        return self.take(_SCALARS[kind])[0]

    def array(self) -> list[Any]:
        (kind,) = self.take("I")
        if kind in _SCALARS:
            count = self.count("elements", struct.calcsize(_SCALARS[kind]))
            return list(self.take(f"{count}{_SCALARS[kind]}"))
        if kind != _STRING:
            raise self.fail(f"array of type {kind}; expected numbers or texts")
        return [self.text() for _ in range(self.count("texts", 8))]

    def header(self, before: tuple[int, int]) -> GGUFHeader:
        magic, version = self.take("4sI")
        if magic != b"GGUF":
            raise self.fail(f"begins with {magic!r}; expected b'GGUF'")
        if version not in (2, 3):
            raise self.fail(f"version is {version}; expected 2 or 3")
        tensors = self.count("tensors", 24)
        metadata = self.metadata(self.count("metadata entries", 13))
        entries = [self.entry() for _ in range(tensors)]
        self.at = "general.alignment"
        alignment = metadata.get("general.alignment", _ALIGNMENT)
        if type(alignment) is not int or alignment < 8 or alignment & (alignment - 1):
            raise self.fail(f"{alignment!r}; expected a power of two, at least 8")
        start = -(-self.position // alignment) * alignment
        return GGUFHeader(metadata, self.place(entries, start, alignment), start, before)

    def metadata(self, count: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for _ in range(count):
            key = self.at = self.text()
            if key in found:
                raise self.fail("stated twice")
            found[key] = self.value(self.take("I")[0])
            self.at = f"after {key}"
        return found

    def entry(self) -> GGUFTensor:
        self.at = "tensor list"
        name = self.text()
        self.at = f"tensor {name}"
        (dimensions,) = self.take("I")
        if not 1 <= dimensions <= 4:
            raise self.fail(f"has {dimensions} dimensions; expected 1 to 4")
        shape = self.take(f"{dimensions}Q")[::-1]
        kind, offset = self.take("IQ")
        if kind not in GGMLQuantizationType.__members__.values():
            raise self.fail(f"type number {kind} is unknown")
        return GGUFTensor(self.path, name, GGMLQuantizationType(kind), shape, offset, self.size(shape, kind))

    def size(self, shape: tuple[int, ...], kind: int) -> int:
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        elements = 1
        for length in shape:
            elements *= length
        if not elements or shape[-1] % block:
            raise self.fail(f"has shape {list(shape)}; expected rows of a multiple of {block}")
        return elements // block * size

    def place(self, entries: list[GGUFTensor], start: int, alignment: int) -> dict[str, GGUFTensor]:
        """Entries with absolute offsets, checked against each other and the file's end."""
        placed: dict[str, GGUFTensor] = {}
        end = 0
        for entry in sorted(entries, key=attrgetter("offset")):
            self.at = f"tensor {entry.name}"
            if entry.name in placed:
                raise self.fail("stated twice")
            if entry.offset < end or entry.offset % alignment:
                raise self.fail(f"begins at {entry.offset}; expected a multiple of {alignment} from {end} on")
            end = entry.offset + entry.size
            if start + end > len(self.data):
                raise self.fail(f"ends at byte {start + end} of {len(self.data)}; the file is truncated")
            placed[entry.name] = GGUFTensor(
                entry.file, entry.name, entry.kind, entry.shape, start + entry.offset, entry.size
            )
        return placed
