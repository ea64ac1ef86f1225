#!/usr/bin/env bash
# Builds the native extension with its AVX-512 kernels made of AVX2 instructions (native/emulate.h) and runs with it the
# tests of kernels, backends, models, documents and cases: a machine without AVX-512 sees what one with it computes.
#
#     native/emulate.sh [pytest arguments]
#
# Needs an x86-64 processor with AVX2, and cmake, ninja, nanobind and what the tests need in the Python that PATH has.
# Builds in build/emulate.
set -euo pipefail
cd "$(dirname "$0")/.."
build=build/emulate
mkdir -p build
cmake -S . -B "$build" -G Ninja -DRUSHLIGHT_EMULATE=ON -DPython_EXECUTABLE="$(command -v python)" >"$build.log" ||
    { cat "$build.log"; exit 1; }
cmake --build "$build"

# A package of its own, so that the one that is worked on keeps its fast extension.
rm -rf "$build/src"
cp -r src "$build/src"
rm -f "$build"/src/rushlight/backends/_native*.so
cp "$build"/_native*.so "$build/src/rushlight/backends/"
export PYTHONPATH=$PWD/$build/src

# Of the native suite what is parametrised by instruction set; the models once for each of the two, the best first.
python -m pytest tests/native -q -p no:cacheprovider -k avx512 "$@"
for isa in avx512vnni avx512; do
    RUSHLIGHT_ISA=$isa python -m pytest tests/backends tests/models tests/docs tests/cases -q -p no:cacheprovider "$@"
done
