"""The body of `POST /v1/batches` -> a typed `BatchCall`.

Source: OpenAI's OpenAPI description of `/v1/batches`. The input file, its lines and the batch itself are in
`server/batches/`.
"""

import re
from dataclasses import dataclass
from typing import Any

from ...errors import BadRequest
from ..fields import shown
from ..kinds import Limits
from ..labels import check_metadata
from .parameters import BATCH_WINDOW, BATCHES


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchCall:
    """One checked request. `hours`: the completion window as a number."""

    input_file_id: str
    endpoint: str
    completion_window: str
    hours: int
    metadata: dict[str, str] | None
    unknown: tuple[str, ...]


def parse_batch(body: dict[str, Any], *, strict: bool) -> BatchCall:
    """Checks a request and types it. `strict` refuses unknown keys.

    Raises:
      BadRequest: the first fault found.
    """
    fields = BATCHES.fields(body, Limits(strict=strict))
    unknown = BATCHES.unknown_keys(fields)
    for name in BATCHES.required:
        fields.require(name)
    window = fields.string("completion_window") or ""
    if not re.fullmatch(BATCH_WINDOW, window):
        raise BadRequest(
            f"Invalid 'completion_window': '{shown(window)}'. Expected a number of hours such as '24h'.",
            "completion_window",
            "invalid_value",
        )
    check_metadata(fields)
    BATCHES.refuse_unsupported(fields)
    return BatchCall(
        input_file_id=fields.take("input_file_id"),
        endpoint=fields.take("endpoint"),
        completion_window=window,
        hours=int(window.removesuffix("h")),
        metadata=fields.get("metadata"),
        unknown=unknown,
    )
