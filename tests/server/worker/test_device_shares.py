"""How several engines of one host share its devices out."""

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distaff.model.errors import ConfigError
from distaff.server.worker.device_shares import device_variables, may_have_tpu, share_of_cores


@given(replicas=st.integers(2, 9), cores=st.lists(st.integers(0, 500), min_size=1, max_size=99, unique=True))
def test_cores_are_shared_out_evenly(replicas: int, cores: list[int]):
    """All are used, nobody goes without, and nobody has a core of another's as long as there are enough."""
    shares = [share_of_cores(replica, replicas, cores) for replica in range(replicas)]
    sizes = [len(share) for share in shares]
    assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1
    assert set.union(*shares) == set(cores)
    if len(cores) >= replicas:
        assert sum(sizes) == len(cores)


@given(
    replicas=st.integers(2, 5),
    each=st.integers(1, 8),
    spare=st.integers(0, 3),
    name=st.sampled_from(["CUDA_VISIBLE_DEVICES", "TPU_VISIBLE_CHIPS"]),
)
def test_accelerators_are_shared_out_in_the_order_given(replicas: int, each: int, spare: int, name: str):
    """`each` for everyone, none twice, none that was not in the list."""
    listed = [f"GPU-{number}" for number in range(replicas * each + spare)]
    shares = [
        device_variables(replica, replicas, each, {name: ",".join(listed)})[name].split(",")
        for replica in range(replicas)
    ]
    assert [device for share in shares for device in share] == listed[: replicas * each]
    assert {len(share) for share in shares} == {each}


def test_without_a_list_devices_are_numbered():
    assert device_variables(1, 2, 4, {}) == {
        "CUDA_VISIBLE_DEVICES": "4,5,6,7",
        "TPU_VISIBLE_CHIPS": "4,5,6,7",
        "TPU_PROCESS_BOUNDS": "1,1,1",
        "TPU_CHIPS_PER_PROCESS_BOUNDS": "2,2,1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    bounds = {each: device_variables(0, 2, each, {})["TPU_CHIPS_PER_PROCESS_BOUNDS"] for each in (1, 2, 3, 8)}
    assert bounds == {1: "1,1,1", 2: "1,2,1", 3: "1,3,1", 8: "2,4,1"}


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_devices_that_are_hidden_stay_hidden(hidden: str):
    assert device_variables(1, 2, 1, {"CUDA_VISIBLE_DEVICES": hidden})["CUDA_VISIBLE_DEVICES"] == hidden


def test_a_list_too_short_is_refused():
    with pytest.raises(ConfigError, match=r"CUDA_VISIBLE_DEVICES is '0,1'; expected at least 4 "):
        device_variables(0, 2, 2, {"CUDA_VISIBLE_DEVICES": "0,1"})


@pytest.mark.skipif(sys.platform != "linux", reason="affinity is Linux's")
@pytest.mark.parametrize("replicas", [1, 2])
def test_a_process_claims_its_share_before_jax_and_a_lone_one_claims_nothing(replicas: int):
    """In a process of its own, for affinity and environment are the whole process's."""
    code = (
        "import json, os, sys; from distaff.server.worker.device_shares import claim_devices;"
        f"before = dict(os.environ); claim_devices({replicas - 1}, {replicas});"
        "assert 'jax' not in sys.modules;"
        "print(json.dumps([sorted(os.sched_getaffinity(0)), dict(os.environ) == before]))"
    )
    output = subprocess.check_output([sys.executable, "-c", code], timeout=60)
    cores, untouched = json.loads(output)
    ours = os.sched_getaffinity(0)
    assert untouched == (replicas == 1)
    assert set(cores) <= ours
    assert len(cores) == (len(ours) if replicas == 1 else max(1, len(ours) - len(ours) // 2))


@pytest.mark.parametrize(
    ("files", "variables", "expected"),
    [
        ({}, {"PATH": "/bin", "JAX_ENABLE_X64": "0"}, False),
        ({}, {"TPU_SKIP_MDS_QUERY": "1", "TPU_LIBRARY_PATH": "/lib/libtpu.so"}, False),
        ({"dev/accel0": ""}, {}, True),
        ({"dev/vfio/0": ""}, {}, True),
        ({"dev/vfio/vfio": "", "dev/null": ""}, {}, False),
        ({}, {"TPU_WORKER_ID": "0"}, True),
        ({"vendor": "0x1ae0\n", "class": "0x120000\n"}, {}, True),
        (
            {"vendor": "0x1ae0\n", "class": "0x020000\n"},
            {},
            False,
        ),  # gVNIC: every virtual machine of Google's
        ({"vendor": "0x10de\n", "class": "0x120000\n"}, {}, False),
        ({"vendor": "0x1ae0\n"}, {}, False),
    ],
)
def test_a_tpu_is_expected_where_anything_hints_at_one(tmp_path, files, variables, expected):
    for name, content in files.items():
        path = tmp_path / (name if "/" in name else f"sys/bus/pci/devices/0000:00:05.0/{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert may_have_tpu(variables, tmp_path) == expected
