"""Grammars over two kinds of vocabulary: they allow exactly their texts, byte for byte."""

import json
import string

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distaff.checkpoints.errors import CheckpointError, GrammarError
from distaff.checkpoints.grammars.grammar import (
    LONGEST_GRAMMAR,
    check_grammar,
    choice_grammar,
    json_object_grammar,
    json_schema_grammar,
    lark_grammar,
    regex_grammar,
)
from distaff.checkpoints.grammars.matching import GrammarCompiler
from distaff.checkpoints.tokenization.tokenizer_parts import TokenizerParts
from distaff.checkpoints.tokenizer import ChatTokenizer

from ..making import byte_level, sentencepiece

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "ü", '"']}},
        "more": {"anyOf": [{"$ref": "#/$defs/point"}, {"type": "null"}]},
    },
    "required": ["name", "age", "tags", "more"],
    "additionalProperties": False,
    "$defs": {
        "point": {
            "type": "object",
            "properties": {"x": {"type": "number"}},
            "required": ["x"],
            "additionalProperties": False,
        }
    },
}
PERSON = st.fixed_dictionaries(
    {
        "name": st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12),
        "age": st.integers(0, 150),
        "tags": st.lists(st.sampled_from(["a", "ü", '"']), max_size=3),
        "more": st.none() | st.fixed_dictionaries({"x": st.integers(-1000, 1000)}),
    }
)


@pytest.fixture(scope="module", params=["bytes", "pieces"])
def tokenizer(request) -> ChatTokenizer:
    made = byte_level() if request.param == "bytes" else sentencepiece()
    end = next(i for i, token in made.get_added_tokens_decoder().items() if token.special)
    return ChatTokenizer(TokenizerParts(made, {}, None, (end,)))


@pytest.fixture(scope="module")
def compiler(tokenizer) -> GrammarCompiler:
    return GrammarCompiler(lambda: tokenizer, tokenizer.vocabulary + 37)


def test_what_is_prepared_is_not_loaded_again(tokenizer) -> None:
    """And an error ends nothing: the first grammar tries again."""
    outcomes = [CheckpointError("damaged"), CheckpointError("still damaged"), tokenizer]

    def load() -> ChatTokenizer:
        outcome = outcomes.pop(0)
        if isinstance(outcome, CheckpointError):
            raise outcome
        return outcome

    made = GrammarCompiler(load, tokenizer.vocabulary + 37)
    with pytest.raises(CheckpointError, match=r"^damaged"):
        made.prepare()
    with pytest.raises(CheckpointError, match="still damaged"):
        made(choice_grammar(["a"]))
    made.prepare()
    assert not outcomes
    assert follow(made, tokenizer, choice_grammar(["a"]), "a")


def allowed(matcher, tokenizer: ChatTokenizer) -> set[int]:
    mask_W = np.zeros(-(-(tokenizer.vocabulary + 37) // 32), np.uint32)
    matcher.fill(mask_W)
    return set(np.nonzero(np.unpackbits(mask_W.view(np.uint8), bitorder="little"))[0].tolist())


def follow(compiler, tokenizer, grammar: str, text: str) -> bool:
    """Whether a reply may be this text and end there, in the longest tokens that the masks allow."""
    matcher, rest = compiler(grammar), text.encode()
    while rest:
        spelled = {token: tokenizer.token_bytes(token) for token in allowed(matcher, tokenizer)}
        fitting = [token for token, raw in spelled.items() if raw and rest.startswith(raw)]
        if not fitting:
            return False
        token = max(fitting, key=lambda token: len(spelled[token]))
        matcher.consume(token)
        rest = rest[len(spelled[token]) :]
    return bool(set(tokenizer.eos_ids) & allowed(matcher, tokenizer))


def spaced(value: dict[str, object]) -> str:
    """JSON in the schema's order."""
    places = [*SCHEMA["properties"], "extra"]
    value = dict(sorted(value.items(), key=lambda item: places.index(item[0])))
    return json.dumps(value, ensure_ascii=False, separators=(", ", ": "))


@settings(max_examples=60, deadline=None)
@given(PERSON)
def test_valid_json_is_allowed(compiler, tokenizer, person):
    """Any instance of the schema, in its order and spacing, is allowed to its end."""
    assert follow(compiler, tokenizer, json_schema_grammar(SCHEMA), spaced(person))
    assert follow(compiler, tokenizer, json_object_grammar(), spaced(person))


@settings(max_examples=30, deadline=None)
@given(PERSON, st.data())
def test_invalid_json_is_not(compiler, tokenizer, person, data):
    """A wrong type, a missing or additional property, or text around it is not allowed."""
    spoiled = data.draw(
        st.sampled_from(
            [
                person | {"age": "old"},
                {key: value for key, value in person.items() if key != "age"},
                person | {"extra": 1},
            ]
        )
    )
    assert not follow(compiler, tokenizer, json_schema_grammar(SCHEMA), spaced(spoiled))
    assert not follow(compiler, tokenizer, json_schema_grammar(SCHEMA), "Sure: " + spaced(person))


def test_the_end_is_allowed_only_if_the_text_is_complete(compiler, tokenizer):
    """Also if more may follow; `complete` means that nothing else may."""
    grammar = choice_grammar(["yes", "yesterday"])
    assert follow(compiler, tokenizer, grammar, "yes") and follow(compiler, tokenizer, grammar, "yesterday")
    assert not follow(compiler, tokenizer, grammar, "yester")
    matcher = compiler(choice_grammar(["y"]))
    (token,) = (t for t in allowed(matcher, tokenizer) if tokenizer.token_bytes(t) == b"y")
    assert not matcher.complete
    matcher.consume(token)
    assert matcher.complete and allowed(matcher, tokenizer) == set(tokenizer.eos_ids)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(string.printable + "üß€😀", min_size=1, max_size=8), min_size=1, max_size=4))
def test_choices_are_literal(compiler, tokenizer, choices):
    """Quotes, line ends and all other characters are literal."""
    assert all(follow(compiler, tokenizer, choice_grammar(choices), choice) for choice in choices)
    assert not follow(compiler, tokenizer, choice_grammar(choices), max(choices, key=len) + "!")


def test_a_regular_expression_matches_from_end_to_end(compiler, tokenizer):
    """Not a part of it."""
    grammar = regex_grammar(r"[a-z]+@x\.(com|org)")
    assert follow(compiler, tokenizer, grammar, "bob@x.org")
    assert not follow(compiler, tokenizer, grammar, "bob@x.net")
    assert not follow(compiler, tokenizer, grammar, "bob@x")


def test_matchers_of_one_grammar_are_independent(compiler, tokenizer):
    """The tokens of one reply do not advance another, however often a grammar is requested."""
    first = compiler(json_object_grammar())
    before = allowed(first, tokenizer)
    first.consume(min(before))
    assert allowed(compiler(json_object_grammar()), tokenizer) == before


@settings(max_examples=30, deadline=None)
@given(PERSON, st.data())
def test_a_matcher_depends_on_its_tokens_only(compiler, tokenizer, person, data):
    """A matcher that consumed a reply's beginning without masks allows the same as the reply's own
    matcher."""
    grammar, rest, tokens = json_schema_grammar(SCHEMA), spaced(person).encode(), []
    matcher, cut = compiler(grammar), data.draw(st.integers(0, len(rest)))
    while len(rest) > cut:
        spelled = [(token, tokenizer.token_bytes(token)) for token in sorted(allowed(matcher, tokenizer))]
        token, raw = data.draw(
            st.sampled_from([each for each in spelled if each[1] and rest.startswith(each[1])])
        )
        matcher.consume(token)
        tokens, rest = [*tokens, token], rest[len(raw) :]
    again = compiler(grammar)
    for token in tokens:
        again.consume(token)
    assert (again.error, again.complete) == (matcher.error, matcher.complete)
    assert again.complete or allowed(again, tokenizer) == allowed(matcher, tokenizer)


def test_compiled_grammars_are_bounded(compiler):
    """The newest are kept, up to a fixed number."""
    for n in range(100):
        compiler(choice_grammar([f"choice {n}"]))
    assert len(compiler._compiled) == 64 and choice_grammar(["choice 99"]) in compiler._compiled


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: json_schema_grammar({"type": "foo"}), "foo"),
        (lambda: json_schema_grammar({"not": {"type": "string"}}), "not"),
        (lambda: json_schema_grammar({"$ref": "http://example.org/schema"}), "http://example.org/schema"),
        (lambda: json_schema_grammar({"$ref": "#/$defs/missing"}), "missing"),
        (lambda: regex_grammar("("), "regex"),
        (lambda: regex_grammar("(?=a)"), "look-around"),
        (lambda: regex_grammar(r"[^\s\S]"), "nothing satisfies it"),
        (lambda: regex_grammar("a{1000000000}"), "1,000,000"),
        (lambda: regex_grammar("a(b{1000}){10000}"), "1,000,000"),
        (lambda: lark_grammar("start: nothing"), "nothing"),
        (lambda: lark_grammar("start: start"), "nothing satisfies it"),
        (lambda: lark_grammar('start: "a" X\nX: /[^\\s\\S]/'), "nothing satisfies it"),
        (lambda: "not a grammar", "Expected"),
        (lambda: "x" * (LONGEST_GRAMMAR + 1), str(LONGEST_GRAMMAR)),
    ],
)
def test_invalid_grammars_are_refused(make, reason):
    """In one line with the reason."""
    with pytest.raises(GrammarError) as refused:
        check_grammar(make())
    assert reason in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "pattern", ["(a|aa){1,5000}{1,5000}", "(.{1,500}x){1,500}", "(x+x+)+y", "([a-z]{1,999}){1,999}"]
)
def test_expensive_patterns_take_a_bounded_time(compiler, tokenizer, pattern):
    """They are refused, fail within their fuel, or are followed: nothing hangs and nothing else is raised."""
    try:
        check_grammar(regex_grammar(pattern))
        matcher = compiler(regex_grammar(pattern))
    except GrammarError:
        return
    for _ in range(50):
        ids = allowed(matcher, tokenizer) - set(tokenizer.eos_ids)
        if matcher.error or matcher.complete or not ids:
            break
        matcher.consume(min(ids))
    assert matcher.error is None or "\n" not in matcher.error
