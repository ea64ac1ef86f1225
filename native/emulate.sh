#!/usr/bin/env bash
# Builds the native extension with AVX-512 and AMX emulated by AVX2 (native/emulate.h), and runs the tests of kernels,
# backends, models, documents and cases with the instruction sets that this processor lacks: their results, without them.
#
#     native/emulate.sh [pytest arguments]
#
# RUSHLIGHT_EMULATE names other sets. The tests compare with digests that processors which have the sets computed.
# Needs an x86-64 processor with AVX2; cmake, ninja, nanobind and the tests' dependencies in the Python on PATH.
# Builds in build/emulate.
set -euo pipefail
cd "$(dirname "$0")/.."
build=build/emulate
lacking='from rushlight.backends._native import instruction_sets as found
print(*[name for name in ("amx", "avx512vnni", "avx512") if name not in found()])'
sets=${RUSHLIGHT_EMULATE-$(python -c "$lacking")}
[ -n "$sets" ] || { echo "this processor has every instruction set"; exit 0; }
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

# The native tests that are parametrised by instruction set; the models once for each set.
python -m pytest tests/native -m '' -q -p no:cacheprovider -k "${sets// / or }" "$@"
for isa in $sets; do
    RUSHLIGHT_ISA=$isa python -m pytest tests/backends tests/models tests/docs tests/cases -q -p no:cacheprovider "$@"
done
