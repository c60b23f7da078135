"""The perplexity of a text file under a model.

Run it with `python examples/perplexity.py FILE [MODEL]`; without a model it uses the bundled default. The
text is cut into pieces of 512 tokens that overlap by half. Each token is scored once, and after the first
piece it has at least 256 tokens before it.
"""

import math
import sys
from pathlib import Path

from distaff.runtime import LLM

PIECE, STRIDE = 512, 256


def main() -> None:
    text = Path(sys.argv[1]).read_text()
    with LLM(sys.argv[2] if len(sys.argv) > 2 else None) as llm:
        tokens = llm.texts.encode(text)
        starts = range(0, max(1, len(tokens) - STRIDE), STRIDE)
        pieces = [tokens[start : start + PIECE] for start in starts]
        known = [1] + [STRIDE] * (len(pieces) - 1)
        scores = llm.score(
            [piece[:n] for piece, n in zip(pieces, known, strict=True)],
            [piece[n:] for piece, n in zip(pieces, known, strict=True)],
        )
    count = sum(len(score.tokens) for score in scores)
    perplexity = math.exp(-sum(score.logprob for score in scores) / count)
    print(f"{count} tokens, perplexity {perplexity:.2f}")


if __name__ == "__main__":
    main()
