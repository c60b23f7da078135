"""Answers from a text with LangChain: Chroma finds passages, which are listed as sources.

Run it with `python examples/langchain_rag.py [QUESTION]`; DISTAFF_URL names another server. Embeddings and
store are in this process.
"""

import os
import sys
from pathlib import Path

from chromadb.config import Settings
from langchain_chroma import Chroma
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableParallel, RunnablePassthrough
from langchain_openai import ChatOpenAI
from langchain_text_splitters import RecursiveCharacterTextSplitter
from minilm import MiniLM

URL = os.environ.get("DISTAFF_URL", "http://127.0.0.1:8000/v1")
NOTES = Path(__file__).with_name("data") / "spinning.txt"


class LocalEmbeddings(Embeddings):
    """MiniLM with LangChain's interface."""

    def __init__(self) -> None:
        self.model = MiniLM()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.model(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return self.model(text)


def joined(found: dict) -> str:
    return "\n\n".join(document.page_content for document in found["context"])


def main() -> None:
    splitter = RecursiveCharacterTextSplitter(chunk_size=400, chunk_overlap=0, add_start_index=True)
    notes = splitter.split_documents([Document(NOTES.read_text(), metadata={"source": NOTES.name})])
    quiet = Settings(anonymized_telemetry=False)
    store = Chroma.from_documents(notes, LocalEmbeddings(), client_settings=quiet)

    model = ChatOpenAI(model="tgi", base_url=URL, api_key="-", temperature=0, max_tokens=60)
    prompt = ChatPromptTemplate.from_template(
        "Answer the question from these notes alone.\n\n{context}\n\nQuestion: {question}"
    )
    answer = RunnablePassthrough.assign(context=joined) | prompt | model | StrOutputParser()
    chain = RunnableParallel(
        context=store.as_retriever(search_kwargs={"k": 3}), question=RunnablePassthrough()
    ).assign(answer=answer)

    result = chain.invoke(" ".join(sys.argv[1:]) or "What does a distaff hold?")
    print(f"answer: {result['answer']!r}")
    for document in result["context"]:
        where = document.metadata
        print(f"source: {(where['source'], where['start_index'], document.page_content)}")


if __name__ == "__main__":
    main()
