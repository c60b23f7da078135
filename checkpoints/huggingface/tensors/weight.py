"""`PackedWeight`: a quantised weight of which only the headers have been read.

The layouts make them, each in a file of its own; the folder asks for their values. The one idea: to the names
and shapes of a model it is one tensor, `….weight`, of the shape that the model has without quantisation.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from ....model.parameters import GROUP, Kind
from ...errors import CheckpointError
from .integers import Values
from .quantization_config import Scheme
from .shards import StoredTensor

Parts = Mapping[str, StoredTensor]
"""The tensors of one module, by the last part of their names."""

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class PackedWeight:
    """A weight `[outputs, inputs]`.

    Attributes:
      name: `….weight`. shape: of the weight. scheme: how it is stored. stored: the tensors that have it.
      kept_as: its kind if it is served packed; None: it can only be widened.
      exact: whether its integers stay as they are then; otherwise they are rounded once more.
      load: reads it.
    """

    name: str
    shape: Sizes
    scheme: Scheme
    stored: tuple[StoredTensor, ...]
    kept_as: Kind | None
    exact: bool
    load: Callable[[], Values]

    @property
    def file(self) -> Path:
        return self.stored[0].file

    @property
    def values(self) -> int:
        """How many there are."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Of the weight widened to f32."""
        return 4 * self.values

    def read(self) -> np.ndarray:
        """The weight widened to f32 `[outputs, inputs]`."""
        return self.load().wide()

    @property
    def stored_bytes(self) -> int:
        """Of its tensors on disk."""
        return sum(prod(tensor.shape) * tensor.packed_dtype.itemsize for tensor in self.stored)


@dataclass(frozen=True, slots=True)
class Module:
    """The tensors of a quantised module, `stem.…`, while they are checked."""

    stem: str
    parts: Parts
    scheme: Scheme

    @property
    def file(self) -> Path:
        return next(iter(self.parts.values())).file

    @property
    def weight(self) -> str:
        return f"{self.stem}.weight"

    def take(self, part: str, *kinds: str) -> StoredTensor:
        """One of its tensors, of one of these types.

        Raises:
          CheckpointError: it is missing, or has another type.
        """
        if part not in self.parts:
            raise CheckpointError(
                f"{self.file}: tensor {self.stem}.{part} is missing; {self.stem} is quantised"
            )
        tensor = self.parts[part]
        if tensor.kind not in kinds:
            raise CheckpointError(
                f"{tensor.file}: tensor {tensor.name} is {tensor.kind}; expected {' or '.join(kinds)}"
            )
        return tensor

    def check(self, tensor: StoredTensor, *shapes: Sizes) -> None:
        """Raises CheckpointError unless a tensor has one of these shapes."""
        if tensor.shape not in shapes:
            expected = " or ".join(str(list(shape)) for shape in shapes)
            raise CheckpointError(
                f"{tensor.file}: tensor {tensor.name} has shape {list(tensor.shape)}; expected {expected}"
            )

    def groups(self, inputs: int) -> int:
        """The number of groups of this many inputs.

        Raises:
          CheckpointError: the inputs are no whole groups.
        """
        size = self.scheme.group or inputs
        if inputs % size:
            raise CheckpointError(
                f"{self.file}: {self.stem} has {inputs} inputs; expected a multiple of group_size {size}"
            )
        return inputs // size

    def matrix(self, tensor: StoredTensor) -> tuple[int, int]:
        """A tensor's shape, which has two axes."""
        if len(tensor.shape) != 2:
            shape = list(tensor.shape)
            raise CheckpointError(f"{tensor.file}: tensor {tensor.name} has shape {shape}; expected two axes")
        return tensor.shape[0], tensor.shape[1]

    def packed(
        self, shape: Sizes, stored: tuple[StoredTensor, ...], load: Callable[[], Values]
    ) -> PackedWeight:
        """The weight of integers in groups: kept in groups of 32, if these divide its own.

        What our groups cannot have, zeros of 8 bits and groups of inputs that are not consecutive, is rounded
        to groups of 8 bits.
        """
        scheme = self.scheme
        group = scheme.group or shape[1]
        kept_as = None if group % GROUP or shape[1] % GROUP else scheme.groups
        return PackedWeight(self.weight, shape, scheme, stored, kept_as, scheme.exact, load)


def groups_of_inputs(stored: StoredTensor, groups: int) -> np.ndarray:
    """The group of each input, i32 `[D]`.

    Raises:
      CheckpointError: a group does not exist.
    """
    group_D = stored.read_packed()
    least, most = group_D.min(), group_D.max()
    if least < 0 or most >= groups:
        raise CheckpointError(
            f"{stored.file}: tensor {stored.name} has {least} to {most}; expected 0 to {groups - 1}"
        )
    return group_D.astype(np.int32)
