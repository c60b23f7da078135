"""`tools` and what depends on them -> the functions a model may call, and whether it must.

Checks shapes and names; how a model writes a call is `tool_formats`' business.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import BadRequest
from ..tool_formats import Tool
from .fields import Fields, missing, objects, shown, wrong_type, wrong_value
from .kinds import TEXT, Described, Schema, Shape, array, constant, record

MOST_TOOLS = 128
LONGEST_NAME = 64

Mode = Literal["none", "auto", "required", "named"]
Choice = tuple[Mode, list[str] | None]
CHOICES: tuple[Mode, ...] = ("none", "auto", "required")

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


def read_tools(fields: Described) -> ToolUse:
    """`tools`, `tool_choice` and `parallel_tool_calls` of a chat completion.

    An empty list means no tools, and choices that then change nothing are accepted with it. A strict server
    refuses it, as OpenAI does.

    Raises:
      BadRequest: the first fault found.
    """
    value = fields.get("tools")
    empty = value == [] and not fields.limits.strict
    items = [] if value is None or empty else objects("tools", value, MOST_TOOLS)
    return tool_use(fields, [_tool(item) for item in items], read_choice(fields), lenient=empty)


def tool_use(fields: Described, tools: Sequence[Tool], choice: Choice, *, lenient: bool) -> ToolUse:
    """The tools that may be called, by the choice among them.

    Args:
      lenient: without tools, choices that then change nothing are accepted.

    Raises:
      BadRequest: a choice without tools, or a name that no tool has.
    """
    mode, names = choice
    parallel = fields.take("parallel_tool_calls")
    if not tools:
        neutral = (None, "none", "auto") if lenient else (None, "none")
        check_needs_tools(fields, "tool_choice", fields.get("tool_choice") in neutral)
        check_needs_tools(fields, "parallel_tool_calls", lenient)
        return ToolUse()
    if mode == "none":
        return ToolUse()
    for name in names or ():
        if not any(name in (tool.name, tool.own_name) for tool in tools):
            raise BadRequest(f"Tool choice '{name}' not found in 'tools' parameter.", "tool_choice")
    kept = tuple(t for t in tools if names is None or t.name in names or t.own_name in names)
    return ToolUse(kept, mode in ("required", "named"), mode == "named", parallel is not False)


def check_needs_tools(fields: Fields, name: str, neutral: bool) -> None:
    """Raises BadRequest for a parameter that is given without tools, unless its value changes nothing."""
    if fields.get(name) is not None and not neutral:
        message = f"Invalid value for '{name}': '{name}' is only allowed when 'tools' are specified."
        raise BadRequest(message, name)


def _tool(fields: Fields) -> Tool:
    fields.require("type")
    fields.one_of("type", ("function",))
    return read_function(inner(fields, "function"))


def read_function(function: Fields) -> Tool:
    """A function. Raises BadRequest."""
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


def inner(fields: Fields, name: str) -> Fields:
    """The object with the details of a tool or a choice. Raises BadRequest."""
    found = fields.object(name)
    if found is None:
        raise missing(fields.where(name))
    return found


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


def read_choice(fields: Fields) -> Choice:
    """How freely tools may be called, and which by name; None for all. Raises BadRequest."""
    choice = choice_fields(fields)
    if not isinstance(choice, Fields):
        return choice, None
    if choice.one_of("type", _KINDS) == "function":
        return "named", [_named(choice)]
    allowed = inner(choice, "allowed_tools")
    return allowed_mode(allowed), [_named(tool) for tool in allowed_tools(allowed)]


def choice_fields(fields: Fields) -> Fields | Mode:
    """`tool_choice`: an object with a type, or a word that names no tool. Raises BadRequest."""
    value = fields.get("tool_choice")
    if value is None or isinstance(value, str):
        return _choice_word(value)
    if not isinstance(value, dict):
        raise wrong_type("tool_choice", "one of a string or object", value)
    choice = Fields(value, "tool_choice")
    choice.require("type")
    return choice


def _choice_word(value: str | None) -> Mode:
    mode: Mode | None = next((each for each in CHOICES if each == (value or "auto")), None)
    if mode is None:
        raise wrong_value("tool_choice", value or "", CHOICES)
    return mode


def allowed_mode(allowed: Fields) -> Mode:
    """Whether one of the allowed tools must be called. Raises BadRequest."""
    allowed.require("mode")
    return "required" if allowed.one_of("mode", ("auto", "required")) == "required" else "auto"


def allowed_tools(allowed: Fields) -> list[Fields]:
    """The tools that are allowed. Raises BadRequest."""
    return objects(allowed.where("tools"), allowed.require("tools"), MOST_TOOLS)


def _named(choice: Fields) -> str:
    function = inner(choice, "function")
    function.require("name")
    return function.string("name") or ""


def function_schema() -> Schema:
    """What a function may be."""
    name = {"type": "string", "pattern": f"^{_NAME.pattern}$", "maxLength": LONGEST_NAME}
    parameters = record({"type": constant("object")})
    optional = {"description": TEXT, "parameters": parameters, "strict": {"type": "boolean"}}
    return record({"name": name}, optional)


def _held(kind: str, inner: Schema) -> Schema:
    """An object of a type, with its details in an object of its own."""
    return record({"type": constant(kind), kind: inner})


def allowed_schema(named: Schema) -> Schema:
    """What a choice among some tools may be, each of which is `named`."""
    mode = {"type": "string", "enum": ["auto", "required"]}
    return record({"mode": mode, "tools": array(named, MOST_TOOLS)})


def _choice_schema() -> Schema:
    function = _held("function", record({"name": TEXT}))
    allowed = _held("allowed_tools", allowed_schema(record({"function": record({"name": TEXT})})))
    return {"anyOf": [{"type": "string", "enum": list(CHOICES)}, function, allowed]}


_FUNCTION = _held("function", function_schema())
TOOLS = Shape(lambda limits: array(_FUNCTION, MOST_TOOLS, least=1 if limits.strict else 0))
TOOL_CHOICE = Shape(_choice_schema())
