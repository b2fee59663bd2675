#!/usr/bin/env bash
# Print the folder with llama.cpp's converter (conversion/ and gguf-py/), fetching it when it is not in the user's
# cache. Usage: llama_converter.sh PYTHON VERSION [--no-build]. It is in the source distribution of llama-cpp-python, 77 MB, of
# which 2 MB stay.
set -euo pipefail
python=$1 version=$2 mode=${3:-}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/collab-plugin/converter
folder=$cache/llama-cpp-python-$version
if [ ! -d "$folder" ]; then
    [ "$mode" != --no-build ] || { echo "llama.cpp's converter is not here: run make native" >&2; exit 2; }
    mkdir -p "$cache"
    part=$(mktemp -d "$cache/part.XXXX")
    trap 'rm -rf "$part"' EXIT
    "$python" -m pip download --quiet --no-deps --no-binary :all: --dest "$part" "llama-cpp-python==$version" >&2
    tar -xzf "$part"/llama_cpp_python-*.tar.gz -C "$part"
    mkdir "$part/kept"
    mv "$part"/llama_cpp_python-*/vendor/llama.cpp/{conversion,gguf-py} "$part/kept/"
    mv "$part/kept" "$folder"
fi
echo "$folder"
