"""Grammars without a finite text are found, and only those."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distaff.checkpoints.errors import GrammarError, SchemaError
from distaff.checkpoints.grammars.finite import finite
from distaff.checkpoints.grammars.grammar import check_schema, json_schema_grammar, lark_or_gbnf_grammar
from distaff.checkpoints.grammars.json_schema import followable
from distaff.checkpoints.grammars.lark import is_endless

from .walking import walk

LOOP = {
    "$defs": {"n": {"$ref": "#/$defs/n"}, "m": {"allOf": [{"$ref": "#/$defs/o"}]}, "o": {"$ref": "#/$defs/m"}}
}
CHILD = {"type": "object", "properties": {"child": {"$ref": "#"}}}


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/n", **LOOP},
        {"$ref": "#/$defs/m", **LOOP},
        {"$ref": "#"},
        {"type": "object", "properties": {"a": {"$ref": "#/$defs/n"}}, **LOOP},
        {**CHILD, "required": ["child"]},
        {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
        {"type": "array", "prefixItems": [{"$ref": "#"}], "minItems": 1},
        {"anyOf": [{"$ref": "#"}, {"$ref": "#/$defs/x"}], "$defs": {"x": {"enum": []}}},
        {"allOf": [{"type": "null"}, False]},
        {"type": "object", "required": ["a"], "additionalProperties": False},
    ],
    ids=json.dumps,
)
def test_a_schema_without_a_finite_instance_is_refused(schema):
    with pytest.raises(SchemaError, match=r"no finite value|refers to itself"):
        check_schema(schema)


@pytest.mark.parametrize(
    "schema",
    [
        CHILD,
        {
            "anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}],
            "$defs": {"n": {**CHILD, "required": ["child"]}},
        },
        {"type": "array", "items": {**CHILD, "required": ["child"]}, "maxItems": 1},
        {
            "type": "object",
            "properties": {"x": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
            "required": ["x"],
        },
        {"type": ["object", "null"], "properties": {"x": {"$ref": "#"}}, "required": ["x"]},
    ],
    ids=json.dumps,
)
def test_finite_alternatives_are_followed_to_the_end(schema):
    """Parts that cannot end are removed, so that no reply enters them."""
    check_schema(schema)
    endings = [walk(json_schema_grammar(schema), seed, likes=b"}n") for seed in range(4)]
    assert any(endings)


def _node(names):
    reference = st.sampled_from(names).map(lambda name: {"$ref": f"#/$defs/{name}"})
    leaf = st.sampled_from([{"type": "null"}, {"enum": []}, False])
    inner = reference | leaf
    return st.one_of(
        leaf,
        st.builds(lambda a, b: {"anyOf": [a, b]}, inner, inner),
        st.builds(lambda a: {"type": "object", "properties": {"p": a}, "required": ["p"]}, inner),
        st.builds(lambda a: {"type": "object", "properties": {"p": a}, "additionalProperties": False}, inner),
        st.builds(
            lambda a, n: {"type": "array", "items": a, "minItems": n, "maxItems": 2}, inner, st.integers(0, 1)
        ),
    )


NAMES = ["a", "b", "c"]


def instance(schema, definitions, depth):
    """Whether it has an instance of at most this depth, by a search."""
    if isinstance(schema, bool) or not depth:
        return schema is True
    if "$ref" in schema:
        return instance(definitions[schema["$ref"][8:]], definitions, depth - 1)
    if "anyOf" in schema:
        return any(instance(each, definitions, depth - 1) for each in schema["anyOf"])
    if "required" in schema:
        return instance(schema["properties"]["p"], definitions, depth - 1)
    if schema.get("minItems"):
        return instance(schema["items"], definitions, depth - 1)
    return schema.get("enum") != []


@settings(max_examples=150, deadline=None)
@given(st.fixed_dictionaries({name: _node(NAMES) for name in NAMES}))
def test_a_schema_is_refused_exactly_if_it_has_no_instance(definitions):
    """Compared with a search: with three definitions, a schema that has an instance has one of depth 8."""
    schema = {"$ref": "#/$defs/a", "$defs": definitions}
    try:
        finite(followable(schema))
        found = True
    except SchemaError:
        found = False
    assert found == instance(definitions["a"], definitions, 8)


@pytest.mark.parametrize(
    ("grammar", "endless"),
    [
        ("start: start", True),
        ('start: "a" start', True),
        ('start: a+\na: ("x" start)', True),
        ('start: a{2} "x"\na: "x" a', True),
        ('%llguidance {}\nstart: %json {"type":\n"null"} start', True),
        ('root ::= "a" root', True),
        ("root ::= [a-z]+ b\nb ::= root", True),
        ('start: "a" | b\nb: "c" b', False),
        ('start: "a" start?', False),
        ('start: a{0,2} "x" // start\na: "x" a', False),
        ('start: ("x" | a)\n  | a\na: "x" a', False),
        ('start: "\\"" /a\\/b/ b\nb[suffix="x"]: /c/', False),
        ("start: [a] -> x\na: a", False),
        ("start: X a~2\nX: /a/ & ~/b/\na: a", False),
        ('root ::= "a" root | ""', False),
        ('root ::= ("a" | b{2,3})* [x-z]+ (c)?\nb ::= "x"\nc ::= root', False),
    ],
)
def test_a_grammar_with_a_start_that_requires_itself_is_refused(grammar, endless):
    """In both languages; syntax that is not read, such as `~2` here, is left to the compiler."""
    if not endless:
        lark_or_gbnf_grammar(grammar)
        return
    with pytest.raises(GrammarError, match="no finite text"):
        lark_or_gbnf_grammar(grammar)


@settings(max_examples=100)
@given(st.text('ab:|()[]{}?*+"/%<>@~&,.01 \n'))
def test_any_text_is_read(text):
    """No text raises an error."""
    assert isinstance(is_endless("start: " + text), bool)
