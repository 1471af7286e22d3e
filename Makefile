# Two commands: `make demo` makes a dataset to look at, `make test` passes the tests. Both install what
# they need into $(VENV) first; the only things needed beforehand are make and Python 3.11 or newer.
VENV ?= .venv
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
RUN = $(VENV)/bin/python
INSTALL = $(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo demo-ground-truth train-demo test test-slow lint format bench chaos gallery config-docs golden clean

demo: $(VENV)/.demo
	$(VENV)/bin/pairforge run configs/demo.yaml --sheet out/demo/sheet.png

# The line without weights, on photos that `make demo` degraded; or on yours: make demo-ground-truth PHOTOS=FOLDER
demo-ground-truth: $(VENV)/.demo
ifdef PHOTOS
	$(VENV)/bin/pairforge run configs/demo_ground_truth.yaml --sheet out/my_ground_truth/sheet.png \
		--set output=out/my_ground_truth --set "sources.0.url=$(PHOTOS)" \
		--set sources.0.licence=unknown --set "sources.0.group={by: file}"
else
	$(VENV)/bin/pairforge run configs/demo.yaml
	test -d out/demo_degraded || $(VENV)/bin/pairforge export out/demo out/demo_degraded
	$(VENV)/bin/pairforge run configs/demo_ground_truth.yaml --sheet out/demo_ground_truth/sheet.png
endif

train-demo: $(VENV)/.train
	$(VENV)/bin/pairforge train configs/demo_train.yaml --local
	rm -rf out/demo_pairs
	$(VENV)/bin/pairforge export out/demo out/demo_pairs --split val --category noise --category low_light
	$(VENV)/bin/pairforge restore out/demo_train/model out/demo_pairs/lq -o out/demo_restored --compare

test: $(VENV)/.dev
	$(RUN) -m pytest -m "not slow and not alone" -n 2 --dist loadfile
	$(RUN) -m pytest -m "alone and not slow"

test-slow: $(VENV)/.dev
	$(RUN) -m pytest -m slow

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy --strict .

format: $(VENV)/.dev
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

bench: $(VENV)/.dev
	$(RUN) benchmarks/planning.py --rows 1000000
	$(RUN) benchmarks/degradations.py

chaos: $(VENV)/.dev
	$(RUN) benchmarks/chaos.py --kills 100

gallery: $(VENV)/.dev
	PYTHONPATH=. $(RUN) docs/render_gallery.py

config-docs: $(VENV)/.dev
	PYTHONPATH=. $(RUN) docs/render_config.py

golden: $(VENV)/.dev
	$(RUN) -m tests.degradations.test_severity

clean:
	rm -rf out build .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; name one with PYTHON=..."; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) -e '.[demo]'
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) -e '.[dev]'
	touch $@ $(VENV)/.demo $(VENV)/.train

$(VENV)/.train: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) -e '.[demo,train]'
	touch $@ $(VENV)/.demo
