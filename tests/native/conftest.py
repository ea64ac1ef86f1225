"""Runs every test of native code with each instruction set of this processor."""

from importlib.util import find_spec

import pytest

if find_spec("rushlight.backends._native"):
    from native_helpers import DTYPES, FORMATS, KV_FORMATS, MARKED_ISAS, _native
else:  # there was no compiler when the package was installed
    collect_ignore_glob = ["test_*.py"]


def pytest_generate_tests(metafunc):
    if "isa" in metafunc.fixturenames:
        metafunc.parametrize("isa", MARKED_ISAS)
    if "weights" in metafunc.fixturenames:
        metafunc.parametrize("weights", FORMATS)
    if "requested" in metafunc.fixturenames:
        metafunc.parametrize("requested", DTYPES)
    if "kv_format" in metafunc.fixturenames:
        metafunc.parametrize("kv_format", KV_FORMATS)


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch):
    for name in ("RUSHLIGHT_ISA", "RUSHLIGHT_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def _three_cores(monkeypatch):
    """Three usable cores, so that several threads are used on a small machine, too."""
    monkeypatch.setattr("rushlight.host.threads.usable_cores", lambda: 3)


@pytest.fixture
def device(isa):
    return _native.Device(2, isa)
