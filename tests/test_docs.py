"""The README is held to its word: flags, commands, routes, files and exit codes exist, none is missing."""

import ast
import re
from pathlib import Path

import typer
from sanic import Sanic

from distaff.server import exit_codes
from distaff.server.app import create_app
from distaff.server.command.cli import app as command_line
from distaff.server.settings import ServerSettings
from distaff.server.testing import FakeEngine

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def _options(command: str) -> set[str]:
    parameters = typer.main.get_command(command_line).commands[command].params
    return {name for parameter in parameters for name in parameter.opts if name.startswith("--")} - {"--help"}


def test_every_flag_of_serve_is_in_the_readme_and_no_other() -> None:
    """The table of flags is the command line's own."""
    table = re.findall(r"^\| `(--[a-z-]+)` \|", README, re.MULTILINE)
    assert set(table) == _options("serve")
    assert len(table) == len(set(table))


def test_every_command_is_in_the_readme() -> None:
    """Nothing on the command line goes unmentioned."""
    for command in typer.main.get_command(command_line).commands:
        assert f"distaff {command}" in README


def test_every_route_is_in_the_readme_and_no_other() -> None:
    """The table of routes is the app's own."""
    Sanic.test_mode = True
    app = create_app(ServerSettings(model="m"), FakeEngine())
    served = {_plain(f"/{route.path}") for route in app.router.routes}
    Sanic._app_registry.clear()
    listed = {_plain(path) for path in re.findall(r"`(?:GET|POST) (/[^` ]*)`", README)}
    assert listed == served


def _plain(path: str) -> str:
    """A path without the types and names of its variables."""
    return re.sub(r"[<{][^>}]*[>}]", "*", path)


def test_every_exit_code_is_in_the_readme() -> None:
    """An operator can look up how the process ended."""
    codes = {value for value in vars(exit_codes).values() if isinstance(value, int)}
    for code in codes - {0}:
        assert re.search(rf"\b{code}\b", README), code


def test_every_make_target_in_the_docs_exists() -> None:
    """`make something` in a document is a target of the Makefile."""
    makefile = (ROOT / "Makefile").read_text()
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        for target in re.findall(r"`make ([a-z ]+)", page.read_text()):
            for word in target.split():
                assert re.search(rf"^{word}:", makefile, re.MULTILINE), (page.name, word)


def test_every_file_in_the_readme_exists() -> None:
    """The map shows what is there."""
    for path in re.findall(r"`((?:model|checkpoints|runtime|server|examples|docs)/[\w./-]*)`", README):
        assert (ROOT / path).exists(), path


def test_every_example_is_in_the_readme() -> None:
    """An example that nobody is told of is not found."""
    for path in (ROOT / "examples").glob("*.py"):
        assert f"`examples/{path.name}`" in README, path.name


def test_the_map_lists_modules_that_exist() -> None:
    """Each name in the table of folders is a module of its folder."""
    for folder, row in re.findall(
        r"^\| `(model|checkpoints|runtime|server)/` \| (.*) \|$", README, re.MULTILINE
    ):
        for name in re.findall(r"`([a-z_]+)/?`", row):
            assert (ROOT / folder / f"{name}.py").exists() or (ROOT / folder / name).is_dir(), (folder, name)


def test_python_in_the_readme_is_python() -> None:
    """The examples can at least be read by the machine; tests/system runs what they show."""
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        ast.parse(block)


def test_every_dependency_has_its_reason() -> None:
    """A dependency without a line in docs/decisions.md is one nobody decided on."""
    decisions = (ROOT / "docs" / "decisions.md").read_text()
    project = (ROOT / "pyproject.toml").read_text()
    block = project.split("dependencies = [")[1].split("]\n")[0]
    for name in re.findall(r'"([A-Za-z0-9_-]+)', block):
        assert re.search(rf"\b{re.escape(name)}\b", decisions), name
