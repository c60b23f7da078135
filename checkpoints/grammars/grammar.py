"""Grammars that constrain a reply, as text, and whether one can be followed.

A grammar is one string, so that it can be checked in one process and followed in another (`matching.py`).
llguidance compiles and follows grammars (a Lark dialect with JSON schemas in it); its fuel limits the cost of
a grammar, of compilation and of each token. Other modules do what it leaves to its users: which schemas can
be followed (`json_schema.py`), which grammars end (`finite.py`, `lark.py`, and the first steps here), and how
long numbers become (`numerals.py`). Imports no jax.
"""

import json
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import islice
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper, grammar_from

from ..errors import GrammarError, SchemaError
from .finite import finite
from .json_schema import Place, Schema, followable, parts
from .lark import check_ends

LONGEST_GRAMMAR = 256 * 1024
"""Maximum length of a grammar in characters; a grammar of this size compiles in well under a second."""

_PREPARING, _STEP = 1_000_000, 200_000
LIMITS = LLParserLimits(
    initial_lexer_fuel=_PREPARING,
    step_lexer_fuel=_STEP,
    max_lexer_states=50_000,
    max_grammar_size=200_000,
    verbose_errors=False,
)
_SPECIAL_TOKEN = "<["
_FORCED_STEPS = 64
"""Number of forced parts of a reply that are checked in advance."""
_DEEPEST_BLAME = 64
_MOST_SHOWN, _LONGEST_SHOWN = 3, 100
"""Patterns in an error message, and characters of each."""
_DEAD_END = "nothing satisfies it: a reply reaches a point where nothing may follow and it must not end"
_TOO_COSTLY = (
    f"following it costs more than the limit of {_PREPARING:,} operations in advance, {_STEP:,} per token"
)
JSON_SPACING: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""White space in JSON. If it is unrestricted, a small model may repeat it forever."""


def json_schema_grammar(schema: Schema, *, closed: bool = False) -> str:
    """A grammar of the JSON texts that are valid under a schema.

    Args:
      closed: objects without a rule for further properties have none.

    Raises:
      SchemaError: not a schema, no finite value satisfies it, or it has keywords that cannot be followed.
    """
    return _compilable(finite(followable(schema, closed=closed)))


def json_part(schema: Schema, *, closed: bool = False) -> str:
    """The same as part of a Lark rule. Raises SchemaError."""
    part = _as_object(finite(followable(schema, closed=closed)))
    return f"%json {json.dumps({'x-guidance': JSON_SPACING, **part})}"


def _compilable(schema: Schema) -> str:
    try:
        return LLMatcher.grammar_from_json_schema(json.dumps(_as_object(schema)), overrides=JSON_SPACING)
    except (ValueError, RecursionError):  # constants can be nested, too
        raise SchemaError("it is nested too deeply", ()) from None


def _as_object(schema: Schema) -> dict[str, Any]:
    """The same schema in the only form that the compiler accepts at the top level."""
    if isinstance(schema, bool):
        return {} if schema else {"enum": []}
    return schema


def json_object_grammar() -> str:
    """A grammar of all JSON objects."""
    return json_schema_grammar({"type": "object"})


def regex_grammar(pattern: str) -> str:
    """A grammar of the texts that a regular expression (Rust's syntax, without look-around) matches
    completely."""
    return LLMatcher.grammar_from_regex(pattern)


def lark_grammar(source: str) -> str:
    """A grammar in llguidance's dialect of Lark."""
    return LLMatcher.grammar_from_lark(source)


def lark_or_gbnf_grammar(source: str) -> str:
    """A grammar in that dialect or in llama.cpp's GBNF.

    Raises:
      GrammarError: it looks like GBNF but is invalid, or it has no finite text.
    """
    try:
        grammar = grammar_from("grammar", source)
    except ValueError as error:
        raise GrammarError(_first_line(str(error))) from None
    check_ends(grammar)
    return grammar


def choice_grammar(choices: Sequence[str]) -> str:
    """A grammar of these texts."""
    return lark_grammar("start: " + " | ".join(json.dumps(choice) for choice in choices))


def check_grammar(grammar: str) -> None:
    """Compiles a grammar and discards the result; the time is bounded for any grammar.

    Raises:
      GrammarError: too long, not a grammar that can be followed, or the parts that it forces cannot be
        satisfied. The cost of a pattern also depends on the vocabulary, so a grammar that passes may still
        exceed its budget while it is followed.
    """
    if len(grammar) > LONGEST_GRAMMAR:
        raise GrammarError(f"it has {len(grammar)} characters; expected at most {LONGEST_GRAMMAR}")
    failed, messages = LLMatcher.validate_grammar_with_warnings(grammar, limits=LIMITS)
    if failed:
        raise GrammarError(explained(messages[0]))
    if _SPECIAL_TOKEN not in grammar:
        _check_beginning(_byte_matcher(grammar))


def _byte_matcher(grammar: str) -> LLMatcher:
    """A matcher over single bytes."""
    return LLMatcher(_byte_tokenizer(), grammar, limits=LIMITS, log_level=0)


def _check_beginning(matcher: LLMatcher) -> None:
    """Raises GrammarError if a reply cannot begin, or cannot continue after its forced beginning."""
    for _ in range(_FORCED_STEPS):
        matcher.compute_bitmask()
        error = error_of(matcher)
        if error:
            raise GrammarError(error)
        forced = matcher.compute_ff_bytes()
        if not forced:
            return
        matcher.consume_tokens(list(forced))


def first_bytes(grammar: str) -> frozenset[int]:
    """The bytes with which a text of the grammar may begin.

    Raises:
      GrammarError: not a grammar that can be followed.
    """
    matcher = _byte_matcher(grammar)
    allowed = matcher.compute_logit_bias()
    if matcher.is_error():
        raise GrammarError(explained(matcher.get_error()))
    return frozenset(byte for byte in range(256) if allowed[byte])


def check_schema(schema: Schema, *, closed: bool = False) -> None:
    """The same for a schema's grammar; the error has the invalid part's place.

    Raises:
      GrammarError: as `check_grammar` does.
    """
    part = finite(followable(schema, closed=closed))
    try:
        check_grammar(_compilable(part))
    except SchemaError:
        raise
    except GrammarError as error:
        place, reason = _blamed(part, str(error))
        raise SchemaError(reason, place) from None


def describe_patterns(source: Any) -> str:
    """The first regular expressions in a schema, or a single one, as the end of an error message."""
    patterns = [source] if isinstance(source, str) else list(islice(_patterns(source), _MOST_SHOWN))
    shown = ", ".join(f"'{each[:_LONGEST_SHOWN]}'" for each in patterns)
    return f"; pattern{'s' * (len(patterns) > 1)}: {shown}" if patterns else ""


def _patterns(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("pattern"), str):
            yield value["pattern"]
        if isinstance(value.get("patternProperties"), dict):
            yield from value["patternProperties"]
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for child in children:
        yield from _patterns(child)


def _blamed(schema: Schema, reason: str) -> tuple[Place, str]:
    """The innermost place with a schema that cannot be followed by itself either, and the reason."""
    definitions = schema.get("$defs", {}) if isinstance(schema, dict) else {}
    place: Place = ()
    for _ in range(_DEEPEST_BLAME):
        for step, part in parts(schema):
            if part is False:  # never the cause: it only forbids values
                continue
            alone = part | {"$defs": definitions} if isinstance(part, dict) and definitions else part
            try:
                check_grammar(_compilable(alone))
            except GrammarError as error:
                place, schema, reason = (*place, *step), part, str(error)
                break
        else:
            break
    return place, reason + describe_patterns(schema)


@cache
def _byte_tokenizer() -> LLTokenizer:
    """A vocabulary of single bytes, which can express every text."""
    return LLTokenizer(TokenizerWrapper(_Bytes()), n_vocab=257, eos_token=256)


class _Bytes:
    """That vocabulary in the form that llguidance wraps."""

    bos_token_id, eos_token_id = None, 256

    def __init__(self) -> None:
        self.tokens = [bytes([byte]) for byte in range(256)] + [b"<end>"]
        self.special_token_ids = [256]

    def __call__(self, text: str) -> list[int]:
        return list(text.encode())


def error_of(matcher: LLMatcher) -> str | None:
    """Why a matcher cannot continue; None while it can. A matcher may stop only at an end of the grammar."""
    if matcher.is_error():
        return explained(matcher.get_error())
    if matcher.is_stopped() and not matcher.is_accepting():
        return _DEAD_END
    return None


def explained(message: str) -> str:
    """The compiler's message as one line that a client can understand."""
    line = _first_line(message)
    if line.startswith("NoExtension"):
        return _DEAD_END
    return f"{_TOO_COSTLY} ({line})" if "too many expressions" in line else line


def _first_line(message: str) -> str:
    """The first line of a message; for an error in a Rust regular expression also the reason."""
    lines = [line.strip() for line in message.strip().split("\n")]
    reason = next((f" {line}" for line in lines[1:] if line.startswith("error:")), "")
    return (lines[0][:300] + reason)[:400]
