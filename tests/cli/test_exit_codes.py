"""The exit codes, as documented and as used before the package is imported."""

from pathlib import Path

from rushlight import __main__ as program
from rushlight.cli import exit_codes


def test_the_documented_codes_are_the_defined_ones():
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    documented = {int(line.split("|")[1]) for line in page.splitlines() if line.startswith("| ") and line[2].isdigit()}
    assert documented == {0, *(value for name, value in vars(exit_codes).items() if name.isupper())}


def test_the_program_exits_with_the_same_code_before_its_imports():
    assert program.INTERRUPTED == exit_codes.INTERRUPTED
