"""The chat page as files: what is served, under which headers, to whom; a browser runs it elsewhere."""

import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import httpx
import pytest

from distaff.server.command.welcome import welcome
from distaff.server.keys import Keys
from distaff.server.page import FOLDER, page_files

ROOT = Path(__file__).parents[3]
SOURCES = sorted(path for path in FOLDER.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc"))
OURS = [path for path in SOURCES if path.parent == FOLDER]


def test_the_page_is_at_the_root(http):
    reply = http.get("/")
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert reply.text == (FOLDER / "index.html").read_text()


def test_every_file_is_served_and_no_other(http):
    """Those of the folder, byte for byte, with their own types."""
    for path in SOURCES:
        name = path.relative_to(FOLDER).as_posix()
        reply = http.get("/" if name == "index.html" else f"/page/{name}")
        assert (reply.status_code, reply.content) == (200, path.read_bytes()), name
        assert (path.suffix == ".js") == reply.headers["content-type"].startswith("text/javascript")
    assert len(page_files()) == len(SOURCES)
    for name in (
        "__init__.py",
        "index.html",
        "nothing.js",
        "../routes/page.py",
        "%2e%2e/app.py",
        "vendor",
        "",
    ):
        reply = http.get(f"/page/{name}")
        assert reply.status_code == 404 and reply.json()["error"]["type"] == "invalid_request_error", name


@pytest.mark.parametrize("path", ["/", "/page/app.js", "/page/vendor/marked.esm.js"])
def test_the_headers_are_strict(http, path):
    """Nothing inline, no other host, no HTML from text; a copy is used only after asking."""
    headers = http.get(path).headers
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert {policy[name] for name in ("script-src", "style-src", "connect-src")} == {"'self'"}
    assert policy["require-trusted-types-for"] == "'script'" and policy["trusted-types"] == "'none'"
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-cache"
    head = http.head(path)
    assert (head.status_code, head.content, head.headers["etag"]) == (200, b"", headers["etag"])


def test_a_browser_that_has_a_file_gets_none(http):
    tag = http.get("/page/app.js").headers["etag"]
    for given in (tag, f"W/{tag}", f'"other", {tag}'):
        reply = http.get("/page/app.js", headers={"if-none-match": given})
        assert (reply.status_code, reply.content, reply.headers["etag"]) == (304, b"", tag)
    assert http.get("/page/app.js", headers={"if-none-match": '"other"'}).status_code == 200


def test_tgis_root_is_as_before(http):
    """POST / generates; only GET and HEAD are the page."""
    assert http.post("/", json={"inputs": "x"}).json() == [{"generated_text": "Hello, world!"}]
    assert set(http.put("/").headers["allow"].split(", ")) >= {"GET", "HEAD", "POST"}


def test_the_page_needs_no_key_and_all_else_does(make_server):
    """It asks for the key itself."""
    server = make_server(keys=Keys(["a-key-that-is-long-enough"]))
    for path in page_files():
        for method in ("GET", "HEAD"):
            assert httpx.request(method, server.url + path).status_code == 200, path
        assert httpx.post(server.url + path, json={"inputs": "x"}).status_code == 401
    for path in ("/page/nothing.js", "/page/", "/page", "/page/app.js/x", "/page/../metrics"):
        assert httpx.get(server.url + path).status_code == 401, path


def test_it_can_be_turned_off(make_server):
    server = make_server(no_page=True)
    for path in ("/", "/page/app.js"):
        reply = httpx.get(server.url + path)
        assert reply.status_code == 404 and "--no-page" in reply.json()["error"]["message"]
    assert httpx.post(server.url, json={"inputs": "x"}).status_code == 200
    keyed = make_server(no_page=True, keys=Keys(["a-key-that-is-long-enough"]))
    assert httpx.get(keyed.url).status_code == httpx.get(keyed.url + "/page/app.js").status_code == 401


def test_the_welcome_names_it():
    assert "Chat in a browser: http://127.0.0.1:8000/\n" in welcome("http://127.0.0.1:8000", "m", False, True)
    assert "browser" not in welcome("http://127.0.0.1:8000", "m", False, False)


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.name)
def test_no_source_makes_html_of_text(path):
    """No inline script, style or handler, and no name of another host that would be fetched."""
    text = path.read_text()
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text
    )
    assert not re.search(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son\w+=\"", text)
    assert not re.search(r"""(?:src|href)="(?:https?:)?//|from "https?:|url\(["']?(?:https?:)?//""", text)


def test_every_module_is_used():
    """A file that no other file names is dead."""
    texts = {path: path.read_text() for path in SOURCES}
    for path in SOURCES:
        name = path.relative_to(FOLDER).as_posix()
        if name != "index.html" and "vendor/" not in name:
            assert any(name in text for other, text in texts.items() if other != path), name


def test_every_file_is_in_the_package():
    """The patterns of pyproject.toml find what an editable installation finds."""
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for path in SOURCES:
        name = path.relative_to(FOLDER).as_posix()
        assert any(fnmatch(name, pattern) for pattern in data["distaff.server.page"]), name


def test_the_vendored_library_has_its_licence_and_version():
    notice = (FOLDER / "vendor" / "README.txt").read_text()
    version = re.search(r"marked v(\S+) -", (FOLDER / "vendor" / "marked.esm.js").read_text())
    assert version and f"marked {version[1]}," in notice
    licence = (FOLDER / "vendor" / "marked.LICENSE.txt").read_text()
    assert "MIT" in notice and "Permission is hereby granted, free of charge" in licence
