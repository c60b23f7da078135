"""The API as an OpenAPI 3.1 document, built from the tables that the parsers use.

For each operation: the schemas of its body and its answers, and its errors. What JSON Schema cannot express
(a prompt must fit the context, a tool's answer follows its call) is described in words
and answered with 400.
"""

from typing import Any

from ..kinds import TEXT, Limits
from . import answers
from .operations import EVENTS, OPERATIONS, Operation

_JSON = "application/json"
_FORM = "multipart/form-data"

_PHRASES = {
    400: "The request can never succeed as it stands.",
    401: "No API key, or one that is not accepted.",
    404: "No such model or path is served.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body is encoded.",
    422: "The request can never succeed as it stands.",
    424: "The engine failed.",
    429: "Overloaded, or not ready: `Retry-After` says when to ask again.",
    500: "A defect of the server.",
    503: "Overloaded, not ready or draining: `Retry-After` says when to ask again.",
    529: "Overloaded, not ready or draining: `Retry-After` says when to ask again.",
}
_DESCRIPTION = (
    "What no schema states is refused with 400 (422 on TGI's routes), by name: a prompt that exceeds the "
    "context (on the routes for raw texts, and on a strict server, together with its completion); parameters "
    "that exclude or need each other; grammars and schemas that cannot be followed; a conversation that the "
    "model's template refuses. Another method than those of a path is answered 405 with `Allow`."
)


def document(version: str, limits: Limits, *, keys: bool) -> dict[str, Any]:
    """The document of a server within `limits`; `keys`: it requires an API key."""
    paths: dict[str, Any] = {}
    for (method, path), operation in OPERATIONS.items():
        paths.setdefault(path, {})[method] = _operation(operation, limits, keys=keys)
    found: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "Distaff",
            "version": version,
            "description": _DESCRIPTION,
            "license": {"name": "Apache 2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": {
                "Error": answers.ERROR,
                "TgiError": answers.TGI_ERROR,
                "AnthropicError": answers.ANTHROPIC_ERROR,
            }
        },
    }
    if keys:
        found["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        found["security"] = [{"key": []}]
    return found


def _operation(operation: Operation, limits: Limits, *, keys: bool) -> dict[str, Any]:
    """An operation in OpenAPI's keys."""
    described: dict[str, Any] = {"summary": operation.summary}
    if parameters := _parameters(operation, limits):
        described["parameters"] = parameters
    if operation.form is not None:
        described["requestBody"] = {"required": True, "content": {_FORM: {"schema": operation.form(limits)}}}
    if operation.body is not None:
        schema = operation.body(limits)
        media: dict[str, Any] = {"schema": schema}
        if operation.example is not None:
            model = (
                {"model": (limits.names or ("tgi",))[0]} if "model" in schema.get("properties", {}) else {}
            )
            media["example"] = model | dict(operation.example)
        described["requestBody"] = {"required": True, "content": {_JSON: media}}
    if keys and operation.open:
        described["security"] = []
    described["responses"] = _responses(operation, keys=keys and not operation.open)
    return described


def _parameters(operation: Operation, limits: Limits) -> list[dict[str, Any]]:
    """The parameters in an operation's path and query."""
    named = {operation.named: operation.names(limits)} if operation.named else {}
    path = [{"name": name, "in": "path", "required": True, "schema": each} for name, each in named.items()]
    query = [
        {"name": name, "in": "query", "required": False, "schema": each}
        for name, each in operation.query.items()
    ]
    return path + query


def _responses(operation: Operation, *, keys: bool) -> dict[str, Any]:
    content: dict[str, Any] = {} if operation.answer is None else {_JSON: {"schema": operation.answer}}
    content |= {each: {} if each == EVENTS else {"schema": TEXT} for each in operation.types}
    errors = {status: _error(status, operation) for status in (*operation.errors, *([401] if keys else []))}
    failures = {str(status): errors[status] for status in sorted(errors)}
    return {"200": {"description": "The answer.", "content": content}, **failures}


def _error(status: int, operation: Operation) -> dict[str, Any]:
    shape = "AnthropicError" if operation.anthropic else "TgiError" if status in operation.tgi else "Error"
    schema = {"$ref": f"#/components/schemas/{shape}"}
    return {"description": _PHRASES[status], "content": {_JSON: {"schema": schema}}}
