"""GET / and /page/…: the chat page, for people; `--no-page` turns it off.

Sends files of `server/page/`. The policy lets the page run its own scripts and talk to this server, and
nothing else: no inline script or style, no other host, no text that becomes HTML.
"""

from urllib.parse import unquote

from sanic import Blueprint, HTTPResponse

from ..answering.context import ApiRequest
from ..errors import ApiError
from ..page import PREFIX, page_files

blueprint = Blueprint("page")

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
"""The Content-Security-Policy of every file. Source: https://www.w3.org/TR/CSP3/"""


@blueprint.route("/", methods=["GET", "HEAD"])
async def index(request: ApiRequest) -> HTTPResponse:
    """The page itself."""
    return _sent(request, "/")


@blueprint.route("/page/<name:path>", methods=["GET", "HEAD"])
async def file(request: ApiRequest, name: str) -> HTTPResponse:
    """A script, a style or an image of the page."""
    return _sent(request, PREFIX + unquote(name).removesuffix("/"))


def _sent(request: ApiRequest, path: str) -> HTTPResponse:
    """The file at a path; without its body if the browser has this version already."""
    if request.app.ctx.settings.flags.no_page:
        raise ApiError(404, "The page is off: the server was started with --no-page.")
    found = page_files().get(path)
    if found is None:
        raise ApiError(404, f"The page has no file {path!r}.")
    headers = {
        "cache-control": "no-cache",
        "content-security-policy": POLICY,
        "etag": found.tag,
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if found.tag in known:
        return HTTPResponse(status=304, headers=headers)
    return HTTPResponse(found.body, headers=headers, content_type=found.type)
