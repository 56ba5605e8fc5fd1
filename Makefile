PYTHON ?= python3
BIN := .venv/bin
DATA ?= ../shared/data/mvtec
PEER ?= $(wildcard .peer/bin/python)

.PHONY: demo test fuzz check results trained bench peer clean

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/dev: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: .venv/installed  ## the default benchmark on generated images: tables on the screen, records in demo/
	$(BIN)/anomaly-bench results=demo

test: .venv/dev  ## the whole test suite
	$(BIN)/python -m pytest

fuzz: .venv/dev  ## two minutes of spoilt folders and command lines; MINUTES=120 for two hours
	$(BIN)/python tests/fuzz.py --minutes $(or $(MINUTES),2)

check: .venv/dev  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --platform win32
	$(BIN)/mypy --platform darwin

results: .venv/installed  ## the committed records and tables; DATA is the folder of the MVTec categories
	$(BIN)/anomaly-bench -m dataset=mvtec data_root=$(DATA) category=[bottle,transistor] backbone=lite0 seed=0,1,2 \
		input.crop=null,224 gallery=0
	$(BIN)/anomaly-bench -m dataset=mvtec data_root=$(DATA) category=[bottle,transistor] backbone=lite0 seed=0 \
		method=patchcore,spade,mahalanobis_ad input.crop=224 gallery=0
	$(BIN)/anomaly-bench -m dataset=mvtec data_root=$(DATA) category=[bottle,transistor] backbone=lite0 seed=1,2 \
		method=patchcore,spade,mahalanobis_ad input.crop=224 gallery=0 speed=false
	$(BIN)/python benchmarks/update_readme.py

# a few minutes of a CPU for each, far from the published epochs: what that is enough for
TRAINED := "cflow_ad method.epochs=4" "fastflow method.epochs=12" "pefm backbone=lite0_lite1 method.epochs=20" \
	"differnet method.epochs=6 method.views=8 method.train_views=4" "cs_flow method.epochs=3" \
	"reverse_distillation method.epochs=25" "stfpm method.epochs=12"

trained: .venv/dev  ## the committed records of the methods that train, after `make results`; about 40 minutes
	for each in $(TRAINED); do \
		run="$(BIN)/anomaly-bench -m dataset=mvtec data_root=$(DATA) gallery=0 backbone=lite0 method=$$each"; \
		$$run category=bottle seed=0 && $$run category=bottle seed=1 speed=false && \
		$$run category=transistor seed=0 speed=false || exit 1; \
	done
	$(BIN)/python benchmarks/update_readme.py

bench: .venv/dev  ## speed against floors, and against anomalib after `make peer`
	$(BIN)/python benchmarks/bench.py --data $(DATA) $(if $(PEER),--peer $(PEER))
	$(BIN)/python benchmarks/bench_neighbours.py --data $(DATA) $(if $(PEER),--peer $(PEER))

peer:  ## anomalib in an environment of its own
	$(PYTHON) -m venv .peer
	.peer/bin/python -m pip install --quiet 'anomalib==2.7.*'

clean:
	rm -rf .venv .peer demo dist build
