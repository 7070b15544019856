"The committed rows say what the notebooks and the README say."
from pathlib import Path

import pytest

from pca_nb.bench import Rows, compare
from pca_nb.tables import SCALES, TABLES, read_table, rows_file, runs_of

results = Path(__file__).resolve().parents[1]/'nbs'/'results'
STORED = sorted({rows_file(s, results).name for s in SCALES if rows_file(s, results).exists()})


@pytest.mark.parametrize('name', STORED)
def test_rows_are_whole_and_say_where_they_come_from(name):
    rows = Rows(results/name).all()
    assert len(rows) == len((results/name).read_text().splitlines())
    for r in rows:
        assert {'device', 'torch', 'torchvision', 'python', 'dtype', 'pca_nb'} <= set(r) and 0 <= r['top1'] <= 100


@pytest.mark.parametrize('name', STORED)
def test_rows_belong_to_a_table(name):
    "a row that no table asks for is a left-over, or a configuration has changed under it"
    asked = {c.key for s in SCALES for t in TABLES if rows_file(s, results).name == name for _, c in runs_of(t, s)}
    odd = [r['key'] for r in Rows(results/name).all() if r['key'] not in asked]
    assert not odd, f'{len(odd)} rows of {name} belong to no table: {odd[:3]}'


def differs(table, scale, ipc, better, worse):
    f = read_table(table, scale, results)
    c = compare(f, better, worse)
    return c[c.ipc == ipc].verdict.tolist() == ['holds']


@pytest.mark.parametrize('table, scale, ipc, better, worse', [
    ('t05', 'quick', 1, 'pca', 'random'),
])
def test_orderings(table, scale, ipc, better, worse):
    "the 95 % interval of the difference lies above 0"
    assert differs(table, scale, ipc, better, worse)
