"""LlamaIndex's OpenAILike: chat by /v1/chat/completions, completion by /v1/completions, whole and in pieces.

Run it with `python examples/llama_index_chat.py`; DISTAFF_URL names another server.
"""

import os

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

URL = os.environ.get("DISTAFF_URL", "http://127.0.0.1:8000/v1")


def model(is_chat_model: bool) -> OpenAILike:
    """LlamaIndex assumes a completion model unless it is configured as a chat model."""
    return OpenAILike(
        model="tgi", api_base=URL, api_key="-", temperature=0, max_tokens=30, is_chat_model=is_chat_model
    )


def main() -> None:
    messages = [
        ChatMessage(role="system", content="You are a helpful assistant."),
        ChatMessage(role="user", content="What is the capital of France?"),
    ]
    chat = model(is_chat_model=True)
    print(f"whole: {chat.chat(messages).message.content!r}")
    print(f"pieces: {[piece.delta for piece in chat.stream_chat(messages)]}")

    completion = model(is_chat_model=False)
    print(f"completed: {completion.complete('The capital of France is').text!r}")
    pieces = [piece.delta for piece in completion.stream_complete("The capital of France is")]
    print(f"completed_pieces: {pieces}")


if __name__ == "__main__":
    main()
