"""`tools` and `tool_choice` of the Responses API -> the functions that a model may call, and whether it must.

A function's name is next to its type here. Beside functions there are free-form tools of the type `custom`,
which the model sees as functions with one text, and namespaces, whose tools it sees as functions with longer
names (`response_calls` gives their calls back in the form that the client expects). Tools of all other types
are OpenAI's own, which it runs itself or only its models know. Agents list them by habit, whatever the server
is, so they are left out; a strict server refuses them, and so does a choice that demands one.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ...errors import BadRequest
from ...tool_formats import FREE_TEXT, Tool
from ..fields import Fields, check_array, check_length, objects, wrong_value
from ..kinds import TEXT, Described, Schema, Shape, array, constant, record
from ..tools import (
    CHOICES,
    LONGEST_NAME,
    MOST_TOOLS,
    Choice,
    ToolUse,
    allowed_mode,
    allowed_schema,
    allowed_tools,
    choice_fields,
    function_schema,
    read_function,
    read_name,
    tool_use,
)

_TYPE = re.compile(r"[a-z0-9_]{1,64}")
_CALLABLE = ("function", "custom")
_KINDS = (*_CALLABLE, "namespace")
_CHOICES = (*_CALLABLE, "allowed_tools")
_SYNTAXES = ("lark", "regex")
_MOST_FLAT = 1024
"""The most tools, those of namespaces among them."""
LONGEST_GRAMMAR = 16 * 1024
"""The most characters of the grammar of a free-form tool, which is rewritten character by character."""


def read_response_tools(fields: Described) -> ToolUse:
    """`tools`, `tool_choice` and `parallel_tool_calls`. An empty list means no tools.

    Raises:
      BadRequest: the first fault found.
    """
    value = fields.get("tools")
    items = [] if value in (None, []) else objects("tools", value, MOST_TOOLS)
    strict = fields.limits.strict
    left_out = [kind for item in items if (kind := _kind(item, _KINDS, strict=strict)) not in _KINDS]
    tools = [tool for item in items for tool in _tools(item, strict=strict)]
    check_array("tools", tools, _MOST_FLAT, empty=True)
    used = tool_use(fields, tools, _choice(fields, left_out), lenient=True)
    return replace(used, left_out=tuple(dict.fromkeys(left_out)))


def _kind(item: Fields, kinds: tuple[str, ...], *, strict: bool) -> str:
    """The type of a tool: one of these kinds, or one that is left out. Raises BadRequest."""
    item.require("type")
    kind = item.string("type") or ""
    if kind not in kinds and (strict or kind in _KINDS or not _TYPE.fullmatch(kind)):
        raise wrong_value(item.where("type"), kind, kinds)
    return kind


def _tools(item: Fields, *, strict: bool) -> Iterator[Tool]:
    """The tools that an entry describes: one, those of a namespace, or none."""
    match item.get("type"):
        case "function":
            yield read_function(item)
        case "custom":
            yield _custom(item)
        case "namespace":
            yield from _namespaced(item, strict=strict)


def _namespaced(item: Fields, *, strict: bool) -> Iterator[Tool]:
    """The tools of a namespace, with its name before theirs."""
    space = read_name(item, LONGEST_NAME)
    item.string("description")
    for inner in objects(item.where("tools"), item.require("tools"), MOST_TOOLS):
        _kind(inner, _CALLABLE, strict=strict)
        for tool in _tools(inner, strict=strict):
            name = flat_name(space, tool.name)
            yield replace(tool, name=name, namespace=space, own_name=tool.name)


def flat_name(namespace: str | None, name: str) -> str:
    """The name by which the model knows a tool of a namespace."""
    return f"{namespace.removesuffix('__')}__{name}" if namespace else name


def _custom(item: Fields) -> Tool:
    """A free-form tool."""
    name, format = read_name(item, LONGEST_NAME), item.object("format")
    tool = Tool(name, item.string("description"), _parameters({}), free_form=True)
    if format is None:
        return tool
    format.require("type")
    return tool if format.one_of("type", ("text", "grammar")) == "text" else _constrained(tool, format)


def _constrained(tool: Tool, format: Fields) -> Tool:
    """A free-form tool with the grammar of its text."""
    for each in ("syntax", "definition"):
        format.require(each)
    syntax, definition = format.one_of("syntax", _SYNTAXES), format.string("definition") or ""
    text = {"description": f"Text that matches this {syntax} grammar:\n{definition}"}
    tool = replace(tool, strict=True, param=format.where("definition"))
    check_length(format.where("definition"), definition, LONGEST_GRAMMAR)
    if not definition:
        raise BadRequest(
            f"Invalid '{format.where('definition')}': expected a grammar, but got nothing.", tool.param
        )
    if syntax == "lark":
        return replace(tool, parameters=_parameters(text), syntax=definition)
    return replace(tool, parameters=_parameters(text | {"pattern": f"^(?:{definition})$"}))


def _parameters(text: dict[str, Any]) -> dict[str, Any]:
    """The schema of the arguments, from what is said of the text."""
    properties = {FREE_TEXT: {"type": "string"} | text}
    return {"type": "object", "properties": properties, "required": [FREE_TEXT]}


def _choice(fields: Fields, left_out: list[str]) -> Choice:
    """How freely, and which by name; None for all."""
    choice = choice_fields(fields)
    if not isinstance(choice, Fields):
        return choice, None
    if (kind := choice.string("type")) in left_out:
        raise _undemandable(kind)
    if choice.one_of("type", _CHOICES) != "allowed_tools":
        return "named", [_named(choice)]
    listed, mode = allowed_tools(choice), allowed_mode(choice)
    some = [each for each in listed if each.string("type") in (None, *_CALLABLE)]
    if not some and mode == "required":
        raise _undemandable(str(listed[0].get("type")))
    return mode, [_named(each) for each in some]


def _undemandable(kind: str) -> BadRequest:
    message = f"Tools of the type '{kind[:64]}' cannot be run here, so none can be demanded."
    return BadRequest(f"{message} Expected one of the types 'function' and 'custom'.", "tool_choice")


def _named(choice: Fields) -> str:
    choice.require("name")
    name = choice.string("name") or ""
    return flat_name(choice.string("namespace"), name)


def _flat(kind: str, inner: Schema) -> Schema:
    """An object of a type with its details beside it."""
    properties = {"type": constant(kind), **inner["properties"]}
    return inner | {"properties": properties, "required": ["type", *inner["required"]]}


def _tools_schemas() -> tuple[Schema, Schema]:
    """What a tool may be, and what it may be for a server that is not strict."""
    name = function_schema()["properties"]["name"]
    definition = TEXT | {"minLength": 1, "maxLength": LONGEST_GRAMMAR}
    grammar = {"syntax": {"type": "string", "enum": list(_SYNTAXES)}, "definition": definition}
    formats = [record({"type": constant("text")}), record({"type": constant("grammar"), **grammar})]
    custom = record({"name": name}, {"description": TEXT, "format": {"anyOf": formats}})
    tools = [_flat("function", function_schema()), _flat("custom", custom)]
    other: Schema = record(
        {"type": {"type": "string", "pattern": f"^{_TYPE.pattern}$", "not": {"enum": list(_KINDS)}}}
    )

    def space(inner: list[Schema]) -> Schema:
        listed = array({"anyOf": inner}, MOST_TOOLS)
        return _flat("namespace", record({"name": name, "tools": listed}, {"description": TEXT}))

    lenient = [*tools, other]
    return {"anyOf": [*tools, space(tools)]}, {"anyOf": [*lenient, space(lenient)]}


def _choice_schema() -> Schema:
    kinds: Schema = {"type": "string", "enum": list(_CALLABLE)}
    named = record({"name": TEXT}, {"namespace": TEXT})
    callable = [_flat(kind, named) for kind in _CALLABLE]
    other = record({"type": {"type": "string", "not": {"enum": list(_CALLABLE)}}})
    entry = {"anyOf": [record({"name": TEXT}, {"type": kinds, "namespace": TEXT}), other]}
    allowed = _flat("allowed_tools", allowed_schema(entry))
    return {"anyOf": [{"type": "string", "enum": list(CHOICES)}, *callable, allowed]}


_STRICT, _LENIENT = _tools_schemas()
TOOLS = Shape(lambda limits: array(_STRICT if limits.strict else _LENIENT, MOST_TOOLS, least=0))
TOOL_CHOICE = Shape(_choice_schema())
