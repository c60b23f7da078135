"""Lists in pages, as OpenAI's: `limit` and `after` of the query, and the body of the answer."""

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

from ..answering.context import ApiRequest
from ..errors import BadRequest
from ..protocol.fields import shown


class Listed(Protocol):
    """An object of a list."""

    @property
    def id(self) -> str: ...

    def to_json(self) -> dict[str, Any]: ...


ListedT = TypeVar("ListedT", bound=Listed)


def page(request: ApiRequest, found: Sequence[ListedT], most: int, usual: int) -> dict[str, Any]:
    """The page that a query asks for.

    Args:
      found: all objects, in order. most, usual: of `limit`.

    Raises:
      BadRequest: an invalid `limit`, or an `after` that is not in the list.
    """
    limit = _limit(_given(request, "limit"), most, usual)
    start = _start(_given(request, "after"), found)
    data = found[start : start + limit]
    return {
        "object": "list",
        "data": [each.to_json() for each in data],
        "first_id": data[0].id if data else None,
        "last_id": data[-1].id if data else None,
        "has_more": start + limit < len(found),
    }


def one_of(request: ApiRequest, name: str, words: Sequence[str]) -> str | None:
    """A parameter of the query that is one of a few words. Raises BadRequest."""
    value = _given(request, name)
    if value is not None and value not in words:
        listed = ", ".join(f"'{word}'" for word in words)
        raise BadRequest(
            f"Invalid '{name}': '{shown(value)}'. Expected one of {listed}.", name, "invalid_value"
        )
    return value


def _given(request: ApiRequest, name: str) -> str | None:
    """A parameter of the query; None if it is not there. Raises BadRequest if it is there twice."""
    values = request.get_args(keep_blank_values=True).getlist(name, [])
    if len(values) > 1:
        raise BadRequest(
            f"Invalid '{name}': expected one value, but got {len(values)}.", name, "invalid_value"
        )
    return values[0] if values else None


def _limit(given: str | None, most: int, usual: int) -> int:
    if given is None:
        return usual
    if not (given.isascii() and given.isdigit() and len(given) < 10 and 1 <= int(given) <= most):
        raise BadRequest(
            f"Invalid 'limit': '{shown(given)}'. Expected an integer from 1 to {most}.",
            "limit",
            "invalid_value",
        )
    return int(given)


def _start(after: str | None, found: Sequence[Listed]) -> int:
    if after is None:
        return 0
    place = next((place for place, each in enumerate(found) if each.id == after), None)
    if place is None:
        raise BadRequest(f"Invalid 'after': no object has the id '{shown(after)}'.", "after", "invalid_value")
    return place + 1
