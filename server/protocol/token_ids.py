"""Token ids in a request: lists of them, and biases by id. Reads them and has their schemas.

Only the model knows the vocabulary, so the upper end of the ids is checked later (`no_such_token`).
"""

from ...runtime.request import MAX_BIAS
from ..errors import BadRequest
from .fields import Fields, check_array, integers, shown, wrong_type
from .kinds import Limits, Schema

MOST_IDS = 1 << 20
"""Ids in a list; the vocabulary is the true limit."""


def ids_schema(limits: Limits, least: int = 0) -> Schema:
    """The schema of a list of token ids."""
    id = {"type": "integer", "minimum": 0, "maximum": limits.vocabulary - 1}
    return {"type": "array", "items": id, "minItems": least, "maxItems": MOST_IDS}


def bias_schema(limits: Limits) -> Schema:
    """The schema of an object with a bias for each of some token ids."""
    value = {"type": "number", "minimum": -MAX_BIAS, "maximum": MAX_BIAS}
    return {"type": "object", "propertyNames": {"pattern": "^[0-9]{1,9}$"}, "additionalProperties": value}


def read_ids(fields: Fields, name: str) -> tuple[int, ...] | None:
    """A list of token ids; None if it is absent. Raises BadRequest."""
    value = fields.get(name)
    if value is None:
        return None
    path = fields.where(name)
    if not isinstance(value, list):
        raise wrong_type(path, "an array of integers", value)
    check_array(path, value, MOST_IDS, empty=name != "allowed_token_ids")
    ids = integers(path, value)
    for index, item in enumerate(ids):
        if not 0 <= item < 2**31:
            raise BadRequest(f"Invalid '{path}[{index}]': no token has the id {shown(item)}.", path)
    return ids


def read_distinct_ids(fields: Fields, name: str) -> tuple[int, ...] | None:
    """The same list with each id once, in order, so no more ids than the vocabulary has."""
    ids = read_ids(fields, name)
    return None if ids is None else tuple(dict.fromkeys(ids))


def read_bias(fields: Fields, name: str) -> tuple[tuple[int, float], ...]:
    """`(id, value)` pairs. Raises BadRequest."""
    found = fields.object(name)
    if found is None:
        return ()
    biases = []
    for key in found.values:
        if not (key.isascii() and key.isdigit() and len(key) < 10):
            message = f"Invalid key in '{name}': '{shown(key)}'. Expected a token id such as '50256'."
            raise BadRequest(message, name, "invalid_value")
        value = found.number(key, -MAX_BIAS, MAX_BIAS)
        if value is None:
            raise wrong_type(found.where(key), "a decimal", value)
        biases.append((int(key), value))
    return tuple(biases)


def no_such_token(path: str, token: int, vocabulary: int) -> BadRequest:
    """The error for an id outside the vocabulary."""
    message = f"Invalid '{path}': no token has the id {token}. Expected an id from 0 to {vocabulary - 1}."
    return BadRequest(message, path, "invalid_value")
