#!/usr/bin/env bash
# Builds the native extension with AVX-512 kernels emulated by AVX2 (native/emulate.h), and runs the tests of kernels,
# backends, models, documents and cases with it: the results of a machine with AVX-512, on one without.
#
#     native/emulate.sh [pytest arguments]
#
# Needs an x86-64 processor with AVX2; cmake, ninja, nanobind and the tests' dependencies in the Python on PATH.
# Builds in build/emulate.
set -euo pipefail
cd "$(dirname "$0")/.."
build=build/emulate
mkdir -p build
cmake -S . -B "$build" -G Ninja -DRUSHLIGHT_EMULATE=ON -DPython_EXECUTABLE="$(command -v python)" >"$build.log" ||
    { cat "$build.log"; exit 1; }
cmake --build "$build"

# In a copy of the package, so that the working tree keeps its own extension.
rm -rf "$build/src"
cp -r src "$build/src"
rm -f "$build"/src/rushlight/backends/_native*.so
cp "$build"/_native*.so "$build/src/rushlight/backends/"
export PYTHONPATH=$PWD/$build/src

# The native tests that are parametrised by instruction set; the models once for each of the two sets.
python -m pytest tests/native -q -p no:cacheprovider -k avx512 "$@"
for isa in avx512vnni avx512; do
    RUSHLIGHT_ISA=$isa python -m pytest tests/backends tests/models tests/docs tests/cases -q -p no:cacheprovider "$@"
done
