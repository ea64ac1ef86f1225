"""One sequence run through a model, in chunks."""

import numpy as np
import pytest
from toy import ToyModel, V, language_model, weight

from rushlight.backends import open_backend
from rushlight.generation import Context


@pytest.mark.parametrize("chunk_rows", [1, 2, 7, 64, 500])
def test_chunks_give_the_logits_of_every_token(chunk_rows):
    ops = open_backend("reference", "f64")
    ids = np.random.default_rng(1).integers(0, V, 150)
    context = Context(language_model(ToyModel(ops)), 150)
    logits = context.feed(ids.tolist(), all_logits=True, chunk_rows=chunk_rows)
    assert logits.argmax(-1).tolist() == (np.cumsum(ids * weight(np.arange(150))) % V).tolist()
    assert context.length == 150

    last = Context(language_model(ToyModel(ops)), 150).feed(ids.tolist(), chunk_rows=chunk_rows)
    assert np.array_equal(last, logits[-1:])
