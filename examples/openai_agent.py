"""An agent of the OpenAI Agents SDK that calls a function, receives its result, and answers.

It runs once with the Responses API, the SDK's default, and once with chat completions.

Run it with `python examples/openai_agent.py`; DISTAFF_URL names another server. The first call is required;
a small model may not use its result well.
"""

import os
from typing import Literal

from agents import (
    Agent,
    Model,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    ToolCallItem,
    ToolCallOutputItem,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI

URL = os.environ.get("DISTAFF_URL", "http://127.0.0.1:8000/v1")


@function_tool
def staple(fibre: Literal["wool", "flax", "cotton"]) -> str:
    """The length of a fibre's staple."""
    return {"wool": "10 cm", "flax": "70 cm", "cotton": "3 cm"}[fibre]


def main() -> None:
    set_tracing_disabled(True)
    client = AsyncOpenAI(base_url=URL, api_key="-")
    for kind in (OpenAIResponsesModel, OpenAIChatCompletionsModel):
        ask(kind("tgi", client))


def ask(model: Model) -> None:
    agent = Agent(
        name="Spinner",
        instructions="You answer questions about spinning.",
        model=model,
        model_settings=ModelSettings(temperature=0, max_tokens=100, tool_choice="required"),
        tools=[staple],
    )
    result = Runner.run_sync(agent, "How long is the staple of wool?", max_turns=5)
    calls = [item.raw_item for item in result.new_items if isinstance(item, ToolCallItem)]
    print(f"called: {[(call.name, call.arguments) for call in calls]}")
    print(f"returned: {[item.output for item in result.new_items if isinstance(item, ToolCallOutputItem)]}")
    print(f"answer: {result.final_output!r}")


if __name__ == "__main__":
    main()
