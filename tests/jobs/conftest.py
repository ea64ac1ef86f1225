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
    """Runs requests 4 at a time, and yields the results of each group in reverse order."""
    one_by_one = Model.generate_many

    def generate_many(self, requests, *, max_active):
        requests, number = iter(requests), 0
        while taken := list(islice(requests, 4)):
            results = list(one_by_one(self, taken, max_active=max_active))
            yield from ((number + n, result) for n, result in reversed(results))
            number += len(taken)

    monkeypatch.setattr(Model, "generate_many", generate_many)
