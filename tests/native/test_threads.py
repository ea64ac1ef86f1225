"""The number of threads: arguments, environment, affinity mask, and cgroup quotas of both versions."""

import os

import pytest

from rushlight.backends import open_backend
from rushlight.backends.cpu import CPUBackend
from rushlight.errors import DeviceError
from rushlight.host.threads import Threads, threads_for, usable_cores


@pytest.mark.parametrize("value", ["1", "2", "3"])
def test_the_environment_sets_the_number(monkeypatch, value):
    monkeypatch.setenv("RUSHLIGHT_NUM_THREADS", value)
    assert threads_for() == Threads(int(value), adapts=False)
    assert CPUBackend()._native.threads == int(value)


@pytest.mark.parametrize("value", ["0", "-1", "abc", "1000000", "2.5", " 2", "1e3", "٣", "9" * 5000])
def test_an_invalid_number_in_the_environment_is_an_error(monkeypatch, value):
    monkeypatch.setenv("RUSHLIGHT_NUM_THREADS", value)
    with pytest.raises(DeviceError, match=r"RUSHLIGHT_NUM_THREADS is .*from 1 to 1024"):
        open_backend("cpu")


@pytest.mark.parametrize("threads", [0, -1, 10**6])
def test_an_out_of_range_argument_is_an_error(threads):
    with pytest.raises(DeviceError, match=r"threads is .*from 1 to 1024"):
        open_backend("cpu", threads=threads)


def test_an_argument_overrides_the_environment(monkeypatch):
    monkeypatch.setenv("RUSHLIGHT_NUM_THREADS", "abc")
    assert open_backend("cpu", threads=2)._native.threads == 2


def test_an_empty_variable_is_ignored(monkeypatch):
    monkeypatch.setenv("RUSHLIGHT_NUM_THREADS", "")
    assert threads_for() == Threads(3, adapts=True)


@pytest.fixture
def cores(monkeypatch):
    """Eight cores on any machine."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


def tree(root, files):
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"proc/self/cgroup": "0::/\n"}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "50000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "rubbish\n"}, 8),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/docker/x\n0::/\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/x/cpu.cfs_quota_us": "300000\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/x/cpu.cfs_period_us": "100000\n",
            },
            3,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/docker/x\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            8,
        ),
    ],
)
def test_a_cgroup_quota_is_a_limit(tmp_path, cores, files, expected):
    assert usable_cores(tree(tmp_path, files)) == expected


def test_a_quota_does_not_exceed_the_affinity_mask(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 5}, raising=False)
    quota = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "900000 100000\n"}
    assert usable_cores(tree(tmp_path, quota)) == 2
