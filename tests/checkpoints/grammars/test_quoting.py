"""A grammar inside a JSON string accepts the escaped texts of the grammar, and nothing else."""

import json
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from llguidance import LLMatcher

from distaff.checkpoints.errors import GrammarError
from distaff.checkpoints.grammars.grammar import LIMITS, _byte_tokenizer, check_grammar
from distaff.checkpoints.grammars.quoting import quoted

LETTERS = 'aé"\\\n\t/ .n'
ATOMS = [
    "a",
    "é",
    '"',
    r"\\",
    r"\n",
    r"\t",
    r"\/",
    ".",
    '[^"]',
    r"[a\n]",
    r"[^\\a]",
    r"\s",
    r"\S",
    r"\.",
    r"[n\/ ]",
]

PATCH = r"""
start: begin hunk+ end
begin: "*** Begin Patch" LF
end: "*** End Patch" LF?
hunk: "*** Add File: " filename LF add_line+ | "*** Update File: " filename LF change
filename: /(.+)/
add_line: "+" /(.*)/ LF -> line
change: (("@@" | "@@ " /(.+)/) LF | ("+" | "-" | " ") /(.*)/ LF)+
%import common.LF
"""


def accepts(grammar: str, text: str) -> bool:
    matcher = LLMatcher(_byte_tokenizer(), grammar, limits=LIMITS, log_level=0)
    data = list(text.encode())
    return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()


def escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def joined(parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    several = st.lists(parts, min_size=1, max_size=3)
    signs = st.sampled_from(["", "", "*", "+", "?", "*?", "{1,2}", "{2}"])
    alternatives = several.map(lambda found: f"(?:{'|'.join(found)})")
    return st.one_of(several.map("".join), st.builds("{}{}".format, alternatives, signs))


REGEXES = st.recursive(st.sampled_from(ATOMS), joined, max_leaves=6)
TEXTS = st.text(LETTERS, max_size=6)


@given(REGEXES, TEXTS)
@example(r".*\n", 'a"\\\n')
def test_a_regular_expression(pattern: str, text: str) -> None:
    grammar = quoted(f"start: T\nT: /{pattern}/")
    assert accepts(grammar, escaped(text)) == bool(re.fullmatch(pattern, text))


@given(REGEXES, TEXTS)
def test_what_is_accepted_is_the_one_way_to_write_a_text(pattern: str, written: str) -> None:
    if not accepts(quoted(f"start: /{pattern}/"), written):
        return
    text = json.loads(f'"{written}"')
    assert escaped(text) == written and re.fullmatch(pattern, text)


@given(st.lists(st.text(LETTERS, max_size=3), min_size=1, max_size=3), TEXTS)
def test_literals(literals: list[str], text: str) -> None:
    source = "start: " + " | ".join(json.dumps(each) for each in literals)
    assert accepts(quoted(source), escaped(text)) == (text in literals)
    ignoring = "start: " + " | ".join(json.dumps(each) + "i" for each in literals)
    assert accepts(quoted(ignoring), escaped(text)) == (text.lower() in [each.lower() for each in literals])


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ('*** Begin Patch\n*** Add File: a "b".txt\n+x = "\\n"\n+\ttab\n*** End Patch', True),
        ("*** Begin Patch\n*** Update File: a\n@@ def f():\n-é\n+b\n c\n*** End Patch\n", True),
        ("*** Begin Patch\n*** Add File: a\nno sign\n*** End Patch", False),
        ("*** Begin Patch\n*** End Patch", False),
    ],
)
def test_a_patch(text: str, matches: bool) -> None:
    """Lines may end behind any text, although the end begins like an escaped quote."""
    grammar = quoted(PATCH)
    check_grammar(grammar)
    assert accepts(grammar, escaped(text)) == matches


@pytest.mark.parametrize("source", ["start: /" + "[" * 8000 + "/", "start: /" + "[a" * 4000 + "/"])
def test_a_text_that_is_no_class_is_refused_at_once(source: str) -> None:
    """The time grows with the length alone."""
    with pytest.raises(GrammarError):
        quoted(source)


@pytest.mark.parametrize(
    ("source", "text", "matches"),
    [
        ('start: INT ("," INT)*\n%import common (INT, WS)\n%ignore WS', " 1 ,\n\t2 ", True),
        ('start: INT ("," INT)*\n%import common (INT, WS)\n%ignore WS', "1 2", False),
        ('start: "a" B\nB: "b" "c"\n%ignore " "', " a bc ", True),
        ('start: "a" B\nB: "b" "c"\n%ignore " "', "a b c", False),
        ('start: [SIGN] "0".."9"\nSIGN.2: "+" | "-"  // a sign', "-7", True),
        ('start: " ".."~"', '"', True),
        ("start: Q\n%import common.ESCAPED_STRING -> Q", '"a \\" b"', True),
        ("start: /^a?$/", "", True),
        ("start: /(a|)b/i", "AB", True),
        ("start: /a.b/s", "a\nb", True),
        (r"start: /\p{Lu}[[:digit:]]\x{22}/", 'É1"', True),
        ('start: "a"~2', None, False),
        ("start: <[3]>", None, False),
        ("start: %json {}", None, False),
        ("start: T\nT: /a/ & /b/", None, False),
        ('start[max_tokens=3]: "a"', None, False),
        ("start: /(?=a)/", None, False),
        ("start: /(?i)a/", None, False),
        ("start: /a$b/", None, False),
        ("start: /a/x", None, False),
        ("start: /[z-a]/", None, False),
        ('start: "\\q"', None, False),
        ('start: "\\ud800"', None, False),
        ('start: "a\\u0000b"', None, False),
        ('start: "ab".."z"', None, False),
        ('start: "a"\n%ignore /x/\n | "b"', None, False),
        (r"start: /\Afoo\z/", None, False),
        ('start: "a" start', None, False),
        ("start: distaff_x", None, False),
        ("start: FOO Foo\nFOO: /a/\nFoo: /b/", "ab", True),
        ("start: skipped_text\nskipped_text: /a/\n%ignore /b/", "ba", True),
        ("start: C\n%import common.C_COMMENT", None, False),
    ],
)
def test_what_lark_has(source: str, text: str | None, matches: bool) -> None:
    """What has no text here is refused."""
    if text is None:
        with pytest.raises(GrammarError):
            quoted(source)
    else:
        assert accepts(quoted(source), escaped(text)) == matches
