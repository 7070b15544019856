PYTHON ?= python3
V := .venv/bin
# two workers with one thread each: small networks gain more from two runs at once than from two threads in one
PYTEST := OMP_NUM_THREADS=1 $(V)/python -m pytest -n 2 --dist worksteal
SLOW := lab notebooks docs tutorials faults processes cli bench

.PHONY: demo test quick lint lab export save readme map results claims docs
.DEFAULT_GOAL := test

.venv/ok: settings.ini setup.py pyproject.toml
	$(PYTHON) -m venv .venv
	$(V)/python -m pip install -q -e '.[dev]'
	$(V)/python -m pip install -q --no-deps rethinkdc==0.3.2   # its reader is a test's oracle; its wandb and torchaudio are not needed
	$(V)/python -m pip install -q --no-deps ddranking==0.2.0 timm==1.0.31   # its evaluator is a test's oracle; its numpy<2 is not needed
	touch $@

demo: .venv/ok            ## the main job on the embedded digits: table, and one HTML page in _runs/
	$(V)/pca-nb demo

test: .venv/ok            ## every notebook and every test, ruff included
	$(PYTEST)

quick: .venv/ok           ## ruff, drift and the unit tests: no browser, no heavy notebook
	$(PYTEST) $(SLOW:%=--ignore tests/test_%.py)

lint: .venv/ok
	$(V)/ruff check

lab: .venv/ok             ## JupyterLab on the start page: tutorials, boards, tables, the library
	$(V)/jupyter lab --ip=127.0.0.1 --allow-root --notebook-dir=nbs --LabApp.default_url=/lab/tree/start.ipynb

export: .venv/ok          ## notebooks -> pca_nb/
	$(V)/python tools/export.py

save: .venv/ok            ## run every notebook in a kernel and keep its outputs, then clean, export, map, README
	OMP_NUM_THREADS=1 $(V)/python tools/run.py --inplace --jobs 2 nbs/*.ipynb nbs/*/*.ipynb
	$(V)/nbdev_clean
	$(MAKE) export map readme

map: .venv/ok             ## the list of notebooks, from their titles
	$(V)/python tools/map.py

claims: .venv/ok          ## what the rows say of the paper's claims: the ledger, its page, and the README's findings
	$(V)/python tools/claims.py
	OMP_NUM_THREADS=1 $(V)/python tools/run.py --inplace nbs/experiments/claims.ipynb nbs/index.ipynb
	$(V)/nbdev_clean
	$(MAKE) readme

results: .venv/ok         ## nbs/results/README.md: which command made each stored file, who reads it, on which machine
	$(V)/python tools/results.py

readme: .venv/ok
	$(V)/python tools/docs.py readme

docs: .venv/ok            ## the notebooks as a site in _docs/: open _docs/index.html, no server or network needed
	$(V)/python tools/pages.py
