"""What a reply may be made of: grammars as text, and whether one can be followed.

A grammar travels as one string, so that whoever checks it and whoever follows it (`matching.py`) need not be
one process. Compiling and following are llguidance's (a Lark dialect with JSON schemas in it); its fuel
limits what a grammar costs, in compiling and with each token. What it leaves to its users is beside this:
which schemas can be followed (`json_schema.py`), which grammars have an end (`finite.py`, `lark.py`, and here
the first steps), and how long numbers become (`numerals.py`). Imports no jax.
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
from .lark import is_endless

LONGEST_GRAMMAR = 256 * 1024
"""Characters of a grammar; one of this size compiles in well under a second."""

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
"""Stretches of a reply without a choice that are looked at beforehand."""
_DEEPEST_BLAME = 64
_MOST_SHOWN, _LONGEST_SHOWN = 3, 100
"""Patterns in an error's message, and characters of each."""
_DEAD_END = "nothing satisfies it: a reply comes to a place where nothing may follow and it must not end"
_TOO_COSTLY = (
    f"following it costs more than the limit of {_PREPARING:,} operations beforehand, {_STEP:,} at each token"
)
JSON_SPACING: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""How JSON is spaced. With white space left open a small model may go on with it for ever."""


def json_schema_grammar(schema: Schema, *, closed: bool = False) -> str:
    """The texts that are JSON valid under a schema.

    Args:
      closed: objects that do not say whether they may have further properties have none.

    Raises:
      SchemaError: it is none, nothing finite satisfies it, or it has keywords that cannot be followed.
    """
    return _compilable(finite(followable(schema, closed=closed)))


def json_part(schema: Schema, *, closed: bool = False) -> str:
    """The same as a part of a Lark rule. Raises SchemaError."""
    part = _as_object(finite(followable(schema, closed=closed)))
    return f"%json {json.dumps({'x-guidance': JSON_SPACING, **part})}"


def _compilable(schema: Schema) -> str:
    try:
        return LLMatcher.grammar_from_json_schema(json.dumps(_as_object(schema)), overrides=JSON_SPACING)
    except (ValueError, RecursionError):  # constants nest, too
        raise SchemaError("it is nested too deeply", ()) from None


def _as_object(schema: Schema) -> dict[str, Any]:
    """The same in the only form that the compiler takes at the top."""
    if isinstance(schema, bool):
        return {} if schema else {"enum": []}
    return schema


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
      GrammarError: it looks like GBNF and is none, or goes on for ever.
    """
    try:
        grammar = grammar_from("grammar", source)
    except ValueError as error:
        raise GrammarError(_first_line(str(error))) from None
    if is_endless(grammar):
        raise GrammarError("nothing finite satisfies it: its start cannot do without itself")
    return grammar


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
      GrammarError: too long, no grammar that can be followed, or one that nothing satisfies as far as it
        leaves no choice. What a pattern costs depends on the vocabulary too, so one that passes may still
        use up its budget while it is followed.
    """
    if len(grammar) > LONGEST_GRAMMAR:
        raise GrammarError(f"it has {len(grammar)} characters; expected {LONGEST_GRAMMAR} at most")
    failed, messages = LLMatcher.validate_grammar_with_warnings(grammar, limits=LIMITS)
    if failed:
        raise GrammarError(explained(messages[0]))
    if _SPECIAL_TOKEN not in grammar:
        _check_beginning(LLMatcher(_byte_tokenizer(), grammar, limits=LIMITS, log_level=0))


def _check_beginning(matcher: LLMatcher) -> None:
    """Raises GrammarError if a reply cannot begin, or cannot go on behind what it must begin with."""
    for _ in range(_FORCED_STEPS):
        matcher.compute_bitmask()
        error = error_of(matcher)
        if error:
            raise GrammarError(error)
        forced = matcher.compute_ff_bytes()
        if not forced:
            return
        matcher.consume_tokens(list(forced))


def check_schema(schema: Schema, *, closed: bool = False) -> None:
    """The same for a schema's grammar, with the place at fault in the error.

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


def said_of_patterns(source: Any) -> str:
    """The first regular expressions in a schema, or one alone, as the end of an error's message."""
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
    """The innermost place whose schema alone cannot be followed either, and why."""
    definitions = schema.get("$defs", {}) if isinstance(schema, dict) else {}
    place: Place = ()
    for _ in range(_DEEPEST_BLAME):
        for step, part in parts(schema):
            if part is False:  # at fault nowhere: it says what may not be
                continue
            alone = part | {"$defs": definitions} if isinstance(part, dict) and definitions else part
            try:
                check_grammar(_compilable(alone))
            except GrammarError as error:
                place, schema, reason = (*place, *step), part, str(error)
                break
        else:
            break
    return place, reason + said_of_patterns(schema)


@cache
def _byte_tokenizer() -> LLTokenizer:
    """A vocabulary of single bytes: what can be said at all can be said in it."""
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
    """Why a matcher cannot go on; None while it can. One that stops must have come to an end."""
    if matcher.is_error():
        return explained(matcher.get_error())
    if matcher.is_stopped() and not matcher.is_accepting():
        return _DEAD_END
    return None


def explained(message: str) -> str:
    """The compiler's message in one line that a client can understand."""
    line = _first_line(message)
    if line.startswith("NoExtension"):
        return _DEAD_END
    return f"{_TOO_COSTLY} ({line})" if "too many expressions" in line else line


def _first_line(message: str) -> str:
    """The first line that says something; of what Rust's regular expressions complain, also the reason."""
    lines = [line.strip() for line in message.strip().split("\n")]
    reason = next((f" {line}" for line in lines[1:] if line.startswith("error:")), "")
    return (lines[0][:300] + reason)[:400]
