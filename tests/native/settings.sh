#!/usr/bin/env bash
# Print the lines of settings.toml (docs/install.md) that name what is built in the user's cache, so that it serves
# outside of the tests too. Usage: settings.sh PYTHON LLAMA_CPP_PYTHON_VERSION
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
echo "[programs]"
if folder=$("$here/llama_variants.sh" "$@" --no-build 2>/dev/null); then echo "llama_libraries = '$folder'"; fi
if folder=$("$here/ollama.sh" "$@" --no-build 2>/dev/null); then echo "ollama = '$folder/bin/ollama'"; fi
if python=$("$here/vllm_env.sh" "$1" --no-build 2>/dev/null); then echo "vllm_python = '$python'"; fi
