"""The suite's own models, small and of every type, each with its plan and pack. `make_suite.py` makes them."""
