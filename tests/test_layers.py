"""A folder imports only from those below it, and heavy libraries only where they belong."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "rushlight"

WIDTH = 26
"""The columns of the picture with the names; descriptions follow."""

# The picture in CONTRIBUTING.md, from the top down, which the tests below parse.
LAYERS = """\
cli/                      commands/ one file a command; options, terminal, exit codes
bench/     jobs/          how fast a model runs here; files of requests and results
__init__.py               the public names
porting/   proof/         check/ and scaffold/ for a port; record and verify it, diagnosis/ of a divergence
chat/                     conversations: templates, turns, the end of the context
loading/                  where a source, an architecture, a backend and a tokenizer meet
runtime/                  what a user holds: Model, requests, results, streams, traces, the logit lens
models/                   one file an architecture, their registry, config schema
nn/        generation/    layers and binding; engine, scheduler, KV blocks, sampling/, speculation/
backends/                 one file a device, and the protocol that they implement
host/                     cores, memory, GPUs and limits of this machine
viewer/                   results as web pages
checkpoint/  text/        tensors and their files; tokens and text
demo/      files/         the embedded model; strict JSON, bounded reads, atomic writes
errors.py  version.py     the exception tree; the version
"""

INDEPENDENT = {"generation", "nn", "checkpoint", "text"}
"""None of these imports another one, whatever their rows."""

LIBRARIES = {
    "numpy": tuple(
        """bench/ proof/ porting/ loading/ runtime/ models/ nn/ generation/ backends/ checkpoint/ text/""".split()
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
    "jinja2": ("chat/sandbox_worker.py",),
}
"""Which files may import which library; no other library is imported anywhere."""


def rows() -> list[list[str]]:
    """Returns the names in the picture, row by row: ["cli"], ["bench", "jobs"], ["__init__"], ... ["errors"]."""
    return [re.findall(r"(\w+)(?:/|\.py)(?=\s)", line[:WIDTH]) for line in LAYERS.splitlines()]


ROW = {name: row for row, names in enumerate(rows()) for name in names}


def part(path: str) -> str:
    """The name in the picture that a file belongs to: "nn/layers.py" is in nn, "loader.py" is loader."""
    name = path.partition("/")[0].removesuffix(".py")
    return "cli" if name == "__main__" else name


def imports(code: str) -> set[str]:
    """The dotted names that the code imports anywhere, including inside functions and for types only."""
    names = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names}
    return names


def problems(path: str, code: str) -> list[str]:
    """The forbidden imports of a file with this path under src/rushlight."""
    found = []
    for name in sorted(imports(code)):
        library, _, rest = name.partition(".")
        if library == "rushlight":
            target = rest.partition(".")[0]
            target = target if target in ROW else "__init__"
            here = part(path)
            upward = target != here and ROW[target] <= ROW[here]
            if upward or (target != here and {target, here} <= INDEPENDENT):
                found.append(f"{path} imports {name}")
        elif library not in sys.stdlib_module_names and not path.startswith(LIBRARIES.get(library, ())):
            found.append(f"{path} imports {name}")
    return found


def test_imports_only_go_down():
    files = sorted(SOURCE.rglob("*.py"))
    assert files
    assert [
        problem
        for file in files
        for problem in problems(file.relative_to(SOURCE).as_posix(), file.read_text(encoding="utf-8"))
    ] == []


def imported_files(path: str, files: set[str]) -> set[str]:
    """The files among `files` that a file imports, by path under src/rushlight."""
    found = set()
    for name in imports((SOURCE / path).read_text(encoding="utf-8")):
        parts = name.split(".")[1:] if name.startswith("rushlight.") else []
        for stop in (len(parts), len(parts) - 1):  # the name of a module, or of something in one
            base = "/".join(parts[:stop])
            there = {f"{base}.py", f"{base}.pyi", f"{base}/__init__.py"} & files
            if base and there:
                found |= there
                break
    return found - {path}


def circles(graph: dict[str, set[str]]) -> list[str]:
    """The nodes on a circle of `graph`, among those that remain when leaves are removed until there are none."""
    graph = {node: set(targets) for node, targets in graph.items()}
    while leaves := {node for node, targets in graph.items() if not targets}:
        graph = {node: targets - leaves for node, targets in graph.items() if node not in leaves}
    return [node for node, targets in sorted(graph.items()) if targets & set(graph) and _reaches_itself(node, graph)]


def _reaches_itself(start: str, graph: dict[str, set[str]]) -> bool:
    seen, queue = set(), list(graph[start])
    while queue:
        node = queue.pop()
        if node == start:
            return True
        if node not in seen:
            seen.add(node)
            queue += graph[node]
    return False


def test_there_are_no_circular_imports():
    files = {file.relative_to(SOURCE).as_posix() for file in SOURCE.rglob("*.py*") if file.suffix in {".py", ".pyi"}}
    assert circles({file: imported_files(file, files) for file in files}) == []


def test_a_circular_import_is_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}) == ["b", "c"]


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("errors.py", "import rushlight.text.stop"),
        ("files/strict_json.py", "from rushlight.checkpoint import Checkpoint"),
        ("backends/cpu.py", "from rushlight.models import gpt2"),
        ("nn/layers.py", "def f():\n    from rushlight.generation.decode import decode"),
        ("generation/decode.py", "from rushlight.checkpoint import Tensor"),
        ("generation/decode.py", "from rushlight.text.stop import StopStrings"),
        ("text/tokenizer.py", "from rushlight.checkpoint import read_json_object"),
        ("checkpoint/tree.py", "from rushlight import __version__"),
        (
            "runtime/model.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from rushlight.loading.load import load",
        ),
        ("runtime/model.py", "import rushlight"),
        ("runtime/model.py", "from . import loader"),
        ("cli/commands/chat.py", "import huggingface_hub"),
        ("checkpoint/tree.py", "from rich.tree import Tree"),
        ("checkpoint/shards.py", "from huggingface_hub import snapshot_download"),
        ("errors.py", "import numpy as np"),
        ("nn/layers.py", "import torch.nn"),
        ("cli/commands/inspect.py", "from safetensors import safe_open"),
    ],
)
def test_a_forbidden_import_is_found(path, code):
    assert len(problems(path, code)) == 1


@pytest.mark.parametrize(
    ("path", "code"),
    [
        (
            "cli/commands/inspect.py",
            "import rushlight\nimport typer\nfrom rich.tree import Tree\nfrom rushlight.errors import SourceError",
        ),
        ("__init__.py", "from rushlight.loading.load import load"),
        ("loading/load.py", "from rushlight.text import Tokenizer\nfrom rushlight.checkpoint import open_checkpoint"),
        ("checkpoint/hub.py", "import json\nfrom huggingface_hub import snapshot_download"),
        ("nn/layers.py", "from rushlight.nn.module import Module\nfrom rushlight.backends.protocol import Role"),
        ("backends/reference.py", "import numpy as np\nfrom __future__ import annotations"),
    ],
)
def test_an_allowed_import_is_not_reported(path, code):
    assert problems(path, code) == []


def test_the_picture_matches_the_package():
    there = {part(entry.name) for entry in SOURCE.iterdir() if entry.suffix == ".py" or any(entry.glob("*.py"))}
    assert there == set(ROW)


def test_the_picture_matches_contributing():
    assert f"```text\n{LAYERS}```\n" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
