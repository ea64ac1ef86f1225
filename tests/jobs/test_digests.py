"""The map from indices to digests, with dense and sparse indices."""

import pytest

from rushlight.jobs.digests import Digests


@pytest.mark.parametrize("step", [1, 63, 64, 65, 10**9])
def test_numbers_by_index(step):
    digests = Digests()
    for i in range(200):
        digests.set(i * step, i + 2**63)
    digests.set(0, 5)
    assert len(digests) == 200
    assert digests.get(0) == 5
    assert [digests.get(i * step) for i in range(1, 200)] == [i + 2**63 for i in range(1, 200)]
    assert digests.get(200 * step) == digests.get(200 * step + 7) == 0
