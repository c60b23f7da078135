"""`distaff pack`, and the starts of engines with its packs: real processes, each with an empty cache."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from distaff.checkpoints.store_writer import convert
from distaff.server import exit_codes
from distaff.server.flags import ServeFlags

from ...checkpoints.making import save_random_folder

SMALL = {"slots": 4, "context": 64, "prefill_tokens": 16}
WORDS = [word for name, value in SMALL.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def run(words: list[str], cache: Path) -> tuple[int, str, list[str]]:
    """Runs Python with a cache folder; returns its code, its output and its warnings."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, *words], env=environment, capture_output=True, text=True, timeout=240
    )
    lines = done.stderr.splitlines()
    return done.returncode, done.stdout, [line for line in lines if " INFO " not in line]


def start(cache: Path, model: Path, **flags: Any) -> tuple[dict[str, Any], list[str]]:
    """Starts an engine once; returns what it did (see `start_once.py`) and its warnings."""
    argument = ServeFlags(model=str(model), **{**SMALL, **flags}).to_argument()
    code, out, warnings = run([str(Path(__file__).with_name("start_once.py")), argument], cache)
    assert code == 0, warnings
    return json.loads(out.splitlines()[-1]), warnings


def pack(cache: Path, *words: str) -> tuple[int, str, list[str]]:
    """Runs `distaff pack`."""
    return run(["-m", "distaff.server.command.cli", "pack", *words], cache)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model's store."""
    folder = tmp_path_factory.mktemp("models")
    convert(save_random_folder(folder / "hf"), folder / "store")
    return folder / "store"


@pytest.fixture(scope="module")
def packed(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its pack."""
    destination = store.with_name("store.compiled")
    cache = tmp_path_factory.mktemp("cache")
    code, out, warnings = pack(cache, str(store), str(destination), *WORDS)
    assert (code, out, warnings) == (0, f"{destination}\n", [])
    assert not list(cache.rglob("*-cache"))
    return destination


@pytest.fixture(scope="module")
def unpacked(store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a start without a pack does."""
    found, warnings = start(tmp_path_factory.mktemp("cold"), store)
    assert warnings == [] and found["compiled"] > found["steps"] > 2
    return found


def test_a_start_with_a_pack_compiles_nothing(store: Path, packed: Path, unpacked, tmp_path: Path):
    """Neither before it is ready nor later, and says the same; nothing is written anywhere."""
    before = sorted((path, path.stat().st_mtime) for path in packed.rglob("*"))
    found, warnings = start(tmp_path, store, compiled=packed)
    assert warnings == []
    assert found == unpacked | {"compiled": 0}
    assert sorted((path, path.stat().st_mtime) for path in packed.rglob("*")) == before
    assert not list(tmp_path.rglob("*-cache"))


def test_a_damaged_pack_costs_a_warning(store: Path, packed: Path, unpacked, tmp_path: Path):
    """The engine compiles, as if there were no pack, and keeps what it compiles in the cache."""
    damaged = Path(shutil.copytree(packed, tmp_path / "damaged"))
    step = next(damaged.glob("programs/jit_step-*"))
    step.write_bytes(step.read_bytes()[:-20])
    found, (warning,) = start(tmp_path / "cache", store, compiled=damaged)
    assert f"{step} is damaged" in warning
    assert found == unpacked
    assert len(list((tmp_path / "cache").rglob("*-cache"))) == unpacked["compiled"]


def test_a_pack_for_other_settings_or_another_model_costs_a_warning(packed: Path, tmp_path: Path):
    """The warning says what is different."""
    other = save_random_folder(tmp_path / "hf", num_hidden_layers=1)
    found, (warning,) = start(tmp_path / "cache", other, compiled=packed, slots=2)
    assert "--slots is '2', in the pack '4'; the model's configuration is another one" in warning
    assert found["compiled"] > 0 and len(found["tokens"]) == 12


def test_a_pack_is_written_under_a_new_name(store: Path, packed: Path, tmp_path: Path):
    """One that exists is left alone, and so is any other folder."""
    for taken in (packed, tmp_path):
        code, out, (line,) = pack(tmp_path, str(store), str(taken))
        assert (code, out) == (exit_codes.REFUSED_SETTING, "")
        assert line == f"distaff: {taken} exists; expected the name of a new folder"
