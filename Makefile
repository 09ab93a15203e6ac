# One command each: `make demo`, `make test`. Everything is installed into .venv, from the locked requirements.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check bench lock clean

demo: $(VENV)/.done  ## set everything up and run the main example
	$(BIN)/python -m client submit jobs/simple_job.py

test: check  ## set everything up, check the style and types, run the tests
	$(BIN)/python -m pytest tests/client

check: $(VENV)/.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python ci/docs.py --check

bench: $(VENV)/.done  ## measure the client beside Ray's own tools
	$(BIN)/python ci/bench.py

# Without uv's own variables a lock is the same on every machine; it names no index.
lock: $(VENV)/.done  ## refresh the locked requirements
	$(BIN)/uv pip compile -q --universal --generate-hashes --no-emit-index-url --no-header pyproject.toml -o requirements.txt
	$(BIN)/uv pip compile -q --universal --generate-hashes --no-emit-index-url --no-header --group dev -c requirements.txt pyproject.toml -o requirements-dev.txt
	echo uv | $(BIN)/uv pip compile -q --universal --generate-hashes --no-emit-index-url --no-header - -o requirements-uv.txt

$(VENV)/.done: requirements-uv.txt requirements-dev.txt pyproject.toml
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements-uv.txt
	$(BIN)/uv pip install -q --python $(BIN)/python --compile-bytecode --require-hashes -r requirements-dev.txt
	$(BIN)/uv pip install -q --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

clean:
	rm -rf $(VENV)
