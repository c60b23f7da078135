"""Anthropic's Python client: an answer whole, the same in pieces, and a tool that is called and answered.

Run it with `python examples/anthropic_messages.py`; DISTAFF_URL names another server. The client adds `/v1`
itself. It has no arguments for the temperature and the like, so they are in `extra_body`. The first call of
the tool is required; a small model may not use its result well.
"""

import os

from anthropic import Anthropic

URL = os.environ.get("DISTAFF_URL", "http://127.0.0.1:8000/v1").removesuffix("/v1")
GREEDY = {"temperature": 0}
STAPLES = {"wool": "10 cm", "flax": "70 cm", "cotton": "3 cm"}
STAPLE = {
    "name": "staple",
    "description": "The length of a fibre's staple.",
    "input_schema": {
        "type": "object",
        "properties": {"fibre": {"type": "string", "enum": list(STAPLES)}},
        "required": ["fibre"],
    },
}


def main() -> None:
    client = Anthropic(base_url=URL, api_key="-")
    system = "You are a helpful assistant."
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    counted = client.messages.count_tokens(model="tgi", system=system, messages=asked)
    print(f"counted: {counted.input_tokens}")

    body = dict(model="tgi", max_tokens=40, system=system, messages=asked, extra_body=GREEDY)
    whole = client.messages.create(**body)
    used = whole.usage
    print(f"whole: {whole.content[0].text!r}")
    cached = used.cache_read_input_tokens + used.cache_creation_input_tokens
    print(f"usage: {(used.input_tokens + cached, used.output_tokens)}")
    with client.messages.stream(**body) as stream:
        print(f"pieces: {list(stream.text_stream)}")
    use_a_tool(client)


def use_a_tool(client: Anthropic) -> None:
    messages = [{"role": "user", "content": "How long is the staple of wool?"}]
    body = dict(model="tgi", max_tokens=100, tools=[STAPLE], extra_body=GREEDY)
    with client.messages.stream(**body, messages=messages, tool_choice={"type": "any"}) as stream:
        message = stream.get_final_message()
    calls = [block for block in message.content if block.type == "tool_use"]
    print(f"called: {[(call.name, call.input) for call in calls]}")
    results = [STAPLES[call.input["fibre"]] for call in calls]
    print(f"returned: {results}")

    messages.append({"role": "assistant", "content": message.content})
    returned = [
        {"type": "tool_result", "tool_use_id": call.id, "content": result}
        for call, result in zip(calls, results, strict=True)
    ]
    messages.append({"role": "user", "content": returned})
    answer = client.messages.create(**body, messages=messages)
    print(f"answer: {''.join(block.text for block in answer.content if block.type == 'text')!r}")


if __name__ == "__main__":
    main()
