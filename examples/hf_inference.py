"""huggingface_hub's InferenceClient: a whole chat answer, then the same one in pieces.

Run it with `python examples/hf_inference.py`; DISTAFF_URL names another server. It works with huggingface_hub
0.36 and 2.4. HF_HUB_OFFLINE must not be set: it forbids requests even to a server on this machine.
HF_HUB_DISABLE_TELEMETRY=1 keeps version 2 from querying the hub for its User-Agent.
"""

import os

from huggingface_hub import InferenceClient

URL = os.environ.get("DISTAFF_URL", "http://127.0.0.1:8000/v1")


def main() -> None:
    client = InferenceClient(base_url=URL, api_key="-")
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "What is the capital of France?"},
    ]
    whole = client.chat_completion(messages, model="tgi", temperature=0, max_tokens=40)
    print(f"whole: {whole.choices[0].message.content!r}")

    chunks = client.chat_completion(messages, model="tgi", temperature=0, max_tokens=40, stream=True)
    print(f"pieces: {[chunk.choices[0].delta.content or '' for chunk in chunks if chunk.choices]}")


if __name__ == "__main__":
    main()
