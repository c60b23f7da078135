"""LangChain's ChatOpenAI with a tool that the model must call, and with an answer in a given format.

Run it with `python examples/langchain_tools.py`; DISTAFF_URL names another server. A small model may call
with odd arguments, but they have the declared types.
"""

import os
from typing import Literal

from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

URL = os.environ.get("DISTAFF_URL", "http://127.0.0.1:8000/v1")


@tool
def staple(fibre: Literal["wool", "flax", "cotton"]) -> str:
    """The length of a fibre's staple."""
    return {"wool": "10 cm", "flax": "70 cm", "cotton": "3 cm"}[fibre]


class Yarn(BaseModel):
    """A yarn as it is sold."""

    fibre: Literal["wool", "flax", "cotton"]
    dyed: bool


def main() -> None:
    model = ChatOpenAI(model="tgi", base_url=URL, api_key="-", temperature=0, max_tokens=100)
    question = HumanMessage("How long is the staple of wool?")
    asked = model.bind_tools([staple], tool_choice="any").invoke([question])
    assert isinstance(asked, AIMessage)
    print(f"called: {[(call['name'], call['args']) for call in asked.tool_calls]}")

    results = [staple.invoke(call) for call in asked.tool_calls]
    print(f"returned: {[result.content for result in results]}")
    answer = model.bind_tools([staple], tool_choice="none").invoke([question, asked, *results])
    print(f"answer: {answer.content!r}")

    yarn = model.with_structured_output(Yarn).invoke(
        "A skein of red wool. Which fibre is it, and is it dyed?"
    )
    print(f"structured: {yarn.model_dump()}")


if __name__ == "__main__":
    main()
