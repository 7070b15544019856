"`tools/device_rows.py`: rows that are wanted, the most wanted first, each once."
import importlib
import sys
from pathlib import Path

import pytest

from pca_nb.core import to_jsonable
from pca_nb.result_store import ResultStore
from pca_nb.tables import rows_file, runs_for

sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'tools'))
device_rows = importlib.import_module('device_rows')


def row_of(cfg): return dict(key=cfg.key, method=cfg.method, ipc=cfg.ipc, seed=cfg.seed, cfg=to_jsonable(cfg.to_dict()))


@pytest.fixture
def asked(tmp_path, monkeypatch):
    "Two tables that share runs; a grid that only writes down what it was asked for; one row is in the repository."
    monkeypatch.setattr(device_rows, 'WANTED', (('t24', 'quick', (1,), 2), ('t05', 'quick', (1, 10), 1)))
    monkeypatch.setattr(device_rows, 'RESULTS', tmp_path/'results')
    found = []

    def grid(cfgs, store, home, workers, sources, device, budget, together):
        found.append([(c.method, c.ipc, c.seed) for c in cfgs])
        for cfg in cfgs: store.add(row_of(cfg))
    monkeypatch.setattr('pca_nb.benchmarking.run_in_processes', grid)
    first = runs_for('t24', 'quick', (1,))[0][1]
    ResultStore(rows_file('quick', tmp_path/'results')).add(row_of(first))
    return found


def test_rows_that_are_there_are_not_made_again(asked, tmp_path):
    device_rows.make(tmp_path/'out', 9, 1, 'cpu', 0)
    assert ('random', 1, 0) not in asked[0] and ('random', 1, 1) in asked[0]
    assert not set(asked[0]) & set(asked[1]) and ('random', 10, 0) in asked[1]
    device_rows.make(tmp_path/'out', 9, 1, 'cpu', 0)
    assert len(asked) == 2


def test_no_table_begins_after_its_time(asked, tmp_path, monkeypatch):
    monkeypatch.setattr('pca_nb.budget.Budget.rest', property(lambda self: -1))
    device_rows.make(tmp_path/'out', 9, 1, 'cpu', 0)
    assert asked == []


def test_merged_rows_are_those_of_the_repository_and_the_new_ones(asked, tmp_path, capsys):
    device_rows.make(tmp_path/'out', 9, 1, 'cpu', 0)
    for expected in (len(sum(asked, [])), 0):
        device_rows.merge(tmp_path/'out')
        assert f'digits.jsonl: {expected} new rows' in capsys.readouterr().out
    keys = [row['key'] for row in ResultStore(rows_file('quick', tmp_path/'results')).all()]
    assert len(keys) == len(set(keys)) == len(sum(asked, []))+1


def test_every_wanted_table_exists():
    for wanted in device_rows.WANTED: assert device_rows.runs_of(*wanted), wanted
