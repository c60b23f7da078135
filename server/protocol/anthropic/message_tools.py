"""`tools` and `tool_choice` of messages -> the functions that a model may call, and whether it must.

Reads shapes and names, as `protocol.tools` does for OpenAI's. Tools whose type is a name and a date, such as
`web_search_20250305`, have no schema here: Anthropic runs them itself, or its models know them by heart. They
are left out, because agents send them by habit, and refused if the request insists on one.
"""

import re
from dataclasses import replace

from ...errors import BadRequest
from ...tool_formats import Tool
from ..fields import Fields, objects, wrong_value
from ..kinds import TEXT, Schema, Shape, array, constant, record
from ..tools import ToolUse, check_needs_tools, read_name, read_schema

MOST_TOOLS = 1024
LONGEST_NAME = 128

_FOREIGN = re.compile(r"[a-z0-9_]+_20[0-9]{6}")
_MODES = ("auto", "any", "tool", "none")


def read_tools(fields: Fields) -> ToolUse:
    """What may be called, without tools of Anthropic's own.

    Raises:
      BadRequest: the first fault found.
    """
    given = fields.get("tools")
    items = [] if given in (None, []) else objects("tools", given, MOST_TOOLS)
    foreign = [item for item in items if _is_foreign(item)]
    tools = [_tool(item) for item in items if item not in foreign]
    left_out = tuple(dict.fromkeys(str(item.get("type")) for item in foreign))
    return replace(_use(fields, tools, foreign), left_out=left_out)


def _is_foreign(item: Fields) -> bool:
    """Whether a tool is one of Anthropic's own. Raises BadRequest for types that nobody has."""
    kind = item.string("type")
    if kind in (None, "custom"):
        return False
    if not _FOREIGN.fullmatch(kind):
        raise wrong_value(item.where("type"), kind, ("custom",))
    item.string("name")
    return True


def _tool(item: Fields) -> Tool:
    name = read_name(item, LONGEST_NAME)
    item.require("input_schema")
    return Tool(
        name=name,
        description=item.string("description"),
        parameters=read_schema(item, "input_schema", name),
        strict=item.boolean("strict") or False,
        param=item.where("input_schema"),
    )


def _use(fields: Fields, tools: list[Tool], foreign: list[Fields]) -> ToolUse:
    """The tools and the choice among them."""
    choice = fields.object("tool_choice") or Fields({"type": "auto"}, "tool_choice")
    choice.require("type")
    mode = choice.one_of("type", _MODES)
    parallel = not choice.boolean("disable_parallel_tool_use")
    named = _named(choice, tools, foreign) if mode == "tool" else None
    if not tools:
        check_needs_tools(fields, "tool_choice", mode in ("auto", "none"))
        return ToolUse()
    if mode == "none":
        return ToolUse()
    kept = tuple(tool for tool in tools if named in (None, tool.name))
    return ToolUse(kept, mode != "auto", mode == "tool", parallel)


def _named(choice: Fields, tools: list[Tool], foreign: list[Fields]) -> str:
    """The tool that must be called. Raises BadRequest unless it can be."""
    choice.require("name")
    name, path = choice.string("name") or "", choice.where("name")
    if name in [tool.name for tool in tools]:
        return name
    for item in foreign:
        if item.get("name") == name:
            message = f"The tool '{name}' has the type '{item.get('type')}', which is not supported here."
            raise BadRequest(f"{message} Expected one with an 'input_schema'.", path)
    raise BadRequest(f"Tool choice '{name[:64]}' not found in 'tools' parameter.", path)


def _tool_schema() -> Schema:
    name = {"type": "string", "pattern": "^[a-zA-Z0-9_-]+$", "maxLength": LONGEST_NAME}
    required = {"name": name, "input_schema": record({"type": constant("object")})}
    optional = {"type": constant("custom"), "description": TEXT, "strict": {"type": "boolean"}}
    foreign = {"type": {"type": "string", "pattern": f"^{_FOREIGN.pattern}$"}}
    return {"anyOf": [record(required, optional), record(foreign, {"name": TEXT})]}


def _choice_schema() -> Schema:
    single = {"disable_parallel_tool_use": {"type": "boolean"}}
    named = record({"type": constant("tool"), "name": TEXT}, single)
    return {"anyOf": [named, *(record({"type": constant(each)}, single) for each in ("auto", "any", "none"))]}


TOOLS = Shape(array(_tool_schema(), MOST_TOOLS, 0))
TOOL_CHOICE = Shape(_choice_schema())
