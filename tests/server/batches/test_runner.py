"""The runner of batches: whenever the server is killed, each line gets one result, and is not asked again."""

import asyncio
import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import given, settings

from distaff.server.batches.lines import Line, read_lines
from distaff.server.batches.records import StoredBatch, now
from distaff.server.batches.results import Result, answered
from distaff.server.batches.runner import BatchRunner, NotNow
from distaff.server.batches.store import BatchStore

ROOM = 3
URL = "/v1/chat/completions"


def add_batch(store: BatchStore, owner: str, lines: int, name: str) -> StoredBatch:
    """A batch of some lines, and its file."""
    upload = store.uploads / "upload"
    raw = [{"custom_id": f"{name} {n}", "url": URL, "body": {"model": "m"}} for n in range(lines)]
    upload.write_text("\n".join(map(json.dumps, raw)))
    source = store.add_file(upload, owner, "in.jsonl", "batch")
    return StoredBatch(
        id=f"batch_{name}",
        owner=owner,
        model="m",
        input_file_id=source.id,
        endpoint=URL,
        completion_window="1h",
        metadata=None,
        created_at=now(),
        expires_at=now() + 3600,
    )


def copy_of_a_moment(folder: Path, target: Path) -> None:
    """Copies a folder in which threads write; made again until nothing has changed meanwhile."""

    def stamp() -> list[tuple[Path, int, int]] | None:
        try:
            found = [(path, path.stat()) for path in sorted(folder.rglob("*"))]
        except FileNotFoundError:
            return None
        return [(path, status.st_size, status.st_mtime_ns) for path, status in found]

    before = after = None
    while before is None or before != after:
        shutil.rmtree(target, ignore_errors=True)
        before = stamp()
        with suppress(FileNotFoundError, shutil.Error):
            shutil.copytree(folder, target)
        after = stamp()


class Life:
    """One life of a server over a folder, until its batches have ended or it is killed.

    Attributes:
      asked: the custom ids of the lines, in the order in which they were answered.
      most: the most lines that were in progress at once. room: the most that may be.
    """

    def __init__(self, folder: Path, killed_after: int | None = None, chance: Sequence[int] = (0,)) -> None:
        """`killed_after`: answers; the folder is then copied to the next life's. `chance`: how each ends."""
        self.store = BatchStore(folder)
        self.asked: list[str] = []
        self.most = self.running = 0
        self.next = folder.with_name(folder.name + "+")
        self._killed_after, self._chance = killed_after, chance
        self._calls = 0
        self.killed = asyncio.Event()
        self.room = ROOM
        self.runner = BatchRunner(self.store, self._answer, lambda: self.room, most_lines=100)

    async def _answer(self, owner: str, line: Line) -> Result:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            self._calls += 1
            fate = self._chance[self._calls % len(self._chance)]
            await asyncio.sleep(0.001 * (fate % 3))
            if len(self.asked) == self._killed_after and not self.killed.is_set():
                copy_of_a_moment(self.store.uploads.parent, self.next)
                self.killed.set()
            if fate == 3:
                raise NotNow(0.0)
            if fate == 4:
                raise RuntimeError("a defect")
            self.asked.append(str(line.custom_id))
            return answered(line, 400 if fate == 5 else 200, "req", b"{}")
        finally:
            self.running -= 1

    async def until_ended(self) -> None:
        """Runs until all batches have ended or it is killed."""
        while not self.killed.is_set() and not all(batch.ended for batch in self.store.batches.values()):
            await asyncio.sleep(0.002)
        await self.runner.stop()
        self.store.close()


def recorded(folder: Path) -> set[str]:
    """The custom ids with a complete result in a folder, be the batch in progress or not."""
    paths = [*folder.glob("batches/*.jsonl"), *folder.glob("files/*.jsonl")]
    lines = [raw for path in paths for raw in path.read_bytes().splitlines(keepends=True)]
    whole = [json.loads(raw) for raw in lines if raw.endswith(b"\n")]
    return {each["custom_id"] for each in whole if "response" in each}


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 8)), min_size=1, max_size=3),
    st.lists(st.integers(0, 12), max_size=3),
    st.lists(st.integers(0, 5), min_size=1, max_size=7).filter(lambda fates: set(fates) != {3}),
)
@settings(deadline=None, max_examples=40)
def test_each_line_gets_one_result_whenever_the_server_is_killed(tmp_path_factory, wanted, kills, chance):
    folder = tmp_path_factory.mktemp("lives") / "0"

    async def lives() -> BatchStore:
        life = Life(folder, next(killings, None), chance)
        life.room = 0
        for number, (owner, lines) in enumerate(wanted):
            await life.runner.create(add_batch(life.store, owner, lines, str(number)))
        life.room = ROOM
        await life.until_ended()
        while life.killed.is_set():
            done = recorded(life.next)
            life = Life(life.next, next(killings, None), chance)
            life.runner.start()
            await life.until_ended()
            assert not set(life.asked) & done
            assert life.most <= ROOM
        return life.store

    killings = iter(kills)
    store = asyncio.run(lives())
    for number, (_, lines) in enumerate(wanted):
        batch = store.batches[f"batch_{number}"]
        assert batch.status == "completed" and batch.total == lines
        found = []
        for file_id, succeeded in ((batch.output_file_id, True), (batch.error_file_id, False)):
            if file_id is not None:
                raws = store.content_path(store.files[file_id]).read_bytes().splitlines()
                results = [json.loads(raw) for raw in raws]
                ok = [bool(each["response"] and each["response"]["status_code"] == 200) for each in results]
                assert ok == [succeeded] * len(ok)
                found += [each["custom_id"] for each in results]
        assert sorted(found) == sorted(f"{number} {n}" for n in range(lines))
        assert (batch.completed + batch.failed, len(found)) == (lines, lines)


async def test_owners_share_the_room_and_one_owner_runs_one_batch_at_a_time(tmp_path):
    life = Life(tmp_path / "0", chance=(1,))
    life.room = 0
    for name in ("a1", "a2", "b1"):
        await life.runner.create(add_batch(life.store, name[0], 24, name))
    while not all(life.store.results_path(id).exists() for id in life.store.batches):
        await asyncio.sleep(0.001)
    life.room = ROOM
    await life.until_ended()
    names = [each.split()[0] for each in life.asked]
    assert names.index("a2") > max(place for place, name in enumerate(names) if name == "a1") - ROOM
    assert names.index("b1") < 20


async def test_a_batch_that_waits_for_its_turn_can_be_cancelled(tmp_path):
    life = Life(tmp_path / "0")
    life.room = 0
    first, second = (add_batch(life.store, "a", 8, name) for name in ("1", "2"))
    await life.runner.create(first)
    await life.runner.create(second)
    while second.status == "validating":
        await asyncio.sleep(0.001)
    await life.runner.cancel(second)
    while not second.ended:
        await asyncio.sleep(0.001)
    assert first.status == "in_progress"
    life.room = ROOM
    assert (second.status, second.failed) == ("cancelled", 8)
    await life.until_ended()
    assert first.status == "completed"


async def test_no_line_begins_while_there_is_no_room(tmp_path):
    life = Life(tmp_path / "0")
    life.room = 0
    batch = add_batch(life.store, "a", 5, "1")
    await life.runner.create(batch)
    await asyncio.sleep(0.2)
    assert batch.status == "in_progress" and not life.asked
    life.room = 1
    while not batch.ended:
        await asyncio.sleep(0.001)
    assert life.most == 1 and len(life.asked) == 5
    await life.until_ended()


async def test_an_expired_batch_stays_expired_after_a_kill_while_it_is_finished(tmp_path):
    """Its lines all have results by then, but not because they were answered."""
    life = Life(tmp_path / "0")
    batch = add_batch(life.store, "a", 3, "1")
    batch.total = 3
    batch.become("finalizing")
    batch.times["expired_at"] = batch.created_at
    life.store.save_batch(batch)
    with open(life.store.content_path(life.store.files[batch.input_file_id]), "rb") as file:
        results = [answered(line, 200, "req", b"{}").encode() for line in read_lines(file)]
    life.store.results_path(batch.id).write_bytes(b"".join(results))
    life.runner.start()
    await life.until_ended()
    assert batch.status == "expired" and not life.asked
