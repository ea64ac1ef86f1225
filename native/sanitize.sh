#!/usr/bin/env bash
# Builds the native extension with sanitizers and runs its tests under them.
#
#     native/sanitize.sh address,undefined [pytest arguments]
#     native/sanitize.sh thread [pytest arguments]
#
# Needs cmake, ninja, nanobind and the tests' dependencies in the Python on PATH. Builds in build/sanitize-*.
set -euo pipefail
cd "$(dirname "$0")/.."
sanitizers=${1:?expected address,undefined or thread}
shift
build=build/sanitize-${sanitizers//,/-}
mkdir -p build
cmake -S . -B "$build" -G Ninja -DRUSHLIGHT_SANITIZE="$sanitizers" \
    -DPython_EXECUTABLE="$(command -v python)" >"$build.log" ||
    { cat "$build.log"; exit 1; }
cmake --build "$build"

# In a copy of the package, so that the working tree keeps its own extension.
rm -rf "$build/src"
cp -r src "$build/src"
rm -f "$build"/src/rushlight/backends/_native*.so
cp "$build"/_native*.so "$build/src/rushlight/backends/"

# The sanitizer's runtime must load before Python, and so must the C++ library, whose throw it intercepts.
case $sanitizers in
thread) runtime=libtsan.so ;;
*) runtime=libasan.so ;;
esac
preload="$(c++ -print-file-name=$runtime) $(c++ -print-file-name=libstdc++.so)"
# No leak detection: Python does not free everything at exit. PYTHONMALLOC: its own allocator would hide overruns.
# handle_sigbus: mapped files have their own handler, and the tests expect that of the system behind it.
LD_PRELOAD=$preload PYTHONMALLOC=malloc PYTHONPATH=$PWD/$build/src OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 \
    ASAN_OPTIONS=detect_leaks=0:handle_sigbus=0 UBSAN_OPTIONS=print_stacktrace=1 \
    TSAN_OPTIONS="die_after_fork=0 exitcode=66" \
    python -m pytest tests/native -m '' -q -p no:cacheprovider --capture=sys "$@"
