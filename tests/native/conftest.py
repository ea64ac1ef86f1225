"""Every test of native code runs for each instruction set of this processor."""

import pytest
from native_helpers import FORMATS, ISAS, _native


def pytest_generate_tests(metafunc):
    if "isa" in metafunc.fixturenames:
        metafunc.parametrize("isa", ISAS)
    if "weights" in metafunc.fixturenames:
        metafunc.parametrize("weights", FORMATS)


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch):
    for name in ("RUSHLIGHT_ISA", "RUSHLIGHT_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def device(isa):
    return _native.Device(2, isa)
