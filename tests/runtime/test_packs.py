"""Packs of compiled steps: what JAX finds in one, and when one is not used."""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from distaff.model.errors import ConfigError
from distaff.runtime import packs
from distaff.runtime.packs import MANIFEST_FILE, PROGRAMS_FOLDER, PackWriter, open_pack

FACTS = {"the jaxlib version": "0.10.2", "--slots": "8", "the model's configuration": "widths " * 20}
SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
    "jax_persistent_cache_enable_xla_caches",
)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restores JAX's cache after a test, and forgets what listens to it."""
    before = {name: jax.config.values[name] for name in SETTINGS}
    added = []
    listen = jax.monitoring.register_event_listener
    monkeypatch.setattr(jax.monitoring, "register_event_listener", lambda f: (added.append(f), listen(f)))
    yield
    for listener in added:
        jax.monitoring.unregister_event_listener(listener)
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def compile_one(size: int) -> None:
    """Compiles a program, or loads it from the cache."""
    jax.jit(lambda x: x @ x + 1).lower(jax.ShapeDtypeStruct((size, size), jnp.float32)).compile()


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    """A pack of two programs, for 7 pages."""
    writer = PackWriter(tmp_path / "pack")
    writer.begin(FACTS)
    compile_one(3)
    compile_one(4)
    assert not (tmp_path / "pack").exists()
    assert writer.finish(7) == 2
    return tmp_path / "pack"


def refused(pack: Path, caplog: pytest.LogCaptureFixture, facts=FACTS, pages=None) -> str:
    """Why a pack is not used: one line."""
    caplog.clear()
    assert open_pack(pack, facts, pages) is None
    (record,) = caplog.records
    assert record.levelname == "WARNING" and record.getMessage().count("\n") == 0
    return record.getMessage()


def test_a_program_in_a_pack_is_not_compiled_again(pack: Path, caplog: pytest.LogCaptureFixture):
    """Wherever the pack lies now; a program that it lacks is compiled, and the pack stays as it is."""
    moved = Path(shutil.move(pack, pack.with_name("elsewhere")))
    before = sorted(path.name for path in moved.rglob("*"))
    opened = open_pack(moved, FACTS)
    assert opened is not None and opened.pages == 7
    opened.use()
    compile_one(3)
    assert (opened.requested, opened.found) == (1, 1)
    with caplog.at_level(logging.INFO, logger=packs.__name__):
        opened.report()
        assert "all 1 programs so far" in caplog.records[-1].getMessage()
    compile_one(5)
    assert (opened.requested, opened.found) == (2, 1)
    opened.report()
    assert "lacks 1 of 2 programs" in caplog.records[-1].getMessage()
    assert sorted(path.name for path in moved.rglob("*")) == before


def test_what_differs_is_named(pack: Path, caplog: pytest.LogCaptureFixture):
    """Each difference with both values, unless they are long."""
    assert open_pack(pack, FACTS, 7) is not None
    line = refused(pack, caplog, FACTS | {"the jaxlib version": "0.11", "--slots": "4"})
    assert "--slots is '4', in the pack '8'; the jaxlib version is '0.11', in the pack '0.10.2'" in line
    assert str(pack) in line
    line = refused(pack, caplog, FACTS | {"the model's configuration": "other widths"})
    assert line.endswith("the model's configuration is another one")
    assert "the pages of the KV pool is '9', in the pack '7'" in refused(pack, caplog, pages=9)
    assert "the processor is 'new', in the pack None" in refused(
        pack, caplog, FACTS | {"the processor": "new"}
    )


@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_a_flipped_bit_is_found(pack: Path, caplog: pytest.LogCaptureFixture, where: str):
    path = sorted((pack / PROGRAMS_FOLDER).iterdir())[0]
    content = bytearray(path.read_bytes())
    content[{"first": 0, "middle": len(content) // 2, "last": -1}[where]] ^= 1
    path.write_bytes(content)
    assert f"{path} is damaged" in refused(pack, caplog)


def test_a_part_that_is_missing_or_too_much_is_found(pack: Path, caplog: pytest.LogCaptureFixture):
    """JAX would load any file with a fitting name, so one that is not listed is refused too."""
    path = sorted((pack / PROGRAMS_FOLDER).iterdir())[0]
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    assert f"{path} is damaged: 100 bytes" in refused(pack, caplog)
    path.unlink()
    assert f"{path} is missing" in refused(pack, caplog)
    path.write_bytes(whole)
    (pack / PROGRAMS_FOLDER / "jit_x-cache").touch(mode=0o644)
    assert "jit_x-cache is missing, or not listed" in refused(pack, caplog)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is damaged"),
        (b'{"format": 1, "facts', "is damaged"),
        (b"\xff\xfe", "is damaged"),
        (b'{"format": 1, "facts": {}, "pages": "many", "files": {}}', "is damaged"),
        (b'{"format": 2, "facts": {}, "pages": 1, "files": {}}', "its format is 2; expected 1"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_refused(pack: Path, caplog, content: bytes, reason: str):
    (pack / MANIFEST_FILE).write_bytes(content)
    assert reason in refused(pack, caplog)


def test_a_folder_that_is_no_pack_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    assert "No such file" in refused(tmp_path, caplog)


def test_a_pack_that_others_can_change_is_refused(pack: Path, caplog, monkeypatch: pytest.MonkeyPatch):
    """Its files, its folders and its manifest: programs are machine code."""
    program = next((pack / PROGRAMS_FOLDER).iterdir())
    for part in (pack, pack / PROGRAMS_FOLDER, pack / MANIFEST_FILE, program):
        mode = part.stat().st_mode & 0o777
        for wider in (0o020, 0o002):
            part.chmod(mode | wider)
            assert f"other users can change {part}" in refused(pack, caplog)
        part.chmod(mode)
    monkeypatch.setattr(packs.os, "geteuid", lambda: pack.stat().st_uid + 1)
    if pack.stat().st_uid:  # root's packs are everybody's
        assert "belongs to user" in refused(pack, caplog)


def test_a_finished_pack_is_not_replaced_but_an_unfinished_one_is(pack: Path):
    partial = pack.with_name("new.partial")
    (partial / PROGRAMS_FOLDER / "old").mkdir(parents=True)
    writer = PackWriter(pack.with_name("new"))
    writer.begin(FACTS)
    compile_one(6)
    assert writer.finish(1) == 1
    with pytest.raises(ConfigError, match="exists; expected the name of a new folder"):
        PackWriter(pack)
