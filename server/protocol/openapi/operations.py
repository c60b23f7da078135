"""The operations of the API: for each one its body, its answers and its errors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ...metrics import CONTENT_TYPE as METRICS_TYPE
from ...page import PREFIX, page_files
from ..anthropic.parameters import COUNT, MESSAGE
from ..kinds import TEXT, Limits, Schema, constant, record
from ..openai.parameters import (
    BATCHES,
    CHAT,
    CHAT_TOKENIZE,
    COMPLETIONS,
    DETOKENIZE,
    EMBEDDINGS,
    MODEL,
    RESPONSES,
    TOKENIZE,
)
from ..table import Parameters
from ..tgi.generate import GENERATE
from . import answers
from .meanings import MEANINGS, OWN_MEANINGS

EVENTS = "text/event-stream"

_BODY_ERRORS = (400, 404, 408, 413, 415, 429, 500, 503)
_TGI_ERRORS = (422, 424, 429)
_ANTHROPIC_ERRORS = (400, 404, 408, 413, 415, 429, 500, 529)
_SPOKEN = [{"role": "user", "content": "Hello!"}]

_FUNCTION = {
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
_MESSAGE_TOOL = {"name": _FUNCTION["name"], "input_schema": _FUNCTION["parameters"]}
_ABSENT: Schema = {"not": {}}

BodySchema = Callable[[Limits], Schema]


@dataclass(frozen=True, kw_only=True, slots=True)
class Operation:
    """One operation.

    Attributes:
      answer: the schema of a JSON answer. types: the other content types of its answers.
      body: the schema of its body. example: a body, without the name of the model.
      errors: the statuses of its errors. tgi: those that have TGI's shape. anthropic: all have Anthropic's.
      open: needs no key. named: the path's variable. names: the schema of its values.
      form: the schema of a multipart body. query: the schemas of the query's parameters.
    """

    summary: str
    answer: Schema | None
    types: tuple[str, ...] = ()
    body: BodySchema | None = None
    example: Mapping[str, Any] | None = None
    errors: tuple[int, ...] = ()
    tgi: tuple[int, ...] = ()
    anthropic: bool = False
    open: bool = False
    named: str | None = None
    names: BodySchema = MODEL.schema
    form: BodySchema | None = None
    query: Mapping[str, Schema] = field(default_factory=dict)


def _described(parameters: Parameters, route: str, limits: Limits) -> Schema:
    """A body's schema, each parameter with its meaning."""
    meanings = MEANINGS | OWN_MEANINGS.get(route, {})
    schema = parameters.schema(limits)
    for name, each in schema["properties"].items():
        refused = name in parameters.refused
        meaning = "refused unless it changes nothing" if refused else meanings.get(name)
        if meaning is not None:
            schema["properties"][name] = each | {"description": meaning}
    return schema


def _posting(
    summary: str,
    parameters: Parameters,
    answer: Schema,
    example: Mapping[str, Any],
    *,
    route: str = "",
    streams: bool = False,
    anthropic: bool = False,
) -> Operation:
    """An operation with a table of parameters for its body."""
    return Operation(
        summary=summary,
        answer=answer,
        types=(EVENTS,) if streams else (),
        body=lambda limits: _described(parameters, route, limits),
        example=example,
        errors=_ANTHROPIC_ERRORS if anthropic else _BODY_ERRORS,
        anthropic=anthropic,
    )


def _generating(summary: str, answer: Schema | None, *, streams: bool = False) -> Operation:
    """An operation of TGI's."""
    return Operation(
        summary=summary,
        answer=answer,
        types=(EVENTS,) if streams else (),
        body=_generate_schema,
        example={"inputs": "Once upon a time"},
        errors=(*_TGI_ERRORS, 408, 413, 415),
        tgi=_TGI_ERRORS,
    )


def _asking(summary: str, answer: Schema, *errors: int, named: str | None = None) -> Operation:
    """An operation without a body."""
    return Operation(summary=summary, answer=answer, errors=errors, named=named)


def _stored(summary: str, answer: Schema | None, *types: str) -> Operation:
    """An operation on a file, a batch or a response."""
    return Operation(
        summary=summary, answer=answer, types=types, errors=(400, 404), named="id", names=lambda _: TEXT
    )


def _pages(summary: str, answer: Schema, most: int, **query: Schema) -> Operation:
    """A list in pages."""
    limit = {"type": "integer", "minimum": 1, "maximum": most}
    return Operation(
        summary=summary, answer=answer, errors=(400, 404), query={"limit": limit, "after": TEXT, **query}
    )


def _upload(limits: Limits) -> Schema:
    """The form of an upload."""
    file = TEXT | {"format": "binary", "minLength": 1}
    others = {"additionalProperties": False} if limits.strict else {}
    return record({"purpose": constant("batch"), "file": file}) | others


def _generate_schema(limits: Limits) -> Schema:
    """TGI's routes ignore unknown keys on every server, as TGI does."""
    return GENERATE.schema(replace(limits, strict=False))


def _of_some_kind(limits: Limits) -> Schema:
    """The body of /tokenize: one of four keys holds the text."""
    keys = ("prompt", "messages", "content", "inputs")
    described = _described(TOKENIZE, "", limits)
    return described | {"anyOf": [_only(key, keys, described) for key in keys]}


def _only(key: str, keys: tuple[str, ...], described: Schema) -> Schema:
    """One of the keys, not null, and none of the others."""
    given = {"not": {"type": "null"}}
    return {
        "required": [key],
        "properties": {each: given if each == key else {"type": "null"} for each in keys},
    }


def _of_three_kinds(limits: Limits) -> Schema:
    """The body of /invocations; a key tells the three kinds apart."""
    chat, completion = CHAT.schema(limits), COMPLETIONS.schema(limits)
    chat["properties"]["inputs"] = completion["properties"]["inputs"] = _ABSENT
    completion["properties"]["messages"] = _ABSENT
    completion["required"] = [*completion["required"], "prompt"]
    return {"anyOf": [_generate_schema(limits), chat, completion]}


OPERATIONS: dict[tuple[str, str], Operation] = {
    ("post", "/v1/chat/completions"): _posting(
        "Answer a conversation, whole or as a stream.",
        CHAT,
        answers.CHAT,
        {"messages": _SPOKEN, "tools": [{"type": "function", "function": _FUNCTION}]},
        streams=True,
    ),
    ("post", "/v1/chat/completions/render"): _posting(
        "The ids and parameters that the same request would have, as vLLM does.",
        CHAT,
        answers.RENDERED,
        {"messages": _SPOKEN},
    ),
    ("post", "/v1/responses"): _posting(
        "Answer a conversation in OpenAI's newer protocol, whole or as a stream.",
        RESPONSES,
        answers.RESPONSE,
        {"input": "Hello!", "tools": [{"type": "function", **_FUNCTION}]},
        route="/v1/responses",
        streams=True,
    ),
    ("post", "/v1/responses/input_tokens"): _posting(
        "The tokens of a response's prompt.",
        RESPONSES,
        answers.RESPONSE_TOKENS,
        {"input": "Hello!", "tools": [{"type": "function", **_FUNCTION}]},
        route="/v1/responses",
    ),
    ("get", "/v1/responses/{id}"): _stored(
        "A response that is stored, with `--store-responses`.", answers.RESPONSE
    ),
    ("delete", "/v1/responses/{id}"): _stored("Drop a stored response.", answers.DELETED_RESPONSE),
    ("post", "/v1/messages"): _posting(
        "Answer a conversation in Anthropic's protocol, whole or as a stream.",
        MESSAGE,
        answers.MESSAGE,
        {"messages": _SPOKEN, "max_tokens": 100, "tools": [_MESSAGE_TOOL]},
        route="/v1/messages",
        streams=True,
        anthropic=True,
    ),
    ("post", "/v1/messages/count_tokens"): _posting(
        "The tokens of a message's prompt.",
        COUNT,
        answers.MESSAGE_TOKENS,
        {"messages": _SPOKEN, "tools": [_MESSAGE_TOOL]},
        route="/v1/messages/count_tokens",
        anthropic=True,
    ),
    ("post", "/v1/completions"): _posting(
        "Continue a text, whole or as a stream.",
        COMPLETIONS,
        answers.COMPLETION,
        {"prompt": "Once upon a time"},
        route="/v1/completions",
        streams=True,
    ),
    ("post", "/v1/completions/render"): _posting(
        "The same for each prompt of a completion.",
        COMPLETIONS,
        answers.RENDERED_LIST,
        {"prompt": "Once upon a time"},
        route="/v1/completions",
    ),
    ("post", "/v1/embeddings"): _posting(
        "A vector for each text, with `--embeddings`.",
        EMBEDDINGS,
        answers.EMBEDDINGS,
        {"input": "A text"},
    ),
    ("post", "/generate"): _generating("Continue a text, as TGI does.", answers.GENERATED),
    ("post", "/generate_stream"): _generating("The same as a stream.", None, streams=True),
    ("post", "/"): _generating("Either, by `stream`.", answers.GENERATED_LIST, streams=True),
    ("get", "/"): Operation(
        summary="The chat page; needs no key.", answer=None, types=("text/html",), errors=(404,), open=True
    ),
    ("get", "/page/{name}"): Operation(
        summary="A file of the chat page; needs no key.",
        answer=None,
        types=("text/css", "text/javascript", "text/plain", "image/svg+xml"),
        errors=(404,),
        open=True,
        named="name",
        names=lambda limits: {"enum": [path.removeprefix(PREFIX) for path in page_files() if path != "/"]},
    ),
    ("get", "/info"): Operation(
        summary="What is served, in TGI's keys.", answer=answers.INFO, errors=(429,), tgi=(429,)
    ),
    ("post", "/invocations"): Operation(
        summary="As the root, a chat or a completion, by its keys.",
        answer={"anyOf": [answers.GENERATED_LIST, answers.CHAT, answers.COMPLETION]},
        types=(EVENTS,),
        body=_of_three_kinds,
        example={"inputs": "Once upon a time"},
        errors=(404, *_TGI_ERRORS, 408, 413, 415),
        tgi=(404, *_TGI_ERRORS),
    ),
    ("post", "/tokenize"): Operation(
        summary="Text or a conversation to ids.",
        answer=answers.TOKENIZED,
        body=_of_some_kind,
        example={"prompt": "A text"},
        errors=_BODY_ERRORS,
    ),
    ("post", "/chat_tokenize"): _posting(
        "A conversation to ids, as TGI does.", CHAT_TOKENIZE, answers.CHAT_TOKENIZED, {"messages": _SPOKEN}
    ),
    ("post", "/detokenize"): _posting("Ids to text.", DETOKENIZE, answers.DETOKENIZED, {"tokens": [1, 2]}),
    ("get", "/tokenizer_info"): _asking(
        "Named tokens and the chat template, as vLLM does.", answers.TOKENIZER, 503
    ),
    ("get", "/v1/models"): _asking(
        "The models served, in Anthropic's shape for its clients; 503 while no requests are accepted.",
        answers.MODELS,
        503,
    ),
    ("get", "/v1/models/{name}"): _asking("One of them.", answers.MODEL, 404, 503, named="name"),
    ("get", "/server_info"): _asking("What SGLang's router reads of a server.", answers.SERVER_INFO),
    ("get", "/v1/capabilities"): _asking("What becomes of every parameter.", answers.CAPABILITIES, 503),
    ("post", "/v1/files"): Operation(
        summary="Upload the input of a batch, with `--batches`.",
        answer=answers.FILE,
        form=_upload,
        errors=(400, 404, 408, 413, 500),
    ),
    ("get", "/v1/files"): _pages(
        "The files of the key, newest first.",
        answers.FILES,
        10_000,
        order={"type": "string", "enum": ["asc", "desc"]},
        purpose={"type": "string", "enum": ["batch", "batch_output"]},
    ),
    ("get", "/v1/files/{id}"): _stored("One of them.", answers.FILE),
    ("delete", "/v1/files/{id}"): _stored("Remove it.", answers.DELETED),
    ("get", "/v1/files/{id}/content"): _stored("Its bytes.", None, "application/octet-stream"),
    ("post", "/v1/batches"): _posting(
        "Answer the requests of a file while the server is idle, with `--batches`.",
        BATCHES,
        answers.BATCH,
        {"input_file_id": "file-…", "endpoint": "/v1/chat/completions", "completion_window": "24h"},
        route="/v1/batches",
    ),
    ("get", "/v1/batches"): _pages("The batches of the key, newest first.", answers.BATCHES, 100),
    ("get", "/v1/batches/{id}"): _stored("One of them.", answers.BATCH),
    ("post", "/v1/batches/{id}/cancel"): _stored("End it early.", answers.BATCH),
    ("get", "/version"): _asking("Of the server.", answers.VERSION),
    ("get", "/openapi.json"): _asking("This document.", answers.DOCUMENT),
    ("get", "/docs"): Operation(summary="This document as a page.", answer=None, types=("text/html",)),
    ("get", "/health"): Operation(
        summary="Whether the engine is alive; needs no key.", answer=answers.STATUS, errors=(503,), open=True
    ),
    ("get", "/ping"): Operation(
        summary="The same, for TGI's and SageMaker's clients.",
        answer=answers.STATUS,
        errors=(503,),
        open=True,
    ),
    ("get", "/ready"): Operation(
        summary="Whether requests are taken, and by how many engines of how many; needs no key.",
        answer=answers.READY,
        errors=(503,),
        open=True,
    ),
    ("get", "/metrics"): Operation(summary="Figures for Prometheus.", answer=None, types=(METRICS_TYPE,)),
    ("post", "/start_profile"): _asking("Begin a profile, with `--profile`.", answers.PROFILING, 404, 503),
    ("post", "/stop_profile"): _asking("Write it.", answers.PROFILING, 404, 503),
}
