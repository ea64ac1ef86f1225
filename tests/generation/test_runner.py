"""One sequence run through a model, in chunks."""

import numpy as np
import pytest
from toy import ToyModel, V, language_model, weight

from rushlight.backends import open_backend
from rushlight.errors import PortError
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


@pytest.mark.parametrize(
    ("returned", "found"),
    [(np.zeros((3, V)), rf"\(3, {V}\)"), (np.zeros((1, 8)), r"\(1, 8\)"), (None, "NoneType")],
    ids=["all rows", "not the head's output", "nothing"],
)
def test_a_forward_that_does_not_return_the_logits_is_refused(returned, found):
    model = language_model(ToyModel(open_backend("reference", "f64")))._replace(forward=lambda batch: returned)
    with pytest.raises(PortError, match=rf"logits of the wrong shape \(expected \(1, {V}\), found {found}\)"):
        Context(model, 10).feed([1, 2, 3])
