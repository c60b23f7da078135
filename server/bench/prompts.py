"""What the requests of a load ask: random prompts of a given length, or those of a file.

Without a tokenizer of its own, this client makes random prompts in one of two ways. For completions, if the
server has vLLM's `/tokenize`, a prompt is a list of token ids that the server itself has named: its length is
exact. Otherwise it is a text of words that are one token each in usual vocabularies; then the length that
counts is the one that the server reports. After the prefix, two prompts share a few tokens at most.
"""

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .. import exit_codes
from ..exit_codes import Failed
from .target import Target

WORDS = (
    "time year people way day man thing woman life child world school state family student group country "
    "problem hand part place case week company system program question work government number night point "
    "home water room mother area money story fact month lot right study book eye job word business issue "
    "side kind head house service friend father power hour game line end member law car city community "
    "name president team minute idea body information back parent face others level office door health "
    "person art war history party result change morning reason research girl moment air teacher force "
    "education "
).split()
_LONGEST_PROMPT, _LONGEST_SEQUENCE, _SHORTEST = 1024, 2048, 4
"""Bounds in tokens of what vLLM takes from ShareGPT."""
_DEFAULT_OUTPUT = 256
"""Tokens of an answer to a prompt of a custom file, as in vLLM."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One prompt.

    Attributes:
      prompt: text, or token ids. tokens: its length; 0: unknown. output: the number of tokens to generate.
    """

    prompt: str | list[int]
    tokens: int
    output: int


class Prompts(Protocol):
    """A source of prompts.

    Attributes:
      described: how they are made, for the report.
    """

    described: str

    async def draw(self, count: int, random: np.random.Generator) -> list[Sample]:
        """So many samples; other ones for another state of `random`."""
        ...


@dataclass(frozen=True, slots=True)
class Lengths:
    """Lengths in tokens of random samples, uniform within `ratio` of `input` and `output`, after a prefix."""

    input: int
    output: int
    ratio: float
    prefix: int

    def draw(self, count: int, random: np.random.Generator) -> Iterator[tuple[int, int]]:
        """Input and output lengths."""
        drawn = [
            random.integers(
                max(1, math.floor(length * (1 - self.ratio))),
                math.ceil(length * (1 + self.ratio)),
                size=count,
                endpoint=True,
            ).tolist()
            for length in (self.input, self.output)
        ]
        return zip(*drawn, strict=True)


class RandomIds:
    """Prompts of random token ids out of some that the server has named."""

    described = "random token ids of the server's tokenizer, of exact length"

    def __init__(self, pool: Sequence[int], lengths: Lengths, seed: int) -> None:
        self._pool, self._lengths = np.array(pool), lengths
        self._prefix = np.random.default_rng(seed).choice(self._pool, lengths.prefix).tolist()

    async def draw(self, count: int, random: np.random.Generator) -> list[Sample]:
        return [
            Sample(
                self._prefix + random.choice(self._pool, length).tolist(), length + len(self._prefix), output
            )
            for length, output in self._lengths.draw(count, random)
        ]


class RandomWords:
    """Prompts of random words."""

    described = "random words of about one token each; the server's count is reported"

    def __init__(self, lengths: Lengths, seed: int) -> None:
        self._lengths = lengths
        self._prefix = np.random.default_rng(seed).choice(WORDS, lengths.prefix).tolist()

    async def draw(self, count: int, random: np.random.Generator) -> list[Sample]:
        return [
            Sample(" ".join(self._prefix + random.choice(WORDS, length).tolist()), 0, output)
            for length, output in self._lengths.draw(count, random)
        ]


class Custom:
    """The prompts of a JSONL file, `{"prompt": "…"}` in each line, in random order; too few are repeated."""

    described = "the file's prompts"

    def __init__(self, path: Path, output: int | None) -> None:
        """Raises:
        Failed: the file cannot be read, or a line has no prompt.
        """
        self._prompts = [_prompt_of(path, number, line) for number, line in _lines(path)]
        self._output = output or _DEFAULT_OUTPUT
        _check_any(path, self._prompts)

    async def draw(self, count: int, random: np.random.Generator) -> list[Sample]:
        order = itertools.cycle(random.permutation(len(self._prompts)).tolist())
        return [Sample(self._prompts[place], 0, self._output) for place in itertools.islice(order, count)]


class ShareGpt:
    """The first questions of ShareGPT's conversations, with answers as long as those in the file.

    As in vLLM, samples with fewer than 4 tokens, prompts of more than 1024 and sequences of more than 2048
    are left out. Lengths are counted by the server's `/tokenize`; without it, `output` must be given, and
    nothing is left out.
    """

    described = "ShareGPT's first questions"

    def __init__(self, path: Path, output: int | None, target: Target) -> None:
        """Raises:
        Failed: the file is not ShareGPT's.
        """
        self._pairs = _pairs(path)
        self._output, self._target = output, target
        _check_any(path, self._pairs)

    async def draw(self, count: int, random: np.random.Generator) -> list[Sample]:
        found: list[Sample] = []
        for place in random.permutation(len(self._pairs)).tolist():
            if len(found) == count:
                break
            if sample := await self._sample(*self._pairs[place]):
                found.append(sample)
        if not found:
            raise Failed("no conversation of the data set has a usable length", exit_codes.USAGE)
        return list(itertools.islice(itertools.cycle(found), count))

    async def _sample(self, question: str, answer: str) -> Sample | None:
        asked = await self._target.tokenize(question)
        if asked is None:
            return Sample(question, 0, self._known_output())
        output = self._output or len(await self._target.tokenize(answer) or ())
        usable = len(asked) >= _SHORTEST and (self._output or output >= _SHORTEST)
        fits = len(asked) <= _LONGEST_PROMPT and len(asked) + output <= _LONGEST_SEQUENCE
        return Sample(question, len(asked), output) if usable and fits else None

    def _known_output(self) -> int:
        if not self._output:
            message = "the server has no /tokenize to count ShareGPT's answers; give --output-len"
            raise Failed(message, exit_codes.USAGE)
        return self._output


async def random_prompts(target: Target, lengths: Lengths, seed: int) -> Prompts:
    """Random prompts, of token ids if the endpoint takes them and the server names some."""
    ids = None if target.chats else await target.tokenize(" ".join(WORDS))
    return RandomIds(sorted(set(ids)), lengths, seed) if ids else RandomWords(lengths, seed)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if line.strip():
            yield number, line


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Failed(f"{path}: cannot be read ({error})", exit_codes.USAGE) from None


def _prompt_of(path: Path, number: int, line: str) -> str:
    try:
        found = json.loads(line)["prompt"]
    except (ValueError, KeyError, TypeError):
        found = None
    if not isinstance(found, str):
        raise Failed(
            f'{path}, line {number}: expected {{"prompt": "…"}}, found {line[:60]!r}', exit_codes.USAGE
        )
    return found


def _pairs(path: Path) -> list[tuple[str, str]]:
    """The first two turns of each conversation that has them."""
    try:
        data: list[Any] = json.loads(_text(path))
        turns = [entry["conversations"] for entry in data if "conversations" in entry]
        return [(pair[0]["value"], pair[1]["value"]) for pair in turns if len(pair) >= 2]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Failed(
            f'{path}: expected ShareGPT\'s JSON, a list of {{"conversations": [{{"value": "…"}}, …]}}',
            exit_codes.USAGE,
        ) from None


def _check_any(path: Path, found: Sequence[object]) -> None:
    if not found:
        raise Failed(f"{path}: has no prompts", exit_codes.USAGE)
