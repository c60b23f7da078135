"""`tools` and what depends on them -> the functions a model may call, and whether it must.

Checks shapes and names; how a model writes a call is `tool_formats`' business.
"""

import re
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import BadRequest
from ..tool_formats import Tool
from .fields import Fields, missing, objects, shown, wrong_type, wrong_value
from .hosted_tools import SCHEMA, is_hosted
from .kinds import TEXT, Described, Schema, Shape, array, constant, record

MOST_TOOLS = 128
LONGEST_NAME = 64

_NAME = re.compile(r"[a-zA-Z0-9_-]+")
_KINDS = ("function", "allowed_tools")


@dataclass(frozen=True, slots=True)
class ToolUse:
    """What may be called.

    Attributes:
      tools: those that may be called; none where nothing may.
      forced: the reply must be a call. named: of the one function that the request names.
      parallel: several calls in one reply. left_out: the types of tools that the model is not told of.
    """

    tools: tuple[Tool, ...] = ()
    forced: bool = False
    named: bool = False
    parallel: bool = True
    left_out: tuple[str, ...] = ()

    @property
    def single(self) -> bool:
        """The reply is one call and no more."""
        return self.forced and (self.named or not self.parallel)


def read_tools(fields: Described, *, flat: bool = False) -> ToolUse:
    """`tools`, `tool_choice` and `parallel_tool_calls`.

    An empty list means no tools, and choices that then change nothing are accepted with it. A strict server
    refuses it, as OpenAI does, except in the Responses API.

    Args:
      flat: a function's name is next to its type, as in the Responses API, not in an object of its own. Then
        tools that OpenAI runs itself are left out, except by a strict server.

    Raises:
      BadRequest: the first fault found.
    """
    value = fields.get("tools")
    empty = value == [] and (flat or not fields.limits.strict)
    items = [] if value is None or empty else objects("tools", value, MOST_TOOLS)
    hosted = [item for item in items if flat and not fields.limits.strict and is_hosted(item)]
    left_out = tuple(dict.fromkeys(str(item.get("type")) for item in hosted))
    tools = [_tool(item, flat) for item in items if item not in hosted]
    mode, names = _choice(fields, flat)
    parallel = fields.take("parallel_tool_calls")
    if not tools:
        lenient = flat or empty
        neutral = (None, "none", "auto") if lenient else (None, "none")
        check_needs_tools(fields, "tool_choice", fields.get("tool_choice") in neutral)
        check_needs_tools(fields, "parallel_tool_calls", lenient)
        return ToolUse(left_out=left_out)
    if mode == "none":
        return ToolUse(left_out=left_out)
    for name in names or ():
        if name not in [tool.name for tool in tools]:
            raise BadRequest(f"Tool choice '{name}' not found in 'tools' parameter.", "tool_choice")
    kept = tuple(tool for tool in tools if names is None or tool.name in names)
    return ToolUse(kept, mode in ("required", "named"), mode == "named", parallel is not False, left_out)


def check_needs_tools(fields: Fields, name: str, neutral: bool) -> None:
    """Raises BadRequest for a parameter that is given without tools, unless its value changes nothing."""
    if fields.get(name) is not None and not neutral:
        message = f"Invalid value for '{name}': '{name}' is only allowed when 'tools' are specified."
        raise BadRequest(message, name)


def _tool(fields: Fields, flat: bool) -> Tool:
    fields.require("type")
    fields.one_of("type", ("function",))
    function = _inner(fields, "function", flat)
    name = read_name(function, LONGEST_NAME)
    return Tool(
        name=name,
        description=function.string("description"),
        parameters=read_schema(function, "parameters", name),
        strict=function.boolean("strict") or False,
        param=function.where("parameters"),
    )


def read_schema(function: Fields, key: str, name: str) -> dict[str, Any] | None:
    """The schema of the arguments of the function `name`; None if it has none. Raises BadRequest."""
    schema = function.object(key)
    if schema is None:
        return None
    if schema.get("type") != "object":
        found = shown(schema.get("type"))
        reason = f"schema must be a JSON Schema of 'type: \"object\"', got 'type: \"{found}\"'."
        raise invalid_parameters(function.where(key), name, reason)
    return schema.values


def invalid_parameters(param: str, name: str, reason: str) -> BadRequest:
    """The error for a tool with an unsupported schema of arguments."""
    return BadRequest(f"Invalid schema for function '{name}': {reason}", param, "invalid_function_parameters")


def _inner(fields: Fields, name: str, flat: bool) -> Fields:
    """The object with the details; if flat, they are in the tool itself."""
    inner = fields if flat else fields.object(name)
    if inner is None:
        raise missing(fields.where(name))
    return inner


def read_name(function: Fields, longest: int) -> str:
    """The name of a function, of at most `longest` characters. Raises BadRequest."""
    function.require("name")
    name, path = function.string("name", longest) or "", function.where("name")
    if not _NAME.fullmatch(name):
        raise BadRequest(
            f"Invalid '{path}': string does not match pattern. Expected a string that matches the pattern "
            "'^[a-zA-Z0-9_-]+$'.",
            path,
            "invalid_value",
        )
    return name


Mode = Literal["none", "auto", "required", "named"]
_CHOICES: tuple[Mode, ...] = ("none", "auto", "required")


def _choice(fields: Fields, flat: bool) -> tuple[Mode, list[str] | None]:
    """How freely, and which functions by name; None for all."""
    value = fields.get("tool_choice")
    if value is None:
        return "auto", None
    if isinstance(value, str):
        mode: Mode | None = next((each for each in _CHOICES if each == value), None)
        if mode is None:
            raise wrong_value("tool_choice", value, _CHOICES)
        return mode, None
    if not isinstance(value, dict):
        raise wrong_type("tool_choice", "one of a string or object", value)
    choice = Fields(value, "tool_choice")
    choice.require("type")
    if choice.one_of("type", _KINDS) == "function":
        return "named", [_named(choice, flat)]
    return _allowed(choice, flat)


def _named(choice: Fields, flat: bool) -> str:
    function = _inner(choice, "function", flat)
    function.require("name")
    return function.string("name") or ""


def _allowed(choice: Fields, flat: bool) -> tuple[Mode, list[str]]:
    allowed = _inner(choice, "allowed_tools", flat)
    allowed.require("mode")
    mode = allowed.one_of("mode", ("auto", "required"))
    tools = objects(allowed.where("tools"), allowed.require("tools"), MOST_TOOLS)
    return ("required" if mode == "required" else "auto"), [_named(tool, flat) for tool in tools]


def _function_schema() -> Schema:
    name = {"type": "string", "pattern": f"^{_NAME.pattern}$", "maxLength": LONGEST_NAME}
    parameters = record({"type": constant("object")})
    optional = {"description": TEXT, "parameters": parameters, "strict": {"type": "boolean"}}
    return record({"name": name}, optional)


def _flattened(kind: str, inner: Schema, flat: bool) -> Schema:
    """An object of a type, and what `_inner` reads of it."""
    if not flat:
        return record({"type": constant(kind), kind: inner})
    properties = {"type": constant(kind), **inner["properties"]}
    return inner | {"properties": properties, "required": ["type", *inner["required"]]}


def tools_kind(*, flat: bool = False) -> Shape:
    """What `tools` may be."""
    function = _flattened("function", _function_schema(), flat)
    if not flat:
        return Shape(lambda limits: array(function, MOST_TOOLS, least=1 if limits.strict else 0))
    either = {"anyOf": [function, SCHEMA]}
    return Shape(lambda limits: array(function if limits.strict else either, MOST_TOOLS, least=0))


def _named_schema(flat: bool) -> Schema:
    function = record({"name": TEXT})
    return function if flat else record({"function": function})


def choice_kind(*, flat: bool = False) -> Shape:
    """What `tool_choice` may be."""
    mode = {"type": "string", "enum": ["auto", "required"]}
    of_some = record({"mode": mode, "tools": array(_named_schema(flat), MOST_TOOLS)})
    word = {"type": "string", "enum": list(_CHOICES)}
    return Shape(
        {
            "anyOf": [
                word,
                _flattened("function", record({"name": TEXT}), flat),
                _flattened("allowed_tools", of_some, flat),
            ]
        }
    )
