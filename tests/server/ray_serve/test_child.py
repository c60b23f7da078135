"""A supervised server: its reason when it does not start, and that nothing of it is left."""

import asyncio
import os
import subprocess
import sys

import psutil
import pytest

from distaff.server.ray_serve.child import ServerChild

from ...processes import wait_ended

# Another test of this process may have imported JAX, which an actor never does.
pytestmark = pytest.mark.filterwarnings(r"ignore:os\.fork\(\) was called:RuntimeWarning")

STARTS_ONE = """
import asyncio, sys
from distaff.server.ray_serve.child import ServerChild
async def main():
    child = ServerChild(["--port", "0"], {})
    print(child.pid, flush=True)
    await asyncio.sleep(3600)
asyncio.run(main())
"""


async def test_the_reason_of_an_end_is_the_servers_last_line() -> None:
    child = ServerChild(["--slots", "none"], {})
    reason = await child.wait()
    assert reason.startswith("exit code 2: distaff: Invalid value for '--slots'")
    assert child.ended
    await child.stop()


async def test_a_server_is_stopped_with_its_engine() -> None:
    child = ServerChild(["--port", "0"], {"DISTAFF_API_KEYS": "a-key-of-its-own"})
    process = psutil.Process(child.pid)
    assert process.environ()["DISTAFF_API_KEYS"] == "a-key-of-its-own"
    while not (engines := process.children(recursive=True)):
        await asyncio.sleep(0.05)
    assert os.getpgid(child.pid) != os.getpgid(0)
    await child.stop()
    assert child.ended and not wait_ended(engines, 10)


def test_a_server_does_not_outlive_the_process_that_started_it() -> None:
    parent = subprocess.Popen([sys.executable, "-c", STARTS_ONE], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    server = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert not wait_ended([server], 10)


async def test_a_wait_that_is_given_up_does_not_spoil_the_next_one() -> None:
    """A descendant may hold the log open for a while after the server has ended."""
    child = ServerChild(["--slots", "none"], {})
    await child.wait()
    child._reading = asyncio.create_task(asyncio.sleep(0.5))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(child.wait(), 0.05)
    assert (await child.wait()).startswith("exit code 2")
