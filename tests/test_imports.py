"""Importing is cheap: nothing heavy is loaded before it is used."""

import subprocess
import sys

HEAVY = {"torch", "transformers", "tokenizers", "huggingface_hub", "typer", "rich", "jinja2", "numpy"}


def modules_loaded_by(code: str) -> set[str]:
    """The modules that a fresh interpreter has after `code` and had not before."""
    script = f"import sys; before = set(sys.modules)\n{code}\nprint(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_import_rushlight_loads_no_library():
    assert modules_loaded_by("import rushlight") & HEAVY == set()


def test_import_rushlight_loads_few_modules():
    assert len(modules_loaded_by("import rushlight")) <= 40


def test_help_loads_only_what_prints_it():
    loaded = modules_loaded_by(
        "from rushlight.cli import main\n"
        "sys.argv = ['rushlight', '--help']\n"
        "try: main()\n"
        "except SystemExit as exit: assert not exit.code, exit.code"
    )
    assert "typer" in loaded
    assert loaded & (HEAVY - {"typer"}) == set()
