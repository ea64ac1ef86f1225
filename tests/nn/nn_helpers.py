"""Small models with weights in memory, on the reference backend."""

import numpy as np

from rushlight.backends import open_backend
from rushlight.nn import NameRules, bind


class Named:
    """A tensor in memory."""

    dtype = "F32"

    def __init__(self, name, values):
        self.name, self._values, self.shape = name, np.asarray(values, np.float32), np.shape(values)

    def float32(self):
        return self._values.copy()

    def read_into(self, raw, start):
        raw[:] = np.frombuffer(self._values.tobytes(), np.uint8)[start : start + len(raw)]

    def same_data(self, other):
        return np.array_equal(self._values, other._values)


def bound(model, dtype="f64", *, rules=None, tie=False, **values):
    """Returns the model with these tensors, or with random ones."""
    rng = np.random.default_rng(3)
    values = values or {name.replace(".", "__"): rng.normal(size=slot.shape) for name, slot in model.named_slots()}
    tensors = {name.replace("__", "."): Named(name.replace("__", "."), each) for name, each in values.items()}
    bind(model, tensors, open_backend("reference", dtype), rules=rules or NameRules(), tie=tie, title="test")
    return model
