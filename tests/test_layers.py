"""A folder imports only from those below it, and heavy libraries only where they belong."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "rushlight"

# The picture in CONTRIBUTING.md, from the roof down. It is what the tests below read.
LAYERS = """\
cli/                                  one file a command: flags, printing, exit codes
bench/         jobs/                  how fast a model runs here, and what it needs; files of requests
__init__.py                           the public names
proof/                                a port compared with PyTorch, module by module
porting/                              does a checkpoint fit, and why not; a port to begin with
loader.py      inspection.py          where a source, an architecture, a backend and a tokenizer meet; a source's tree
logit_lens.py                         what each block would say next
chat/                                 conversations: templates, turns, and the end of the context
model.py                              the object that a user holds
prompts.py     running.py             what users give as token ids; what runs a model: its modules, or tapped ones
result.py                             a generated text, whole or as it comes
models/                               one file an architecture; what config files say
nn/            generation/            layers and binding; cache, sampling and the loop
backends/                             one file a device
viewer/                               a module tree as a web page
checkpoint/    text/                  files and their tensors; tokens and text
demo/                                 the embedded model
strict_json.py files.py               strict JSON; files that are written whole
errors.py                             every error
"""

STRANGERS = {"generation", "nn", "checkpoint", "text"}
"""These do not know one another, wherever they stand."""

LIBRARIES = {
    "numpy": tuple(
        """bench/ proof/ porting/ logit_lens.py model.py loader.py models/ nn/ generation/ backends/ checkpoint/
        text/""".split()
    ),
    "tokenizers": ("text/",),
    "llguidance": ("text/constraint.py",),
    "huggingface_hub": ("checkpoint/hub.py", "checkpoint/hub_"),
    "safetensors": ("proof/record.py",),
    "torch": ("backends/cuda.py", "backends/cuda_kernels.py"),
    "triton": ("backends/cuda_kernels.py",),
    "mlx": ("backends/metal.py",),
    "typer": ("cli/",),
    "rich": ("cli/",),
    "jinja2": ("chat/worker.py",),
}
"""Which files may import which library; no other library is imported anywhere."""


def rows() -> list[list[str]]:
    """The picture's names, row by row: ["cli"], ["__init__"], ... ["demo"], ["strict_json"], ["errors"]."""
    return [re.findall(r"(\w+)(?:/|\.py)(?=\s)", line) for line in LAYERS.splitlines()]


ROW = {name: row for row, names in enumerate(rows()) for name in names}


def part(path: str) -> str:
    """The name in the picture that a file belongs to: "nn/layers.py" is in nn, "loader.py" is loader."""
    name = path.partition("/")[0].removesuffix(".py")
    return "cli" if name == "__main__" else name


def imports(code: str) -> set[str]:
    """The dotted names that the code imports anywhere, also inside functions and for types alone."""
    names = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names}
    return names


def problems(path: str, code: str) -> list[str]:
    """What a file with this path under src/rushlight imports and must not."""
    found = []
    for name in sorted(imports(code)):
        library, _, rest = name.partition(".")
        if library == "rushlight":
            target = rest.partition(".")[0]
            target = target if target in ROW else "__init__"
            here = part(path)
            upward = target != here and ROW[target] <= ROW[here]
            if upward or (target != here and {target, here} <= STRANGERS):
                found.append(f"{path} imports {name}")
        elif library not in sys.stdlib_module_names and not path.startswith(LIBRARIES.get(library, ())):
            found.append(f"{path} imports {name}")
    return found


def test_every_import_goes_down():
    files = sorted(SOURCE.rglob("*.py"))
    assert files
    assert [
        problem
        for file in files
        for problem in problems(file.relative_to(SOURCE).as_posix(), file.read_text(encoding="utf-8"))
    ] == []


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("errors.py", "import rushlight.text.stop"),
        ("strict_json.py", "from rushlight.checkpoint import File"),
        ("backends/cpu.py", "from rushlight.models import gpt2"),
        ("nn/layers.py", "def f():\n    from rushlight.generation.decode import decode"),
        ("generation/decode.py", "from rushlight.checkpoint import Tensor"),
        ("generation/decode.py", "from rushlight.text.stop import StopStrings"),
        ("text/tokenizer.py", "from rushlight.checkpoint import read_json_object"),
        ("checkpoint/tree.py", "from rushlight import __version__"),
        ("model.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from rushlight.loader import load"),
        ("model.py", "import rushlight"),
        ("model.py", "from . import loader"),
        ("cli/chat.py", "import huggingface_hub"),
        ("checkpoint/tree.py", "from rich.tree import Tree"),
        ("checkpoint/shards.py", "from huggingface_hub import snapshot_download"),
        ("errors.py", "import numpy as np"),
        ("nn/layers.py", "import torch.nn"),
        ("cli/inspect.py", "from safetensors import safe_open"),
    ],
)
def test_a_wrong_import_is_found(path, code):
    assert len(problems(path, code)) == 1


@pytest.mark.parametrize(
    ("path", "code"),
    [
        (
            "cli/inspect.py",
            "import rushlight\nimport typer\nfrom rich.tree import Tree\nfrom rushlight.errors import SourceError",
        ),
        ("__init__.py", "from rushlight.loader import load"),
        ("loader.py", "from rushlight.text import Tokenizer\nfrom rushlight.checkpoint import open_checkpoint"),
        ("checkpoint/hub.py", "import json\nfrom huggingface_hub import snapshot_download"),
        ("nn/layers.py", "from rushlight.nn.module import Module\nfrom rushlight.backends.protocol import Role"),
        ("backends/reference.py", "import numpy as np\nfrom __future__ import annotations"),
    ],
)
def test_a_right_import_is_not(path, code):
    assert problems(path, code) == []


def test_the_picture_is_the_package():
    there = {part(entry.name) for entry in SOURCE.iterdir() if entry.suffix == ".py" or any(entry.glob("*.py"))}
    assert there == set(ROW)


def test_the_picture_is_the_one_contributors_see():
    assert f"```text\n{LAYERS}```\n" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
