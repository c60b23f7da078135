"""The house's walls: who may import whom, what stays free of JAX, and what product code never touches.

Read from the syntax trees, so imports inside functions and under TYPE_CHECKING count as well.
"""

import ast
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("model", "checkpoints", "runtime", "server")
MAY_IMPORT = {
    "model": {"model"},
    "checkpoints": {"checkpoints", "model"},
    "runtime": {"runtime", "model"},
    "server": set(FOLDERS),
}
ROOTS = {
    "distaff.server.command.cli",
    "distaff.server.worker.main",
    "distaff.server.worker.follower",
    "distaff.server.worker.from_flags",
    "distaff.server.worker.packing",
    "distaff.server.worker.refusals",
    "distaff.server.command.serve",
    "distaff.runtime.llm",
}
"""The places that put the parts together."""

FACADE = {"distaff.runtime.llm", "distaff.runtime.texts"}
"""The interface for scripts, with models by name and texts."""

ENGINES = {
    "distaff.server.worker.main",
    "distaff.server.worker.follower",
    "distaff.server.worker.packing",
}
"""The modules of the server that are an engine process's main."""

LOOSE = ("model", "checkpoints", "runtime", "server")
"""Folders whose own files are nodes of the table: some are below the folders beside them, some above."""

SHARED = {"runtime/request", "server/encode", "server/engine_client", "server/errors", "server/exit_codes"}
"""What any part of the server may know: the request, the seam to the engine, errors, codes."""
ARROWS = {
    "model/kernels": {"model"},
    "model/kernels/cpu": {"model", "model/kernels"},
    "model/kernels/gpu": {"model", "model/kernels"},
    "model/kernels/tpu": {"model", "model/kernels"},
    "checkpoints/tokenization": {"model", "checkpoints"},
    "checkpoints/grammars": {"checkpoints"},
    "checkpoints/huggingface": {"model", "checkpoints", "checkpoints/huggingface/tensors"},
    "checkpoints/huggingface/tensors": {"model", "checkpoints"},
    "checkpoints/gguf": {"model", "checkpoints", "checkpoints/tokenization", "checkpoints/quantizing"},
    "checkpoints/quantizing": {"model", "checkpoints", "checkpoints/store"},
    "checkpoints/store": {"model", "checkpoints"},
    "checkpoints/training": {"model", "checkpoints", "checkpoints/huggingface"},
    "checkpoints/downloads": {"checkpoints"},
    "runtime/policy": {"model", "runtime/request"},
    "runtime/device": {
        *{"model", "model/kernels", "runtime/policy"},
        *{"runtime/request", "runtime/options", "runtime/threads"},
    },
    "runtime/cluster": {"model", "runtime/device", "runtime/framing", "runtime/options"},
    "runtime/capacity": {"model", "model/kernels", "model/kernels/tpu", "runtime/device"},
    "server/tool_formats": {"checkpoints/grammars"},
    "server/reasoning": {"checkpoints/grammars"},
    "server/bench": {"model", "server/exit_codes", "server/flags", "server/quotas"},
    "server/dispatch": SHARED,
    "server/quotas": {*SHARED, "model"},
    "server/usage": {"model", "server/process", "server/protocol"},
    "server/page": set(),
    "server/process": {"server/exit_codes", "server/keys"},
    "server/engines": {*SHARED, "runtime/framing", "server/dispatch", "server/process"},
    "server/worker": {
        *{
            *SHARED,
            "model",
            "model/kernels",
            "checkpoints",
            "checkpoints/grammars",
            "server/engines",
            "server/flags",
        },
        *{"server/logs", "server/process", "server/settings"},
        *{"runtime/cluster", "runtime/compilation_cache", "runtime/device", "runtime/devices"},
        *{"runtime/engine", "runtime/framing", "runtime/options", "runtime/packs", "runtime/policy"},
        "runtime/threads",
    },
    "server/protocol": {*SHARED, "checkpoints", "checkpoints/grammars", "server/tool_formats"},
    "server/text": {
        *{*SHARED, "checkpoints", "checkpoints/tokenization", "runtime/framing", "server/process"},
        *{"server/protocol", "server/reasoning", "server/tool_formats"},
    },
    "server/protocol/openai": {*SHARED, "server/protocol", "server/text", "server/tool_formats"},
    "server/protocol/anthropic": {
        *{*SHARED, "server/protocol", "server/protocol/openai", "server/text", "server/tool_formats"},
    },
    "server/protocol/tgi": {*SHARED, "server/protocol", "server/text"},
    "server/protocol/openapi": {
        *{"server/metrics", "server/protocol", "server/protocol/openai", "server/protocol/tgi"},
        *{"server/page", "server/protocol/anthropic"},
    },
    "server/batches": {
        *{*SHARED, "model", "checkpoints", "server/protocol", "server/protocol/openai"},
    },
    "server/answering": {
        *{*SHARED, "server/batches"},
        *{"model", "checkpoints", "checkpoints/grammars", "runtime/validation", "server/dispatch"},
        *{
            "server/endings",
            "server/http",
            "server/quotas",
            "server/usage",
            "server/call_record",
            "server/metrics",
            "server/protocol",
        },
        *{"server/protocol/openai", "server/reasoning", "server/settings", "server/text"},
        *{"server/page", "server/protocol/anthropic", "server/tool_formats", "server/tracing"},
    },
    "server/ray_serve": {
        *{*SHARED, "model", "server/answering", "server/command", "server/dispatch", "server/flags"},
        *{"server/keys", "server/process", "server/protocol", "server/protocol/anthropic"},
        *{"server/protocol/tgi", "server/settings"},
    },
    "server/routes": {
        *{*SHARED, "model", "server/answering", "server/dispatch", "server/metrics", "server/protocol"},
        *{"server/protocol/openai", "server/protocol/openapi", "server/protocol/tgi", "server/settings"},
        *{"server/page", "server/protocol/anthropic", "server/text", "server/versions"},
        "server/batches",
    },
    "server/command": {
        *{*SHARED, "model", "checkpoints", "runtime/capacity", "server/answering", "server/app"},
        *{"server/bench", "server/dispatch", "server/engines", "server/flags", "server/keys", "server/logs"},
        *{"server/process", "server/settings", "server/text", "server/versions", "server/worker"},
        *{"server/batches", "server/quotas", "server/tracing"},
    },
}
"""Which folders a folder may import, the loose files of `LOOSE` by their own names; `model` and `checkpoints`
stand for all their loose files. No other arrow exists, and none that nobody needs is in the table."""

HOST = [
    *("distaff.model.config", "distaff.model.parameters", "distaff.model.errors"),
    "distaff.runtime.request",
    *(f"distaff.runtime.policy.{path.stem}" for path in (ROOT / "runtime/policy").glob("[a-z]*.py")),
    "distaff.checkpoints.tokenizer",
]
"""Policy and text, in use where there is no accelerator and no JAX."""

JAX = ("jax", "jaxlib", "flax", "orbax")
OF_EXTRAS = ("ray", "aiohttp", "yarl")
"""Packages that only an extra installs; `server/ray_serve` is for those who have it."""
UNSAFE = ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "torch", "jax._src")
UNSAFE_NAMES = ("eval", "exec", "__import__", "allow_pickle", "trust_remote_code")


@dataclass(frozen=True)
class Module:
    """A file of ours under the name by which it is imported."""

    name: str
    path: Path

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"

    @property
    def folder(self) -> str:
        return self.name.split(".")[1]

    @property
    def package(self) -> str:
        return self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]

    @cached_property
    def imports(self) -> set[str]:
        """Every module that the file names in an import anywhere, absolute."""
        return {name for name, _ in imported(parse(self.path), self.package)}

    @cached_property
    def immediate(self) -> set[str]:
        """The modules that importing the file imports: not those inside functions or for types alone."""
        return {name for name, late in imported(parse(self.path), self.package) if not late}


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported(node: ast.AST, package: str, late: bool = False) -> Iterator[tuple[str, bool]]:
    """`(module or name in it, whether only on a call or for types)` of every import below a node."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, late) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = absolute(child, package)
            yield from ((name, late) for name in (base, *(f"{base}.{alias.name}" for alias in child.names)))
        else:
            deferred = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) or for_types(child)
            yield from imported(child, package, late or deferred)


def absolute(node: ast.ImportFrom, package: str) -> str:
    """What an import statement with leading dots means inside a package."""
    if not node.level:
        return node.module or ""
    parent = package.split(".")[: len(package.split(".")) - node.level + 1]
    return ".".join([*parent, *([node.module] if node.module else [])])


def for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def product() -> dict[str, Module]:
    """Every module of the four folders, by name."""
    found = {}
    for path in (path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))):
        parts = ["distaff", *path.relative_to(ROOT).with_suffix("").parts]
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = Module(name, path)
    return found


MODULES = product()


def lazy_homes() -> dict[str, str]:
    """Where the names that a package exports lazily live: `distaff.runtime.LLM` in `distaff.runtime.llm`."""
    found = {}
    for module in (module for module in MODULES.values() if module.path.name == "__init__.py"):
        assigned = [node for node in parse(module.path).body if isinstance(node, ast.Assign | ast.AnnAssign)]
        for table in (node.value for node in assigned if isinstance(node.value, ast.Dict)):
            for name, home in zip(table.keys, table.values, strict=True):
                if isinstance(name, ast.Constant) and isinstance(home, ast.Constant):
                    found[f"{module.name}.{name.value}"] = ".".join([module.name, home.value.lstrip(".")])
    return found


LAZY = lazy_homes()


def is_under(name: str, *tops: str) -> bool:
    """Whether a dotted name is one of these or lies within one."""
    return any(name == top or name.startswith(top + ".") for top in tops)


def reached(name: str) -> set[str]:
    """What importing one of our modules imports, directly and through others of ours, parents included."""
    seen, waiting = set(), [name]
    while waiting:
        name = waiting.pop()
        name = LAZY.get(name, name)
        if name in seen:
            continue
        seen.add(name)
        if name in MODULES:
            waiting += [*MODULES[name].immediate, *([name.rpartition(".")[0]] if "." in name else [])]
    return seen


@cache
def needs_jax(name: str) -> bool:
    return any(is_under(found, *JAX) for found in reached(name))


def test_reader_sees_every_kind_of_import() -> None:
    """The reader of imports resolves dots and finds what hides in functions and conditions."""
    source = """
        import jax.numpy as jnp
        from . import pages
        from ..model.config import ModelConfig
        if TYPE_CHECKING:
            from flax import nnx
        def late():
            import pickle
    """
    found = set(imported(ast.parse(textwrap.dedent(source)), "distaff.runtime"))
    assert found == {
        *{("jax.numpy", False), ("distaff.runtime", False), ("distaff.runtime.pages", False)},
        *{("distaff.model.config", False), ("distaff.model.config.ModelConfig", False)},
        *{("flax", True), ("flax.nnx", True), ("pickle", True)},
    }


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_go_one_way(folder: str) -> None:
    """model <- checkpoints, model <- runtime, all <- server; in runtime only the facade knows checkpoints."""
    mine = [module for module in MODULES.values() if module.folder == folder]
    assert mine
    for module in mine:
        allowed = MAY_IMPORT[folder] | ({"checkpoints"} if module.name in FACADE else set())
        crossed = {name.split(".")[1] for name in module.imports if name.startswith("distaff.")}
        assert crossed & set(FOLDERS) <= allowed, module.name


def node_of(module: Module) -> str:
    """A module's folder, or the module itself where it is a loose file of `LOOSE`."""
    path = module.path.relative_to(ROOT)
    folder = path.parent.as_posix()
    loose = folder in LOOSE and path.name != "__init__.py"
    return f"{folder}/{path.stem}" if loose else folder


def home_of(name: str) -> str | None:
    """The module that an imported name is, or is in; None for a package alone, which stands for its parts."""
    if name in MODULES:
        return None if MODULES[name].is_package else name
    home = name.rpartition(".")[0]
    return home if home in MODULES else None


def arrows(by: Callable[[Module], str]) -> dict[str, set[str]]:
    """Who imports whom, late imports and those for types included."""
    found: dict[str, set[str]] = {by(module): set() for module in MODULES.values()}
    for module in MODULES.values():
        homes = {home for name in module.imports if (home := home_of(LAZY.get(name, name)))}
        found[by(module)] |= {by(MODULES[home]) for home in homes} - {by(module)}
    return found


def circle(graph: dict[str, set[str]]) -> list[str]:
    """One of a graph's circles; empty if there is none."""
    done: set[str] = set()

    def walk(node: str, way: list[str]) -> list[str]:
        if node in way:
            return way[way.index(node) :]
        if node not in done:
            for other in sorted(graph[node]):
                if found := walk(other, [*way, node]):
                    return found
        done.add(node)
        return []

    return next((found for node in sorted(graph) if (found := walk(node, []))), [])


def shorthand(node: str) -> str:
    """How the table names a loose file of `model` or `checkpoints`: by its folder."""
    folder = node.partition("/")[0]
    return folder if folder in ("model", "checkpoints") else node


def test_arrows_between_folders_are_those_of_the_table() -> None:
    """Every one that exists is allowed, and every one that is allowed exists, but for those to `SHARED`."""
    found = arrows(node_of)
    folders = {node for node in found if (ROOT / node).is_dir() and node not in LOOSE}
    assert folders == set(ARROWS)
    for folder in folders:
        reaches = {shorthand(node) if node not in folders else node for node in found[folder]}
        assert reaches <= ARROWS[folder], folder
        assert ARROWS[folder] - SHARED <= reaches, folder


def test_nothing_imports_in_a_circle() -> None:
    """Neither folders nor files."""
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    assert circle(arrows(node_of)) == []
    assert circle(arrows(lambda module: module.name)) == []


def test_own_imports_are_relative_inside_the_four_folders() -> None:
    """Inside the product no import names `distaff` or one of its folders from the top."""
    for module in MODULES.values():
        for node in ast.walk(parse(module.path)):
            tops = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                tops = [node.module or ""]
            assert not [name for name in tops if is_under(name, "distaff", *FOLDERS)], module.name


def test_others_import_distaff_by_its_name() -> None:
    """Tests, examples and benchmarks never import a bare `model`: that would load a second copy."""
    paths = [path for folder in ("tests", "examples", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    assert paths
    for path in (path for path in paths if "node_modules" not in path.parts):
        package = ".".join(path.parent.relative_to(ROOT).parts)
        bare = {name for name, _ in imported(parse(path), package) if is_under(name, *FOLDERS)}
        assert not bare, path


def test_roots_alone_join_engine_and_checkpoints() -> None:
    """Only the composition roots import both the parts of the runtime that need JAX and checkpoints."""
    for module in (module for module in MODULES.values() if module.name not in ROOTS):
        devices = {n for n in module.imports if is_under(n, "distaff.runtime") and needs_jax(n)}
        readers = {n for n in module.imports if is_under(n, "distaff.checkpoints")}
        assert not (devices and readers), (module.name, devices, readers)


def test_web_side_never_names_jax() -> None:
    """Outside the roots nothing in the server imports JAX or a part that needs it, not even in a function."""
    for module in (m for m in MODULES.values() if m.folder == "server" and m.name not in ROOTS):
        assert not [name for name in module.imports if is_under(name, *JAX) or needs_jax(name)], module.name


@pytest.mark.parametrize("name", HOST)
def test_host_policy_needs_no_jax(name: str) -> None:
    """Neither policy nor text imports JAX, also not through others of ours."""
    assert name in MODULES
    assert not needs_jax(name), sorted(found for found in reached(name) if is_under(found, *JAX))


def test_host_and_web_run_without_jax() -> None:
    """A process that imports all policy, text and web modules has loaded no JAX, whoever else they import."""
    web = [name for name, m in MODULES.items() if m.folder == "server" and name not in ENGINES]
    web = [name for name in web if not any(is_under(found, *OF_EXTRAS) for found in reached(name))]
    program = f"""
        import importlib, sys
        for name in {[*(name for name in HOST if name in MODULES), *web]!r}:
            importlib.import_module(name)
            loaded = sorted(set({JAX!r}) & set(sys.modules))
            assert not loaded, (name, loaded)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT.parent, check=False)
    assert done.returncode == 0, done.stderr


def test_only_its_own_folder_needs_an_extra() -> None:
    """Ray and its client library are imported in one folder, which no other imports."""
    for module in MODULES.values():
        inside = is_under(module.name, "distaff.server.ray_serve")
        assert inside or not any(is_under(found, *OF_EXTRAS) for found in reached(module.name)), module.name
        assert inside or not any(is_under(n, "distaff.server.ray_serve") for n in module.imports), module.name


@pytest.mark.parametrize("package", ["distaff.checkpoints", "distaff.runtime"])
def test_names_imported_on_first_use_have_a_home(package: str) -> None:
    """Each module in the tables of lazy imports exists."""
    for home in import_module(package)._HOMES.values():
        assert f"{package}.{home.lstrip('.')}" in MODULES


@pytest.mark.parametrize("name", MODULES)
def test_nothing_unsafe(name: str) -> None:
    """No pickle, no torch, no evaluated text, no code from a checkpoint, and nothing private of JAX."""
    module = MODULES[name]
    assert not [found for found in module.imports if is_under(found, *UNSAFE)]
    for node in ast.walk(parse(module.path)):
        if isinstance(node, ast.Attribute):
            assert node.attr != "_src", f"{module.path}:{node.lineno}"
        if isinstance(node, ast.Call):
            named = [node.func.id] if isinstance(node.func, ast.Name) else []
            named += [keyword.arg for keyword in node.keywords if _is_on(keyword)]
            assert not set(named) & set(UNSAFE_NAMES), f"{module.path}:{node.lineno}"


def _is_on(keyword: ast.keyword) -> bool:
    return not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False)


def test_every_package_is_installed() -> None:
    """The packages that setuptools installs are exactly the folders with modules in them."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert sorted(settings["packages"]) == sorted({module.package for module in MODULES.values()})
