#!/usr/bin/env bash
# Print the folder with llama-quantize, llama-imatrix and llama-perplexity, building them first when they
# are not in the user's cache. Usage: llama_tools.sh PYTHON VERSION [--no-build]
# The sources are those of the llama-cpp-python sdist, the libraries those of PYTHON's llama_cpp.
set -euo pipefail
python=$1 version=$2 mode=${3:-}
here=$(cd "$(dirname "$0")" && pwd)
. "$here/cpu_key.sh"
cache=${XDG_CACHE_HOME:-$HOME/.cache}/collab-plugin/tools
folder=$cache/llama-cpp-python-$version-$(cpu_key)
tools=(llama-quantize llama-imatrix llama-perplexity)

complete() {
    local tool
    for tool in "${tools[@]}"; do [ -x "$folder/$tool" ] || return 1; done
}

if ! complete; then
    [ "$mode" != --no-build ] || { echo "llama.cpp's tools are not built: run make native" >&2; exit 2; }
    for need in cmake c++; do
        command -v "$need" >/dev/null || { echo "no $need: install it (apt-get install g++ cmake ninja-build)" >&2; exit 2; }
    done
    echo "building llama.cpp's tools of llama-cpp-python $version (some minutes, once)" >&2
    mkdir -p "$cache"
    part=$(mktemp -d "$cache/part.XXXX")
    trap 'rm -rf "$part"' EXIT
    lib=$("$python" -c 'import importlib.util as u; print(u.find_spec("llama_cpp").submodule_search_locations[0])')/lib
    "$python" -m pip download --quiet --no-deps --no-binary :all: --dest "$part" "llama-cpp-python==$version" >&2
    tar -xzf "$part"/llama_cpp_python-*.tar.gz -C "$part"
    source=$(echo "$part"/llama_cpp_python-*/vendor/llama.cpp)
    generator=$(command -v ninja >/dev/null && echo Ninja || echo "Unix Makefiles")
    {
        nice cmake -G "$generator" -S "$here" -B "$part/build" -DLLAMA_SOURCE="$source" -DLLAMA_LIB="$lib" &&
            nice cmake --build "$part/build" --target "${tools[@]}" -j "$(getconf _NPROCESSORS_ONLN)"
    } >"$part/log" 2>&1 || { tail -20 "$part/log" >&2; exit 2; }
    # Beside the tools, so that they work without the environment too.
    cp -a "$lib"/libllama.* "$lib"/libggml* "$part/build/bin/"
    rm -rf "$folder"
    mv "$part/build/bin" "$folder"
fi
echo "$folder"
