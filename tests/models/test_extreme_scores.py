"""Scores as large as 1e5, which Pythia has: later positions are left out, not given a large negative score."""

import numpy as np
import pytest
from architecture_fixtures import Fixture

from rushlight.backends.reference import ReferenceBackend

LARGE = 200
"""A factor of queries and keys."""


def later_rows_change_earlier_ones(tmp_path, device):
    fixture = Fixture("gpt_neox")
    for name in [name for name in fixture.tensors if ".query_key_value." in name]:
        heads = fixture.tensors[name].reshape(4, 3, 12, -1)
        heads[:, :2] *= LARGE
    model = fixture.load(tmp_path, device=device, dtype="f32")
    ids = fixture.prompt
    return not np.array_equal(model.logits(ids)[:40], model.logits(ids[:40]))


@pytest.mark.parametrize("device", ["reference", "cpu"])
def test_later_positions_are_left_out(device, tmp_path):
    assert not later_rows_change_earlier_ones(tmp_path, device)


def test_a_finite_mask_is_noticed(tmp_path, monkeypatch):
    smallest = []

    def attention(ops, q, k, v, batch, *, layer, n_head, scale):
        q, k, v = (x.reshape(len(x), n_head, -1).swapaxes(0, 1) for x in (q, k, v))
        scores = scale * q @ k.swapaxes(1, 2)
        smallest.append(scores.min())
        scores = np.where(np.tri(q.shape[1], dtype=bool), scores, np.float32(-1e4))
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return (weights / weights.sum(axis=-1, keepdims=True) @ v).swapaxes(0, 1).reshape(q.shape[1], -1)

    monkeypatch.setattr(ReferenceBackend, "attention", attention)
    assert later_rows_change_earlier_ones(tmp_path, "reference")
    assert min(smallest) < -1e5
