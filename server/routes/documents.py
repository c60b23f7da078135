"""GET /openapi.json and /docs: the description of the API, for programs and for people."""

import re
from dataclasses import replace
from html import escape
from typing import Any

from sanic import Blueprint, HTTPResponse

from ..answering.context import ApiRequest, AppContext
from ..encode import to_json
from ..protocol.kinds import Limits
from ..protocol.openapi.document import document
from ..protocol.openapi.meanings import accepted
from ..versions import own_version

blueprint = Blueprint("documents")

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "code{font-size:.95em}details,.plain{margin:.4rem 0}.plain{padding-left:1.05rem}"
    "table{border-collapse:collapse;margin:.5rem 0 1rem}"
    "td,th{border:1px solid #ccc;padding:.2rem .6rem;text-align:left;vertical-align:top}"
    ".method{display:inline-block;width:3.5rem;font-weight:600}"
)
_POLICY = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'",
    "x-content-type-options": "nosniff",
}


@blueprint.route("/openapi.json", methods=["GET", "HEAD"])
async def openapi(request: ApiRequest) -> HTTPResponse:
    """The OpenAPI document."""
    return HTTPResponse(to_json(_document(request)), content_type="application/json")


@blueprint.route("/docs", methods=["GET", "HEAD"])
async def docs(request: ApiRequest) -> HTTPResponse:
    """The OpenAPI document as an HTML page without scripts."""
    found = _document(request)
    rows = [
        _operation(method, path, operation)
        for path, methods in found["paths"].items()
        for method, operation in methods.items()
    ]
    title = f"Distaff {escape(found['info']['version'])}"
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f'<h1>{title}</h1><p>This page as data: <a href="/openapi.json">/openapi.json</a>. Support for '
        f'each parameter: <a href="/v1/capabilities">/v1/capabilities</a>.</p>{"".join(rows)}</html>'
    )
    return HTTPResponse(page, headers=_POLICY, content_type="text/html; charset=utf-8")


def _document(request: ApiRequest) -> dict[str, Any]:
    context = request.app.ctx
    return document(own_version(), _limits(context), keys=context.settings.keys is not None)


def _limits(context: AppContext) -> Limits:
    """The limits of this server, and those of the model once it is loaded."""
    settings, info, text = context.settings, context.engine.info, context.served.text
    limits = Limits(
        most_choices=settings.most_choices,
        strict=settings.flags.strict,
        names=None if settings.flags.any_model else settings.names,
        template_options=frozenset(text.template_options) if text else None,
    )
    return replace(limits, context=info.context, vocabulary=info.vocabulary) if info else limits


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    """One operation; its parameters, if it has any, are collapsed."""
    head = f'<span class="method">{method.upper()}</span> <code>{escape(path)}</code>'
    head += f" &ndash; {_prose(operation['summary'])}"
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    described = body.get("properties", {})
    rows = "".join(_row(name, each) for name, each in described.items() if not _refused(each))
    if not rows:
        return f'<div class="plain">{head}</div>'
    table = f"<table><tr><th>parameter<th>type<th>{rows}</table>"
    refused = ", ".join(
        f"`{name}`{accepted([value for value in each['enum'] if value is not None])}"
        for name, each in sorted(described.items())
        if _refused(each)
    )
    below = f"<p>Refused: {_prose(refused)}.</p>" if refused else ""
    return f"<details><summary>{head}</summary>{table}{below}</details>"


def _refused(schema: dict[str, Any]) -> bool:
    """Whether a parameter is refused, except for the listed values."""
    return "enum" in schema and "type" not in schema


def _row(name: str, schema: dict[str, Any]) -> str:
    meaning = _prose(schema.get("description", ""))
    return f"<tr><td><code>{escape(name)}</code><td>{escape(' or '.join(_types(schema)))}<td>{meaning}"


def _types(schema: dict[str, Any]) -> list[str]:
    """The types of a value, without null."""
    declared = schema.get("type", [])
    found = [declared] if isinstance(declared, str) else list(declared)
    found += [kind for each in schema.get("anyOf", []) for kind in _types(each)]
    return [kind for kind in dict.fromkeys(found) if kind != "null"]


def _prose(text: str) -> str:
    """Text as HTML; backquotes mark code."""
    return re.sub("`([^`]*)`", r"<code>\1</code>", escape(text))
