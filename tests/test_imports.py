"""Imports are cheap: heavy modules are loaded only when used."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
from architecture_fixtures import Fixture

HEAVY = {"torch", "transformers", "tokenizers", "huggingface_hub", "typer", "rich", "jinja2", "numpy"}


def modules_loaded_by(code: str) -> set[str]:
    """The modules that `code` loads in a new interpreter."""
    script = f"import sys; before = set(sys.modules)\n{code}\nprint(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_importing_rushlight_does_not_load_libraries():
    assert modules_loaded_by("import rushlight") & HEAVY == set()


def test_importing_rushlight_loads_few_modules():
    assert len(modules_loaded_by("import rushlight")) <= 40


def command(*arguments: str) -> str:
    """Code that runs the command line."""
    return (
        "from rushlight.cli import main\n"
        f"sys.argv = {['rushlight', *arguments]}\n"
        "try: main()\n"
        "except SystemExit as exit: assert not exit.code, exit.code"
    )


def test_help_loads_only_the_modules_that_print_it():
    loaded = modules_loaded_by(command("--help"))
    assert "typer" in loaded
    assert loaded & (HEAVY - {"typer"} | {"logging", "json", "dataclasses"}) == set()
    assert len(loaded) <= 130


def test_help_runs_without_garbage_collection():
    script = f"import gc, sys\n{command('--help')}\nprint(gc.get_freeze_count(), len(gc.get_objects()), gc.isenabled())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    frozen, others, enabled = done.stdout.splitlines()[-1].split()
    assert int(frozen) > 5 * int(others)
    assert enabled == "True"


def test_the_first_token_loads_few_modules():
    loaded = modules_loaded_by(command("generate", "--prompt", "Once", "--max-tokens", "1"))
    assert {"numpy", "tokenizers", "typer"} <= loaded
    others = HEAVY - {"numpy", "tokenizers", "typer"} | {"asyncio", "hashlib", "http", "ssl", "rushlight.bench"}
    assert loaded & others == set()
    assert len([name for name in loaded if not name.startswith("rushlight")]) <= 260


@pytest.mark.skipif(not find_spec("rushlight.backends._native"), reason="the reference backend is NumPy")
@pytest.mark.parametrize("model_type", ["tales", "llama"])
def test_weights_are_read_before_numpy_is_imported(model_type, tmp_path):
    run = command("generate", "tales", "--prompt", "Once", "--max-tokens", "1")
    if model_type == "llama":  # its rotary frequencies are computed with NumPy
        run = f"import rushlight; rushlight.load({str(Fixture('llama').write(tmp_path))!r}, device='cpu')"
    script = (
        "import sys\n"
        "from rushlight.loading import load as loader\n"
        "Call = loader.BackgroundCall\n"
        "loader.BackgroundCall = lambda *args: print('numpy' in sys.modules) or Call(*args)\n"
    )
    done = subprocess.run([sys.executable, "-c", script + run], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("False\n"), done.stderr


@pytest.mark.parametrize(("given", "expected"), [({}, "4"), ({"OPENBLAS_THREAD_TIMEOUT": "20"}, "20")])
def test_openblas_does_not_wait_in_a_loop(given, expected):
    script = """
import os, sys
from rushlight.host.numpy_import import import_numpy
class Spy:
    def find_spec(name, *_):
        if name == "numpy": print(os.environ["OPENBLAS_THREAD_TIMEOUT"])
sys.meta_path.insert(0, Spy)
before = dict(os.environ)
import_numpy()
assert "numpy" in sys.modules and dict(os.environ) == before
"""
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_THREAD_TIMEOUT"} | given
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == f"{expected}\n"
