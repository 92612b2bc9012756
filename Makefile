# The everyday verbs. Each is one line that can be typed without make.

PYTHON ?= python3
TOOLS ?= .venv/bin

.PHONY: test fuzz-sound fast lint format types bench soak soak-engine simulate serve wheel tools clean

test: ## everything, with real models
	./run.py test

fast: ## without the heavy backends
	./run.py test --fast

fuzz-sound: ## a thousand damaged sound files
	UML_TEST_FUZZ=1000 ./run.py test -s -m speech tests/integration/speech/test_fuzz.py

serve:
	./run.py serve

bench: ## BENCH="--llama-server PATH --only swap": what to measure, and beside what
	./run.py test --bench $(BENCH)

soak: ## 500 swaps with kills, fake and real, into docs/reliability.md; SOAK="--only fake"
	./run.py test --soak $(SOAK)

simulate: tools ## SIMULATE="--only house --requests 50000": the scheduler in numbers
	$(TOOLS)/python -m tests.simulation --plot docs/scheduling.svg $(SIMULATE)

soak-engine: ## 30 minutes of a mixed load on one model; SOAK="--minutes 10 --write-docs"
	./run.py test --soak-engine $(SOAK)

$(TOOLS)/ruff: setup.cfg
	$(PYTHON) -m venv .venv
	$(TOOLS)/python .ci/requirements.py dev test | xargs $(TOOLS)/pip install --quiet
	touch $@

tools: $(TOOLS)/ruff

lint: tools
	$(TOOLS)/ruff check .
	$(TOOLS)/ruff format --check .

format: tools
	$(TOOLS)/ruff check --fix .
	$(TOOLS)/ruff format .

types: tools
	.ci/types $(TOOLS)/python

wheel: tools
	$(TOOLS)/python -m build --wheel

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
