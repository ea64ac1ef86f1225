# Recipes for working on rushlight. `just` alone lints and tests; `just --list` shows the rest.

export PATH := justfile_directory() / ".venv/bin:" + env("PATH")

# Lint, then test.
default: lint test

# Make .venv and install rushlight into it, editable, with the tools.
setup:
    python3 -m venv .venv
    pip install -e '.[dev]'

# Run the tests; arguments go to pytest: `just test -m slow`, `just test tests/text`.
test *args:
    pytest {{ args }}

# What CI holds of the code's form: rules, format, types.
lint:
    ruff check .
    ruff format --check .
    mypy

# Mend what can be mended of it.
format:
    ruff check --fix .
    ruff format .

# Compare with PyTorch, in an environment of its own.
parity *args:
    test -d .venv-parity || python3 -m venv .venv-parity
    .venv-parity/bin/pip install --quiet torch==2.13.0
    .venv-parity/bin/pip install --quiet -e '.[test,proof]'
    .venv-parity/bin/pytest -m parity {{ args }}

# Write the generated pages again.
docs:
    python docs/make_cli.py

# Everything that CI runs, in fresh environments.
ci:
    bash .ci/run
