"""LiteLLM with the prefix `openai/`: a whole answer, then the same one in chunks that LiteLLM joins.

Run it with `python examples/litellm_chat.py`; DISTAFF_URL names another server.
LITELLM_LOCAL_MODEL_COST_MAP=True keeps LiteLLM from downloading its price list when it is imported.
"""

import os

import litellm

URL = os.environ.get("DISTAFF_URL", "http://127.0.0.1:8000/v1")


def main() -> None:
    litellm.suppress_debug_info = True
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "What is the capital of France?"},
    ]
    request = dict(
        model="openai/tgi", api_base=URL, api_key="-", messages=messages, temperature=0, max_tokens=40
    )
    whole = litellm.completion(**request)
    print(f"whole: {whole.choices[0].message.content!r}")
    print(f"usage: {(whole.usage.prompt_tokens, whole.usage.completion_tokens)}")

    chunks = list(litellm.completion(**request, stream=True, stream_options={"include_usage": True}))
    print(f"pieces: {[chunk.choices[0].delta.content or '' for chunk in chunks if chunk.choices]}")
    rebuilt = litellm.stream_chunk_builder(chunks, messages=messages)
    print(f"rebuilt: {rebuilt.choices[0].message.content!r}")
    print(f"rebuilt_usage: {(rebuilt.usage.prompt_tokens, rebuilt.usage.completion_tokens)}")


if __name__ == "__main__":
    main()
