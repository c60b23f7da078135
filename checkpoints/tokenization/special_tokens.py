"""Escapes special tokens that a user typed, so that they stay text.

Before rendering, each such text in a message is replaced with one private-use character that occurs nowhere
in the messages. The template then runs as usual. The rendered text is split at the special tokens that it
still contains, which only the template can have written; in the pieces between them the original text is
restored and encoded with special tokens disabled. Messages without such texts, nearly all of them, do not
change.
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
"""Characters per search, which takes 15 ms at most."""
_SPACE = re.compile(r"\s*")
_ROLE_MARK = re.compile(r"<[|｜].*[|｜]>", re.DOTALL)


class SpecialTokenEscaper:
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

    def escape(self, messages: Sequence[Message]) -> tuple[Sequence[Message], dict[str, str]]:
        """The messages with every typed control token replaced, and the text of each replacement character.

        Returns the same messages and an empty mapping if no control token was typed.
        """
        texts = list(_texts(messages))
        typed = {match[0] for text in texts for match in self._matches(text)}
        if not typed:
            return messages, {}
        used = set().union(*texts)
        free = (chr(code) for code in range(sys.maxunicode, 0xFFFF, -1) if chr(code) not in used)
        escapes = dict(zip(sorted(typed), free, strict=False))
        if len(escapes) < len(typed):
            raise TemplateError("the messages use special tokens and every private-use character")
        escaped = _replace(messages, lambda text: self._escaped(text, escapes))
        return escaped, {character: text for text, character in escapes.items()}

    def encode(self, text: str, escapes: Mapping[str, str]) -> list[int]:
        """The ids of a rendered text; `escapes` are the characters that replace typed text."""
        ids: list[int] = []
        end = 0
        for match in self._matches(text):
            if match.start() < end:  # a token of white space that is part of the match before it
                continue
            token = self._control[match[0]]
            before = text[end : match.start()]
            ids += self._encode_text(before.rstrip() if token.lstrip else before, escapes, first=end == 0)
            ids.append(self._id(token))
            end = _behind_space(text, match.end()) if token.rstrip else match.end()
        return ids + self._encode_text(text[end:], escapes, first=end == 0)

    def _matches(self, text: str) -> Iterator[re.Match[str]]:
        """The control tokens in a text, as `finditer` finds them, but searched in one piece after another.

        A search holds the interpreter's lock: two seconds for 8 MiB of text that many tokens begin with.
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

    def _escaped(self, text: str, escapes: Mapping[str, str]) -> str:
        pieces, end = [], 0
        for match in self._matches(text):
            pieces += [text[end : match.start()], escapes[match[0]]]
            end = match.end()
        return "".join([*pieces, text[end:]])

    def _id(self, control: AddedToken) -> int:
        token = self._tokenizer.token_to_id(control.content)
        assert token is not None
        return token

    def _encode_text(self, text: str, escapes: Mapping[str, str], *, first: bool) -> list[int]:
        if not text:
            return []
        restored = text.translate({ord(character): typed for character, typed in escapes.items()})
        tokenizer = self._plain if first else self._inner
        return encode_text(tokenizer, restored, add_special_tokens=False)

    @cached_property
    def _plain(self) -> Tokenizer:
        """The tokenizer, with control tokens disabled."""
        return _without_specials(self._tokenizer, self._control, {})

    @cached_property
    def _inner(self) -> Tokenizer:
        """The same for a text that does not begin the prompt: only the first piece has SentencePiece's
        prefix."""
        return _without_specials(self._tokenizer, self._control, {"first": "never"})


def encode_text(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
    """The ids of a text, without holding the interpreter's lock.

    A batch of one, because only batches are encoded outside that lock: otherwise megabytes of prompt would
    block every other thread for seconds, including an event loop.
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
    """Every text in nested mappings and sequences, including keys."""
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
