"""The documents are true: flags, commands, routes, files and exit codes exist, and none is missing."""

import ast
import re
from pathlib import Path

import pytest
import typer
from sanic import Sanic

from distaff.checkpoints.huggingface.families import FAMILIES
from distaff.server import exit_codes
from distaff.server.app import create_app
from distaff.server.command.cli import app as command_line
from distaff.server.endings import CUT_SHORT, REFUSALS
from distaff.server.settings import ServerSettings
from distaff.server.testing import FakeEngine

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SERVING = (ROOT / "docs" / "serving.md").read_text()
API = (ROOT / "docs" / "api.md").read_text()
CLIENTS = (ROOT / "docs" / "clients.md").read_text()
WALK = (ROOT / "docs" / "architecture.md").read_text()
FOLDERS = ("model", "checkpoints", "runtime", "server")
PAGES = [
    path
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
    if path.name != "decisions.md"
]
"""Every document about the present; decisions are about the past, too."""


def _options(command: str) -> set[str]:
    parameters = typer.main.get_command(command_line).commands[command].params
    return {name for parameter in parameters for name in parameter.opts if name.startswith("--")} - {"--help"}


def test_readme_is_short_and_has_two_commands() -> None:
    """A first visitor reads it in minutes, and needs two commands."""
    assert len(README.splitlines()) <= 120
    commands = re.findall(r"^make .*?(?= *#|$)", README, re.MULTILINE)
    assert commands == ["make serve", "make test"]


def test_every_flag_of_serve_is_documented_and_no_other() -> None:
    """The table of flags is the command line's own."""
    table = re.findall(r"^\| `(--[a-z-]+)` \|", SERVING, re.MULTILINE)
    assert set(table) == _options("serve")
    assert len(table) == len(set(table))


def test_every_flag_of_bench_is_documented_and_no_other() -> None:
    """Its table may have several in a row."""
    rows = re.findall(r"^\| (`--[^|]*) \|", (ROOT / "docs" / "benchmarking.md").read_text(), re.MULTILINE)
    table = [name for row in rows for name in re.findall(r"`(--[a-z-]+)`", row)]
    (negated,) = {name for name in table if name.startswith("--no-")}
    assert set(table) == _options("bench") | {negated}
    assert len(table) == len(set(table))


def test_every_command_is_documented() -> None:
    """Nothing on the command line is missing."""
    for command in typer.main.get_command(command_line).commands:
        assert f"distaff {command}" in SERVING


def test_every_route_is_documented_and_no_other() -> None:
    """The table of routes is the app's own, with its methods."""
    Sanic.test_mode = True
    app = create_app(ServerSettings(model="m"), FakeEngine())
    routes = [(route.methods & {"GET", "POST"}, _plain(f"/{route.path}")) for route in app.router.routes]
    served = {f"{method} {path}" for methods, path in routes for method in methods}
    Sanic._app_registry.clear()
    rows = re.findall(r"^\| (`(?:GET|POST) /.*?) \|", API, re.MULTILINE)
    listed = [_plain(named) for row in rows for named in re.findall(r"`((?:GET|POST) /[^` ]*)`", row)]
    assert set(listed) == served
    assert len(listed) == len(set(listed))
    assert {_plain(named) for named in re.findall(r"`((?:GET|POST) /[^` ]*)`", API)} == served


def _plain(path: str) -> str:
    """A path without the types and names of its variables."""
    return re.sub(r"[<{][^>}]*[>}]", "*", path)


def test_every_exit_code_is_documented() -> None:
    """An operator can look up how the process ended."""
    codes = {value for value in vars(exit_codes).values() if isinstance(value, int)}
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", SERVING, re.MULTILINE)}
    assert listed == codes | {0, 2}


def test_every_reason_of_a_refusal_or_an_early_end_is_documented() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    for metric, reasons in (("refusals", REFUSALS), ("calls_cut_short", CUT_SHORT)):
        row = re.search(rf"^\| `distaff_{metric}_total{{reason}}` \|(.*)\|$", page, re.MULTILINE)
        assert row and re.findall(r"`(\w+)`", row[1]) == list(reasons)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_what_a_page_names_exists(page: Path) -> None:
    """Targets of the Makefile, files of ours, other pages and their sections."""
    text, makefile = page.read_text(), (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([a-z -]+)", text):
        for word in target.split():
            assert re.search(rf"^{word}:", makefile, re.MULTILINE), word
    for path in re.findall(
        r"`((?:model|checkpoints|runtime|server|tests|examples|docs|deploy)/[\w./-]*)`", text
    ):
        assert (ROOT / path).exists(), path
    for link, section in re.findall(r"\]\(([\w./-]*)(?:#([\w-]+))?\)", text):
        target = page.parent / link if link else page
        assert target.exists(), link
        headings = re.findall(r"^#+ (.*)", target.read_text(), re.MULTILINE) if section else []
        assert not section or section in {heading.lower().replace(" ", "-") for heading in headings}, section


def test_every_page_can_be_found() -> None:
    """The README leads to every document."""
    for page in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{page.name})" in README, page.name


def test_every_example_is_documented() -> None:
    """An example that no document names is not found."""
    installed = {"requirements.txt", "constraints.txt"}
    for path in (ROOT / "examples").glob("*.*"):
        assert path.name in installed or f"`examples/{path.name}`" in CLIENTS, path.name


def test_the_map_has_every_folder_and_modules_that_exist() -> None:
    """Each name in the table of folders is a module of its folder, and no folder is missing."""
    rows = re.findall(r"^\| (`[a-z_`/, ]+`) \| (.*) \|$", README, re.MULTILINE)
    assert rows
    listed = set()
    for cell, row in rows:
        folders = re.findall(r"`([a-z_/]+)/`", cell)
        listed |= set(folders)
        if folders[0].split("/")[0] in FOLDERS:
            for name in re.findall(r"`([a-z_]+)`", row):
                assert any((ROOT / folder / f"{name}.py").exists() for folder in folders), (folders, name)
    packages = {path.parent for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    assert {package.relative_to(ROOT).as_posix() for package in packages} <= listed
    assert all((ROOT / folder).is_dir() for folder in listed)


def test_a_request_passes_at_most_thirty_files() -> None:
    """The walk is numbered without a gap, and passes no file twice."""
    rows = re.findall(r"^\| (\d+) \| `([\w/]+\.py)` \|", WALK, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, len(rows) + 1))
    assert len({path for _, path in rows}) == len(rows) <= 30


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_python_in_the_documents_is_python(page: Path) -> None:
    """The examples can at least be read by the machine; tests/system runs what they show."""
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        ast.parse(block)


def test_every_dependency_has_its_reason() -> None:
    """A dependency without a line in docs/decisions.md is one nobody decided on."""
    decisions = (ROOT / "docs" / "decisions.md").read_text()
    project = (ROOT / "pyproject.toml").read_text()
    block = project.split("dependencies = [")[1].split("]\n")[0]
    for name in re.findall(r'"([A-Za-z0-9_-]+)', block):
        assert re.search(rf"\b{re.escape(name)}\b", decisions), name


def test_every_family_is_documented() -> None:
    """docs/models.md has a row for every family, and its index every key that a family reads itself."""
    text = (ROOT / "docs" / "models.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", text.split("## Keys")[0], re.MULTILINE)) >= FAMILIES.keys()
    index = set(re.findall(r"`(\w+)`", text.split("## Keys")[1]))
    dropout = {"embd_pdrop", "resid_pdrop"}
    assert index >= {key for family in FAMILIES.values() for key in family.keys} - dropout
