"""Recognises checkpoints saved by Flax or TensorFlow, whose names and weight layouts differ from PyTorch's.

transformers 4 saved both: FlaxPreTrainedModel wrote the parameter tree joined by dots, TFPreTrainedModel the names of
the variables, each with its framework under `format` in the metadata.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rushlight.porting.check.checker import Checker

__all__ = ["check_framework", "framework"]


class Framework(NamedTuple):
    """A framework other than PyTorch.

    Attributes:
        name: its name.
        flag: the argument of transformers' from_pretrained that reads its files.
        signs: the parts of names that identify it.
        layout: how its weights differ from PyTorch's, although the shapes can be equal.
    """

    name: str
    flag: str
    signs: str
    layout: str


FLAX = Framework(
    "Flax",
    "from_flax",
    "kernel, scale and embedding",
    "A Dense kernel is (in, out) where PyTorch's nn.Linear is (out, in), and a GPT-2 kernel is (out, in) where Conv1D "
    "is (in, out): matching by shape would confuse square weights and pairs such as c_fc and c_proj.",
)
TENSORFLOW = Framework(
    "TensorFlow",
    "from_tf",
    "h_._0, gamma and :0",
    "A Dense kernel is (in, out) where PyTorch's nn.Linear is (out, in), a norm has gamma and beta, and biases may be "
    "(1, n).",
)
_BY_FORMAT = {"flax": FLAX, "tf": TENSORFLOW}


def framework(names: Iterable[str], metadata: Mapping[str, str]) -> Framework | None:
    """The framework that wrote these names; None for PyTorch's names and for names that show no framework.

    Names take precedence. The metadata's `format` counts only where no name ends as PyTorch's do, because conversion
    scripts copy the metadata when they rename tensors.
    """
    names = list(names)
    if any(name.endswith(":0") or "_._" in name for name in names):
        return TENSORFLOW
    ends = {name.rpartition(".")[2] for name in names}
    if "weight" in ends:
        return None
    if declared := _BY_FORMAT.get(metadata.get("format", "")):
        return declared
    if "kernel" in ends and ends & {"scale", "embedding"}:
        return FLAX
    variables = {name.rpartition("/")[2] for name in names if "/" in name}
    return TENSORFLOW if variables & {"kernel", "gamma", "embeddings", "moving_mean"} else None


def check_framework(checker: Checker) -> bool:
    """Reports a checkpoint of another framework, which is not compared any further; returns whether it is one."""
    found = framework(checker.tensors, checker.checkpoint.metadata)
    if found is None:
        return False
    declared = checker.checkpoint.metadata.get("format")
    confirmed = f", and its metadata has format: {declared}" if _BY_FORMAT.get(declared or "") is found else ""
    code = f"AutoModel.from_pretrained('FOLDER', {found.flag}=True).save_pretrained('NEW')"
    checker.problem(
        "framework",
        f"{found.name} weights, not PyTorch's",
        f"Names with {found.signs} are {found.name}'s{confirmed}. {found.layout}",
        f"use the PyTorch weights of the same model, or convert these with transformers 4, PyTorch and {found.name} "
        f"installed: `{code}`, with the model's own class in place of AutoModel",
        [(view, str(view.shape)) for view in checker.tensors.values()],
    )
    return True
