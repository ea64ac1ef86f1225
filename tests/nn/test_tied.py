"""Tied heads: a checkpoint may hold the table, the head, or both."""

import numpy as np
import pytest
from nn_helpers import bound

from rushlight.errors import BindError
from rushlight.nn import Embedding, Linear, Module, NameRules

RULES = NameRules(tied={"head.weight": "table.weight"})
NUMBERS = np.arange(12.0).reshape(3, 4)


class Tied(Module):
    def __init__(self):
        self.table = Embedding(3, 4)
        self.head = Linear(4, 3, bias=False)

    def __call__(self, ids):
        return self.head(self.table(ids))


@pytest.mark.parametrize("stored", [["table__weight"], ["head__weight"], ["table__weight", "head__weight"]])
def test_either_name_loads_both(stored):
    model = bound(Tied(), rules=RULES, tie=True, **dict.fromkeys(stored, NUMBERS))
    assert np.array_equal(model(np.array([2, 0], np.int32)), NUMBERS[[2, 0]] @ NUMBERS.T)


@pytest.mark.parametrize("stored", ["table__weight", "head__weight"])
def test_an_untied_head_needs_both_tensors(stored):
    with pytest.raises(BindError, match="missing"):
        bound(Tied(), rules=RULES, tie=False, **{stored: NUMBERS})


def test_a_missing_table_is_reported_once():
    with pytest.raises(BindError) as caught:
        bound(Tied(), rules=RULES, tie=True, other=NUMBERS)
    assert [(problem.kind, problem.name) for problem in caught.value.problems] == [
        ("missing", "table.weight"),
        ("unexpected", "other"),
    ]


def test_a_head_of_the_wrong_shape_is_reported_once():
    with pytest.raises(BindError) as caught:
        bound(Tied(), rules=RULES, tie=True, head__weight=NUMBERS.T)
    assert {(problem.kind, problem.name) for problem in caught.value.problems} == {("wrong shape", "head.weight")}
