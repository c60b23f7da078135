"""Text to ids and back, for clients that count tokens: the formats of vLLM, llama.cpp and TGI, chosen by key.

A conversation is rendered in the same way as for a chat completion.
"""

from collections.abc import Sequence
from typing import Any

from sanic import Blueprint, HTTPResponse

from ..answering.context import ApiRequest
from ..answering.prompt import render
from ..answering.read_request import note_unknown, read_body
from ..encode import to_json
from ..errors import BadRequest
from ..protocol.fields import missing
from ..protocol.kinds import Described, Limits
from ..protocol.messages import check_contents, read_messages
from ..protocol.openai.chat import read_model, read_rendering
from ..protocol.openai.parameters import CHAT_TOKENIZE, DETOKENIZE, TOKENIZE
from ..protocol.table import Parameters
from ..protocol.token_ids import no_such_token, read_ids
from ..protocol.tools import read_tools
from ..settings import ServerSettings
from ..text.text_model import SpecialsShown, TextModel, TokenTexts
from ..versions import own_version

blueprint = Blueprint("tokens")

_KEYS = ("prompt", "messages", "content", "inputs")


@blueprint.post("/tokenize")
async def tokenize(request: ApiRequest) -> HTTPResponse:
    """The tokens of `prompt` or `messages` (vLLM), `content` (llama.cpp) or `inputs` (TGI)."""
    context = request.app.ctx
    text, fields = context.served.ready(), await _fields(request, TOKENIZE)
    key = _text_key(fields)
    if key == "messages":
        ids = await request.off_loop.render(_rendered, text, fields)
    else:
        ids = await request.off_loop.run(
            len(request.body), text.encode, fields.get(key), add_special_tokens=_special(fields, key)
        )
    most = context.engine_info().context
    return await request.off_loop.run(8 * len(ids), _tokenized, key, ids, text, most, fields)


@blueprint.post("/chat_tokenize")
async def chat_tokenize(request: ApiRequest) -> HTTPResponse:
    """TGI's route: a conversation's tokens and its text as rendered by the template."""
    context = request.app.ctx
    text, fields = context.served.ready(), await _fields(request, CHAT_TOKENIZE)
    fields.require("messages")
    return await request.off_loop.render(_chat_tokenized, text, fields)


@blueprint.post("/detokenize")
async def detokenize(request: ApiRequest) -> HTTPResponse:
    """The text of `tokens` without special ones; under vLLM's key and llama.cpp's."""
    context = request.app.ctx
    fields = await _fields(request, DETOKENIZE)
    fields.require("tokens")
    ids, vocabulary = read_ids(fields, "tokens") or (), context.engine_info().vocabulary
    wrong = next((token for token in ids if token >= vocabulary), None)
    if wrong is not None:
        raise no_such_token("tokens", wrong, vocabulary)
    text = await request.off_loop.run(8 * len(ids), context.served.ready().decode, ids)
    return _json({"prompt": text, "content": text})


@blueprint.route("/tokenizer_info", methods=["GET", "HEAD"])
async def tokenizer_info(request: ApiRequest) -> HTTPResponse:
    """vLLM's route: the data for clients that render conversations themselves and tokenize them here."""
    context = request.app.ctx
    text = context.served.ready()
    return _json(
        {
            "bos_token": None,
            "eos_token": None,
            "pad_token": None,
            **text.special_tokens,
            "chat_template": text.chat_template,
            "model_max_length": context.engine_info().context,
            "tokenizer_class": "PreTrainedTokenizerFast",
        }
    )


@blueprint.route("/version", methods=["GET", "HEAD"])
async def version(request: ApiRequest) -> HTTPResponse:
    """The version of this server."""
    return _json({"version": own_version()})


async def _fields(request: ApiRequest, parameters: Parameters) -> Described:
    """A body's fields, each checked for its type. Raises BadRequest, ModelNotFound."""

    def read(body: dict[str, Any], settings: ServerSettings) -> Described:
        fields = parameters.fields(body, Limits(strict=settings.flags.strict))
        note_unknown(request.app.ctx, parameters.unknown_keys(fields))
        parameters.refuse_unsupported(fields)
        fields.take_all()
        if "tools" in fields.kinds:
            read_tools(fields)
            read_rendering(fields)
        return fields

    fields = await read_body(request, read)
    if fields.get("model") is not None:
        request.app.ctx.check_model(read_model(fields))
    return fields


def _tokenized(key: str, ids: Sequence[int], text: TextModel, most: int, fields: Described) -> HTTPResponse:
    """The ids in the format of the protocol that uses this key."""
    if key == "content":
        return _json({"tokens": _pieces(ids, text) if fields.get("with_pieces") else list(ids)})
    if key == "inputs":
        return _json(_tgi(list(ids), text))
    return _json(_vllm(list(ids), text, most, fields))


def _chat_tokenized(text: TextModel, fields: Described) -> HTTPResponse:
    tokens = _tgi(list(_rendered(text, fields)), SpecialsShown(text))
    return _json({"tokenize_response": tokens, "templated_text": "".join(token["text"] for token in tokens)})


def _text_key(fields: Described) -> str:
    """The key under which a body holds its text."""
    found = [key for key in _KEYS if fields.get(key) is not None]
    if not found:
        raise missing("prompt")
    if len(found) > 1:
        raise BadRequest(f"Only one of '{found[0]}' and '{found[1]}' can be given.", found[1])
    return found[0]


def _special(fields: Described, key: str) -> bool:
    """Whether to add the model's first token: vLLM's parameter, llama.cpp's, or the default of each."""
    add = fields.get("add_special_tokens")
    add = fields.get("add_special") if add is None else add
    return key != "content" if add is None else add


def _rendered(text: TextModel, fields: Described) -> Sequence[int]:
    if not text.has_template:
        raise BadRequest("This model has no chat template.", "messages")
    messages = read_messages(fields.get("messages"))
    check_contents(fields.get("messages"))
    return render(text, messages, read_tools(fields), read_rendering(fields))


def _vllm(ids: list[int], text: TextModel, context: int, fields: Described) -> dict[str, Any]:
    """The count, the ids, and the tokens' names if they are requested."""
    names = [text.token_name(token) for token in ids] if fields.get("return_token_strs") else None
    return {"count": len(ids), "max_model_len": context, "tokens": ids, "token_strs": names}


def _pieces(ids: Sequence[int], text: TextModel) -> list[dict[str, Any]]:
    """llama.cpp's format: each token with its text, or with its bytes if they are not valid text."""
    return [{"id": token, "piece": _piece(text.token_bytes(token), text.token_name(token))} for token in ids]


def _piece(data: bytes | None, name: str) -> str | list[int]:
    """The text or bytes of a token; the name of a special token, which has no bytes."""
    if data is None:
        return name
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)


def _tgi(ids: list[int], text: TokenTexts) -> list[dict[str, Any]]:
    """TGI's format: each token with the range of characters that it covers."""
    decoder, tokens, place = text.detokenizer(), [], 0
    for token in ids:
        piece = decoder.push(token)
        tokens.append({"id": token, "text": piece, "start": place, "stop": place + len(piece)})
        place += len(piece)
    return tokens


def _json(body: Any) -> HTTPResponse:
    return HTTPResponse(to_json(body), content_type="application/json")
