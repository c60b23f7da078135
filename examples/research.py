"""Distaff without a server: perplexities of a few sentences, then a batch and a chat.

Run it with `python examples/research.py [MODEL]`; without a model it uses the bundled default.
"""

import sys

import numpy as np

from distaff.runtime import LLM, SamplingParams

SENTENCES = [
    "The cat sat on the mat and looked out of the window.",
    "Water boils at one hundred degrees Celsius at sea level.",
    "Mat the on sat cat window the of out looked and the.",
]


def main() -> None:
    with LLM(sys.argv[1] if len(sys.argv) > 1 else None) as llm:
        for sentence in SENTENCES:
            perplexity = float(np.exp(-llm.logprobs(sentence).mean()))
            print(f"{perplexity:10.1f}  {sentence}")

        greedy = SamplingParams(max_tokens=16, temperature=0)
        for completion in llm.generate(["The capital of France is", "Two plus two is"], greedy):
            print(f"{completion.finish:>10}  {completion.text!r}")

        question = [{"role": "user", "content": "What is the capital of France?"}]
        for piece in llm.stream(question, greedy):
            print(piece, end="", flush=True)
        print()


if __name__ == "__main__":
    main()
