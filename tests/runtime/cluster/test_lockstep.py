"""The leader and its followers on real sockets, without devices: order, hashes, strangers, ends."""

import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from distaff.model.errors import ConfigError
from distaff.runtime.cluster import control, lockstep
from distaff.runtime.cluster.control import HandshakeFailed
from distaff.runtime.cluster.lockstep import Follower, Leader
from distaff.runtime.device import processes as cluster
from distaff.runtime.device.runner import Runner
from distaff.runtime.options import Membership

from ...patience import patient
from ..tiny import ask

SECRET = b"k" * 32


class Device:
    """Stands in for a follower's runner: notes what is launched, and finishes steps when told to."""

    def __init__(self, sampled: Callable[[np.ndarray], np.ndarray] = lambda buffer: buffer) -> None:
        self.heard: list[tuple[str, Any]] = []
        self.finish = threading.Event()
        self._sampled = sampled

    def replay(self, bucket: int, buffer: np.ndarray) -> Any:
        self.heard.append(("launch", (bucket, buffer.tolist())))
        return SimpleNamespace(token_B=Pending(self.finish, self._sampled(buffer)))

    def prepare(self, slot: int, bias_V: np.ndarray, marks_V: np.ndarray) -> None:
        self.heard.append(("prepare", slot, bias_V.tolist(), marks_V.tolist()))


class Pending:
    """An array that is there once the device has finished."""

    def __init__(self, finish: threading.Event, values: np.ndarray) -> None:
        self._finish, self._values = finish, values

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        assert self._finish.wait(10)
        return self._values


class Party:
    """A leader and followers in one process, found over the loopback."""

    def __init__(self, devices: list[Device], strangers: Callable[[int], object] = lambda port: None) -> None:
        self.losses: queue.Queue[str] = queue.Queue()
        self.codes: list[int | None] = []
        self.failed = False
        self._devices = devices
        self._port: queue.Queue[int] = queue.Queue()
        self._strangers = strangers
        self._threads = [
            threading.Thread(target=self._follow, args=(number, device), daemon=True)
            for number, device in enumerate(devices, start=1)
        ]
        for thread in self._threads:
            thread.start()
        self.leader = Leader(self._member(0), self._lose)

    def share_address(self, port: int | None) -> tuple[int, bytes]:
        """Stands in for the exchange over JAX."""
        if port is None:
            return self._port.get(timeout=5), SECRET
        self._strangers(port)
        for _ in self._devices:
            self._port.put(port)
        return port, SECRET

    def _lose(self, reason: str, code: int | None) -> None:
        self.codes.append(code)
        self.losses.put(reason)

    def _member(self, number: int) -> Membership:
        return Membership(coordinator="127.0.0.1:1", process=number, processes=len(self._devices) + 1)

    def _follow(self, number: int, device: Device) -> None:
        follower = Follower(self._member(number), self._lose)
        follower.run(cast(Runner, device))

    def part(self) -> None:
        """Says goodbye, and sees that everybody hears it; unless it has failed."""
        if self.failed:
            return
        for device in self._devices:
            device.finish.set()
        self.leader.close()
        for thread in self._threads:
            thread.join(5)
            assert not thread.is_alive()


@pytest.fixture
def gather(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Party]]:
    """Makes parties, and has them part in the end."""
    parties: list[Party] = []

    def share_address(port: int | None) -> tuple[int, bytes]:
        return parties[-1].share_address(port)

    def make(*devices: Device, **options: Any) -> Party:
        party = Party.__new__(Party)
        parties.append(party)
        party.__init__(list(devices), **options)
        return party

    monkeypatch.setattr(lockstep, "share_address", share_address)
    monkeypatch.setattr(lockstep, "part", lambda: None)
    yield make
    for party in parties:
        party.leave()


def until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.002)


def buffer(*words: int) -> np.ndarray:
    return np.array(words, np.int32)


def test_followers_hear_everything_in_order(gather: Callable[..., Party]) -> None:
    """Launches and what slots are made ready with arrive at every follower as they were made."""
    devices = [Device(), Device()]
    party = gather(*devices)
    expected = []
    for n in range(60):
        if n % 7 == 3:
            party.leader.prepare(n, np.full(3, n / 4, np.float32), np.full(3, n % 256, np.uint8))
            expected.append(("prepare", n, [n / 4] * 3, [n % 256] * 3))
        party.leader.launch(n % 4, buffer(n, -n))
        expected.append(("launch", (n % 4, [n, -n])))
    until(lambda: all(len(device.heard) == len(expected) for device in devices))
    assert all(device.heard == expected for device in devices)


def test_nobody_waits_for_a_device(gather: Callable[..., Party]) -> None:
    """The leader tells of a hundred steps while a follower's device has not finished the first, and the
    follower launches them all, though the leader has read none."""
    device = Device()
    party = gather(device)
    for n in range(100):
        party.leader.launch(0, buffer(n))
    assert not device.finish.is_set()
    until(lambda: len(device.heard) == 100)
    device.finish.set()
    for n in range(100):
        party.leader.record_samples(buffer(n))
    time.sleep(0.1)
    assert party.losses.empty()


@pytest.mark.parametrize("leader_reads_first", [True, False])
def test_another_sample_ends_all(gather: Callable[..., Party], leader_reads_first: bool) -> None:
    """Step 2 of 4 differs in one token, whoever comes first with its hash; the step and process are named."""
    device = Device(lambda words: words + (words == 2))
    party = gather(device)
    for n in range(4):
        party.leader.launch(0, buffer(n))
    if not leader_reads_first:
        device.finish.set()
        until(lambda: len(party.leader._early) == 4)
    for n in range(4):
        party.leader.record_samples(buffer(n))
    device.finish.set()
    reason = "process 1 at 127.0.0.1 sampled other tokens in step 2; the processes have diverged"
    assert {party.losses.get(timeout=5) for _ in range(2)} == {reason, f"the leader failed: {reason}"}
    time.sleep(0.05)
    assert party.losses.empty()


def test_samples_that_cannot_be_read_end_the_follower(gather: Callable[..., Party]) -> None:
    """A device's error comes out where its samples are read: not to be lost on that thread."""
    party = gather(device := Device(lambda words: cast(np.ndarray, "no array")))
    party.failed = True
    party.leader.launch(0, buffer(1))
    device.finish.set()
    until(lambda: bool(device.heard))
    assert party.losses.get(timeout=5) == "the samples of a step cannot be reported: ValueError"


def test_the_first_loss_is_the_one_told(gather: Callable[..., Party]) -> None:
    """The other followers hear the reason; that they end because of it is not a loss of its own."""
    party = gather(Device(), Device())
    party.failed = True
    first, second = party.leader._peers
    first._connection.shutdown(socket.SHUT_RDWR)
    reasons = [party.losses.get(timeout=5) for _ in range(3)]
    second._connection.shutdown(socket.SHUT_RDWR)
    time.sleep(0.05)
    lost = f"{first.name} is lost: it closed the connection"
    assert sorted(reasons) == sorted(
        [lost, "the leader is lost: it closed the connection", f"the leader failed: {lost}"]
    )
    assert party.losses.empty()


def test_hashes_are_not_kept(gather: Callable[..., Party]) -> None:
    """What has been compared is forgotten in time."""
    device = Device()
    device.finish.set()
    party = gather(device)
    for n in range(3000):
        party.leader.launch(0, buffer(n))
        party.leader.record_samples(buffer(n))
    until(lambda: len(device.heard) == 3000)
    assert len(party.leader._unmatched) <= 1100 and len(party.leader._early) <= 3000
    until(lambda: not party.leader._early)
    assert party.losses.empty()


def test_strangers_disturb_nobody(
    gather: Callable[..., Party], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One who says nothing, one who dribbles, one with another secret: turned away, while the follower gets
    in at once; and then the door is shut."""
    monkeypatch.setattr(control, "HANDSHAKE_SECONDS", 1.0)
    strangers: list[socket.socket] = []
    ports: list[int] = []

    def dribble(connection: socket.socket) -> None:
        while True:
            try:
                connection.sendall(b"x")
            except OSError:
                return
            time.sleep(0.05)

    def liar(connection: socket.socket) -> None:
        with pytest.raises(HandshakeFailed):
            control.handshake(connection, b"x" * 32, b"follower", b"leader", 1)

    def come(port: int) -> None:
        ports.append(port)
        for act in (lambda connection: None, dribble, liar):
            connection = socket.create_connection(("127.0.0.1", port))
            strangers.append(connection)
            threading.Thread(target=act, args=(connection,), daemon=True).start()

    device = Device()
    begun = time.monotonic()
    party = gather(device, strangers=come)
    assert time.monotonic() - begun < patient(0.9), "a stranger kept the follower waiting"
    party.leader.launch(1, buffer(5))
    until(lambda: device.heard == [("launch", (1, [5]))])
    until(lambda: sum("rejected a connection from 127.0.0.1" in line for line in caplog.messages) == 3)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", ports[0]))
    assert party.losses.empty()
    for connection in strangers:
        connection.close()


def test_who_does_not_come_is_missed(gather: Callable[..., Party], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lockstep, "_ALL_HERE_SECONDS", 0.2)
    monkeypatch.setattr(lockstep, "share_address", lambda port: (port, SECRET))
    with pytest.raises(HandshakeFailed, match="2 followers have not come"):
        Leader(Membership(coordinator="127.0.0.1:1", process=0, processes=3), lambda reason, code: None)


def test_a_foreign_address_is_refused() -> None:
    """The control connection listens where the operator said, and nowhere else."""
    member = Membership(coordinator="192.0.2.1:1", process=0, processes=2)
    with pytest.raises(
        ConfigError, match=r"coordinator host is '192.0.2.1'; expected an address of process 0"
    ):
        Leader(member, lambda reason, code: None)


def test_parting_takes_no_time(gather: Callable[..., Party]) -> None:
    """Every time, not only when the follower's answer overtakes the end of the connection."""
    for _ in range(20):
        party = gather(Device(), Device())
        begun = time.monotonic()
        party.leave()
        assert time.monotonic() - begun < 2.5, "it waited out the 3 s for an answer that does not come"
        assert party.losses.empty()


def test_a_reason_to_fail_is_told(gather: Callable[..., Party]) -> None:
    """The leader's error while loading is what its followers end with."""
    device = Device()
    party = gather(device)
    party.leader.fail("model.safetensors: damaged", 65)
    party.failed = True
    assert party.losses.get(timeout=5) == "the leader failed: model.safetensors: damaged"
    assert party.codes == [65]


def test_the_engine_launches_before_it_reads(make_engine: Callable[..., Any]) -> None:
    """With followers as without: they are told of step n + 1, and it is launched, before step n is read."""
    order: list[tuple[str, int]] = []

    class Notes:
        """Followers that only note when they are told."""

        launched = settled = 0

        def launch(self, bucket: int, buffer: np.ndarray) -> None:
            order.append(("tell", self.launched))
            self.launched += 1

        def prepare(self, slot: int, bias_V: np.ndarray, marks_V: np.ndarray) -> None: ...

        def record_samples(self, token_B: np.ndarray) -> None:
            order.append(("read", self.settled))
            self.settled += 1

        def close(self) -> None: ...

    engine = make_engine()
    runner = engine._loop.runner
    runner._followers, dispatch = Notes(), runner._dispatch

    def noting(bucket: Any, packed: np.ndarray) -> Any:
        order.append(("dispatch", runner._followers.launched - 1))
        return dispatch(bucket, packed)

    runner._dispatch = noting
    try:
        engine.start()
        assert len(list(engine.stream(ask("r", 5, max_tokens=12)))) == 12
        engine.stop()
    finally:
        runner._followers, runner._dispatch = None, dispatch
    for n in range(11):
        assert order.index(("tell", n)) < order.index(("dispatch", n)) < order.index(("read", n))
        assert order.index(("dispatch", n + 1)) < order.index(("read", n))


def test_alone_there_is_nobody_to_differ_from() -> None:
    cluster.agree({"--slots": 3})
    cluster.barrier()
    assert cluster.minimum(7) == 7
    port, secret = cluster.share_address(99)
    assert port == 99 and len(secret) == 32


def test_a_fact_that_differs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process comes to the same conclusion, whichever it is."""
    theirs = [b'{"--slots": 2, "XLA_FLAGS": ""}', b'{"--slots": 3, "XLA_FLAGS": ""}']
    monkeypatch.setattr(cluster, "_exchange", lambda text: theirs)
    with pytest.raises(ConfigError, match="--slots is 3 in process 1; expected 2 as in process 0"):
        cluster.agree({})


def test_processes_that_do_not_come_end_in_a_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """JAX's wait cannot be interrupted, so the process is ended, with what to check."""
    ended: queue.Queue[int] = queue.Queue()
    monkeypatch.setattr(cluster, "JOIN_SECONDS", 0.05)
    monkeypatch.setattr(cluster.os, "_exit", ended.put)
    monkeypatch.setattr(cluster, "_initialize", lambda membership: ended.get(timeout=5))
    cluster.join(Membership(coordinator="h:80", process=1, processes=3), None)
    assert "3 processes have not joined at h:80" in caplog.text
    assert "expected each of --process-id 0 to 2 once" in caplog.text


def test_a_coordinator_that_is_elsewhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """JAX's reason, and what process 0 needs."""

    def initialize(*arguments: object, **options: object) -> None:
        raise RuntimeError("UNKNOWN: Failed to start RPC server\nand a stack")

    monkeypatch.setattr(cluster.jax.distributed, "initialize", initialize)
    with pytest.raises(ConfigError) as refusal:
        cluster.join(Membership(coordinator="h:80", process=0, processes=2), None)
    assert str(refusal.value) == (
        "process 0 cannot join at h:80: UNKNOWN: Failed to start RPC server; "
        "expected a free port at an address of this host"
    )
