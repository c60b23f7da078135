"""Draws replies that a grammar allows, token by token, over a vocabulary of bytes."""

import random
from functools import cache

import numpy as np

from distaff.checkpoints.grammars.matching import GrammarCompiler, GrammarMatcher
from distaff.checkpoints.tokenization.tokenizer_parts import TokenizerParts
from distaff.checkpoints.tokenizer import ChatTokenizer

from ..making import byte_level


@cache
def tokenizer() -> ChatTokenizer:
    made = byte_level()
    end = next(i for i, token in made.get_added_tokens_decoder().items() if token.special)
    return ChatTokenizer(TokenizerParts(made, {}, None, (end,)))


@cache
def compiler() -> GrammarCompiler:
    return GrammarCompiler(tokenizer, tokenizer().vocabulary)


def allowed(matcher: GrammarMatcher) -> list[int]:
    mask_W = np.zeros(-(-tokenizer().vocabulary // 32), np.uint32)
    matcher.fill(mask_W)
    return np.nonzero(np.unpackbits(mask_W.view(np.uint8), bitorder="little"))[0].tolist()


def walk(grammar: str, seed: int, *, most: int = 600, likes: bytes = b'"}],0123456789') -> str | None:
    """A complete reply; None if it has not ended after `most` tokens.

    Half of the tokens are drawn from the bytes in `likes`, so that replies end.
    """
    matcher, draw, text = compiler()(grammar), random.Random(seed), b""
    for _ in range(most):
        ids = allowed(matcher)
        assert matcher.error is None, matcher.error
        ends = [i for i in ids if i in tokenizer().eos_ids]
        liked = [i for i in ids if (tokenizer().token_bytes(i) or b" ")[:1] in likes]
        token = draw.choice(ends or (liked if liked and draw.random() < 0.5 else ids))
        if token in tokenizer().eos_ids:
            return text.decode()
        text += tokenizer().token_bytes(token) or b""
        matcher.consume(token)
        if matcher.complete:
            return text.decode()
    return None
