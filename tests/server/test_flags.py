"""The flags of `serve`: each declared once, and carried whole from the command line to the engine."""

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from distaff.runtime.device.settings import EngineSettings, platform_of
from distaff.server.command.cli import taking
from distaff.server.flags import Compiled, ServeFlags, Tgi, flag, marked
from distaff.server.worker.from_flags import engine_settings_of

ROOT = Path(__file__).parents[2]
FOLDERS = ("model", "checkpoints", "runtime", "server")
GIVEN = ServeFlags(
    model="m", host="h", port=1, alias=["a"], adapter=["n=f"], max_adapters=2, max_adapter_rank=4,
    any_model=True, context=2, max_input=3, default_max_tokens=4,
    slots=5, max_concurrent=6, max_wait=7.5, max_pause=8.5, prefill_tokens=9, dtype="bfloat16",
    quantize="int8", kv_cache_dtype="int8", kv_pages=10, kv_tokens=35, host_kv_tokens=33, mesh="model=2",
    kernel=["a=b"],
    coordinator="h:1", process_id=1, num_processes=2, replicas=3, no_prefix_cache=True, no_speculation=True,
    deterministic=True, profile=Path("/p"), compiled=Path("/c"), revision="r",
    chat_template=Path("t"), tool_format="hermes", reasoning_format="none", embeddings=True,
    store_responses=7, batches=Path("/b"),
    api_keys=Path("k"), auth="none", allow_origin=["*"], any_origin_with_keys=True,
    health_when_ready=True, no_page=True, strict=True, usage_log=Path("/u"),
    log_level="debug", log_format="json",
)  # fmt: skip
"""Flags of which none has its default value."""


@dataclass
class Cpu:
    """As much of a device as settings depend on."""

    platform: str = "cpu"

    def memory_stats(self) -> None:
        """Unknown."""


def test_all_flags_reach_the_engine_process() -> None:
    assert ServeFlags.from_argument(GIVEN.to_argument()) == GIVEN
    defaults = ServeFlags()
    assert not [
        name for name in ServeFlags.__struct_fields__ if getattr(GIVEN, name) == getattr(defaults, name)
    ]
    assert defaults.to_argument() == "{}"


def test_the_engines_settings_are_the_flags() -> None:
    """Those of a flag's name, and the few that are converted."""
    settings = engine_settings_of(GIVEN, Cpu())
    size = platform_of(Cpu()).page_size
    converted = {
        "kv_pages": 35 // size,
        "host_kv_pages": -(-33 // size),
        "profile": "/p",
        "kernels": (("a", "b"),),
        "prefix_cache": False,
    }
    converted |= {"speculation": False, "grammars": True, "scores": True, "packed_pages": None}
    for field in fields(EngineSettings):
        expected = converted[field.name] if field.name in converted else getattr(GIVEN, field.name)
        assert getattr(settings, field.name) == expected, field.name
    assert engine_settings_of(ServeFlags(), Cpu()) == EngineSettings(grammars=True, scores=True)


def test_a_made_up_flag_is_an_option_after_one_declaration() -> None:
    class More(ServeFlags, frozen=True, kw_only=True):
        patience: Annotated[int, typer.Option(min=2, help="How long.")] = 3

    app, received = typer.Typer(), []
    app.command()(taking(More)(received.append))

    def run(*words: str) -> int:
        return CliRunner().invoke(app, list(words)).exit_code

    assert run("--patience", "4", "--slots", "5") == 0
    assert run("--patience", "1") == 2
    assert received == [More(patience=4, slots=5)]


def test_marks_are_those_of_the_flags() -> None:
    """What hosts must share is compiled; no variable sets two flags."""
    compiled = {name for name, _ in marked(Compiled)}
    assert {"context", "slots", "kernel", "mesh", "deterministic"} <= compiled
    assert not compiled & {"model", "port", "process_id", "max_wait", "log_level"}
    variables = [mark.variable for _, mark in marked(Tgi)]
    assert len(variables) == len(set(variables)) > 0
    assert flag("kv_cache_dtype") == "--kv-cache-dtype"


@pytest.mark.parametrize("name", ["kv_tokens", "health_when_ready", "no_prefix_cache"])
def test_a_flag_is_spelt_in_few_files(name: str) -> None:
    """Where it is declared and where it is used."""
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    word = re.compile(rf"\b{name.replace('_', '[-_]')}\b")
    spelt = [path for path in paths if word.search(path.read_text())]
    assert ROOT / "server" / "flags.py" in spelt
    assert len(spelt) <= 3, spelt
