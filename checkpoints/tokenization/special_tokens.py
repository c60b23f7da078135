"""Keeps special tokens that a user typed from becoming special tokens.

Before rendering, each such text in a message is covered by one private-use character that occurs nowhere in
the messages. The template then runs as usual. The rendered text is cut at the special tokens that are still
in plain sight, which only the template can have written; the pieces between are uncovered and encoded with
specials disabled. Messages without such texts, nearly all, are left alone.
"""

import json
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from tokenizers import AddedToken, Tokenizer

from .chat_template import Message, TemplateError

_PIECE = 1 << 16
"""Characters that are searched at once, in some 15 ms at most."""
_SPACE = re.compile(r"\s*")
_ROLE_MARK = re.compile(r"<[|｜].*[|｜]>", re.DOTALL)


class Shield:
    """The control tokens of one tokenizer.

    Control tokens are its special tokens, and added tokens that look like role marks (`<|user|>`), which
    some vocabularies do not flag as special.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder().values()
        control = [token for token in added if token.special or _ROLE_MARK.fullmatch(token.content)]
        longest_first = sorted(control, key=lambda token: -len(token.content))
        self._control = {token.content: token for token in longest_first}
        self._longest = max(map(len, self._control), default=0)
        self._pattern = re.compile("|".join(map(re.escape, self._control)) or "(?!)")

    def cover(self, messages: Sequence[Message]) -> tuple[Sequence[Message], dict[str, str]]:
        """The messages with every typed control token covered, and what each cover stands for.

        Returns the same messages and nothing where no control token was typed.
        """
        texts = list(_texts(messages))
        typed = {match[0] for text in texts for match in self._matches(text)}
        if not typed:
            return messages, {}
        used = set().union(*texts)
        free = (chr(code) for code in range(sys.maxunicode, 0xFFFF, -1) if chr(code) not in used)
        covers = dict(zip(sorted(typed), free, strict=False))
        if len(covers) < len(typed):
            raise TemplateError("the messages use every character there is beside special tokens")
        covered = _replace(messages, lambda text: self._covered(text, covers))
        return covered, {cover: text for text, cover in covers.items()}

    def encode(self, text: str, covers: Mapping[str, str]) -> list[int]:
        """The ids of a rendered text in which `covers` stand for typed text."""
        ids: list[int] = []
        end = 0
        for match in self._matches(text):
            if match.start() < end:  # a token of white space that the one before it swallows
                continue
            token = self._control[match[0]]
            before = text[end : match.start()]
            ids += self._encode_text(before.rstrip() if token.lstrip else before, covers, first=end == 0)
            ids.append(self._id(token))
            end = _behind_space(text, match.end()) if token.rstrip else match.end()
        return ids + self._encode_text(text[end:], covers, first=end == 0)

    def _matches(self, text: str) -> Iterator[re.Match[str]]:
        """The control tokens in a text, as `finditer` finds them, but looked for in one piece after another.

        One search holds the interpreter's lock: two seconds for 8 MiB of what many tokens begin with.
        """
        place = 0
        while place < len(text):
            following = end = place + _PIECE
            for match in self._pattern.finditer(text, place, end + self._longest):
                if match.start() >= end:
                    break
                yield match
                following = max(following, match.end())
            place = following

    def _covered(self, text: str, covers: Mapping[str, str]) -> str:
        pieces, end = [], 0
        for match in self._matches(text):
            pieces += [text[end : match.start()], covers[match[0]]]
            end = match.end()
        return "".join([*pieces, text[end:]])

    def _id(self, control: AddedToken) -> int:
        token = self._tokenizer.token_to_id(control.content)
        assert token is not None
        return token

    def _encode_text(self, text: str, covers: Mapping[str, str], *, first: bool) -> list[int]:
        if not text:
            return []
        uncovered = text.translate({ord(cover): typed for cover, typed in covers.items()})
        tokenizer = self._plain if first else self._inner
        return encode_text(tokenizer, uncovered, add_special_tokens=False)

    @cached_property
    def _plain(self) -> Tokenizer:
        """The tokenizer, seeing no control tokens."""
        return _without_specials(self._tokenizer, self._control, {})

    @cached_property
    def _inner(self) -> Tokenizer:
        """The same for a text that does not begin the prompt: SentencePiece's prefix is the first piece's."""
        return _without_specials(self._tokenizer, self._control, {"first": "never"})


def encode_text(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
    """The ids of a text, found without holding the interpreter up.

    A batch of one, because only batches are encoded outside Python's lock: megabytes of prompt would stop
    every other thread for seconds, an event loop among them.
    """
    return tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids


def _behind_space(text: str, place: int) -> int:
    match = _SPACE.match(text, place)
    return match.end() if match else place


def _without_specials(tokenizer: Tokenizer, control: Collection[str], schemes: dict[str, str]) -> Tokenizer:
    pipeline = json.loads(tokenizer.to_str())
    for token in pipeline["added_tokens"]:
        token["special"] = token["special"] or token["content"] in control
    _change_prefix(pipeline["pre_tokenizer"], schemes)
    changed = Tokenizer.from_str(json.dumps(pipeline))
    changed.encode_special_tokens = True
    return changed


def _change_prefix(part: dict[str, Any] | None, schemes: dict[str, str]) -> None:
    for step in (part or {}).get("pretokenizers", [part] if part else []):
        if "prepend_scheme" in step:
            step["prepend_scheme"] = schemes.get(step["prepend_scheme"], step["prepend_scheme"])


def _texts(value: Any) -> Any:
    """Every text in a nest of mappings and sequences, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, Sequence):
        for item in value:
            yield from _texts(item)


def _replace(value: Any, change: Any) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_replace(key, change): _replace(item, change) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return [_replace(item, change) for item in value]
    return value
