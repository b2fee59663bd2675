#!/usr/bin/env bash
# Print the folder of a cached llama-cpp-python wheel, building it first when it is not there.
# Usage: llama_cpp_wheel.sh PYTHON VERSION. About 8 minutes on two cores, once a version and processor:
# ggml is compiled for the processor at hand (GGML_NATIVE), so the flags are part of the key.
set -euo pipefail
python=$1 version=$2
. "$(dirname "$0")/cpu_key.sh"
folder=${XDG_CACHE_HOME:-$HOME/.cache}/collab-plugin/wheels/llama-cpp-python-$version-$(cpu_key)
if ! ls "$folder"/*.whl >/dev/null 2>&1; then
    command -v c++ >/dev/null || { echo "no C++ compiler: install one (apt-get install g++ cmake ninja-build)" >&2; exit 2; }
    echo "building llama-cpp-python $version (about 8 minutes, once)" >&2
    mkdir -p "$folder"
    part=$(mktemp -d "$folder/part.XXXX")
    trap 'rm -rf "$part"' EXIT
    # GCC 12 leaves out most of AMX's tile configuration (its intrinsic names 8 of the 64 bytes that it reads), so every
    # large product of quantized matrices dies of SIGILL where the processor has AMX.
    # -march=native, which ggml adds last, would win over -mno-amx-int8.
    export CMAKE_ARGS="${CMAKE_ARGS:-} -DCMAKE_C_FLAGS=-U__AMX_INT8__ -DCMAKE_CXX_FLAGS=-U__AMX_INT8__"
    # Without pip's own cache, which knows wheels by their source alone and not by flags or processor.
    "$python" -m pip wheel --quiet --no-cache-dir --no-deps --wheel-dir "$part" "llama-cpp-python==$version" >&2
    mv "$part"/*.whl "$folder/"
fi
echo "$folder"
