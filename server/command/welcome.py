"""What the server says when it is ready: where it listens, and two requests to copy."""

import json

_TEXT = """\
Distaff serves {model} on {address}

  curl -N {address}/v1/chat/completions -H 'content-type: application/json' \\
    {header}-d '{body}'

  from openai import OpenAI
  client = OpenAI(base_url="{address}/v1", api_key="{key}")
  messages = [{{"role": "user", "content": "Hello!"}}]
  for chunk in client.chat.completions.create(model={quoted}, messages=messages, stream=True):
      print(chunk.choices[0].delta.content or "", end="", flush=True)
"""

_HEADER = "-H 'authorization: Bearer YOUR_KEY' "


def welcome(address: str, model: str, needs_key: bool) -> str:
    """The text, for a server that can be reached at `address`, by everybody or with a key."""
    body = {"model": model, "messages": [{"role": "user", "content": "Hello!"}], "stream": True}
    shell_safe = json.dumps(body).replace("'", "'\\''")
    return _TEXT.format(
        model=model,
        address=address,
        header=_HEADER if needs_key else "",
        body=shell_safe,
        key="YOUR_KEY" if needs_key else "-",
        quoted=json.dumps(model),
    )
