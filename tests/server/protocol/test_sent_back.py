"""Every conversation that this server has produced can be sent back, under templates with guards."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

from distaff.checkpoints.tokenization.chat_template import ChatTemplate
from distaff.server.testing import BOS, FakeText

from ...checkpoints.tokenization.test_message_forms import TOOLS
from ..conftest import Ask, Server

NOW = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}
ARGUMENTS = ({}, {"zone": "ü"})
SENTENCE = "Let me look."

WRITTEN = {
    "hermes": "".join(
        f"<tool_call>\n{json.dumps({'name': 'now', 'arguments': each})}\n</tool_call>" for each in ARGUMENTS
    ),
    "llama3": "; ".join(json.dumps({"name": "now", "parameters": each}) for each in ARGUMENTS),
    "mistral": "[TOOL_CALLS] " + json.dumps([{"name": "now", "arguments": each} for each in ARGUMENTS]),
    "granite": "<|tool_call|>" + json.dumps([{"name": "now", "arguments": each} for each in ARGUMENTS]),
    "mistral-args": "".join(f"[TOOL_CALLS]now[ARGS]{json.dumps(each)}" for each in ARGUMENTS),
}


class RenderedText(FakeText):
    """Bytes are tokens, and the conversation's text is a template's."""

    knows_tools = knows_calls = True

    def __init__(self, source: str) -> None:
        self._template = ChatTemplate(source, {})
        self.text = ""

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> list[int]:
        self.text = self._template.render(
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
        )
        return [BOS, *self.text.encode()]


@pytest.fixture(params=TOOLS)
def text(request: pytest.FixtureRequest, server: Server) -> Iterator[RenderedText]:
    """A template with guards."""
    server.served.text = text = RenderedText(TOOLS[request.param])
    yield text
    server.served.tool_format = None


@pytest.mark.parametrize("format", WRITTEN)
@pytest.mark.parametrize("sentence", ["", SENTENCE])
def test_two_calls_and_their_results(
    ask: Ask, server: Server, text: RenderedText, format: str, sentence: str
) -> None:
    """With a sentence before them and without, and again after the next turn."""
    server.served.tool_format, server.engine.reply = format, f"{sentence} {WRITTEN[format]}"
    talk: list[dict[str, Any]] = [{"role": "user", "content": "What time is it?"}]
    for turn in range(2):
        message = ask(messages=talk, tools=[NOW], max_tokens=500).json()["choices"][0]["message"]
        calls = message["tool_calls"]
        assert message["content"] == (sentence or None)
        assert [json.loads(call["function"]["arguments"]) for call in calls] == [*ARGUMENTS]
        results = [f"result {turn}{number}." for number in range(len(calls))]
        talk += [message] + [
            {"role": "tool", "tool_call_id": call["id"], "content": result}
            for call, result in zip(calls, results, strict=True)
        ]
        assert ask(messages=talk, tools=[NOW]).status_code == 200
        assert all(text.text.count(result) == 1 for result in results)
