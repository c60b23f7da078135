"""Hugging Face's `text-generation` client, which uses the routes of text-generation-inference.

Run it with `python examples/text_generation_client.py`; DISTAFF_URL names another server. These routes take a
text, not messages, and are at the server's root, not below /v1.
"""

import os

from text_generation import Client

URL = os.environ.get("DISTAFF_URL", "http://127.0.0.1:8000/v1")
PROMPT = "The capital of France is"


def main() -> None:
    client = Client(URL.rstrip("/").removesuffix("/v1"), timeout=60)
    whole = client.generate(PROMPT, max_new_tokens=20)
    print(f"whole: {whole.generated_text!r}")
    details = whole.details
    print(f"details: {(details.finish_reason.value, details.generated_tokens, len(details.tokens))}")

    events = list(client.generate_stream(PROMPT, max_new_tokens=20))
    print(f"pieces: {[event.token.text for event in events if not event.token.special]}")
    print(f"last: {events[-1].generated_text!r}")


if __name__ == "__main__":
    main()
