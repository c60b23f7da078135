"""Follows a reply through its grammar, token by token.

`grammar.py` defines grammars and checks whether they can be followed. Every reply has its own matcher;
compiled grammars are kept for later requests. Imports no jax.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import cached_property

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from ..errors import GrammarError
from ..tokenizer import ChatTokenizer
from .grammar import LIMITS, error_of, explained
from .numerals import DigitMasks, Numeral, most_digits

_KEPT = 64
"""The number of compiled grammars that are kept for later requests."""

_BEFORE = "\x02"
"""Encoded before a text, for vocabularies that spell the first piece differently."""


class GrammarMatcher:
    """The state of one reply in its grammar."""

    def __init__(self, matcher: LLMatcher, numeral: Numeral | None) -> None:
        """`numeral`: keeps numbers short, if the grammar contains JSON."""
        self._matcher, self._numeral = matcher, numeral

    def fill(self, mask_W: np.ndarray) -> None:
        """Sets the bits of the ids that may come next, u32 `[W]`, lowest first; end tokens if it is
        complete."""
        self._matcher.unsafe_compute_mask_ptr(mask_W.ctypes.data, mask_W.nbytes)
        if self._numeral is not None:
            self._numeral.fill(mask_W)

    def consume(self, token: int) -> None:
        """Advances by `token`."""
        self._matcher.consume_token(token)
        if self._numeral is not None:
            self._numeral.consume(token)

    @property
    def complete(self) -> bool:
        """Only the end may follow."""
        return self._matcher.is_stopped() and self.error is None

    @property
    def error(self) -> str | None:
        """Why the grammar cannot be followed further; None while it can."""
        return error_of(self._matcher)


class GrammarCompiler:
    """Compiles grammars for one vocabulary. Can be shared between threads."""

    def __init__(self, load: Callable[[], ChatTokenizer], vocabulary: int) -> None:
        """Loads nothing yet; `prepare` or the first grammar does, in most of a second.

        Args:
          load: returns the tokenizer. vocabulary: the model's, which may have more ids.
        """
        self._load, self._vocabulary = load, vocabulary
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, grammar: str) -> GrammarMatcher:
        """A new matcher.

        Raises:
          GrammarError: it cannot be followed.
        """
        with self._lock:
            known, tokenizer, masks = self._compiled.get(grammar), self._tokenizer, self._masks
        compiled = known or LLMatcher(tokenizer, grammar, limits=LIMITS, log_level=0)
        if compiled.is_error():
            raise GrammarError(explained(compiled.get_error()))
        with self._lock:
            self._compiled[grammar] = compiled
            self._compiled.move_to_end(grammar)
            if len(self._compiled) > _KEPT:
                self._compiled.popitem(last=False)
            most = most_digits(grammar)
            return GrammarMatcher(compiled.deep_copy(), None if most is None else Numeral(masks, most))

    def prepare(self) -> None:
        """Loads the vocabulary, so that the first grammar need not. After an error that one tries again.

        Raises:
          CheckpointError: the tokenizer cannot be read.
        """
        with self._lock:
            _ = self._tokenizer, self._masks

    @cached_property
    def _words(self) -> "_Vocabulary":
        return _Vocabulary(self._load(), self._vocabulary)

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        """Must be read under the lock, as the other two."""
        words = self._words
        return LLTokenizer(TokenizerWrapper(words), n_vocab=self._vocabulary, eos_token=words.ends)

    @cached_property
    def _masks(self) -> DigitMasks:
        return DigitMasks(self._words.tokens)


class _Vocabulary:
    """A tokenizer in the form that llguidance wraps.

    Called with text that must come next, it returns its tokens, which equal the text byte for byte.
    """

    bos_token_id = None

    def __init__(self, tokenizer: ChatTokenizer, vocabulary: int) -> None:
        self._tokenizer = tokenizer
        self._before = tokenizer.encode(_BEFORE, add_special_tokens=False)
        spelled = [tokenizer.token_bytes(i) for i in range(vocabulary)]
        self.tokens = [raw or tokenizer.token_name(i).encode() for i, raw in enumerate(spelled)]
        self.special_token_ids = [i for i, raw in enumerate(spelled) if raw is None]
        self.ends = sorted(end for end in tokenizer.eos_ids if end < vocabulary)
        self.eos_token_id = next(iter(self.ends), 0)

        self._known = {raw: i for i, raw in enumerate(spelled) if raw}
        self._longest = max(map(len, self._known), default=1)

    def __call__(self, text: str) -> list[int]:
        ids = self._tokenizer.encode(_BEFORE + text, add_special_tokens=False)
        before, ids = ids[: len(self._before)], ids[len(self._before) :]
        if before == self._before and b"".join(self.tokens[i] for i in ids) == text.encode():
            return ids
        return self._greedy(text.encode())

    def _greedy(self, rest: bytes) -> list[int]:
        """The longest matching tokens, one after another, as far as possible."""
        ids: list[int] = []
        while rest:
            sizes = range(min(self._longest, len(rest)), 0, -1)
            size = next((size for size in sizes if rest[:size] in self._known), None)
            if size is None:
                break
            ids.append(self._known[rest[:size]])
            rest = rest[size:]
        return ids
