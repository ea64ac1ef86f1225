"""The embedded model, loaded once, and results of jobs."""

from itertools import islice

import pytest

import rushlight as package
from rushlight.runtime.model import Model


@pytest.fixture(scope="session")
def model():
    return package.load()


@pytest.fixture
def finishing_in_disorder(monkeypatch):
    """Requests are taken up 4 at a time, and the last taken is finished first."""
    one_by_one = Model.generate_many

    def generate_many(self, requests, *, max_active):
        requests, number = iter(requests), 0
        while taken := list(islice(requests, 4)):
            results = list(one_by_one(self, taken, max_active=max_active))
            yield from ((number + n, result) for n, result in reversed(results))
            number += len(taken)

    monkeypatch.setattr(Model, "generate_many", generate_many)
