PYTHON ?= python3
V := .venv/bin

.PHONY: demo test lab export save readme docs
.DEFAULT_GOAL := test

.venv/ok: settings.ini setup.py pyproject.toml
	$(PYTHON) -m venv .venv
	$(V)/python -m pip install -q -e '.[dev]'
	$(V)/python -m pip install -q --no-deps rethinkdc==0.3.2   # its reader is a test's oracle; its wandb and torchaudio are not needed
	touch $@

demo: .venv/ok            ## the main job on the embedded digits: table, and one HTML page in _runs/
	$(V)/pca-nb demo

test: .venv/ok            ## every notebook and every test
	$(V)/python -m pytest

lab: .venv/ok             ## JupyterLab on the start page: tutorials, boards, tables, rooms
	$(V)/jupyter lab --ip=127.0.0.1 --allow-root --notebook-dir=nbs --LabApp.default_url=/lab/tree/start.ipynb

export: .venv/ok          ## notebooks -> pca_nb/
	$(V)/nbdev_export

save: .venv/ok            ## run every notebook in a kernel and keep its outputs, then clean, export, README
	$(V)/python tools/run.py --inplace nbs/*.ipynb nbs/*/*.ipynb
	$(V)/nbdev_clean
	$(V)/nbdev_export
	$(V)/python tools/docs.py readme

readme: .venv/ok
	$(V)/python tools/docs.py readme

docs: .venv/ok            ## the notebooks as a site in _docs/: open _docs/index.html, no server or network needed
	$(V)/python tools/pages.py
