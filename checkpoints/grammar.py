"""What a reply may be made of: grammars as text, and how far a reply has come in one, token by token.

A grammar travels as one string, so that whoever checks it and whoever follows it need not be one process.
Compiling and following are llguidance's (a Lark dialect with JSON schemas in it); its fuel bounds what any
grammar may cost, in compiling and with each token. Imports no jax.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper, grammar_from

from .errors import GrammarError
from .tokenizer import ChatTokenizer

LONGEST_GRAMMAR = 256 * 1024
"""Characters of a grammar; one of this size compiles in well under a second."""

_KEPT = 64
"""Compiled grammars that are kept for the next request."""

_LIMITS = LLParserLimits(max_lexer_states=50_000, max_grammar_size=200_000, verbose_errors=False)
_BEFORE = "\x02"
"""Encoded in front of a text, for vocabularies in which the first piece of all is spelled otherwise."""
JSON_SPACING: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""How JSON is spaced. With white space left open a small model may go on with it for ever."""


def json_schema_grammar(schema: dict[str, Any] | bool) -> str:
    """The texts that are JSON valid under a schema."""
    return LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=JSON_SPACING)


def json_object_grammar() -> str:
    """The texts that are a JSON object."""
    return json_schema_grammar({"type": "object"})


def regex_grammar(pattern: str) -> str:
    """The texts that a regular expression (Rust's syntax, without look-around) matches from end to end."""
    return LLMatcher.grammar_from_regex(pattern)


def lark_grammar(source: str) -> str:
    """The texts of a grammar in llguidance's dialect of Lark."""
    return LLMatcher.grammar_from_lark(source)


def lark_or_gbnf_grammar(source: str) -> str:
    """The texts of a grammar in that dialect or in llama.cpp's GBNF.

    Raises:
      GrammarError: it looks like GBNF and is none.
    """
    try:
        return grammar_from("grammar", source)
    except ValueError as error:
        raise GrammarError(_first_line(str(error))) from None


def choice_grammar(choices: Sequence[str]) -> str:
    """One of these texts."""
    return lark_grammar("start: " + " | ".join(json.dumps(choice) for choice in choices))


def either(one: str, other: str) -> str:
    """The texts of both grammars."""
    main = {"name": "main", "lark_grammar": "start: @one | @other"}
    return json.dumps({"grammars": [main, _named("one", one), _named("other", other)]})


def _named(name: str, grammar: str) -> dict[str, Any]:
    """A grammar as a part of another."""
    if not grammar.lstrip().startswith("{"):
        return {"name": name, "lark_grammar": grammar}
    (part,) = json.loads(grammar)["grammars"]
    return part | {"name": name}


def check_grammar(grammar: str) -> None:
    """Compiles a grammar and drops the result: takes a bounded time, whatever it is.

    Raises:
      GrammarError: too long, or no grammar that can be followed.
    """
    if len(grammar) > LONGEST_GRAMMAR:
        raise GrammarError(f"it has {len(grammar)} characters; expected {LONGEST_GRAMMAR} at most")
    failed, messages = LLMatcher.validate_grammar_with_warnings(grammar, limits=_LIMITS)
    if failed:
        raise GrammarError(_first_line(messages[0]))


class GrammarMatcher:
    """How far one reply has come in its grammar."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def fill(self, mask_W: np.ndarray) -> None:
        """Sets the bits of the ids that may come next, u32 `[W]`, lowest first; ends where it is complete."""
        self._matcher.unsafe_compute_mask_ptr(mask_W.ctypes.data, mask_W.nbytes)

    def consume(self, token: int) -> None:
        """`token` came."""
        self._matcher.consume_token(token)

    @property
    def complete(self) -> bool:
        """Nothing may follow but the end."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    @property
    def error(self) -> str | None:
        """Why the grammar cannot be followed any further; None while it can."""
        return _first_line(self._matcher.get_error()) if self._matcher.is_error() else None


class GrammarCompiler:
    """Grammars for one vocabulary. Safe to share between threads."""

    def __init__(self, load: Callable[[], ChatTokenizer], vocabulary: int) -> None:
        """Loads nothing yet: most engines never meet a grammar, and the first one may wait a moment.

        Args:
          load: gives the tokenizer. vocabulary: the model's, which may have more ids.
        """
        self._load, self._vocabulary = load, vocabulary
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, grammar: str) -> GrammarMatcher:
        """A fresh matcher.

        Raises:
          GrammarError: it cannot be followed.
        """
        with self._lock:
            known, tokenizer = self._compiled.get(grammar), self._tokenizer
        compiled = known or LLMatcher(tokenizer, grammar, limits=_LIMITS)
        if compiled.is_error():
            raise GrammarError(_first_line(compiled.get_error()))
        with self._lock:
            self._compiled[grammar] = compiled
            self._compiled.move_to_end(grammar)
            if len(self._compiled) > _KEPT:
                self._compiled.popitem(last=False)
            return GrammarMatcher(compiled.deep_copy())

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        """To be asked for under the lock."""
        tokenizer = self._load()
        ends = sorted(end for end in tokenizer.eos_ids if end < self._vocabulary)
        wrapper = TokenizerWrapper(_Vocabulary(tokenizer, self._vocabulary))
        return LLTokenizer(wrapper, n_vocab=self._vocabulary, eos_token=ends)


class _Vocabulary:
    """A tokenizer in the form that llguidance wraps.

    Called with text that must come next, it says in which tokens: they are the text to the byte.
    """

    bos_token_id = None

    def __init__(self, tokenizer: ChatTokenizer, vocabulary: int) -> None:
        self._tokenizer = tokenizer
        self._before = tokenizer.encode(_BEFORE, add_special_tokens=False)
        self.tokens = [
            tokenizer.token_bytes(i) or tokenizer.token_name(i).encode() for i in range(vocabulary)
        ]
        self.special_token_ids = [i for i in range(vocabulary) if tokenizer.token_bytes(i) is None]
        self.eos_token_id = next((end for end in sorted(tokenizer.eos_ids) if end < vocabulary), 0)

        self._known = {self.tokens[i]: i for i in range(vocabulary) if tokenizer.token_bytes(i)}
        self._longest = max(map(len, self._known), default=1)

    def __call__(self, text: str) -> list[int]:
        ids = self._tokenizer.encode(_BEFORE + text, add_special_tokens=False)
        before, ids = ids[: len(self._before)], ids[len(self._before) :]
        if before == self._before and b"".join(self.tokens[i] for i in ids) == text.encode():
            return ids
        return self._greedy(text.encode())

    def _greedy(self, rest: bytes) -> list[int]:
        """The longest tokens, one after the other, as far as they go."""
        ids: list[int] = []
        while rest:
            sizes = range(min(self._longest, len(rest)), 0, -1)
            size = next((size for size in sizes if rest[:size] in self._known), None)
            if size is None:
                break
            ids.append(self._known[rest[:size]])
            rest = rest[size:]
        return ids


def _first_line(message: str) -> str:
    return message.strip().split("\n", 1)[0][:300]
