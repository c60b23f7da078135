"""LlamaIndex's CitationQueryEngine over a text: an answer with its numbered sources.

Run it with `python examples/llama_index_citations.py [QUESTION]`; DISTAFF_URL names another server.
Embeddings and index are in this process.
"""

import os
import sys
from pathlib import Path

from llama_index.core import SimpleDirectoryReader, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.query_engine import CitationQueryEngine
from llama_index.llms.openai_like import OpenAILike
from minilm import MiniLM
from pydantic import PrivateAttr

URL = os.environ.get("DISTAFF_URL", "http://127.0.0.1:8000/v1")
NOTES = Path(__file__).with_name("data") / "spinning.txt"


class LocalEmbedding(BaseEmbedding):
    """MiniLM with LlamaIndex's interface."""

    _model: MiniLM = PrivateAttr(default_factory=MiniLM)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._model(text)

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._model(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._model(query)


def main() -> None:
    llm = OpenAILike(
        model="tgi",
        api_base=URL,
        api_key="-",
        temperature=0,
        max_tokens=60,
        is_chat_model=True,
        context_window=1024,
    )
    index = VectorStoreIndex.from_documents(
        SimpleDirectoryReader(input_files=[NOTES]).load_data(),
        embed_model=LocalEmbedding(),
        transformations=[SentenceSplitter(chunk_size=128, chunk_overlap=0)],
    )
    engine = CitationQueryEngine.from_args(index, llm=llm, similarity_top_k=2, citation_chunk_size=128)

    response = engine.query(" ".join(sys.argv[1:]) or "What does a distaff hold?")
    print(f"answer: {response.response!r}")
    for source in response.source_nodes:
        print(f"source: {(source.node.metadata['file_name'], source.score, source.node.get_text())}")


if __name__ == "__main__":
    main()
