"""The store: bit-equal to its source, atomic, resumable, and refused if a single bit has changed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distaff.checkpoints import convert, load_parameters, load_tokenizer, open_checkpoint
from distaff.checkpoints.errors import CheckpointError, SourceNotFound
from distaff.checkpoints.store.manifest import Manifest
from distaff.checkpoints.store.store import Store

from ..making import CHATML, gguf_metadata, gguf_tensors, make_model, save_folder, write_gguf


def make_source(folder: Path, kind: str) -> Path:
    if kind == "gguf":
        model = make_model()
        metadata = gguf_metadata(model, **{"tokenizer.chat_template.tool_use": "{{ tools }}"})
        return write_gguf(folder / "m.gguf", metadata, gguf_tensors(model))
    model = make_model(tie_word_embeddings=kind == "float32").to(getattr(torch, kind))
    return save_folder(folder / "hf", model)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A source and its store."""
    folder = tmp_path_factory.mktemp("made")
    source = make_source(folder, "bfloat16")
    convert(source, folder / "store")
    return source, folder / "store"


@pytest.fixture
def store(made: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made[1], tmp_path / "store"))


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16", "gguf"])
def test_round_trip(tmp_path: Path, kind: str) -> None:
    path = make_source(tmp_path, kind)
    reported: list[tuple[str, int, int]] = []
    convert(path, tmp_path / "store", lambda *event: reported.append(event))
    source, store = open_checkpoint(path), open_checkpoint(tmp_path / "store")
    assert (store.config, store.generation, store.nbytes) == (source.config, source.generation, source.nbytes)
    expected, found = dict(source.tensors()), dict(store.tensors())
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert (found[name].dtype, found[name].shape) == (values.dtype, values.shape)
        assert found[name].tobytes() == values.tobytes(), name
    assert reported[-1] == ("convert", source.nbytes, source.nbytes)
    messages = [{"role": "user", "content": "The dog's 12 brown foxes"}]
    ours, theirs = load_tokenizer(tmp_path / "store"), load_tokenizer(path)
    assert ours.encode_chat(messages) == theirs.encode_chat(messages)
    assert (ours.eos_ids, ours.bos_id) == (theirs.eos_ids, theirs.bos_id)
    assert ours.tool_template == theirs.tool_template == ("{{ tools }}" if kind == "gguf" else CHATML)
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_load_parameters(made: tuple[Path, Path], dtype: str) -> None:
    """A store and its source give the same arrays, cast, on the device, with progress in bytes."""
    reported: list[tuple[str, int, int]] = []
    from_store = load_parameters(open_checkpoint(made[1]), dtype, lambda *event: reported.append(event))
    from_source = load_parameters(open_checkpoint(made[0]), dtype)
    assert list(from_store) == list(from_source)
    for name, values in from_store.items():
        assert values.dtype.name == dtype
        np.testing.assert_array_equal(np.asarray(values), np.asarray(from_source[name]), err_msg=name)
    assert [phase for phase in dict.fromkeys(event[0] for event in reported)] == ["verify", "load"]
    for phase in ("verify", "load"):
        events = [event for event in reported if event[0] == phase]
        assert events[-1][1] == events[-1][2] and [event[1] for event in events] == sorted(
            e[1] for e in events
        )
    assert reported[-1][2] == sum(values.nbytes for values in from_store.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite(tmp_path: Path, dtype: str, bad: float) -> None:
    model = make_model()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[5, 7] = bad
    folder = save_folder(tmp_path, model.to(getattr(torch, dtype)))
    with pytest.raises(CheckpointError, match=r"tensor layers\.1\.feed_forward\.down holds NaN or infinity"):
        load_parameters(open_checkpoint(folder), "float32")


def test_a_cast_that_overflows_is_refused(tmp_path: Path) -> None:
    model = make_model()
    with torch.no_grad():
        model.model.norm.weight[0] = 1e6
    with pytest.raises(CheckpointError, match="tensor norm holds NaN or infinity"):
        load_parameters(open_checkpoint(save_folder(tmp_path, model)), "float16")


def refuse(store: Path, *reasons: str) -> None:
    with pytest.raises(CheckpointError) as refusal:
        load_parameters(open_checkpoint(store), "float32")
    for text in reasons:
        assert text in str(refusal.value)
    assert "\n" not in str(refusal.value)


def kinds_of_files(store: Path) -> list[Path]:
    """One file of every name, and one of every tensor's data."""
    chosen = {path.name if "weights" not in path.parts else path.parent.parent.name + path.name: path
              for path in sorted(store.rglob("*")) if path.is_file()}  # fmt: skip
    return list(chosen.values())


def test_one_flipped_bit_in_every_kind_of_file(store: Path) -> None:
    files = kinds_of_files(store)
    assert len(files) > 8
    for path in files:
        raw = path.read_bytes()
        if not raw:
            continue
        middle = len(raw) // 2
        path.write_bytes(raw[:middle] + bytes([raw[middle] ^ 4]) + raw[middle + 1 :])
        refuse(store, path.name)
        path.write_bytes(raw)
    load_parameters(open_checkpoint(store), "float32")


def test_truncated_missing_and_additional_files(store: Path) -> None:
    for path in kinds_of_files(store):
        raw = path.read_bytes()
        if raw:
            path.write_bytes(raw[: len(raw) // 2])
            refuse(store, path.name)
        if path.name != "distaff.json":
            path.unlink()
            refuse(store, path.name, "missing")
        path.write_bytes(raw)
    (store / "weights" / "extra").write_bytes(b"")
    refuse(store, "extra: not listed in distaff.json")
    (store / "weights" / "extra").unlink()
    (store / "weights" / "link").symlink_to("/etc/passwd")
    refuse(store, "link: not a plain file")


def test_damaged_weights_name_their_tensor(store: Path) -> None:
    data = next(path for path in (store / "weights/layers.1/attention.q/c").rglob("*") if path.is_file())
    raw = bytearray(data.read_bytes())
    raw[10] ^= 1
    data.write_bytes(raw)
    refuse(store, data.name, "tensor layers.1.attention.q: damaged")
    data.unlink()
    refuse(store, "tensor layers.1.attention.q: missing")


def test_a_damaged_tokenizer_is_not_loaded(store: Path) -> None:
    (store / "chat_template.jinja").write_text("other")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja: "):
        load_tokenizer(store)


def rewrite(store: Path, **changes: Any) -> None:
    """Writes a manifest with other contents and the correct digest."""
    manifest = Store(store).manifest
    values = {name: getattr(manifest, name) for name in ("config", "source", "tensors", "files")} | changes
    (store / "distaff.json").write_bytes(Manifest(**values).to_json())


def test_manifests_that_do_not_fit(store: Path) -> None:
    manifest = Store(store).manifest
    tensors = dict(manifest.tensors)
    swapped = dict(tensors, norm=tensors["embed"])
    fewer = {name: record for name, record in tensors.items() if name != "norm"}
    for changed in (swapped, fewer, {}):
        rewrite(store, tensors=changed)
        refuse(store, "distaff.json")
        (store / "distaff.json").write_bytes(manifest.to_json())


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "not readable as JSON"),
        (b"[]", "expected an object"),
        (b"{}", "format is None; expected 1"),
        (b'{"format": 2}', "format is 2; expected 1"),
        (b'{"format": 1}', "damaged"),
    ],
)
def test_damaged_manifests(store: Path, content: bytes, reason: str) -> None:
    (store / "distaff.json").write_bytes(content)
    refuse(store, "distaff.json: ", reason)


def test_destinations_that_exist(made: tuple[Path, Path], tmp_path: Path) -> None:
    source, store = made
    before = (store / "distaff.json").read_bytes()
    convert(source, store)
    assert (store / "distaff.json").read_bytes() == before
    (tmp_path / "taken").mkdir()
    with pytest.raises(CheckpointError, match="taken: exists and is not a store"):
        convert(source, tmp_path / "taken")
    other = make_source(tmp_path, "float32")
    with pytest.raises(CheckpointError, match="made from another source"):
        convert(other, store)


def test_missing_path(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound, match="nowhere: missing"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"config\.json: missing|no weights"):
        open_checkpoint(tmp_path)


def test_fingerprints(made: tuple[Path, Path], store: Path) -> None:
    """A copy of a store is the same model, and has the same fingerprint."""
    first = open_checkpoint(made[1]).fingerprint
    assert open_checkpoint(store).fingerprint == first and len(first) == 64
    rewrite(store, source="elsewhere")
    assert open_checkpoint(store).fingerprint != first


def test_opening_imports_no_jax(made: tuple[Path, Path]) -> None:
    code = (
        "import sys; from pathlib import Path; from distaff.checkpoints import open_checkpoint;"
        f"[open_checkpoint(Path(p)) for p in {[str(path) for path in made]!r}];"
        "assert not {'jax', 'orbax', 'torch', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


KILLED = """
    import sys, time
    from pathlib import Path
    from distaff.checkpoints import convert

    def slowly(phase, done, total):
        print(done, flush=True)
        time.sleep(0.3 if done < total else 0)

    convert(Path(sys.argv[1]), Path(sys.argv[2]), slowly)
"""


def test_killed_and_resumed(tmp_path: Path) -> None:
    """`kill -9` between groups: no file has the final name, and finished groups are not written again."""
    source, destination = make_source(tmp_path, "gguf"), tmp_path / "store"
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(source), str(destination)],
        stdout=subprocess.PIPE,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert process.stdout is not None
    for _ in range(2):  # two groups are recorded
        assert process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    partial = tmp_path / "store.partial"
    assert partial.exists() and not destination.exists()
    noted = json.loads((partial / "resume.json").read_text())["groups"]
    assert "embed" in noted and "head" not in noted
    (partial / "weights" / "layers.1").mkdir(exist_ok=True)
    (partial / "weights" / "layers.1" / "half").write_bytes(b"torn")
    kept = {name: (partial / name).stat().st_mtime_ns for files in noted.values() for name in files}
    damaged = next(name for name in noted["layers.0"] if "/c/" in name) if "layers.0" in noted else None
    if damaged:
        (partial / damaged).write_bytes(b"other")
    time.sleep(0.01)
    convert(source, destination)
    expected, found = dict(open_checkpoint(source).tensors()), dict(open_checkpoint(destination).tensors())
    assert all(found[name].tobytes() == values.tobytes() for name, values in expected.items())
    assert not partial.exists()
    for name, stamp in kept.items():
        rewritten = damaged is not None and name.startswith("weights/layers.0/")
        assert ((destination / name).stat().st_mtime_ns == stamp) != rewritten, name


def test_a_partial_store_of_another_source_is_not_continued(tmp_path: Path) -> None:
    partial = tmp_path / "store.partial"
    (partial / "weights" / "embed").mkdir(parents=True)
    (partial / "weights" / "embed" / "file").write_bytes(b"other")
    (partial / "resume.json").write_text('{"source": "another", "groups": {"embed": {}}}')
    source = make_source(tmp_path, "gguf")
    convert(source, tmp_path / "store")
    assert load_parameters(open_checkpoint(tmp_path / "store"), "float32")


def test_a_store_converts_to_a_store(made: tuple[Path, Path], tmp_path: Path) -> None:
    convert(made[1], tmp_path / "copy")
    expected, found = (dict(open_checkpoint(path).tensors()) for path in (made[1], tmp_path / "copy"))
    assert all(found[name].tobytes() == values.tobytes() for name, values in expected.items())
