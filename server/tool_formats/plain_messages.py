"""Tools as plain messages in Hermes' format, for models whose template does not support tools.

The system message describes the tools; earlier calls and their results are written into the conversation in
the format that the model is asked to use.
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


def tools_as_messages(messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool]) -> list[Message]:
    """The conversation with tools, calls and results as text. Does not modify `messages`."""
    plain: list[Message] = []
    for message in messages:
        if message["role"] == "tool":
            _add_result(plain, message)
        else:
            plain.append(_with_calls(message))
    return _with_tools(plain, tools) if tools else plain


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
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return f'<tool_call>\n{{"name": {json.dumps(function["name"])}, "arguments": {text}}}\n</tool_call>'


def _add_result(plain: list[Message], message: Mapping[str, Any]) -> None:
    """Adds a tool's result; consecutive results are one user message."""
    text = f"<tool_response>\n{message.get('content') or ''}\n</tool_response>"
    if plain and plain[-1].get("results"):
        plain[-1]["content"] += "\n" + text
    else:
        plain.append({"role": "user", "content": text, "results": True})


def _with_tools(plain: list[Message], tools: Iterable[Tool]) -> list[Message]:
    described = "\n".join(json.dumps(tool.to_dict(), ensure_ascii=False) for tool in tools)
    text = _INSTRUCTION.format(tools=described)
    if plain and plain[0]["role"] == "system":
        content = plain[0]["content"]
        return [plain[0] | {"content": f"{content}\n\n{text}" if content else text}, *plain[1:]]
    return [{"role": "system", "content": text}, *plain]
