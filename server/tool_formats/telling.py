"""Tools told in plain messages, for models whose template has no word for them, in the manner of Hermes.

The system message describes the tools; earlier calls and their results are written into the conversation as
the model is asked to write its own.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .parts import Tool

Message = dict[str, Any]

_INSTRUCTION = """\
You may call functions to answer the user. Their signatures, as JSON, are within <tools></tools>:
<tools>
{tools}
</tools>
To call a function, write a JSON object with its name and arguments within <tool_call></tool_call>:
<tool_call>
{{"name": <function name>, "arguments": <object of arguments>}}
</tool_call>"""


def tell(messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool]) -> list[Message]:
    """The conversation with tools, calls and results as text. The messages given are not changed."""
    told: list[Message] = []
    for message in messages:
        if message["role"] == "tool":
            _add_result(told, message)
        else:
            told.append(_with_calls(message))
    return _with_tools(told, tools) if tools else told


def _with_calls(message: Mapping[str, Any]) -> Message:
    calls = message.get("tool_calls") or ()
    kept = {key: value for key, value in message.items() if key != "tool_calls"}
    if not calls:
        return kept
    parts = [message.get("content") or "", *map(_call, calls)]
    return kept | {"content": "\n".join(part for part in parts if part)}


def _call(call: Mapping[str, Any]) -> str:
    function = call["function"]
    arguments = function["arguments"]
    said = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return f'<tool_call>\n{{"name": {json.dumps(function["name"])}, "arguments": {said}}}\n</tool_call>'


def _add_result(told: list[Message], message: Mapping[str, Any]) -> None:
    """Results that follow one another are one message of the user's."""
    text = f"<tool_response>\n{message.get('content') or ''}\n</tool_response>"
    if told and told[-1].get("results"):
        told[-1]["content"] += "\n" + text
    else:
        told.append({"role": "user", "content": text, "results": True})


def _with_tools(told: list[Message], tools: Iterable[Tool]) -> list[Message]:
    described = "\n".join(json.dumps(tool.to_dict(), ensure_ascii=False) for tool in tools)
    text = _INSTRUCTION.format(tools=described)
    if told and told[0]["role"] == "system":
        content = told[0]["content"]
        return [told[0] | {"content": f"{content}\n\n{text}" if content else text}, *told[1:]]
    return [{"role": "system", "content": text}, *told]
