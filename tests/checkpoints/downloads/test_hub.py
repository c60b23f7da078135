"""Models on the hub: what is downloaded, how, and what works without the hub."""

import json
import shutil
from pathlib import Path

import pytest

from distaff.checkpoints import open_checkpoint

from .conftest import COMMIT, Hub

WANTED = {
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("model.safetensors.index.json", "tool_use.jinja"),
}


def shards(hub: Hub) -> list[str]:
    """The names of the model's files of weights."""
    return [name for name in hub.names() if name.startswith("model-")]


def assert_whole(path: Path, hub: Hub) -> None:
    """The model is there, with all that was wanted and nothing else."""
    assert {file.name for file in path.rglob("*") if file.is_file()} == {*WANTED, *shards(hub)}
    assert open_checkpoint(path).config.layers == 2


def test_only_what_is_needed_is_downloaded(hub: Hub, tmp_path: Path) -> None:
    """Pickles, code, other formats and weights that the index does not list are not even asked for."""
    *reported, last = hub.download(cache=tmp_path / "cache")
    assert_whole(Path(last), hub)
    assert set(hub.downloads) == {*WANTED, *shards(hub)}
    total = sum(file.stat().st_size for file in Path(last).rglob("*") if file.is_file())
    assert reported[-1] == f"download {total} {total}"
    done = [int(line.split()[1]) for line in reported]
    assert done == sorted(done)


def test_a_model_in_one_file(hub: Hub, tmp_path: Path) -> None:
    for name in (*shards(hub)[1:], "model.safetensors.index.json"):
        (hub.folder / name).unlink()
    (hub.folder / shards(hub)[0]).rename(hub.folder / "model.safetensors")
    path = Path(hub.download(cache=tmp_path / "cache")[-1])
    names = {file.name for file in path.rglob("*") if file.is_file()}
    assert names == {*WANTED, "model.safetensors"} - {"model.safetensors.index.json"}


def test_an_index_cannot_ask_for_other_files(hub: Hub, tmp_path: Path) -> None:
    """Its names are patterns for the client; only those of safetensors beside it are used."""
    named = ["*", "*.bin", "evil.pt", "original/model.safetensors", "../x.safetensors", "?.safetensors", 7]
    index = {"weight_map": {str(number): name for number, name in enumerate(named)}}
    (hub.folder / "model.safetensors.index.json").write_text(json.dumps(index))
    path = Path(hub.download(cache=tmp_path / "cache")[-1])
    assert {file.name for file in path.rglob("*") if file.is_file()} == WANTED


def test_files_are_downloaded_together(hub: Hub, tmp_path: Path) -> None:
    hub.download(cache=tmp_path / "cache")
    assert hub.busiest >= 3


def test_a_cut_connection_is_resumed_where_it_broke(hub: Hub, tmp_path: Path) -> None:
    """Within a process, by a range; the rest of the file alone is downloaded again."""
    cut = shards(hub)[1]
    hub.cut = {cut}
    assert_whole(Path(hub.download(cache=tmp_path / "cache")[-1]), hub)
    assert hub.downloads.count(cut) == 2
    (resumed,) = hub.ranges
    assert int(resumed.removeprefix("bytes=").removesuffix("-")) > 10_000


def test_a_later_start_downloads_what_is_missing(hub: Hub, tmp_path: Path) -> None:
    """Files that an earlier start has downloaded are kept; with nothing missing, none is asked for."""
    path = Path(hub.download(cache=tmp_path / "cache")[-1])
    lost = path / shards(hub)[2]
    lost.resolve().unlink()
    lost.unlink()
    hub.forget()
    *_, last = hub.download(cache=tmp_path / "cache")
    assert_whole(Path(last), hub)
    assert hub.downloads == [lost.name]
    hub.forget()
    assert hub.download(cache=tmp_path / "cache") == [last]
    assert hub.downloads == []


def test_without_the_hub_the_cache_is_used(hub: Hub, tmp_path: Path) -> None:
    """`HF_HUB_OFFLINE` asks nothing, and a hub that cannot be reached does no harm."""
    cache = tmp_path / "cache"
    (refusal,) = hub.download(cache=cache, HF_HUB_OFFLINE="1")
    assert refusal.startswith("CheckpointError org/tiny: the download failed") and "HF_HUB_OFFLINE" in refusal
    path = hub.download(cache=cache)[-1]
    hub.forget()
    assert hub.download(cache=cache, HF_HUB_OFFLINE="1") == [path]
    assert hub.asked == []
    assert hub.download(cache=cache, HF_ENDPOINT="http://127.0.0.1:9") == [path]


def test_an_incomplete_model_is_not_served_without_the_hub(hub: Hub, tmp_path: Path) -> None:
    """A missing shard is an error that says so, not a model without a layer."""
    path = Path(hub.download(cache=tmp_path / "cache")[-1])
    (path / shards(hub)[0]).unlink()
    (refusal,) = hub.download(cache=tmp_path / "cache", HF_HUB_OFFLINE="1")
    assert refusal.startswith("CheckpointError org/tiny: the download failed")


def test_the_clients_own_folders_are_used(hub: Hub, tmp_path: Path) -> None:
    """`HF_HOME` names them; a cache that is a link to another disk, with links in it, is one too."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "home").symlink_to(tmp_path / "disk")
    path = Path(hub.download(HF_HOME=str(tmp_path / "home"))[-1])
    assert path.is_relative_to((tmp_path / "disk").resolve()) and path.name == COMMIT
    assert (path / shards(hub)[0]).is_symlink()
    assert_whole(path, hub)


def test_a_cache_that_cannot_be_written_serves_what_is_in_it(hub: Hub, tmp_path: Path) -> None:
    """With the hub and without it, also where an older client has filled it."""
    cache = tmp_path / "cache"
    path = hub.download(cache=cache)[-1]
    assert hub.download(cache=cache, frozen=cache) == [path]
    assert hub.download(cache=cache, frozen=cache, HF_HUB_OFFLINE="1") == [path]
    shutil.rmtree(cache / "hub" / "models--org--tiny" / "trees")
    shutil.rmtree(cache / "hub" / ".locks", ignore_errors=True)
    assert hub.download(cache=cache, frozen=cache, HF_HUB_OFFLINE="1") == [path]
    assert hub.download(cache=cache, frozen=cache) == [path]
    Path(path, shards(hub)[0]).unlink()
    (refusal,) = hub.download(cache=cache, frozen=cache)
    assert refusal.startswith("CheckpointError org/tiny: the download failed") and "Read-only" in refusal


@pytest.mark.parametrize("name", ["org/other", "org/ti..ny"])
def test_names_that_the_hub_does_not_have(hub: Hub, tmp_path: Path, name: str) -> None:
    (line,) = hub.download(name, tmp_path / "cache")
    assert line.startswith(f"SourceNotFound {name}: ")


def test_a_hub_that_cannot_be_reached(hub: Hub, tmp_path: Path) -> None:
    (line,) = hub.download(cache=tmp_path / "cache", HF_ENDPOINT="http://127.0.0.1:9")
    assert line.startswith("CheckpointError org/tiny: the download failed")
