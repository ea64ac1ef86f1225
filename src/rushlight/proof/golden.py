"""The golden file format: the recorded inputs and outputs of a PyTorch model in one .safetensors file.

A prompt is a case, numbered from 0. Its tensors are

    0/ids                        (T,)  I64  the token ids
    0/input/h.0.attn.c_proj      F32 or I64: the first tensor that the module was called with
    0/output/h.0.attn.c_proj     F32 or I64: the first tensor that it returned
    0/output/rotary_emb/1        F32: the second of a tuple of tensors of one shape, such as cosines and sines
    0/greedy_ids                 (n,)  I64  the greedy tokens after the prompt, if recorded
    0/greedy_margins             (n,)  F32  the difference of the two largest logits at each

Paths are those of PyTorch's `named_modules`; the second call of a module has "#2" after its path. Arrays have no
batch axis. Equal tensors are stored once: an input is usually another module's output.

Everything else is JSON under the metadata key "rushlight.golden": `version`, `made_with` (versions of the libraries),
`model` (its class), `dtype` (PyTorch's compute dtype), `config`, `weights` (the digest of each tensor, as `digest.py`
defines it), and `cases`, each with its `text` and, in the order in which they finished, its `modules`: `path`, `repr`
(PyTorch's description), `eps` where it has one, the names of the tensors that are its `input` and `output`, and of
the `more` that it returned beside the first.
It contains no date, so the same model and prompts give the same file.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rushlight.checkpoint import open_checkpoint
from rushlight.errors import GoldenError, SourceError, first_ten, printable_name
from rushlight.files.strict_json import parse_json_object

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from rushlight.checkpoint import Checkpoint

__all__ = ["KEY", "VERSION", "Call", "Case", "Golden", "read_golden"]

KEY = "rushlight.golden"
VERSION = 1
_DTYPES = ("F32", "I64")
MAX_ID = 2**31 - 1
"""Token ids are int32 on every device."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a module.

    Attributes:
        path: the module's path; its second and later calls have "#2", "#3", ... appended.
        repr: PyTorch's description in one line; only the class of a module with submodules.
        eps: the epsilon of a norm.
        input, output: the names of the tensors, or None.
        more: the names of the other tensors of an output that is a tuple of tensors of one shape.
    """

    path: str
    repr: str
    eps: float | None
    input: str | None
    output: str | None
    more: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        values = asdict(self)
        if not self.more:
            del values["more"]
        return values


@dataclass(slots=True)
class Case:
    """One prompt, and the calls of every module.

    Attributes:
        ids: the prompt.
        text: the prompt as text; None if it was given as ids.
        calls: in the order in which they finished.
        greedy_ids, greedy_margins: the greedy tokens after the prompt and their margins; empty if not recorded.
        tensors: those that `calls` names.
    """

    ids: list[int]
    text: str | None
    calls: list[Call]
    greedy_ids: list[int] = field(default_factory=list)
    greedy_margins: list[float] = field(default_factory=list)
    tensors: dict[str, NDArray[Any]] = field(default_factory=dict)

    def output(self, call: Call) -> NDArray[Any] | None:
        """The recorded output of a call."""
        return None if call.output is None else self.tensors[call.output]

    def input(self, call: Call) -> NDArray[Any] | None:
        """The recorded input of a call."""
        return None if call.input is None else self.tensors[call.input]

    def outputs(self, call: Call) -> list[NDArray[Any]]:
        """Every recorded tensor of a call's output."""
        return [self.tensors[name] for name in (call.output, *call.more) if name is not None]


@dataclass(slots=True)
class Golden:
    """A recording: the cases and their provenance.

    Attributes:
        name: of the file or source, for messages.
        made_with: library -> version.
        model: the class of the PyTorch model.
        dtype: the compute dtype: float32, bfloat16, ...
        config: of the PyTorch model, or empty.
        weights: tensor name -> digest.
        cases: the prompts.
    """

    made_with: dict[str, str]
    model: str
    dtype: str
    config: dict[str, Any]
    weights: dict[str, str]
    cases: list[Case]
    name: str = "the recording"

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Every tensor of the file, by name."""
        import numpy as np

        arrays: dict[str, NDArray[Any]] = {}
        for i, case in enumerate(self.cases):
            arrays[f"{i}/ids"] = np.array(case.ids, np.int64)
            arrays |= case.tensors
            if case.greedy_ids:
                arrays[f"{i}/greedy_ids"] = np.array(case.greedy_ids, np.int64)
                arrays[f"{i}/greedy_margins"] = np.array(case.greedy_margins, np.float32)
        return arrays

    def metadata(self) -> dict[str, str]:
        """The metadata of the file, under one key because the order of keys in a file is not fixed."""
        cases = [{"text": case.text, "modules": [call.to_json() for call in case.calls]} for case in self.cases]
        about = {
            "version": VERSION,
            "made_with": self.made_with,
            "model": self.model,
            "dtype": self.dtype,
            "config": self.config,
            "weights": self.weights,
            "cases": cases,
        }
        return {KEY: json.dumps(about, sort_keys=True, separators=(",", ":"))}


def read_golden(path: str | os.PathLike[str]) -> Golden:
    """Read a golden file. Requires no PyTorch.

    Raises:
        SourceError: no such file.
        FormatError, TruncatedError: not a valid safetensors file.
        GoldenError: not a golden file, of another version, or incomplete.
    """
    if not isinstance(path, str | os.PathLike):
        raise SourceError("invalid golden file", expected="a path", found=type(path).__name__)
    with open_checkpoint(Path(path)) as checkpoint:
        if KEY not in checkpoint.metadata:
            raise GoldenError(
                "not a golden file but a checkpoint",
                file=path,
                remedy="where PyTorch is installed, `rushlight record SOURCE -o golden.safetensors` writes one",
            )
        about = parse_json_object(checkpoint.metadata[KEY].encode(), file=path, error=GoldenError)
        if about.get("version") != VERSION:
            raise GoldenError(
                "unsupported version of the golden file format",
                file=path,
                expected=VERSION,
                found=about.get("version"),
                remedy="record it again, or use the version of rushlight that wrote it",
            )
        reader = _GoldenReader(checkpoint)
        golden = reader.golden(about, str(path))
        if reader.problems:
            lines = "\n  ".join(first_ten(reader.problems))
            raise GoldenError(f"incomplete or invalid golden file\n  {lines}", file=path, remedy="record it again")
        return golden


class _GoldenReader:
    """Reads the entries that the metadata lists, and collects every problem."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.problems: list[str] = []

    def golden(self, about: Mapping[str, Any], name: str) -> Golden:
        cases = self.typed(about, "cases", list)
        if not cases:
            self.problems.append("cases is empty")
        return Golden(
            made_with=self.words(about, "made_with"),
            model=self.typed(about, "model", str),
            dtype=self.typed(about, "dtype", str),
            config=self.typed(about, "config", dict),
            weights=self.words(about, "weights"),
            cases=[self.case(i, case if isinstance(case, dict) else {}) for i, case in enumerate(cases)],
            name=name,
        )

    def case(self, i: int, about: Mapping[str, Any]) -> Case:
        calls = [
            self.call(entry if isinstance(entry, dict) else {}, f"cases[{i}].modules[{j}]")
            for j, entry in enumerate(self.typed(about, "modules", list, f"cases[{i}]."))
        ]
        names = {name for call in calls for name in (call.input, call.output, *call.more) if name is not None}
        ids = self.integers(f"{i}/ids")
        if not ids:
            self.problems.append(f"{i}/ids is empty")
        elif not all(0 <= each <= MAX_ID for each in ids):
            self.problems.append(f"{i}/ids holds values that are not token ids")
        greedy = f"{i}/greedy_ids" in self.checkpoint
        margins = self.array(f"{i}/greedy_margins") if greedy else None
        case = Case(
            ids=ids,
            text=text if isinstance(text := about.get("text"), str) else None,
            calls=calls,
            greedy_ids=self.integers(f"{i}/greedy_ids") if greedy else [],
            greedy_margins=[] if margins is None else [float(margin) for margin in margins.reshape(-1)],
            tensors={name: array for name in sorted(names) if (array := self.array(name)) is not None},
        )
        if len(case.greedy_ids) != len(case.greedy_margins):
            self.problems.append(f"{i}/greedy_ids and {i}/greedy_margins differ in length")
        return case

    def call(self, about: Mapping[str, Any], where: str) -> Call:
        eps, names = about.get("eps"), [about.get("input"), about.get("output")]
        if not all(name is None or isinstance(name, str) for name in names):
            self.problems.append(f"{where}: input and output must be tensor names")
            names = [None, None]
        if eps is not None and type(eps) not in (int, float):
            self.problems.append(f"{where}.eps must be a number")
            eps = None
        more = about.get("more", [])
        if not isinstance(more, list) or not all(isinstance(name, str) for name in more):
            self.problems.append(f"{where}.more must list tensor names")
            more = []
        path, line = self.typed(about, "path", str, f"{where}."), self.typed(about, "repr", str, f"{where}.")
        return Call(path, line, eps, names[0], names[1], tuple(more))

    def typed(self, about: Mapping[str, Any], key: str, kind: type, where: str = "") -> Any:
        value = about.get(key)
        if isinstance(value, kind):
            return value
        self.problems.append(f"{where}{key} is missing or of the wrong type")
        return kind()

    def words(self, about: Mapping[str, Any], key: str) -> dict[str, str]:
        values: dict[str, Any] = self.typed(about, key, dict)
        if not all(isinstance(value, str) for value in values.values()):
            self.problems.append(f"{key} must hold only strings")
            return {}
        return values

    def integers(self, name: str) -> list[int]:
        array = self.array(name)
        if array is None:
            return []
        if array.dtype.kind != "i" or array.ndim != 1:
            self.problems.append(f"{printable_name(name)} must be one-dimensional, of integers")
            return []
        return [int(i) for i in array]

    def array(self, name: str) -> NDArray[np.generic] | None:
        tensor = self.checkpoint.get(name)
        if tensor is None:
            self.problems.append(f"the tensor {printable_name(name)} is missing")
            return None
        if tensor.dtype not in _DTYPES:
            self.problems.append(f"the tensor {printable_name(name)} is {tensor.dtype}, not {' or '.join(_DTYPES)}")
            return None
        return tensor.read()
