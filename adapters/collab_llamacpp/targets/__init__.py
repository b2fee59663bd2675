"""llama.cpp's targets for `verify`: devices, code paths, sessions and single operations."""
