# Sourced: cpu_key names this processor. ggml is compiled for it (GGML_NATIVE), so caches are keyed by it. The number at
# the end is that of the recipe of llama_cpp_wheel.sh: raise it when its flags change.
cpu_key() {
    local flags
    flags=$( { grep -m1 -E '^(flags|Features)' /proc/cpuinfo 2>/dev/null || sysctl -n machdep.cpu.features 2>/dev/null || true; } | cksum | cut -d' ' -f1)
    echo "$(uname -m)-$flags-2"
}
