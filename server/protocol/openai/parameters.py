"""Every parameter of the routes of OpenAI's protocol, both OpenAI's own and those of other servers.

The parsers, `/v1/capabilities` and `/openapi.json` use these tables. The other servers are vLLM, SGLang,
llama.cpp and text-generation-inference: a parameter that changes an answer there is honoured here or refused
by name, never ignored.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from ....runtime.request import MAX_TOP_LOGPROBS
from .. import labels, reasoning, sampling, structured
from ..delivery import STREAM_OPTIONS
from ..kinds import MOST_TOKENS, Boolean, Integer, Kind, Limits, Object, Refused, Schema, Shape, String, Words
from ..messages import MESSAGES
from ..prompts import prompts_kind
from ..table import Parameters
from ..token_ids import ids_schema
from ..tools import TOOL_CHOICE, TOOLS
from . import response_tools
from .refused import REFUSED
from .response_input import INCLUDE, INPUT

MOST_PROMPTS = 128
MOST_INPUTS = 2048
BATCH_ENDPOINTS = (
    *("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"),
    "/v1/messages",
)
"""The routes that lines of a batch can name: OpenAI's, and Anthropic's messages."""
BATCH_WINDOW = "[1-9][0-9]{0,2}h"
"""The completion window of a batch: OpenAI's `24h`, or another number of hours."""


def _model_schema(limits: Limits) -> Schema:
    return (
        {"type": "string", "enum": list(limits.names)} if limits.names else {"type": "string", "minLength": 1}
    )


def _options_schema(limits: Limits) -> Schema:
    if limits.template_options is None:
        return {"type": "object"}
    known = {name: {} for name in sorted(limits.template_options)}
    return {"type": "object", "properties": known, "additionalProperties": False}


MODEL = Shape(_model_schema)
PRIORITY = Integer(-(2**31) + 1, 2**31 - 1)
TEMPLATE_OPTIONS = Object(described=_options_schema)
_TOP_LOGPROBS = Integer(0, MAX_TOP_LOGPROBS)

_SAMPLING: dict[str, Kind] = {
    **sampling.KINDS,
    "logprobs": Boolean(),
    "stream": Boolean(),
    "stream_options": STREAM_OPTIONS,
    "model": MODEL,
    "priority": PRIORITY,
}
_CONVERSATION: dict[str, Kind] = {
    "add_generation_prompt": Boolean(),
    "continue_final_message": Boolean(),
    "chat_template_kwargs": TEMPLATE_OPTIONS,
}
_TOOLS: dict[str, Kind] = {
    "tools": TOOLS,
    "tool_choice": TOOL_CHOICE,
    "parallel_tool_calls": Boolean(),
}

_PEERS: dict[str, Kind] = {
    "request_id": String(),
    "rid": String(),
    "id_slot": Integer(-1, MOST_TOKENS),
    "cache_prompt": Boolean(),
    "guided_decoding_backend": String(),
    "parse_tool_calls": Boolean(),
}
"""Parameters that change no answer here: labels, where a prompt is cached."""


def _route(
    honoured: Mapping[str, Kind], refused: Mapping[str, tuple[Any, ...]], required: tuple[str, ...]
) -> Parameters:
    refused = {**REFUSED, **refused}
    less = _without({**labels.KINDS, **_PEERS, **reasoning.KINDS}, honoured)
    return Parameters({**_SAMPLING, **honoured}, less, _refusals(refused), required)


def _without(kinds: Mapping[str, Kind], names: Iterable[str]) -> dict[str, Kind]:
    left_out = frozenset(names)
    return {name: kind for name, kind in kinds.items() if name not in left_out}


def _refusals(refused: Mapping[str, tuple[Any, ...]]) -> dict[str, Refused]:
    return {name: Refused(neutral) for name, neutral in refused.items()}


CHAT = _route(
    {
        "messages": MESSAGES,
        "max_completion_tokens": sampling.TOKENS,
        "top_logprobs": _TOP_LOGPROBS,
        "response_format": structured.format_kind(),
        **_TOOLS,
        **_CONVERSATION,
        **structured.KINDS,
        **reasoning.KINDS,
        **reasoning.LIMITS,
        "reasoning_effort": labels.KINDS["reasoning_effort"],
        **labels.CACHE_HINTS,
    },
    {"best_of": (1,), "echo": (False,), "add_special_tokens": (False,)},
    ("model", "messages"),
)

COMPLETIONS = _route(
    {
        "prompt": prompts_kind(MOST_PROMPTS, empty=True),
        "max_tokens": sampling.TOKENS_OR_NONE,
        "max_new_tokens": sampling.TOKENS_OR_NONE,
        "logprobs": _TOP_LOGPROBS,
        "best_of": Integer(0, lambda limits: limits.most_choices),
        "echo": Boolean(),
        "add_special_tokens": Boolean(),
        "response_format": structured.format_kind(),
        **structured.KINDS,
        **labels.CACHE_HINTS,
    },
    {"max_completion_tokens": (), **dict.fromkeys(reasoning.LIMITS, ())},
    ("model",),
)

MOVED = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "max_new_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "verbosity": "text.verbosity",
}
"""Parameters that have another place in the Responses API."""


def _responses(
    honoured: Mapping[str, Kind], checked: Mapping[str, Kind], refused: dict[str, tuple[Any, ...]]
) -> Parameters:
    """The shared parameters, without those that have another place here, no effect, or are refused."""
    refused = {**REFUSED, **dict.fromkeys(MOVED, ()), **refused}
    less = _without({**labels.KINDS, **_PEERS, **checked}, [*refused, *honoured])
    served = _without({**_SAMPLING, **honoured}, [*refused, *less])
    return Parameters(served, less, _refusals(refused), ("model", "input"))


RESPONSES = _responses(
    {
        "input": INPUT,
        "instructions": String(),
        "previous_response_id": String(),
        "store": Boolean(),
        "max_output_tokens": sampling.TOKENS,
        "text": Object(
            {"format": structured.format_kind(flat=True), "verbosity": Words(labels.VERBOSITIES)}, closed=True
        ),
        "include": INCLUDE,
        "tools": response_tools.TOOLS,
        "tool_choice": response_tools.TOOL_CHOICE,
        "parallel_tool_calls": Boolean(),
        "top_logprobs": _TOP_LOGPROBS,
        "chat_template_kwargs": TEMPLATE_OPTIONS,
        **structured.KINDS,
        **reasoning.KINDS,
        **reasoning.LIMITS,
        **labels.CACHE_HINTS,
        "reasoning": Object(
            {"effort": Words(labels.EFFORTS), "summary": Words(("auto", "concise", "detailed"))}
        ),
    },
    {
        "max_tool_calls": Integer(1, MOST_TOKENS),
        "stream_options": Object({"include_obfuscation": Boolean()}, closed=True),
    },
    {
        "conversation": (),
        "prompt": (),
        "background": (False,),
        "truncation": ("disabled",),
        "context_management": ([],),
        "n": (1,),
        "logprobs": (False,),
    },
)

_TO_TOKENIZE = {**_TOOLS, **_CONVERSATION}

TOKENIZE = Parameters(
    {
        "model": MODEL,
        "prompt": String(),
        "content": String(),
        "inputs": String(),
        "messages": MESSAGES,
        "add_special_tokens": Boolean(),
        "add_special": Boolean(),
        "with_pieces": Boolean(),
        "return_token_strs": Boolean(),
        **_TO_TOKENIZE,
    },
    {},
    _refusals({"parse_special": (True,), "chat_template": (), "mm_processor_kwargs": ()}),
)

CHAT_TOKENIZE = Parameters(
    {"model": MODEL, "messages": MESSAGES, **_TO_TOKENIZE},
    {},
    _refusals({"tool_prompt": (), "guideline": ()}),
    ("messages",),
)

DETOKENIZE = Parameters(
    {"model": MODEL, "tokens": Shape(ids_schema)},
    {},
    _refusals({"skip_special_tokens": (True,)}),
    ("tokens",),
)

EMBEDDINGS = Parameters(
    {
        "model": MODEL,
        "input": prompts_kind(MOST_INPUTS, empty=False),
        "encoding_format": Words(("float", "base64")),
        "priority": PRIORITY,
    },
    {"user": labels.KINDS["user"], "request_id": String()},
    _refusals(
        {
            "dimensions": (),
            "truncate_prompt_tokens": (),
            "messages": (),
            "add_special_tokens": (True,),
            "normalize": (True,),
            "embd_normalize": (2,),
            "embed_dtype": ("float32",),
            "endianness": ("native", "little"),
            "mm_processor_kwargs": (),
        }
    ),
    ("model", "input"),
)

BATCHES = Parameters(
    {
        "input_file_id": String(),
        "endpoint": Words(BATCH_ENDPOINTS),
        "completion_window": Shape({"type": "string", "pattern": f"^{BATCH_WINDOW}$"}),
        "metadata": labels.KINDS["metadata"],
    },
    {},
    _refusals({"output_expires_after": ()}),
    ("input_file_id", "endpoint", "completion_window"),
)
