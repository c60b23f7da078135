"""What the routes answer, as JSON Schema: the keys that clients rely on, and their types.

OpenAI's own document describes its answers in full; nothing is parsed with these schemas.
"""

from ..kinds import TEXT, Schema, constant, nullable, record

_COUNT: Schema = {"type": "integer", "minimum": 0}
_FLAG: Schema = {"type": "boolean"}
_OBJECT: Schema = {"type": "object"}
_ID = _COUNT


def _listed(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _word(*words: str) -> Schema:
    return {"type": "string", "enum": list(words)}


_COUNTS = {"prompt_tokens": _COUNT, "total_tokens": _COUNT}
_USAGE = record(
    {**_COUNTS, "completion_tokens": _COUNT},
    {"prompt_tokens_details": _OBJECT, "completion_tokens_details": _OBJECT},
)
_HEADING = {"id": TEXT, "created": _COUNT, "model": TEXT, "usage": _USAGE, "system_fingerprint": TEXT}
_REASON = _word("stop", "length", "tool_calls")
_CALL = record(
    {"id": TEXT, "type": constant("function"), "function": record({"name": TEXT, "arguments": TEXT})}
)
_MESSAGE = record(
    {"role": constant("assistant"), "content": nullable(TEXT)},
    {"refusal": TEXT, "tool_calls": _listed(_CALL), "reasoning_content": TEXT, "reasoning": TEXT},
)

CHAT = record(
    {
        **_HEADING,
        "object": constant("chat.completion"),
        "choices": _listed(
            record({"index": _COUNT, "message": _MESSAGE, "finish_reason": _REASON}, {"logprobs": _OBJECT})
        ),
    }
)
COMPLETION = record(
    {
        **_HEADING,
        "object": constant("text_completion"),
        "choices": _listed(
            record({"index": _COUNT, "text": TEXT, "finish_reason": _REASON}, {"logprobs": _OBJECT})
        ),
    }
)
RESPONSE = record(
    {
        "id": TEXT,
        "object": constant("response"),
        "created_at": _COUNT,
        "model": TEXT,
        "status": _word("completed", "incomplete"),
        "output": _listed(_OBJECT),
        "usage": record({"input_tokens": _COUNT, "output_tokens": _COUNT, "total_tokens": _COUNT}),
        "temperature": {"type": "number"},
        "top_p": {"type": "number"},
        "presence_penalty": {"type": "number"},
        "frequency_penalty": {"type": "number"},
        "parallel_tool_calls": _FLAG,
        "tools": _listed(_OBJECT),
        "store": _FLAG,
    },
    {"error": _OBJECT, "incomplete_details": _OBJECT, "instructions": TEXT, "max_output_tokens": _COUNT},
)
RESPONSE_TOKENS = record({"object": constant("response.input_tokens"), "input_tokens": _COUNT})
DELETED_RESPONSE = record({"id": TEXT, "object": constant("response"), "deleted": _FLAG})
_BLOCK: Schema = {
    "anyOf": [
        record({"type": constant("text"), "text": TEXT}),
        record({"type": constant("tool_use"), "id": TEXT, "name": TEXT, "input": _OBJECT}),
    ]
}
_STOPS = ("end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded")
_INPUT_COUNTS = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
MESSAGE = record(
    {
        "id": TEXT,
        "type": constant("message"),
        "role": constant("assistant"),
        "model": TEXT,
        "content": _listed(_BLOCK),
        "stop_reason": _word(*_STOPS),
        "usage": record(dict.fromkeys((*_INPUT_COUNTS, "output_tokens"), _COUNT)),
    },
    {"stop_sequence": TEXT},
)
MESSAGE_TOKENS = record({"input_tokens": _COUNT})
_VECTOR: Schema = {"anyOf": [_listed({"type": "number"}), TEXT]}
EMBEDDINGS = record(
    {
        "object": constant("list"),
        "model": TEXT,
        "data": _listed(record({"object": constant("embedding"), "index": _COUNT, "embedding": _VECTOR})),
        "usage": record(_COUNTS),
    }
)
GENERATED = record({"generated_text": TEXT}, {"details": _OBJECT})
GENERATED_LIST = _listed(GENERATED)
INFO = record(
    {
        "model_id": TEXT,
        "max_concurrent_requests": _COUNT,
        "max_stop_sequences": _COUNT,
        "max_input_tokens": _COUNT,
        "max_total_tokens": _COUNT,
        "version": TEXT,
    }
)
_SPANS = _listed(record({"id": _ID, "text": TEXT, "start": _COUNT, "stop": _COUNT}))
_PIECE = record({"id": _ID, "piece": {"anyOf": [TEXT, _listed(_COUNT)]}})
TOKENIZED: Schema = {
    "anyOf": [
        record(
            {"count": _COUNT, "max_model_len": _COUNT, "tokens": _listed(_ID)}, {"token_strs": _listed(TEXT)}
        ),
        record({"tokens": {"anyOf": [_listed(_ID), _listed(_PIECE)]}}),
        _SPANS,
    ]
}
CHAT_TOKENIZED = record({"tokenize_response": _SPANS, "templated_text": TEXT})
DETOKENIZED = record({"prompt": TEXT, "content": TEXT})
RENDERED = record(
    {
        "request_id": TEXT,
        "model": TEXT,
        "token_ids": _listed(_ID),
        "sampling_params": _OBJECT,
        "stream": _FLAG,
        "cache_salt": nullable(TEXT),
    }
)
RENDERED_LIST = _listed(RENDERED)
SERVER_INFO = record({"served_model_name": TEXT, "version": TEXT})
TOKENIZER = record(
    {"model_max_length": _COUNT, "tokenizer_class": TEXT},
    {"bos_token": TEXT, "eos_token": TEXT, "pad_token": TEXT, "chat_template": TEXT},
)
MODEL = record(
    {"id": TEXT, "object": constant("model"), "created": _COUNT, "owned_by": TEXT},
    {"max_model_len": _COUNT, "root": TEXT, "parent": TEXT},
)
MODELS = record({"object": constant("list"), "data": _listed(MODEL)})
CAPABILITIES = record(
    {"object": constant("capabilities"), "model": TEXT, "defaults": _OBJECT, "routes": _OBJECT}
)
FILE = record(
    {
        "id": TEXT,
        "object": constant("file"),
        "bytes": _COUNT,
        "created_at": _COUNT,
        "filename": TEXT,
        "purpose": _word("batch", "batch_output"),
        "status": constant("processed"),
    }
)
DELETED = record({"id": TEXT, "object": constant("file"), "deleted": _FLAG})
BATCH = record(
    {
        "id": TEXT,
        "object": constant("batch"),
        "endpoint": TEXT,
        "input_file_id": TEXT,
        "completion_window": TEXT,
        "status": _word(
            *("validating", "failed", "in_progress", "finalizing", "completed", "expired"),
            *("cancelling", "cancelled"),
        ),
        "created_at": _COUNT,
        "expires_at": _COUNT,
        "request_counts": record(dict.fromkeys(("total", "completed", "failed"), _COUNT)),
    },
    {"errors": _OBJECT, "output_file_id": TEXT, "error_file_id": TEXT, "metadata": _OBJECT, "model": TEXT},
)


def _page(items: Schema) -> Schema:
    return record(
        {"object": constant("list"), "data": _listed(items), "has_more": _FLAG},
        {"first_id": TEXT, "last_id": TEXT},
    )


FILES = _page(FILE)
BATCHES = _page(BATCH)
VERSION = record({"version": TEXT})
READY = record({"status": constant("ready"), "ready": _COUNT, "replicas": _COUNT})
STATUS = record({"status": TEXT}, {"ready": _COUNT, "replicas": _COUNT})
PROFILING = record({"profiling": _FLAG})
DOCUMENT = record({"openapi": TEXT, "info": _OBJECT, "paths": _OBJECT})

ERROR = record(
    {"error": record({"message": TEXT, "type": TEXT, "param": nullable(TEXT), "code": nullable(TEXT)})}
)
"""Of all routes except TGI's and Anthropic's."""
TGI_ERROR = record({"error": TEXT, "error_type": _word("validation", "overloaded", "generation")})
ANTHROPIC_ERROR = record(
    {"type": constant("error"), "error": record({"type": TEXT, "message": TEXT}), "request_id": TEXT}
)
