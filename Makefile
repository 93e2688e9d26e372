# make demo   the demo study, from raw data to report
# make layers layers of a network identified across its seeds, from photographs to report
# make test   everything that is tested
# make bench  side by side with peers; FIGURE=name runs one
# Each sets up what it needs; nothing but Python 3.11+, git and make has to be there.

PYTHON ?= python3
CORES ?= all
SUBJECTS ?= 3
FIGURE ?= all
BIN := .venv/bin
export PYTHONPATH := workflow

.PHONY: demo layers test bench format docs clean

demo: .venv/installed
	@$(BIN)/python -m isocortex.phantom demo --subjects $(SUBJECTS)
	@$(BIN)/python -m isocortex.stale_lock
	@$(BIN)/snakemake --cores $(CORES) --configfile config/demo.yaml --quiet rules host
	@$(BIN)/python -m isocortex.report results/demo/report

layers: .venv/installed
	@$(BIN)/python -m isocortex.phantom --only-images --images 62 inputs/photographs
	@$(BIN)/snakemake --cores $(CORES) --configfile config/examples/layer_identification.yaml --quiet rules host
	@$(BIN)/python -m isocortex.report results/layers/report

test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --no-loadscope-reorder

bench: .venv/installed
	$(BIN)/python -m benchmarks $(FIGURE)

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile rules

docs: .venv/installed
	$(BIN)/python -m isocortex.config

clean:
	rm -rf demo results .snakemake

.venv/installed: requirements.txt
	@$(PYTHON) -c "import sys; sys.version_info >= (3, 11) or sys.exit('isocortex needs Python 3.11 or newer: make PYTHON=python3.11 $(MAKECMDGOALS)')"
	@echo "Setting up .venv from requirements.txt (a minute or two, once)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@
