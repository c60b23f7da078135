"""The folder of files and batches: what a crash leaves behind is whole, and one server uses it."""

from pathlib import Path

import pytest

from distaff.server.batches import records
from distaff.server.batches.records import StoredBatch
from distaff.server.batches.store import BatchStore, StoreRefused


def add(store: BatchStore, content: bytes = b"text") -> records.StoredFile:
    path = store.uploads / "upload"
    path.write_bytes(content)
    return store.add_file(path, "owner", "in.jsonl", "batch")


def batch(id: str, status: records.Status = "in_progress") -> StoredBatch:
    return StoredBatch(
        id=id,
        owner="",
        model="m",
        input_file_id="file-x",
        endpoint="/v1/embeddings",
        completion_window="24h",
        metadata=None,
        created_at=1,
        expires_at=2,
        status=status,
    )


def test_everything_is_there_again_after_a_restart(tmp_path):
    store = BatchStore(tmp_path)
    file = add(store)
    store.save_batch(batch("batch_a"))
    store.close()
    again = BatchStore(tmp_path)
    assert again.files == {file.id: file} and again.batches == {"batch_a": batch("batch_a")}
    assert again.content_path(file).read_bytes() == b"text"
    again.close()


def test_what_is_not_whole_is_removed(tmp_path):
    store = BatchStore(tmp_path)
    file = add(store)
    for ended in ("batch_a", "batch_b", "batch_c"):
        store.results_path(ended).touch()
    store.save_batch(batch("batch_a"))
    store.save_batch(batch("batch_b", "completed"))
    store.save_batch(batch("batch_c", "failed"))
    store.close()
    for stray in (
        "uploads/x",
        "files/file-stray.jsonl",
        "files/file-y.json.partial",
        "batches/batch_z.jsonl",
    ):
        (tmp_path / stray).touch()
    again = BatchStore(tmp_path)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {
        *("lock", f"files/{file.id}.json", f"files/{file.id}.jsonl"),
        *(f"batches/batch_{name}.json" for name in "abc"),
        *("batches/batch_a.jsonl", "batches/batch_c.jsonl"),
    }
    again.close()


def test_a_second_server_is_refused(tmp_path):
    store = BatchStore(tmp_path)
    with pytest.raises(StoreRefused, match="another server uses this folder"):
        BatchStore(tmp_path)
    store.close()
    BatchStore(tmp_path).close()


@pytest.mark.parametrize("content", [b"", b"{}", b'{"id": "file-other"}'])
def test_a_damaged_record_is_named(tmp_path, content):
    store = BatchStore(tmp_path)
    file = add(store)
    store.close()
    record = tmp_path / "files" / f"{file.id}.json"
    record.write_bytes(content)
    with pytest.raises(StoreRefused, match=rf"{file.id}\.json is damaged"):
        BatchStore(tmp_path)


def test_a_record_under_another_name_is_refused(tmp_path):
    store = BatchStore(tmp_path)
    file = add(store)
    store.close()
    (tmp_path / "files" / f"{file.id}.json").rename(tmp_path / "files" / "file-other.json")
    with pytest.raises(StoreRefused, match="it is the record of"):
        BatchStore(tmp_path)


def test_a_folder_that_cannot_be_used_is_refused(tmp_path):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(StoreRefused, match="cannot be used: Not a directory"):
        BatchStore(file / "folder")


def test_the_bytes_are_those_of_files_and_of_results_in_progress(tmp_path: Path):
    store = BatchStore(tmp_path)
    file = add(store, b"x" * 1000)
    assert store.used == 1000 + 4096
    store.save_batch(batch("batch_a"))
    store.results_path("batch_a").write_bytes(b"y" * 500)
    assert store.used == 1500 + 4096
    store.remove_file(file)
    assert store.used == 500
    store.close()
