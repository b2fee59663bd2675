#!/usr/bin/env bash
# Print the folder of a real Ollama (bin/ollama, lib/ollama/llama-server and llama-quantize), installing it
# into the user's cache when it is not there. Usage: ollama.sh PYTHON LLAMA_CPP_PYTHON_VERSION [--no-build]
#
# The Go binary comes from the Go module proxy, llama-server and llama-quantize from the sources of the
# llama-cpp-python sdist, linked with the libraries of PYTHON's llama_cpp: so Ollama runs the very kernels
# that the rest of the tests run. bin/parse-modelfile is Ollama's own parser behind a pipe, bin/ollama-0.29.0
# the same program under the number of a version that is too old for us.
set -euo pipefail
ollama=0.32.15 # newest stable on 2026-08-19; go.mod asks for Go 1.26
python=$1 version=$2 mode=${3:-}
here=$(cd "$(dirname "$0")" && pwd)
. "$here/cpu_key.sh"
cache=${XDG_CACHE_HOME:-$HOME/.cache}/collab-plugin/ollama
folder=$cache/ollama-$ollama-llama-cpp-python-$version-$(cpu_key)
files=(bin/ollama bin/ollama-0.29.0 bin/parse-modelfile lib/ollama/llama-server lib/ollama/llama-quantize)

complete() {
    local file
    for file in "${files[@]}"; do [ -x "$folder/$file" ] || return 1; done
}

build_go() {
    local label="-s -w -X github.com/ollama/ollama/version.Version"
    export GOBIN=$part/prefix/bin GOTOOLCHAIN=local CGO_ENABLED=1
    nice go install -p "$cores" -ldflags "$label=$ollama" "github.com/ollama/ollama@v$ollama"
    mkdir "$part/parser"
    cp "$here/ollama_parser/main.go" "$part/parser/"
    (
        cd "$part/parser"
        go mod init parse-modelfile
        go mod edit -require="github.com/ollama/ollama@v$ollama"
        nice go build -mod=mod -o "$GOBIN/parse-modelfile" .
        nice go build -mod=mod -ldflags "$label=0.29.0" -o "$GOBIN/ollama-0.29.0" github.com/ollama/ollama
    )
}

build_llama_cpp() {
    local lib source generator
    lib=$("$python" -c 'import importlib.util as u; print(u.find_spec("llama_cpp").submodule_search_locations[0])')/lib
    "$python" -m pip download --quiet --no-deps --no-binary :all: --dest "$part" "llama-cpp-python==$version"
    tar -xzf "$part"/llama_cpp_python-*.tar.gz -C "$part"
    source=$(echo "$part"/llama_cpp_python-*/vendor/llama.cpp)
    generator=$(command -v ninja >/dev/null && echo Ninja || echo "Unix Makefiles")
    nice cmake -G "$generator" -S "$here" -B "$part/build" -DLLAMA_SOURCE="$source" -DLLAMA_LIB="$lib" \
        "-DLLAMA_TOOLS=quantize;server"
    nice cmake --build "$part/build" --target llama-quantize llama-server -j "$cores"
    mkdir -p "$part/prefix/lib/ollama"
    cp -a "$part"/build/bin/llama-{server,quantize} "$lib"/lib{llama,ggml,mtmd}* "$part/prefix/lib/ollama/"
}

if ! complete; then
    [ "$mode" != --no-build ] || { echo "no Ollama: run make native, or give one in COLLAB_OLLAMA" >&2; exit 2; }
    for need in go cmake c++; do
        command -v "$need" >/dev/null || { echo "no Ollama: $need is not installed" >&2; exit 2; }
    done
    echo "installing Ollama $ollama (some minutes, once)" >&2
    mkdir -p "$cache"
    cores=$(getconf _NPROCESSORS_ONLN)
    part=$(mktemp -d "$cache/part.XXXX")
    trap 'rm -rf "$part"' EXIT
    # In the background because `set -e` would not hold on the left of ||.
    { build_go; build_llama_cpp; } >"$part/log" 2>&1 &
    wait $! || { tail -20 "$part/log" >&2; exit 2; }
    rm -rf "$folder"
    mv "$part/prefix" "$folder"
fi
echo "$folder"
