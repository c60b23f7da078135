"""The body of an embeddings request -> a typed `EmbeddingCall`, and vectors -> the answer.

Source: OpenAI's OpenAPI description of `/v1/embeddings`. Vectors have unit length, as theirs do.
"""

import base64
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import BadRequest
from ..kinds import Limits
from ..prompts import RawPrompt, read_prompts
from ..usage import Usage
from . import parameters
from .chat import read_model
from .parameters import MOST_INPUTS


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddingCall:
    """One checked request.

    Attributes:
      base64: vectors are little-endian float32 in base64, not numbers. priority: None if it names none.
    """

    model: str
    inputs: tuple[RawPrompt, ...]
    base64: bool
    priority: int | None
    unknown: tuple[str, ...]


def parse_embedding(body: dict[str, Any], *, strict: bool) -> EmbeddingCall:
    """Checks a request and types it. `strict` refuses unknown keys.

    Raises:
      BadRequest: the first fault found.
    """
    fields = parameters.EMBEDDINGS.fields(body, Limits(strict=strict))
    model = read_model(fields)
    unknown = parameters.EMBEDDINGS.unknown_keys(fields)
    fields.require("input")
    inputs = read_prompts("input", body["input"], MOST_INPUTS)
    if any(not each for each in inputs):
        raise BadRequest("Invalid 'input': an empty text has no embedding.", "input")
    encoding = fields.take("encoding_format")
    parameters.EMBEDDINGS.check(fields)
    parameters.EMBEDDINGS.refuse_unsupported(fields)
    return EmbeddingCall(
        model=model,
        inputs=inputs,
        base64=encoding == "base64",
        priority=fields.take("priority"),
        unknown=unknown,
    )


def embeddings(call: EmbeddingCall, model: str, pooled: Sequence[Sequence[float]], usage: Usage) -> Any:
    """The answer: a vector for each input, in their order."""
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": _encoded(_unit(vector), call.base64)}
            for index, vector in enumerate(pooled)
        ],
        "model": model,
        "usage": {"prompt_tokens": usage.prompt, "total_tokens": usage.prompt, **usage.extension},
    }


def _unit(vector: Sequence[float]) -> list[float]:
    norm = math.hypot(*vector) or 1.0
    return [value / norm for value in vector]


def _encoded(vector: list[float], as_base64: bool) -> list[float] | str:
    if not as_base64:
        return vector
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
