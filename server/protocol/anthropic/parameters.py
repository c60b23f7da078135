"""Every parameter of Anthropic's messages, and of the count of their tokens.

The parsers, `/v1/capabilities` and `/openapi.json` use these tables. Betas that change how Anthropic runs a
request (tiers, caching) have no effect; those that would change the conversation
behind the client's back are refused.
"""

from ..kinds import (
    MOST_TOKENS,
    Boolean,
    Integer,
    Kind,
    Number,
    Object,
    Refused,
    Shape,
    String,
    Words,
    constant,
    record,
)
from ..openai.parameters import MODEL
from ..sampling import LONGEST_STOP, MOST_STOPS, TOKENS
from ..table import Parameters
from .conversation import MESSAGES, SYSTEM_PROMPT
from .message_tools import TOOL_CHOICE, TOOLS

FORMAT = Shape(record({"type": constant("json_schema"), "schema": {"type": "object"}}))
EFFORTS = ("low", "medium", "high", "xhigh", "max")
OUTPUT = Object({"format": FORMAT, "effort": Words(EFFORTS)})
METADATA = Object({"user_id": String()})
THINKING = Object(
    {
        "type": Words(("enabled", "disabled", "adaptive")),
        "budget_tokens": Integer(1, MOST_TOKENS),
        "display": Words(("summarized", "omitted")),
    }
)

_STOP = {"type": "string", "minLength": 1, "maxLength": LONGEST_STOP}

_CONVERSATION: dict[str, Kind] = {
    "model": MODEL,
    "messages": MESSAGES,
    "system": SYSTEM_PROMPT,
    "tools": TOOLS,
    "tool_choice": TOOL_CHOICE,
}
_BETAS: dict[str, Kind] = {
    "context_management": Object(),
    "speed": Words(("standard", "fast")),
}
_REFUSED = {
    "container": Refused(),
    "mcp_servers": Refused(([],)),
    "compaction": Refused(),
    "thread": Refused(),
}

MESSAGE = Parameters(
    {
        **_CONVERSATION,
        "max_tokens": TOKENS,
        "stop_sequences": Shape({"type": "array", "items": _STOP, "maxItems": MOST_STOPS}),
        "temperature": Number(0, 1),
        "top_p": Number(0, 1),
        "top_k": Integer(0, 2**31 - 1),
        "output_config": OUTPUT,
        "thinking": THINKING,
        "stream": Boolean(),
        "cache_control": Object(),
    },
    {
        **_BETAS,
        "metadata": METADATA,
        "service_tier": Words(("auto", "standard_only")),
        "inference_geo": String(),
        "diagnostics": Object(),
    },
    _REFUSED,
    ("model", "messages", "max_tokens"),
)

COUNT = Parameters(
    {**_CONVERSATION, "thinking": THINKING},
    {**_BETAS, "output_config": OUTPUT, "cache_control": Object()},
    _REFUSED,
    ("model", "messages"),
)
