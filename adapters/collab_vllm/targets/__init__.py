"""vLLM as a target of `verify`."""
