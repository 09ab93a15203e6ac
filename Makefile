# `make demo`, `make test`: each installs what it needs into .venv, from the locked requirements.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
GALLERY := build/gallery
SCHEDULERS := build/schedulers
export PATH := $(PATH):$(CURDIR)/build/tools# ci/helm.py builds helm there if none is installed
COMPILE := $(BIN)/uv pip compile -q --universal --generate-hashes --no-emit-index-url --no-header
CHARTS := $(BIN)/python ci/helm.py >/dev/null && $(BIN)/python ci/charts.py
# Test files run in parallel, each in one process; every process has its own home, head and clusters.
PARALLEL := --dist loadfile --no-loadscope-reorder

.PHONY: demo test check messages charts docs gallery schedulers e2e soak helm4 bench bench-cluster lock clean

demo: $(VENV)/.done  ## set everything up and run the main example
	$(BIN)/python -m client submit jobs/simple_job.py

test: check  ## set everything up, check style, types and English, run the tests
	@tests=tests/client; { $(CHARTS); }; case $$? in 0) tests="$$tests tests/chart";; 1) echo "tests/chart is not run";; *) exit 2;; esac; \
	$(BIN)/python -m pytest $(PARALLEL) -n 4 $$tests

check: $(VENV)/.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python ci/docs.py --check
	$(BIN)/python -m ci.prose

messages: $(VENV)/.done  ## print every text that the project shows its users
	@$(BIN)/python ci/messages.py

charts: $(VENV)/.done  ## get helm and the dependencies of the chart
	@$(CHARTS)

docs: $(VENV)/.done  ## build the guide into build/docs and check its links
	$(BIN)/zensical build --clean --strict

gallery: $(GALLERY)/.done  ## run the jobs of jobs/ with all extras, torch included, in an environment of their own
	$(GALLERY)/bin/python -m pytest --durations=0 tests/gallery

schedulers: $(SCHEDULERS)/.done  ## run the examples of docs/schedulers.md with Airflow and Dagster, in an environment of their own
	$(SCHEDULERS)/bin/python -m pytest --durations=0 tests/schedulers

e2e: $(VENV)/.done  ## test on the cluster of the current kubeconfig
	@$(CHARTS)
	$(BIN)/python -m pytest $(PARALLEL) -n 2 -m "not alone and not soak" --durations=12 tests/e2e
	$(BIN)/python -m pytest -m "alone and not soak" tests/e2e

soak: $(VENV)/.done  ## run the long repeats; uses the same cluster
	@$(CHARTS)
	$(BIN)/python -m pytest -m soak tests/client tests/chart
	$(BIN)/python -m pytest -m soak tests/e2e

helm4: $(VENV)/.done  ## also build Helm 4, so that the chart's tests run with both versions
	$(BIN)/python ci/helm.py 4

bench: $(VENV)/.done  ## compare the client with Ray's own tools
	$(BIN)/python ci/bench.py

bench-cluster: $(VENV)/.done  ## measure chart, image and client on the cluster of the current kubeconfig
	@$(CHARTS)
	$(BIN)/python -m ci.bench_cluster

# The locks name no index. They are the same on every machine unless uv's environment variables are set. All have the
# same versions, which suit all extras; requirements-jobs.txt lists them. For torch, that file has only the version: the
# builds of torch for CPU and for each CUDA have different files and dependencies. requirements-schedulers.txt has
# versions of its own, because Airflow limits some.
lock: $(VENV)/.done  ## refresh the locked requirements
	$(COMPILE) --all-extras --group dev pyproject.toml -o requirements-jobs.txt
	awk '/^[a-z]/ {cuda = /^(torch|triton|cuda|nvidia)/} /^torch==/ {print $$1} !cuda' requirements-jobs.txt >build/lock
	mv build/lock requirements-jobs.txt
	$(COMPILE) --extra gs --extra s3 --group dev -c requirements-jobs.txt pyproject.toml -o requirements-dev.txt
	$(COMPILE) -c requirements-jobs.txt pyproject.toml -o requirements.txt
	$(COMPILE) --group schedulers pyproject.toml -o requirements-schedulers.txt
	echo uv | $(COMPILE) - -o requirements-uv.txt

$(VENV)/.done: requirements-uv.txt requirements-dev.txt pyproject.toml
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements-uv.txt
	$(BIN)/uv pip install -q --python $(BIN)/python --compile-bytecode --require-hashes -r requirements-dev.txt
	$(BIN)/uv pip install -q --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

# Hashes are checked for all packages but torch. Set UV_TORCH_BACKEND=cpu for its build without CUDA.
$(GALLERY)/.done: $(VENV)/.done requirements-jobs.txt
	$(PYTHON) -m venv --clear $(GALLERY)
	$(BIN)/uv pip install -q --python $(GALLERY)/bin/python --compile-bytecode -c requirements-jobs.txt -r pyproject.toml --all-extras --group dev
	$(BIN)/uv pip install -q --python $(GALLERY)/bin/python --no-deps --no-build-isolation --editable .
	touch $@

$(SCHEDULERS)/.done: $(VENV)/.done requirements-schedulers.txt
	$(PYTHON) -m venv --clear $(SCHEDULERS)
	$(BIN)/uv pip install -q --python $(SCHEDULERS)/bin/python --compile-bytecode --require-hashes -r requirements-schedulers.txt
	$(BIN)/uv pip install -q --python $(SCHEDULERS)/bin/python --no-deps --no-build-isolation --editable .
	touch $@

# Kafka, of which the tests of jobs/platform_services.py run a broker.
build/kafka: ci/kafka/pom.xml
	mvn -q -B -f ci/kafka dependency:copy-dependencies -DoutputDirectory=$(CURDIR)/$@
	touch $@

clean:
	rm -rf $(VENV) $(GALLERY) $(SCHEDULERS)
