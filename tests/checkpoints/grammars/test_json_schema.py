"""Which schemas are followed, and that an independent validator accepts the generated text."""

import json
from datetime import date, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, FormatChecker
from pydantic import BaseModel, Field, RootModel

from distaff.checkpoints.errors import SchemaError
from distaff.checkpoints.grammars.grammar import check_schema, json_object_grammar, json_schema_grammar
from distaff.checkpoints.grammars.json_schema import DEEPEST, MOST_SCHEMAS, followable

from .walking import allowed, compiler, tokenizer, walk

TAGS = ("cat", "dog")
TAGGED = [{"type": "object", "properties": {"t": {"const": tag, "default": tag}}} for tag in TAGS]
FORMATS = (
    "path password int32 int64 float double binary byte base64 base64url json-string decimal cuid2 nanoid "
    "jwt e164 emoji ulid lowercase file-path directory-path multi-host-uri ipvanyaddress idn-email iri regex"
).split()
RESTRICT_NOTHING = [
    *({"type": "string", "format": form, "maxLength": 9} for form in FORMATS),
    {"type": "integer", "format": "int32"},
    {"type": "array", "items": {"type": "boolean"}, "uniqueItems": False, "maxItems": 2},
    {"type": "array", "items": {"type": "boolean"}, "uniqueItems": True, "maxItems": 1},
    {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {"type": "boolean"}},
    {"type": "number", "minimum": -3.4028234663852886e38, "maximum": 3.4028234663852886e38},
    {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
    {"oneOf": TAGGED},
    {"type": "boolean", "deprecated": True, "x-order": 1, "nullable": True, "example": True, "xml": {}},
    {"type": "boolean", "title": "B", "description": "b", "default": {}, "examples": [1], "readOnly": True},
    {
        "type": "object",
        "dependentRequired": {},
        "dependentSchemas": {"a": True},
        "additionalProperties": False,
    },
    {
        "type": "array",
        "items": {"type": "null"},
        "contains": {"type": "null"},
        "minContains": 0,
        "maxItems": 3,
    },
    {"type": "array", "items": {"type": "null"}, "minContains": 1, "maxContains": 1, "maxItems": 3},
    {"type": "object", "additionalProperties": False, "unevaluatedProperties": False},
    {"type": "array", "prefixItems": [{"type": "null"}], "unevaluatedItems": False},
    {"type": "null", "if": {"type": "string"}},
    {"type": "null", "then": False, "else": False},
    {"type": "boolean", "not": False},
    {"type": "string", "maxLength": 4, "contentMediaType": "text/plain", "contentSchema": {}},
    {"type": "object", "properties": {"never": {"not": {}}}, "additionalProperties": False},
    {"oneOf": [{"type": "integer", "maximum": 9}, {"type": "string", "maxLength": 3}, {"type": "null"}]},
    {"$ref": "#b", "$defs": {"n": {"$anchor": "b", "type": "boolean"}}},
    {"$id": "https://a.example", "$ref": "https://a.example#/$defs/n", "$defs": {"n": {"type": "null"}}},
    {"$ref": "#/components/schemas/a~1b", "components": {"schemas": {"a/b": {"type": "null"}}}},
]
"""Or their restriction is followed, although the compiler does not support the keyword."""


@pytest.mark.parametrize("value", RESTRICT_NOTHING, ids=lambda value: json.dumps(value)[:60])
def test_keywords_that_restrict_nothing_are_followed(value):
    """By itself and as a property; and the generated text is valid."""
    schema = {"type": "object", "properties": {"x": value}, "required": ["x"], "additionalProperties": False}
    if not {"$defs", "components"} & value.keys():
        check_schema(schema)
    for seed in range(3):
        text = walk(json_schema_grammar(value), seed)
        assert text is None or Draft202012Validator(value).is_valid(json.loads(text)), text


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"type": "array", "uniqueItems": True}, "'uniqueItems'"),
        ({"not": {"type": "string"}}, "'not'"),
        ({"contains": {"type": "null"}}, "'contains'"),
        ({"if": {"type": "null"}, "then": {"const": 1}}, "'if'"),
        ({"dependentRequired": {"a": ["b"]}}, "'dependentRequired'"),
        ({"propertyNames": {"maxLength": 3}}, "'propertyNames'"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "'oneOf'"),
        ({"oneOf": [{"required": ["a"]}, {"required": ["b"]}]}, "'oneOf'"),
        ({"$dynamicRef": "#a"}, "'$dynamicRef'"),
        ({"$ref": "https://example.org/s"}, "https://example.org/s"),
        ({"$ref": "#/$defs/missing"}, "#/$defs/missing"),
        ({"allOf": [True], "unevaluatedProperties": False}, "'unevaluatedProperties'"),
        ({"type": "integer", "minimum": 10**30}, "'minimum'"),
        ({"const": 12345678901234567890}, "'const'"),
        ({"const": 10**400}, "'const'"),
        ({"type": "integer", "minimum": 10**400}, "'minimum'"),
        ({"type": "integer", "multipleOf": 1_000_003}, "'multipleOf'"),
        ({"allOf": [{"type": "integer", "multipleOf": 997}, {"multipleOf": 991}]}, "'multipleOf'"),
        ({"type": None}, "'type' must be"),
        ({"type": [["string"]]}, "'type' must be"),
        ({"type": "object", "required": [["a"]]}, "'required' must be"),
        ({"oneOf": [{"type": None}, {"type": "object", "properties": 5}]}, "'oneOf'"),
        ({"propertyNames": {"type": "integer"}}, "'propertyNames'"),
        ({"propertyNames": {"pattern": ["^a"]}}, "'propertyNames'"),
        ({"properties": {"b": True}, "propertyNames": {"pattern": "^a"}}, "'propertyNames'"),
        ({"type": "nonsense"}, "nonsense"),
        ({"type": "string", "pattern": "(?=a)"}, "pattern: '(?=a)'"),
        ({"type": "string", "pattern": "^a{1000000000}$"}, "pattern: '^a{1000000000}$'"),
        ({"enum": []}, "Unsatisfiable"),
        (5, "an object or a boolean"),
    ],
)
def test_other_restrictions_are_refused_with_their_place(value, reason):
    """The reason in one line, without options that no user has."""
    schema = {"type": "object", "properties": {"x": {"type": "array", "items": value, "minItems": 1}}}
    schema["required"] = ["x"]
    with pytest.raises(SchemaError) as refused:
        check_schema(schema)
    message = str(refused.value)
    assert reason in message and "\n" not in message and "coerce" not in message and "Enable" not in message
    assert "'properties', 'x'" in message or "Unsatisfiable" in message or "#/$defs/missing" in message


def nested(depth, schema=None):
    schema = {"type": "integer"} if schema is None else schema
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


def test_the_depth_of_a_schema_is_bounded():
    """Of schemas, by keys; also of constants. The compiler reads everything below the bound."""
    check_schema(nested(DEEPEST // 2 - 1) | {"$defs": {"x": nested(DEEPEST // 2 - 1)}})
    value = 1
    for _ in range(150):
        value = [value]
    for schema in (nested(DEEPEST // 2), nested(70), nested(300), {"const": value}, {"enum": [value]}):
        with pytest.raises(SchemaError, match="nested"):
            check_schema(schema)


def test_forbidden_values_are_not_blamed():
    """`additionalProperties: false`, which nothing satisfies, is never the cause."""
    schema = {"type": "object", "patternProperties": {"^x": True, "y$": True}, "additionalProperties": False}
    with pytest.raises(SchemaError) as refused:
        check_schema(schema)
    assert "additionalProperties" not in str(refused.value)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "minimum": 2**53 + 1, "maximum": 2**53 + 3},
        {"type": "integer", "minimum": 10**17, "maximum": 10**20},
        {"type": "object", "properties": {"b": True}, "propertyNames": {"enum": ["a"]}, "minProperties": 1},
        {"type": "object", "propertyNames": {"type": "string", "const": "a"}, "required": ["a"]},
        {"type": "integer", "multipleOf": 7, "exclusiveMinimum": 10**17},
    ],
)
def test_bounds_and_names_are_kept(schema, seed):
    text = walk(json_schema_grammar(schema), seed)
    assert text is not None and Draft202012Validator(schema).is_valid(json.loads(text)), text


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "multipleOf": 10},
        {"type": "integer", "multipleOf": 16, "minimum": 0},
        {"allOf": [{"type": "number"}, {"multipleOf": 10}]},
    ],
)
def test_a_multiple_is_found_in_time(schema):
    """A model that repeats a digit forever, which gives no multiple, still ends, with a multiple."""
    matcher, text = compiler()(json_schema_grammar(schema)), b""
    three = tokenizer().encode("3", add_special_tokens=False)[0]
    while len(text) < 60 and not matcher.complete:
        ids = allowed(matcher)
        token = three if three in ids else ids[0]
        if token in tokenizer().eos_ids:
            break
        text += tokenizer().token_bytes(token) or b""
        matcher.consume(token)
    assert len(text) < 60 and Draft202012Validator(schema).is_valid(json.loads(text)), text


def test_integers_of_64_bits_are_followed():
    schema = {"enum": [2**62]}
    assert walk(json_schema_grammar(schema), 0) == str(2**62)
    schema = {"type": "integer", "minimum": 2**62, "maximum": 2**63 - 1}
    text = walk(json_schema_grammar(schema), 0)
    assert text is not None and Draft202012Validator(schema).is_valid(json.loads(text))


def test_a_place_in_a_definition_is_named():
    """By the reference that points to it."""
    schema = {"$ref": "#/$defs/p", "$defs": {"p": {"properties": {"a": {"uniqueItems": True}}}}}
    with pytest.raises(SchemaError, match=r"context=\('#/\$defs/p', 'properties', 'a'\)"):
        check_schema(schema)


def test_the_size_of_a_schema_is_bounded():
    """Independently of the number of references."""
    with pytest.raises(SchemaError, match=str(MOST_SCHEMAS)):
        followable({"anyOf": [{"type": "null"}] * (MOST_SCHEMAS + 1)})


class Leaf(BaseModel):
    """A description."""

    kind: str = Field("leaf", json_schema_extra={"const": "leaf"})
    size: int = Field(ge=0, le=9)
    when: date | None = None


class Branch(BaseModel):
    kind: str = Field("branch", json_schema_extra={"const": "branch"})
    children: list["Leaf | Branch"] = Field(max_length=2)
    names: dict[str, bool] = {}


class Tree(RootModel[Leaf | Branch]):
    root: Leaf | Branch = Field(discriminator=None)


@pytest.mark.parametrize("model", [Leaf, Branch, Tree])
@pytest.mark.parametrize("closed", [False, True])
def test_pydantic_schemas_are_followed(model, closed):
    """Recursion, defaults, optional properties, dictionaries; and pydantic accepts the generated text."""
    grammar = json_schema_grammar(model.model_json_schema(), closed=closed)
    for seed in range(8):
        text = walk(grammar, seed)
        if text is not None:
            model.model_validate_json(text)


SCALARS = st.one_of(
    st.fixed_dictionaries({"type": st.just("integer")}, optional={"minimum": st.integers(-99, 0)}),
    st.fixed_dictionaries({"type": st.just("number")}, optional={"maximum": st.floats(1, 1e30)}),
    st.fixed_dictionaries(
        {"type": st.just("string"), "maxLength": st.integers(0, 6)},
        optional={"title": st.text(), "format": st.sampled_from(FORMATS)},
    ),
    st.fixed_dictionaries({"type": st.just("string"), "format": st.sampled_from(["date", "time", "uuid"])}),
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"const": "k"}, {"enum": ["a", 1, None]}]),
)


def _containers(inner):
    keys = st.sampled_from(["a", "b", "ü"])
    properties = st.dictionaries(keys, inner, min_size=1, max_size=3)
    return st.one_of(
        st.builds(
            lambda p, some: {"type": "object", "properties": p, "required": sorted(p)[:some]},
            properties,
            st.integers(0, 3),
        ),
        st.builds(lambda p: {"type": "object", "properties": p, "additionalProperties": False}, properties),
        st.builds(
            lambda item, most: {"type": "array", "items": item, "maxItems": most}, inner, st.integers(0, 2)
        ),
        st.builds(lambda a: {"anyOf": [a, {"type": "null"}], "default": None, "title": "T"}, inner),
        st.builds(lambda a: {"allOf": [a], "description": "d"}, inner),
    )


@settings(max_examples=60, deadline=None)
@given(st.recursive(SCALARS, _containers, max_leaves=6), st.integers(0, 99), st.booleans())
def test_generated_text_is_valid(schema, seed, closed):
    """For any schema, strict or not: an independent validator accepts it, including formats that it
    supports."""
    text = walk(json_schema_grammar(schema, closed=closed), seed)
    if text is not None:
        Draft202012Validator(schema, format_checker=FormatChecker(["date", "uuid"])).validate(
            json.loads(text)
        )


def open_objects(schema):
    """The objects of a read schema that may have further properties."""
    if isinstance(schema, dict):
        if "properties" in schema and schema.get("additionalProperties", True) is not False:
            yield schema
        for value in schema.values():
            yield from open_objects(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from open_objects(value)


@settings(max_examples=60, deadline=None)
@given(st.recursive(SCALARS, _containers, max_leaves=6))
def test_a_strict_schema_is_closed(schema):
    """Every object without a rule for further properties has none."""
    assert not list(open_objects(followable(schema, closed=True)))


def test_objects_that_several_schemas_restrict_stay_open():
    """If closed, each would exclude what the other requires, and nothing would satisfy them."""
    parts = [{"type": "object", "properties": {n: {"type": "null"}}, "required": [n]} for n in "ab"]
    check_schema({"allOf": parts}, closed=True)


@pytest.mark.parametrize(
    ("form", "parse"), [("date-time", datetime.fromisoformat), ("date", date.fromisoformat)]
)
def test_dates_and_times_can_be_read(form, parse):
    """No second 60, no 30 February, no year 0; 29 February in leap years."""
    grammar = json_schema_grammar({"type": "string", "format": form})
    texts = [walk(grammar, seed, likes=b"") for seed in range(60)]
    assert all(text is not None and parse(json.loads(text)) for text in texts)


@pytest.mark.parametrize(("year", "leap"), [("2024", True), ("2023", False), ("1900", False), ("2000", True)])
def test_leap_years(year, leap):
    schema = {"type": "string", "format": "date", "pattern": f"^{year}-02-29$"}
    if leap:
        assert walk(json_schema_grammar(schema), 0) == f'"{year}-02-29"'
        return
    with pytest.raises(SchemaError, match="Unsatisfiable"):
        check_schema(schema)


DIGITS = b".0123456789"


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("schema", "most"),
    [
        ({"type": "integer"}, 16),
        ({"type": "integer", "minimum": 0}, 16),
        ({"type": "number"}, 16),
        ({"type": "number", "minimum": 0, "maximum": 1}, 16),
        ({"type": "integer", "maximum": 10**17}, 18),
        ({"type": "integer", "minimum": 10**17}, 18),
    ],
)
def test_numbers_end(schema, most, seed):
    """Numbers end even if a model prefers digits; bounds that require more digits allow more."""
    schema = {"type": "array", "items": schema, "minItems": 2, "maxItems": 2}
    text = walk(json_schema_grammar(schema), seed, most=100, likes=DIGITS)
    assert text is not None
    Draft202012Validator(schema).validate(json.loads(text))
    assert max(map(len, text.translate(str.maketrans(".,[]eE+- ", "         ")).split())) <= most


def test_numbers_in_free_json_end_too():
    """Numbers in `json_object`; the digits in strings are not limited."""
    digits = "1" * 40
    matcher_text = walk(json_object_grammar(), 3, most=400, likes=b'{":}0123456789')
    assert matcher_text is None or json.loads(matcher_text) is not None
    assert walk(json_schema_grammar({"const": digits}), 0) == f'"{digits}"'
