"""Users' model files: the required definitions, and the errors if they are missing."""

import shutil

import numpy as np
import pytest

import rushlight
from rushlight import demo
from rushlight.errors import PortError
from rushlight.models import load_port
from rushlight.models.gpt2 import __file__ as gpt2_file

PROMPT = "Once upon a time"


@pytest.fixture
def write(tmp_path):
    """Writes a file and returns its path."""

    def write(text, name="my_model.py"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


@pytest.fixture
def own_gpt2(tmp_path):
    """A copy of the built-in GPT-2, as a user's file."""
    path = tmp_path / "own.py"
    shutil.copy(gpt2_file, path)
    with path.open("a") as file:
        file.write("\nARCHITECTURE = GPT2\n")
    return path


def test_a_port_generates_the_same_output_as_the_model(own_gpt2):
    ported = rushlight.load(port=own_gpt2)
    assert type(ported.module) is not type(rushlight.load().module)
    assert ported.generate(PROMPT, max_tokens=30).ids == rushlight.load().generate(PROMPT, max_tokens=30).ids


def test_an_edited_file_is_read_again(write):
    path = write("ARCHITECTURE = 1\n")
    for value, word in (("1", "int"), ("'", "line 1"), ("''", "str"), ("[]", "list")):
        path.write_text(f"ARCHITECTURE = {value}\n")
        with pytest.raises(PortError, match=word):
            load_port(path)
    assert not (path.parent / "__pycache__").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "ARCHITECTURE is not defined"),
        ("x = 1\ny = (\n", "line 2 is not Python: '(' was never closed"),
        ("x = 1\n\n1 / 0\n", "line 3 raises ZeroDivisionError: division by zero"),
        ("def f():\n    raise ValueError('no')\n\n\nf()\n", "line 2 raises ValueError: no"),
        ("import no_such_library\n", "line 1 raises ModuleNotFoundError: No module named 'no_such_library'"),
        ("import sys\n\nsys.exit(3)\n", "line 3 raises SystemExit: 3"),
        ("import json\n\njson.loads('{')\n", "line 3 raises JSONDecodeError"),
        ("ARCHITECTURE = 'GPT2'\n", "expected a class derived from rushlight.models.PretrainedModel, found str"),
        ("ARCHITECTURE = dict\n", "derived from rushlight.models.PretrainedModel, found dict"),
        ("from rushlight.nn import Module as ARCHITECTURE\n", "models.PretrainedModel, found Module"),
        (
            "from rushlight.models import PretrainedModel\n\n\nclass ARCHITECTURE(PretrainedModel):\n    pass\n",
            "it has no config_type",
        ),
        (
            "from rushlight.models import PretrainedModel\n\n\nclass ARCHITECTURE(PretrainedModel):\n"
            "    config_type = int\n    rules = {}\n",
            "its config_type has no from_json; its config_type has no from_tensors; "
            "its rules: expected a NameRules, found dict",
        ),
    ],
)
def test_an_error_names_the_file_and_the_line(write, text, said):
    path = write(text)
    with pytest.raises(PortError) as caught:
        load_port(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(("make", "said"), [(lambda path: None, "no such file"), (lambda path: path.mkdir(), "folder")])
def test_a_missing_file_is_refused(tmp_path, make, said):
    make(tmp_path / "my_model.py")
    with pytest.raises(PortError, match=said):
        load_port(tmp_path / "my_model.py")


NOT_A_LANGUAGE_MODEL = """
from rushlight.models import PretrainedModel
from rushlight.nn import LayerNorm, NameRules, to_write


class Config:
    @classmethod
    def from_json(cls, values, *, file=None):
        return cls()

    from_tensors = from_json


class Part(PretrainedModel):
    config_type = Config
    rules = NameRules(buffers=(r"(wte|wpe|h).*",))

    def __init__(self, config):
        self.ln_f = LayerNorm(192, eps=1e-5)

    def __call__(self, x):
        raise to_write(self)


ARCHITECTURE = Part
"""


def test_a_module_that_is_not_a_language_model(write):
    path = write(NOT_A_LANGUAGE_MODEL)
    with pytest.raises(PortError, match=r"not a language model: .*TextConfig.*load_module"):
        rushlight.load(port=path)
    module = rushlight.load_module(demo.folder(), port=path, device="reference")
    assert module.ln_f(np.zeros((1, 192), np.float32)).shape == (1, 192)
    with pytest.raises(PortError, match=r"my_model.py: Part.__call__ is still to be written"):
        module(None)
