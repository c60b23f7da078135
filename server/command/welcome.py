"""The text that the server prints when it is ready: its address, the chat page, and two example requests."""

import json

_TEXT = """\
Distaff serves {model} on {address}{page}

  curl -N {address}/v1/chat/completions -H 'content-type: application/json' \\
    {header}-d '{body}'

  from openai import OpenAI
  client = OpenAI(base_url="{address}/v1", api_key="{key}")
  messages = [{{"role": "user", "content": "Hello!"}}]
  for chunk in client.chat.completions.create(model={quoted}, messages=messages, stream=True):
      print(chunk.choices[0].delta.content or "", end="", flush=True)
"""

_HEADER = "-H 'authorization: Bearer YOUR_KEY' "


def welcome(address: str, model: str, needs_key: bool, page: bool) -> str:
    """The text for a server at `address`; the examples carry a key if it needs one.

    Args:
      page: it serves the chat page.
    """
    body = {"model": model, "messages": [{"role": "user", "content": "Hello!"}], "stream": True}
    shell_safe = json.dumps(body).replace("'", "'\\''")
    return _TEXT.format(
        model=model,
        address=address,
        page=f"\nChat in a browser: {address}/" if page else "",
        header=_HEADER if needs_key else "",
        body=shell_safe,
        key="YOUR_KEY" if needs_key else "-",
        quoted=json.dumps(model),
    )
