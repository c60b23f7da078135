"""Functions that change the residual stream of a model after some of its layers (activation steering).

They are traced into a step, so they are JAX functions, and each set of them needs steps of its own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import itemgetter

import jax

from ..model.errors import DistaffError

Edit = Callable[[jax.Array], jax.Array]
"""From the residual stream `[T, D]` of T tokens to the changed one, of the same shape and type. The tokens
are of any sequences, in any order, so each must be changed by itself."""


class InvalidEdit(DistaffError):
    """A layer that does not exist, or a function that returns something else than a residual stream."""


def layer_of(layer: int, layers: int) -> int:
    """The number of a layer from 0; a negative one counts from the last.

    Raises:
      InvalidEdit: there is no such layer.
    """
    if not -layers <= layer < layers:
        raise InvalidEdit(f"layer is {layer}; expected {-layers} to {layers - 1}")
    return layer % layers


@dataclass(frozen=True)
class Edits:
    """An `AfterLayer`; two are equal if they have the same functions after the same layers."""

    functions: tuple[tuple[int, Edit], ...]

    @classmethod
    def of(cls, edit: Mapping[int, Edit], layers: int) -> "Edits":
        """Edits by layer. Raises InvalidEdit: there is no such layer."""
        found = [(layer_of(layer, layers), function) for layer, function in edit.items()]
        return cls(tuple(sorted(found, key=itemgetter(0))))

    def __call__(self, layer: int, x_TD: jax.Array) -> jax.Array:
        """The residual stream after a layer, changed by this layer's function."""
        for number, function in self.functions:
            if number == layer:
                x_TD = self._checked(layer, x_TD, function(x_TD))
        return x_TD

    @staticmethod
    def _checked(layer: int, before_TD: jax.Array, after_TD: jax.Array) -> jax.Array:
        found = jax.typeof(after_TD)
        if (found.shape, found.dtype) != (before_TD.shape, before_TD.dtype):
            raise InvalidEdit(
                f"the edit after layer {layer} returns {found.str_short()}; "
                f"expected {jax.typeof(before_TD).str_short()}"
            )
        return after_TD
