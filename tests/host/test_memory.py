"""The available memory, from the kernel's and the control groups' files."""

import os
import resource

import pytest

from rushlight.backends import open_backend
from rushlight.backends.batch import BLOCK_SIZE, KVShape
from rushlight.host.memory import available_bytes

MEMINFO = "MemTotal:       16000000 kB\nMemFree:  100 kB\nMemAvailable:    8000000 kB\n"
V2 = {"proc/self/cgroup": "0::/box/app\n"}


def put(root, files):
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8_192_000_000),
        ({**V2, "sys/fs/cgroup/box/memory.max": "max", "sys/fs/cgroup/box/memory.current": "5"}, 8_192_000_000),
        ({**V2, "sys/fs/cgroup/box/app/memory.max": "3000", "sys/fs/cgroup/box/app/memory.current": "1000"}, 2000),
        (
            {
                **V2,
                "sys/fs/cgroup/box/app/memory.max": "9000",
                "sys/fs/cgroup/box/app/memory.current": "1000",
                "sys/fs/cgroup/box/memory.max": "3000",
                "sys/fs/cgroup/box/memory.current": "2500",
                "sys/fs/cgroup/box/memory.stat": "anon 1500\ninactive_file 700\nslab 3\n",
            },
            1200,
        ),
        ({**V2, "sys/fs/cgroup/box/memory.max": "10", "sys/fs/cgroup/box/memory.current": "20"}, 0),
        (
            {
                "proc/self/cgroup": "3:cpu:/\n5:memory:/box\n",
                "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "5000",
                "sys/fs/cgroup/memory/box/memory.usage_in_bytes": "3000",
                "sys/fs/cgroup/memory/box/memory.stat": "total_inactive_file 100\n",
            },
            2100,
        ),
    ],
)
def test_the_smallest_limit_counts(tmp_path, files, expected):
    put(tmp_path, {"proc/meminfo": MEMINFO, **files})
    assert available_bytes(tmp_path) == expected


PAGE = os.sysconf("SC_PAGE_SIZE")
UNLIMITED = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("addresses", "data", "expected"),
    [
        (UNLIMITED, UNLIMITED, 8_192_000_000),
        (50 * PAGE, UNLIMITED, 20 * PAGE),
        (UNLIMITED, 50 * PAGE, 45 * PAGE),
        (20 * PAGE, UNLIMITED, 0),
    ],
)
def test_limits_of_the_process(tmp_path, monkeypatch, addresses, data, expected):
    put(tmp_path, {"proc/meminfo": MEMINFO, "proc/self/statm": "30 9 8 1 0 5 0\n"})
    limits = {resource.RLIMIT_AS: addresses, resource.RLIMIT_DATA: data}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limits[kind], UNLIMITED))
    assert available_bytes(tmp_path) == expected


def test_without_meminfo_half_of_the_memory_is_available(tmp_path):
    assert 2**26 < available_bytes(tmp_path) < 2**50


@pytest.mark.parametrize("shape", [KVShape(2, 3, 64), KVShape(1, 5, 20)])
def test_the_size_of_a_block(shape):
    reference = open_backend("reference", "f64")
    cache = reference.kv_cache(shape, 7)
    assert sum(x.nbytes for x in cache.keys + cache.values) == 7 * reference.kv_block_bytes(shape)
    padded = -(-shape.head_dim // 16) * 16
    floats = shape.n_layer * shape.n_kv_head * (shape.head_dim + padded) * BLOCK_SIZE
    assert open_backend("cpu", "f32").kv_block_bytes(shape) == 4 * floats
    assert open_backend("cpu", "f32").available_bytes() > 0
