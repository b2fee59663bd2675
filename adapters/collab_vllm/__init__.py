"""The vllm adapter. Nothing is registered yet: this package is the place where it will be."""
