"""Experts that the processor computes with ggml's own kernels, from blocks as they lie in host memory."""
