"""LangChain's ChatOpenAI: a chain's whole answer, then the same one in pieces.

Run it with `python examples/langchain_chat.py`; DISTAFF_URL names another server.
"""

import os

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI

URL = os.environ.get("DISTAFF_URL", "http://127.0.0.1:8000/v1")


def main() -> None:
    model = ChatOpenAI(
        model="tgi", base_url=URL, api_key="-", temperature=0, max_tokens=40, stream_usage=True
    )
    prompt = ChatPromptTemplate.from_messages(
        [("system", "You are a helpful assistant."), ("human", "What is the capital of {country}?")]
    )
    message = (prompt | model).invoke({"country": "France"})
    print(f"whole: {message.content!r}")
    print(f"tokens: {message.usage_metadata['total_tokens']}")

    chain = prompt | model | StrOutputParser()
    print(f"pieces: {list(chain.stream({'country': 'France'}))}")
    print(f"batch: {chain.batch([{'country': 'Italy'}, {'country': 'Spain'}])}")


if __name__ == "__main__":
    main()
