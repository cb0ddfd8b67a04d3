# Two commands: `make demo` and `make test`. Both set up what they need, once.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test setup lint soak mutants fuzz docs clean

demo: setup ## three peers on this machine answer a few questions
	@$(BIN)/p2pmesh demo

test: setup lint ## every check there is
	$(BIN)/python -m pytest -q -n auto --dist worksteal tests/unit tests/property tests/simulation \
		--cov=p2pmesh.protocol --cov-branch --cov-report=term-missing:skip-covered --cov-fail-under=95
	$(BIN)/python -m pytest -q tests/integration tests/test_architecture.py tests/test_docs.py

setup: ## .venv, pinned packages, llama.cpp for this CPU, the embedded models
	@$(PYTHON) bootstrap/setup.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

soak: setup ## the heavy seeds and real faults, for a night
	P2PMESH_SOAK=1000 $(BIN)/python -m pytest -q tests/simulation
	$(BIN)/python -m p2pmesh.sim chaos --seeds 10000 --storm-only --zoned 1 --peers 5 --seconds 2 --rate 6 --fault-s 0.4
	$(BIN)/python -m tests.attacks
	$(BIN)/python -m benchmarks.chaos --scenario all --kills 200 --flips 3200

mutants: setup ## every guard weakened in turn: do the tests notice?
	$(BIN)/python -m tests.guards

fuzz: setup ## a million broken inputs to everything that reads bytes
	@$(BIN)/python -m pip install -q -e '.[fuzz]' || echo "no atheris for this Python: inputs are mutated blindly"
	$(BIN)/python -m tests.fuzz

docs: setup ## what is generated from the code
	$(BIN)/python docs/generate.py

clean:
	rm -rf .venv .setup.lock build *.egg-info .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
