"""ggml's block formats in PyTorch, on any device."""
