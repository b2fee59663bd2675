# `make demo` runs the main job, `make test` all checks, `make fast` those that need no native build (under 2 minutes);
# each sets up .venv on a fresh machine.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
LLAMA_CPP := $(shell sed -n 's/.*llama-cpp-python==\([0-9.]*\)".*/\1/p' pyproject.toml)
NATIVE := tests/native
# Workers of pytest, each on a core of its own.
WORKERS ?= 2
# numpy would take a thread for each core in each of them.
test fast: export OPENBLAS_NUM_THREADS = 1
# 6 GB over a slow line must not use up the time that CI has; where there is no `timeout`, it may.
LIMIT := $(shell command -v timeout >/dev/null && echo timeout 1500)

.PHONY: demo test fast lint native clean

demo: $(VENV)/ready
	$(VENV)/bin/collab-plugin demo

test: $(VENV)/ready lint native
	@echo "== pytest"
	$(VENV)/bin/pytest -q -n $(WORKERS) --dist loadscope --no-loadscope-reorder

fast: $(VENV)/core lint
	@echo "== pytest, without native builds"
	$(VENV)/bin/pytest -q -n $(WORKERS) -m "not native and not slow"

lint: $(VENV)/core
	@echo "== ruff"
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	@echo "== mypy"
	$(VENV)/bin/mypy

# What tests compare with or run: llama.cpp's own tools and its other code paths, a real Ollama, a real vLLM. Tests
# say so and skip where one cannot be built.
native: $(VENV)/ready
	@if [ -x $(NATIVE)/llama_tools.sh ]; then echo "== llama.cpp tools"; $(NATIVE)/llama_tools.sh $(VENV)/bin/python $(LLAMA_CPP) || true; fi
	@if [ -x $(NATIVE)/llama_converter.sh ]; then echo "== llama.cpp's converter"; \
		$(NATIVE)/llama_converter.sh $(VENV)/bin/python $(LLAMA_CPP) || true; fi
	@if [ -x $(NATIVE)/ollama.sh ] && [ -z "$$COLLAB_OLLAMA" ]; then \
		echo "== Ollama"; $(NATIVE)/ollama.sh $(VENV)/bin/python $(LLAMA_CPP) || true; fi
	@if [ -x $(NATIVE)/vllm_env.sh ] && [ -z "$$COLLAB_VLLM" ]; then \
		echo "== vLLM"; $(LIMIT) $(NATIVE)/vllm_env.sh $(VENV)/bin/python || true; fi
	@if [ -x $(NATIVE)/llama_variants.sh ]; then \
		echo "== llama.cpp's other code paths"; $(NATIVE)/llama_variants.sh $(VENV)/bin/python $(LLAMA_CPP) || true; fi
	@echo "== tests find these; for use outside of them, write into settings.toml (docs/install.md):"
	@$(NATIVE)/settings.sh $(VENV)/bin/python $(LLAMA_CPP)

# All but llama-cpp-python, which is compiled.
$(VENV)/core: pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed"; exit 2; }
	@echo "== setting up $(VENV) with $(PYTHON)"
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet -e '.[ollama,tasks,ray,dev]'
	@touch $@

$(VENV)/ready: $(VENV)/core $(NATIVE)/llama_cpp_wheel.sh
	@wheels=$$($(NATIVE)/llama_cpp_wheel.sh $(VENV)/bin/python $(LLAMA_CPP)) && \
	$(VENV)/bin/python -m pip install --quiet --find-links "$$wheels" --only-binary llama-cpp-python -e '.[llamacpp]'
	@touch $@

clean:
	rm -rf $(VENV) demo build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
