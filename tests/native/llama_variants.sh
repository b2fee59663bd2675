#!/usr/bin/env bash
# Print a folder of llama.cpp libraries with other code paths than the installed wheel's, for
# COLLAB_LLAMA_LIBRARIES, building it first when it is not in the user's cache.
# Usage: llama_variants.sh PYTHON LLAMA_CPP_PYTHON_VERSION [--no-build]. About 7 minutes on two cores, once.
#
# The sources are those of the llama-cpp-python sdist and libllama is PYTHON's, so ctypes sees the same structs.
# First: CPU backends for x64 (scalar), SSE4.2 and AVX2, or ARMv8.0 and v8.2. Then, where Debian's or Ubuntu's
# packages can be had: OpenBLAS, and Vulkan with Mesa's software driver. The packages are unpacked into the cache,
# not installed: no root is needed, and the file `environment` tells the child process where they are.
set -euo pipefail
python=$1 version=$2 mode=${3:-}
variants='x64|sse42|haswell|armv8.0_1|armv8.2_1'
packages=(glslc libvulkan-dev spirv-headers mesa-vulkan-drivers libopenblas-dev)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/collab-plugin/llama
# The number after the version is this recipe's: raise it when the steps below change.
folder=$cache/llama-cpp-python-$version-$(uname -m)-1

configure() {
    nice cmake -G "$generator" -S "$source/ggml" -B "$part/build" -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON \
        -DCMAKE_BUILD_WITH_INSTALL_RPATH=ON "-DCMAKE_INSTALL_RPATH=\$ORIGIN" -DGGML_BACKEND_DL=ON -DGGML_NATIVE=OFF \
        -DGGML_CPU_ALL_VARIANTS=ON -DGGML_CCACHE=OFF -DGGML_BUILD_TESTS=OFF -DGGML_BUILD_EXAMPLES=OFF "$@"
}

build() { nice cmake --build "$part/build" --target "$1" -j "$cores"; }

take() { find "$part/build" \( -name "lib$1*.so*" -o -name "lib$1*.dylib" \) -exec cp -a {} "$2/" \;; }

unpack_sources() {
    "$python" -m pip download --quiet --no-deps --no-binary :all: --dest "$part" "llama-cpp-python==$version"
    tar -xzf "$part"/llama_cpp_python-*.tar.gz -C "$part"
    # `ggml` depends on all variants that are listed; a few are enough.
    sed -i.all -E "/^ +ggml_add_cpu_backend_variant\(/{/\(($variants)[ )]/!d;}" "$source/ggml/src/CMakeLists.txt"
    # The sdist lacks this file, which only an installation reads.
    touch "$source/ggml/ggml.pc.in"
}

build_cpu() {
    local lib
    lib=$("$python" -c 'import importlib.util as u; print(u.find_spec("llama_cpp").submodule_search_locations[0])')/lib
    unpack_sources
    configure
    build ggml
    mkdir "$part/prefix"
    take ggml "$part/prefix"
    cp -a "$lib"/libllama.* "$part/prefix/"
    rm -rf "$folder"
    mv "$part/prefix" "$folder"
}

# Unpack packages, by names in `list`, into the folder. The lists of packages are our own, so no root is needed.
fetch() {
    local deb
    mkdir -p "$part"/apt/{lists,cache,debs}/partial
    apt-get "${apt[@]}" update
    list=$("$@")
    [ -n "$list" ] || return 0
    # shellcheck disable=SC2086  # words of a list
    (cd "$part/apt/debs" && apt-get "${apt[@]}" download $list)
    for deb in "$part"/apt/debs/*.deb; do dpkg -x "$deb" "$folder/packages"; done
    rm -rf "$part/apt"
}

# What the machine lacks, and what of its own is too old to go with it.
lacking() { apt-get "${apt[@]}" install -s --no-install-recommends "${packages[@]}" | awk '/^Inst/ { print $2 }'; }

unpack_packages() {
    local apt=(-o "Dir::State::Lists=$part/apt/lists" -o "Dir::Cache=$part/apt/cache" -o Debug::NoLocking=1) list
    rm -rf "$folder/packages"
    mkdir "$folder/packages"
    fetch lacking
    # Debian 12's Vulkan headers are older than llama.cpp wants; headers of Debian 13 go with its loader.
    if ! grep -q VK_EXT_layer_settings "$(found include/vulkan/vulkan_core.h)"; then
        echo "deb http://deb.debian.org/debian trixie main" >"$part/newer.list"
        apt+=(-o "Dir::Etc::SourceList=$part/newer.list" -o Dir::Etc::SourceParts=/dev/null)
        fetch echo libvulkan-dev spirv-headers
    fi
    find "$folder/packages" -name '*.a' -delete
}

# Where a package's file lies: unpacked here, or installed.
found() { # shellcheck disable=SC2086  # a pattern
    local path
    for path in "$folder"/packages/usr/$1 /usr/$1; do
        if [ -e "$path" ]; then echo "$path"; return; fi
    done
    echo "no $1 in the packages" >&2
    return 1
}

build_with_packages() {
    local vulkan blas header icd
    [ -d "$source" ] || unpack_sources
    unpack_packages
    vulkan=$(found 'lib/*/libvulkan.so.1')
    blas=$(found 'lib/*/openblas-pthread/libopenblas.so')
    header=$(found 'include/*/openblas-pthread/cblas.h')
    icd=$(found 'share/vulkan/icd.d/lvp_icd*.json')
    # glslc and the driver need libraries of the same packages.
    export LD_LIBRARY_PATH=${vulkan%/*}:${blas%/*}
    # The driver's description holds the path that it would be installed at.
    sed "s|\"/usr/lib/[^\"]*/|\"${vulkan%/*}/|" "$icd" >"$folder/lvp.json"
    printf '%s\n' "LD_LIBRARY_PATH=$LD_LIBRARY_PATH" "VK_ICD_FILENAMES=$folder/lvp.json" GGML_VK_VISIBLE_DEVICES=0 \
        >"$folder/environment"
    configure -DGGML_BLAS=ON -DGGML_BLAS_VENDOR=OpenBLAS "-DBLAS_LIBRARIES=$blas" "-DBLAS_INCLUDE_DIRS=${header%/*}"
    build ggml-blas
    take ggml-blas "$folder"
    configure -DGGML_BLAS=OFF -DGGML_VULKAN=ON "-DVulkan_LIBRARY=$vulkan" \
        "-DVulkan_INCLUDE_DIR=$(dirname "$(dirname "$(found include/vulkan/vulkan.h)")")" \
        "-DVulkan_GLSLC_EXECUTABLE=$(found bin/glslc)" \
        "-DSPIRV-Headers_DIR=$(dirname "$(found share/cmake/SPIRV-Headers/SPIRV-HeadersConfig.cmake)")"
    build ggml-vulkan
    take ggml-vulkan "$folder"
    touch "$folder/with-packages"
}

if [ ! -e "$folder/libllama.so" ] && [ ! -e "$folder/libllama.dylib" ] && [ "$mode" = --no-build ]; then
    echo "llama.cpp's other code paths are not built: run make native" >&2
    exit 2
fi
if [ "$mode" != --no-build ] && [ ! -e "$folder/with-packages" ]; then
    for need in cmake c++; do
        command -v "$need" >/dev/null || { echo "no $need: install it (apt-get install g++ cmake ninja-build)" >&2; exit 2; }
    done
    mkdir -p "$cache"
    cores=$(getconf _NPROCESSORS_ONLN)
    part=$(mktemp -d "$cache/part.XXXX")
    trap 'rm -rf "$part"' EXIT
    generator=$(command -v ninja >/dev/null && echo Ninja || echo "Unix Makefiles")
    source=$part/llama_cpp_python-$version/vendor/llama.cpp
    if [ ! -d "$folder" ]; then
        echo "building llama.cpp's other CPU code paths (2 minutes, once)" >&2
        # In the background because `set -e` would not hold on the left of ||.
        build_cpu >"$part/log" 2>&1 &
        wait $! || { tail -20 "$part/log" >&2; exit 2; }
    fi
    if command -v apt-get >/dev/null && command -v dpkg >/dev/null; then
        echo "building llama.cpp's OpenBLAS and Vulkan (5 minutes, once)" >&2
        build_with_packages >"$part/log" 2>&1 &
        wait $! || { tail -20 "$part/log" >&2; echo "no Vulkan or OpenBLAS: see above" >&2; }
    else
        echo "no Vulkan or OpenBLAS: this needs Debian's or Ubuntu's apt-get" >&2
    fi
fi
echo "$folder"
