"""How an answer is delivered: in one piece or as a stream, and how its usage is reported."""

from dataclasses import dataclass

from ..errors import BadRequest
from .kinds import Boolean, Described, Object

STREAM_OPTIONS = Object(
    {name: Boolean() for name in ("include_usage", "include_obfuscation", "continuous_usage_stats")},
    closed=True,
)


@dataclass(frozen=True, slots=True)
class Delivery:
    """The values of `stream` and `stream_options`.

    Attributes:
      include_usage: one more chunk with the usage. continuous_usage: every chunk carries the usage so far.
    """

    stream: bool
    include_usage: bool = False
    continuous_usage: bool = False


def read_delivery(fields: Described) -> Delivery:
    """Raises BadRequest."""
    stream = fields.take("stream") or False
    options = fields.take("stream_options")
    if options is None:
        return Delivery(stream)
    include = options.take("include_usage") or False
    options.take("include_obfuscation")
    continuous = options.take("continuous_usage_stats") or False
    if not stream:
        message = "The 'stream_options' parameter is only allowed when 'stream' is enabled."
        raise BadRequest(message, "stream_options")
    return Delivery(stream, include, include and continuous)
