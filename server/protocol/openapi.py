"""The API as an OpenAPI 3.1 document, made of the tables that the parsers themselves go by.

Bodies are described parameter by parameter; answers by kind only, since OpenAI's own document has them in
full.
"""

from typing import Any

from .meanings import ROUTES, describe

_JSON = "application/json"
_EVENTS = "text/event-stream"

_KINDS = {
    "integer": (
        "max_tokens max_completion_tokens max_new_tokens max_output_tokens max_tool_calls top_k seed n "
        "best_of min_tokens top_logprobs"
    ),
    "number": "temperature top_p min_p frequency_penalty presence_penalty repetition_penalty",
    "boolean": (
        "stream ignore_eos echo add_special_tokens include_stop_str_in_output skip_special_tokens "
        "parallel_tool_calls add_generation_prompt continue_final_message store"
    ),
    "object": (
        "stream_options logit_bias response_format structured_outputs chat_template_kwargs metadata "
        "prompt_cache_options text reasoning"
    ),
    "array": "messages tools include stop_token_ids allowed_token_ids guided_choice",
}
_TYPES = {name: kind for kind, names in _KINDS.items() for name in names.split()}
_SEVERAL = {
    "prompt": ["string", "array"],
    "input": ["string", "array"],
    "stop": ["string", "array"],
    "tool_choice": ["string", "object"],
    "guided_json": ["object", "string"],
    "logprobs": ["boolean", "integer"],
}
_REQUIRED = {
    "/v1/chat/completions": ["model", "messages"],
    "/v1/responses": ["model", "input"],
    "/v1/completions": ["model"],
    "/v1/embeddings": ["model", "input"],
}
_SUMMARIES = {
    "/v1/chat/completions": "Answer a conversation, whole or as a stream.",
    "/v1/responses": "Answer a conversation in OpenAI's newer protocol; nothing is stored.",
    "/v1/completions": "Continue a text, whole or as a stream.",
    "/v1/embeddings": "A vector for each text, with --embeddings.",
}

_OTHERS: list[tuple[str, str, str, list[str]]] = [
    ("post", "/generate", "Continue a text, as TGI does.", ["inputs", "parameters"]),
    ("post", "/generate_stream", "The same as a stream.", ["inputs", "parameters"]),
    ("post", "/", "Either, by `stream`.", ["inputs", "parameters", "stream"]),
    ("get", "/info", "What is served, in TGI's keys.", []),
    ("post", "/invocations", "As the root, or a completion, by its keys.", ["inputs", "messages", "prompt"]),
    ("post", "/tokenize", "Text or a conversation to ids.", ["prompt", "messages", "content", "inputs"]),
    ("post", "/chat_tokenize", "A conversation to ids, as TGI does.", ["messages", "tools"]),
    ("post", "/detokenize", "Ids to text.", ["tokens"]),
    ("get", "/tokenizer_info", "Named tokens and the chat template, as vLLM does.", []),
    ("get", "/v1/models", "The models served.", []),
    ("get", "/v1/models/{name}", "One of them.", []),
    ("get", "/v1/capabilities", "What becomes of every parameter.", []),
    ("get", "/version", "Of the server.", []),
    ("get", "/openapi.json", "This document.", []),
    ("get", "/docs", "This document as a page.", []),
    ("get", "/health", "Whether the engine is alive; needs no key.", []),
    ("get", "/ping", "The same.", []),
    ("get", "/ready", "Whether requests are taken; needs no key.", []),
    ("get", "/metrics", "Figures for Prometheus.", []),
    ("post", "/start_profile", "Begin a profile, with --profile.", []),
    ("post", "/stop_profile", "Write it.", []),
]
"""Method, path, what it does, and the keys of its body."""


def document(version: str, *, keys: bool) -> dict[str, Any]:
    """The document of a server; `keys`: it asks for an API key."""
    paths: dict[str, Any] = {}
    for route in ROUTES:
        paths[route] = {"post": _completion(route)}
    for method, path, summary, names in _OTHERS:
        paths.setdefault(path, {})[method] = _operation(method, path, summary, names)
    found: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "Distaff", "version": version, "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {"schemas": {"Error": _ERROR}},
    }
    if keys:
        found["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        found["security"] = [{"key": []}]
    return found


def _completion(route: str) -> dict[str, Any]:
    """An operation whose body the parameters' table describes."""
    properties = {}
    for entry in describe(route):
        name = entry["name"]
        if entry["status"] != "refused":
            kind = _SEVERAL.get(name) or _TYPES.get(name, "string")
            properties[name] = {"type": kind, "description": entry["meaning"]}
    schema = {"type": "object", "properties": properties, "required": _REQUIRED[route]}
    return {
        "summary": _SUMMARIES[route],
        "requestBody": {"required": True, "content": {_JSON: {"schema": schema}}},
        "responses": _responses({_JSON: {}, _EVENTS: {}}),
    }


def _operation(method: str, path: str, summary: str, names: list[str]) -> dict[str, Any]:
    operation: dict[str, Any] = {"summary": summary, "responses": _responses({_JSON: {}})}
    if "{name}" in path:
        name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
        operation["parameters"] = [name]
    if names:
        schema = {"type": "object", "properties": {name: {} for name in names}}
        operation["requestBody"] = {"required": True, "content": {_JSON: {"schema": schema}}}
    return operation


def _responses(content: dict[str, Any]) -> dict[str, Any]:
    error = {
        "description": "An error.",
        "content": {_JSON: {"schema": {"$ref": "#/components/schemas/Error"}}},
    }
    return {"200": {"description": "The answer.", "content": content}, "4XX": error, "5XX": error}


_TEXT = {"type": "string"}
_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": _TEXT,
                "type": _TEXT,
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
