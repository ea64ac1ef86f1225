"""The public names and their documentation."""

import inspect
import re
from pathlib import Path

import pytest

import rushlight
from rushlight import errors, models, nn
from rushlight.models.registry import MODULES

ROOT = Path(__file__).parents[1]


def test_the_public_names_are_exactly_the_listed_ones():
    assert rushlight.__all__ == [
        "AsyncStream",
        "Beam",
        "Chat",
        "Delta",
        "Generation",
        "Model",
        "Perplexity",
        "Request",
        "RushlightError",
        "Score",
        "Stats",
        "Stream",
        "__version__",
        "check",
        "convert",
        "inspect",
        "lens",
        "load",
        "load_module",
        "open_checkpoint",
        "record",
        "verify",
    ]


def test_every_name_that_a_model_file_imports_is_public():
    """Ports import from these two packages: removing or changing a name breaks users' files."""
    assert nn.__all__ == [
        "ACTIVATIONS",
        "Activation",
        "Array",
        "Backend",
        "Batch",
        "Constant",
        "Conv1D",
        "Convolution",
        "Diagnosis",
        "Embedding",
        "KVShape",
        "LayerNorm",
        "Linear",
        "Module",
        "ModuleDict",
        "ModuleList",
        "NameRules",
        "Problem",
        "RMSNorm",
        "Role",
        "Rotary",
        "Slot",
        "Tensor",
        "bind",
        "diagnose",
        "tapped",
        "to_write",
    ]
    assert models.__all__ == [
        "ACTIVATION_NAMES",
        "ARCHITECTURES",
        "GPT2_VOCAB_SIZE",
        "OTHER_HEADS",
        "Architecture",
        "Config",
        "Fields",
        "Heads",
        "Origin",
        "PretrainedModel",
        "Rope",
        "TextConfig",
        "field",
        "load_port",
        "read_rope",
        "recognise",
    ]


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module in (nn, models) for name in module.__all__], ids=str
)
def test_every_name_for_model_files_exists_and_is_documented(module, name):
    value = getattr(module, name)
    assert not (inspect.isclass(value) or inspect.isfunction(value) or inspect.ismodule(value)) or inspect.getdoc(value)


MODEL_FILES = [
    *(ROOT / "src/rushlight/models" / f"{name}.py" for name in MODULES.values()),
    *(path for path in ROOT.glob("examples/**/*.py") if "\nARCHITECTURE = " in path.read_text("utf-8")),
]


@pytest.mark.parametrize("path", MODEL_FILES, ids=lambda path: path.stem)
def test_a_model_file_imports_from_nn_and_models_only(path):
    imported = set(re.findall(r"^\s*(?:from|import) (rushlight[\w.]*)", path.read_text("utf-8"), re.MULTILINE))
    assert imported
    assert imported <= {"rushlight.nn", "rushlight.models", *(f"rushlight.models.{name}" for name in MODULES.values())}


@pytest.mark.parametrize("name", MODULES.values())
def test_a_model_file_begins_with_the_model(name):
    lines = (ROOT / "src/rushlight/models" / f"{name}.py").read_text("utf-8").splitlines()
    first = next(i for i, line in enumerate(lines) if re.match(r"class \w+(?<!Config)\(", line))
    assert first <= 60


def test_dir_shows_the_public_names():
    assert dir(rushlight) == sorted(rushlight.__all__)


@pytest.mark.parametrize("name", rushlight.__all__)
def test_every_public_name_exists_and_is_documented(name):
    value = getattr(rushlight, name)
    assert name == "__version__" or inspect.getdoc(value)


@pytest.mark.parametrize(
    "name", ["Chat", "Model", "Delta", "Stream", "Generation", "Stats", "Score", "Perplexity", "Beam"]
)
def test_every_public_method_is_documented(name):
    members = {member: value for member, value in vars(getattr(rushlight, name)).items() if not member.startswith("_")}
    undocumented = [
        member
        for member, value in members.items()
        if (callable(value) or isinstance(value, property)) and not inspect.getdoc(value)
    ]
    assert undocumented == []


def test_an_unknown_name():
    with pytest.raises(AttributeError, match="has no attribute 'lode'"):
        rushlight.lode  # noqa: B018


def drawn(error: type, lead: str = "") -> list[str]:
    """Returns the subclasses of an error, as drawn in the docstring of its module."""
    lines = []
    below = error.__subclasses__()
    for i, child in enumerate(below):
        last = i == len(below) - 1
        lines.append(f"{lead}{'└── ' if last else '├── '}{child.__name__}")
        lines += drawn(child, lead + ("    " if last else "│   "))
    return lines


def test_the_error_hierarchy_matches_the_documented_tree():
    tree = re.findall(r"^    ([│├└─ ]*\w+Error)\b", errors.__doc__, re.MULTILINE)
    assert tree == ["RushlightError", *drawn(errors.RushlightError)]


def test_every_error_has_a_unique_code_and_is_exported():
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    codes = [error.code for error in classes]
    assert len(set(codes)) == len(codes)
    assert {error.__name__ for error in classes} <= set(errors.__all__)
