"""llama.cpp through llama-cpp-python: calibration, quantization kernels, evaluation, generation."""
