"""The leader and its followers on real sockets, without devices: order, hashes, rejected peers, ends."""

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
from distaff.runtime.device import processes
from distaff.runtime.device.runner import Runner
from distaff.runtime.options import Membership

from ...patience import patient, wait_until
from ..tiny import ask

SECRET = b"k" * 32


class Device:
    """Replaces a follower's runner: records launches, and finishes steps when `finish` is set."""

    def __init__(self, sampled: Callable[[np.ndarray], np.ndarray] = lambda buffer: buffer) -> None:
        self.received: list[tuple[str, Any]] = []
        self.finish = threading.Event()
        self._sampled = sampled

    def replay(self, bucket: int, buffer: np.ndarray) -> Any:
        self.received.append(("launch", (bucket, buffer.tolist())))
        return SimpleNamespace(token_B=Pending(self.finish, self._sampled(buffer)))

    def prepare(self, slot: int, counts_V: np.ndarray, bias_V: np.ndarray, marks_V: np.ndarray) -> None:
        self.received.append(("prepare", slot, counts_V.tolist(), bias_V.tolist(), marks_V.tolist()))


class Pending:
    """An array that exists when the device has finished."""

    def __init__(self, finish: threading.Event, values: np.ndarray) -> None:
        self._finish, self._values = finish, values

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        assert self._finish.wait(10)
        return self._values


class Cluster:
    """A leader and followers in one process, connected over the loopback."""

    def __init__(self, devices: list[Device], others: Callable[[int], object] = lambda port: None) -> None:
        self.losses: queue.Queue[str] = queue.Queue()
        self.codes: list[int | None] = []
        self.failed = False
        self._devices = devices
        self._port: queue.Queue[int] = queue.Queue()
        self._others = others
        self._threads = [
            threading.Thread(target=self._follow, args=(number, device), daemon=True)
            for number, device in enumerate(devices, start=1)
        ]
        for thread in self._threads:
            thread.start()
        self.leader = Leader(self._member(0), self._record_loss)

    def share_address(self, port: int | None) -> tuple[int, bytes]:
        """Replaces the exchange over JAX."""
        if port is None:
            return self._port.get(timeout=5), SECRET
        self._others(port)
        for _ in self._devices:
            self._port.put(port)
        return port, SECRET

    def _record_loss(self, reason: str, code: int | None) -> None:
        self.codes.append(code)
        self.losses.put(reason)

    def _member(self, number: int) -> Membership:
        return Membership(coordinator="127.0.0.1:1", process=number, processes=len(self._devices) + 1)

    def _follow(self, number: int, device: Device) -> None:
        follower = Follower(self._member(number), self._record_loss)
        follower.run(cast(Runner, device))

    def close(self) -> None:
        """Ends the session and checks that every follower ends; unless the session has failed."""
        if self.failed:
            return
        for device in self._devices:
            device.finish.set()
        self.leader.close()
        for thread in self._threads:
            thread.join(5)
            assert not thread.is_alive()


@pytest.fixture
def make_cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Cluster]]:
    """Creates clusters, and closes them at the end."""
    clusters: list[Cluster] = []

    def share_address(port: int | None) -> tuple[int, bytes]:
        return clusters[-1].share_address(port)

    def make(*devices: Device, **options: Any) -> Cluster:
        cluster = Cluster.__new__(Cluster)
        clusters.append(cluster)
        cluster.__init__(list(devices), **options)
        return cluster

    monkeypatch.setattr(lockstep, "share_address", share_address)
    monkeypatch.setattr(lockstep, "leave", lambda: None)
    yield make
    for cluster in clusters:
        cluster.close()


def buffer(*words: int) -> np.ndarray:
    return np.array(words, np.int32)


def test_followers_receive_everything_in_order(make_cluster: Callable[..., Cluster]) -> None:
    """Every follower receives all launches and prepared slots, in order."""
    devices = [Device(), Device()]
    cluster = make_cluster(*devices)
    expected = []
    for n in range(60):
        if n % 7 == 3:
            cluster.leader.prepare(
                n, np.full(3, -n, np.int32), np.full(3, n / 4, np.float32), np.full(3, n % 256, np.uint8)
            )
            expected.append(("prepare", n, [-n] * 3, [n / 4] * 3, [n % 256] * 3))
        cluster.leader.launch(n % 4, buffer(n, -n))
        expected.append(("launch", (n % 4, [n, -n])))
    wait_until(lambda: all(len(device.received) == len(expected) for device in devices))
    assert all(device.received == expected for device in devices)


def test_sending_never_waits_for_a_device(make_cluster: Callable[..., Cluster]) -> None:
    """The leader sends a hundred steps before a follower's device has finished the first, and the follower
    launches all of them before the leader has read one."""
    device = Device()
    cluster = make_cluster(device)
    for n in range(100):
        cluster.leader.launch(0, buffer(n))
    assert not device.finish.is_set()
    wait_until(lambda: len(device.received) == 100)
    device.finish.set()
    for n in range(100):
        cluster.leader.record_samples(buffer(n))
    time.sleep(0.1)
    assert cluster.losses.empty()


@pytest.mark.parametrize("leader_reads_first", [True, False])
def test_a_different_sample_ends_all(make_cluster: Callable[..., Cluster], leader_reads_first: bool) -> None:
    """Step 2 of 4 differs in one token, whichever hash is first; the reason names step and process."""
    device = Device(lambda words: words + (words == 2))
    cluster = make_cluster(device)
    for n in range(4):
        cluster.leader.launch(0, buffer(n))
    if not leader_reads_first:
        device.finish.set()
        wait_until(lambda: len(cluster.leader._early) == 4)
    for n in range(4):
        cluster.leader.record_samples(buffer(n))
    device.finish.set()
    reason = "process 1 at 127.0.0.1 sampled other tokens in step 2; the processes have diverged"
    assert {cluster.losses.get(timeout=5) for _ in range(2)} == {reason, f"the leader failed: {reason}"}
    time.sleep(0.05)
    assert cluster.losses.empty()


def test_samples_that_cannot_be_read_end_the_follower(make_cluster: Callable[..., Cluster]) -> None:
    """A device's error shows where its samples are read; that thread must not swallow it."""
    cluster = make_cluster(device := Device(lambda words: cast(np.ndarray, "no array")))
    cluster.failed = True
    cluster.leader.launch(0, buffer(1))
    device.finish.set()
    wait_until(lambda: bool(device.received))
    assert cluster.losses.get(timeout=5) == "the samples of a step cannot be reported: ValueError"


def test_the_first_loss_is_the_one_reported(make_cluster: Callable[..., Cluster]) -> None:
    """The other followers receive the reason; their own end is not reported as another loss."""
    cluster = make_cluster(Device(), Device())
    cluster.failed = True
    first, second = cluster.leader._peers
    first._connection.shutdown(socket.SHUT_RDWR)
    reasons = [cluster.losses.get(timeout=5) for _ in range(3)]
    second._connection.shutdown(socket.SHUT_RDWR)
    time.sleep(0.05)
    lost = f"{first.name} is lost: it closed the connection"
    assert sorted(reasons) == sorted(
        [lost, "the leader is lost: it closed the connection", f"the leader failed: {lost}"]
    )
    assert cluster.losses.empty()


def test_hashes_are_not_kept(make_cluster: Callable[..., Cluster]) -> None:
    """Compared hashes are deleted after some steps."""
    device = Device()
    device.finish.set()
    cluster = make_cluster(device)
    for n in range(3000):
        cluster.leader.launch(0, buffer(n))
        cluster.leader.record_samples(buffer(n))
    wait_until(lambda: len(device.received) == 3000)
    assert len(cluster.leader._unmatched) <= 1100 and len(cluster.leader._early) <= 3000
    wait_until(lambda: not cluster.leader._early)
    assert cluster.losses.empty()


def test_unauthenticated_peers_disturb_nobody(
    make_cluster: Callable[..., Cluster], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A silent, a very slow and an unauthenticated peer are rejected. Meanwhile the follower connects
    at once, and after that the port is closed."""
    monkeypatch.setattr(control, "HANDSHAKE_SECONDS", 1.0)
    others: list[socket.socket] = []
    ports: list[int] = []

    def dribble(connection: socket.socket) -> None:
        while True:
            try:
                connection.sendall(b"x")
            except OSError:
                return
            time.sleep(0.05)

    def wrong_secret(connection: socket.socket) -> None:
        with pytest.raises(HandshakeFailed):
            control.handshake(connection, b"x" * 32, b"follower", b"leader", 1)

    def connect(port: int) -> None:
        ports.append(port)
        for act in (lambda connection: None, dribble, wrong_secret):
            connection = socket.create_connection(("127.0.0.1", port))
            others.append(connection)
            threading.Thread(target=act, args=(connection,), daemon=True).start()

    device = Device()
    started = time.monotonic()
    cluster = make_cluster(device, others=connect)
    assert time.monotonic() - started < patient(0.9), "another peer delayed the follower"
    cluster.leader.launch(1, buffer(5))
    wait_until(lambda: device.received == [("launch", (1, [5]))])
    wait_until(lambda: sum("rejected a connection from 127.0.0.1" in line for line in caplog.messages) == 3)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", ports[0]))
    assert cluster.losses.empty()
    for connection in others:
        connection.close()


def test_missing_followers_are_an_error(
    make_cluster: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lockstep, "_CONNECT_SECONDS", 0.2)
    monkeypatch.setattr(lockstep, "share_address", lambda port: (port, SECRET))
    with pytest.raises(HandshakeFailed, match="2 followers have not connected"):
        Leader(Membership(coordinator="127.0.0.1:1", process=0, processes=3), lambda reason, code: None)


def test_a_foreign_address_is_refused() -> None:
    """The control connection listens only on the configured address."""
    member = Membership(coordinator="192.0.2.1:1", process=0, processes=2)
    with pytest.raises(
        ConfigError, match=r"coordinator host is '192.0.2.1'; expected an address of process 0"
    ):
        Leader(member, lambda reason, code: None)


def test_closing_takes_no_time(make_cluster: Callable[..., Cluster]) -> None:
    """Every time, not only if the follower's answer arrives before the end of the connection."""
    for _ in range(20):
        cluster = make_cluster(Device(), Device())
        started = time.monotonic()
        cluster.close()
        assert time.monotonic() - started < 2.5, "it waited 3 s for an answer that does not arrive"
        assert cluster.losses.empty()


def test_a_failure_is_sent_to_followers(make_cluster: Callable[..., Cluster]) -> None:
    """Followers end with the leader's error, also while it is loading."""
    device = Device()
    cluster = make_cluster(device)
    cluster.leader.fail("model.safetensors: damaged", 65)
    cluster.failed = True
    assert cluster.losses.get(timeout=5) == "the leader failed: model.safetensors: damaged"
    assert cluster.codes == [65]


def test_the_engine_launches_before_it_reads(make_engine: Callable[..., Any]) -> None:
    """Also with followers: step n + 1 is sent to them and launched before step n is read."""
    order: list[tuple[str, int]] = []

    class Recorder:
        """Followers that only record calls."""

        launched = recorded = 0

        def launch(self, bucket: int, buffer: np.ndarray) -> None:
            order.append(("send", self.launched))
            self.launched += 1

        def prepare(
            self, slot: int, counts_V: np.ndarray, bias_V: np.ndarray, marks_V: np.ndarray
        ) -> None: ...

        def record_samples(self, token_B: np.ndarray) -> None:
            order.append(("read", self.recorded))
            self.recorded += 1

        def close(self) -> None: ...

    engine = make_engine()
    runner = engine._loop.runner
    runner._followers, dispatch = Recorder(), runner._dispatch

    def record(bucket: Any, packed: np.ndarray) -> Any:
        order.append(("dispatch", runner._followers.launched - 1))
        return dispatch(bucket, packed)

    runner._dispatch = record
    try:
        engine.start()
        assert len(list(engine.stream(ask("r", 5, max_tokens=12)))) == 12
        engine.stop()
    finally:
        runner._followers, runner._dispatch = None, dispatch
    for n in range(11):
        assert order.index(("send", n)) < order.index(("dispatch", n)) < order.index(("read", n))
        assert order.index(("dispatch", n + 1)) < order.index(("read", n))


def test_one_process_agrees_with_itself() -> None:
    processes.agree({"--slots": 3})
    processes.barrier()
    assert processes.minimum(7) == 7
    port, secret = processes.share_address(99)
    assert port == 99 and len(secret) == 32


def test_a_fact_that_differs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process reports the same difference."""
    theirs = [b'{"--slots": 2, "XLA_FLAGS": ""}', b'{"--slots": 3, "XLA_FLAGS": ""}']
    monkeypatch.setattr(processes, "_exchange", lambda text: theirs)
    with pytest.raises(ConfigError, match="--slots is 3 in process 1; expected 2 as in process 0"):
        processes.agree({})


def test_missing_processes_end_with_one_log_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """JAX's wait cannot be interrupted, so the process exits, with a message about what to check."""
    ended: queue.Queue[int] = queue.Queue()
    monkeypatch.setattr(processes, "JOIN_SECONDS", 0.05)
    monkeypatch.setattr(processes.os, "_exit", ended.put)
    monkeypatch.setattr(processes, "_initialize", lambda membership: ended.get(timeout=5))
    processes.join(Membership(coordinator="h:80", process=1, processes=3), None)
    assert "3 processes have not joined at h:80" in caplog.text
    assert "expected each of --process-id 0 to 2 once" in caplog.text


def test_a_coordinator_on_another_host_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message has JAX's reason and what process 0 needs."""

    def initialize(*arguments: object, **options: object) -> None:
        raise RuntimeError("UNKNOWN: Failed to start RPC server\nand a stack")

    monkeypatch.setattr(processes.jax.distributed, "initialize", initialize)
    with pytest.raises(ConfigError) as refusal:
        processes.join(Membership(coordinator="h:80", process=0, processes=2), None)
    assert str(refusal.value) == (
        "process 0 cannot join at h:80: UNKNOWN: Failed to start RPC server; "
        "expected a free port at an address of this host"
    )
