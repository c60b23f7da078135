"""What a `$ref` refers to within its document: JSON Pointers (RFC 6901) and `$anchor`."""

from typing import Any
from urllib.parse import unquote

from ..errors import SchemaError
from .json_schema_keywords import Place


def resolve(document: Any, pointer: str, place: Place) -> Any:
    """What a `$ref` refers to: a JSON Pointer (RFC 6901) or an `$anchor` within the document.

    Raises:
      SchemaError: the target does not exist, or is in another document.
    """
    base = document.get("$id") if isinstance(document, dict) else None
    local = pointer.removeprefix(base) if isinstance(base, str) else pointer
    if local and not local.startswith("#"):
        raise SchemaError(f"'$ref' '{pointer[:200]}' points outside the schema; expected '#/…'", place)
    path = unquote(local[1:])
    if path and not path.startswith("/"):
        return _anchored(document, path, pointer, place)
    found: Any = document
    for part in path.split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict) and part in found:
            found = found[part]
        elif isinstance(found, list) and part.isdecimal() and int(part) < len(found):
            found = found[int(part)]
        else:
            raise _not_found(pointer, place)
    return found


def _anchored(document: Any, anchor: str, pointer: str, place: Place) -> Any:
    waiting = [document]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if value.get("$anchor") == anchor:
                return value
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    raise _not_found(pointer, place)


def _not_found(pointer: str, place: Place) -> SchemaError:
    return SchemaError(f"'$ref' '{pointer[:200]}' is not found in the schema", place)
