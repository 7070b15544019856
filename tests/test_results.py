"The committed rows say what the notebooks and the README say."
import re
import runpy
from pathlib import Path

import nbformat
import pytest

from pca_nb.result_store import ResultStore
from pca_nb.methods import BENCH
from pca_nb.runs import run_cfg
from pca_nb.stats import compare
from pca_nb.core import config_hash
from pca_nb.tables import read_table, rows_file, runs_for, SCALES, TABLES

root = Path(__file__).resolve().parents[1]
results = root/'nbs'/'results'
STORED = sorted({rows_file(s, results).name for s in SCALES if rows_file(s, results).exists()})


@pytest.mark.parametrize('name', STORED)
def test_rows_are_whole_and_say_where_they_come_from(name):
    rows = ResultStore(results/name).all()
    assert len(rows) == len((results/name).read_text().splitlines())
    for r in rows:
        assert {'device', 'torch', 'torchvision', 'python', 'dtype', 'pca_nb'} <= set(r) and 0 <= r['top1'] <= 100


@pytest.mark.parametrize('name', STORED)
def test_rows_belong_to_a_table(name):
    "a row that no table asks for is a left-over, or a configuration has changed under it"
    asked = {c.key for s in SCALES for t in TABLES if rows_file(s, results).name == name for _, c in runs_for(t, s)}
    odd = [r['key'] for r in ResultStore(results/name).all() if r['key'] not in asked]
    assert not odd, f'{len(odd)} rows of {name} belong to no table: {odd[:3]}'


@pytest.mark.parametrize('name', STORED)
def test_rows_are_found_by_their_configuration(name):
    rows = ResultStore(results/name).all()
    assert [config_hash(r['cfg']) for r in rows] == [r['key'] for r in rows]
    a = next(r for r in rows if r['seed'] == 0 and r['ipc'] == 10 and r['method'] in ('pca', 'random')
             and r['cfg']['recipe']['optimizer'] == 'adamw')
    assert run_cfg(a['data'], a['method'], 10, 0, size=a['cfg']['size']).key == a['key']


def test_pca_beats_random_on_digits():
    assert compare(read_table('t05', 'quick', results, (1,)), 'pca', 'random').verdict.tolist() == ['holds']


def larger_than_both_spreads(f, better, worse):
    a, b = (f[f.method == m].top1 for m in (better, worse))
    assert min(len(a), len(b)) >= 3
    assert a.mean() - b.mean() > max(a.std(), b.std())


@pytest.mark.parametrize('better, worse', [('el2n-easyB', 'random'), ('random', 'el2n-hardB'), ('pca', 'pca+none')])
def test_cifar10_orderings(better, worse):
    "IPC 10, hard labels, ConvNet-3 of width 64, 5 seeds: an earlier stage's rows"
    f = ResultStore(results/'cifar10-w64.jsonl').frame()
    larger_than_both_spreads(f[(f.ipc == 10) & (f['shrink'] == 'antialias')], better, worse)


@pytest.mark.parametrize('table, scale, better, worse', [
    ('t06', 'cifar10', 'el2n-easyB', 'random'), ('t06', 'cifar10', 'random', 'el2n-hardB'),
                                                         ('t06', 'cifar10', 'forgetting-inf-easyB', 'forgetting-easyB'),
    ('t07', 'imagenette', 'pca', 'pca+none'), ('t07', 'imagenette', 'tiles', 'tiles+none'),
                                                         ('t07', 'imagenette', 'pca, lsq', 'pca'),
    ('t05', 'tiny', 'el2n-easyB', 'random'), ('t07', 'cifar10', 'pca', 'pca+none'),
                                                         ('t12', 'cifar10', 'pca, no crop', 'pca'),
    ('x01-size', 'imagenette32', 'tiles, lsq', 'tiles'), ('x01-size', 'imagenette64', 'tiles, lsq', 'tiles'),
                                                         ('x01-size', 'imagenette128', 'tiles, lsq', 'tiles'),
                                                         ('x01-place', 'tiny10', 'el2n-rank50', 'random')])
def test_orderings_on_photographs(table, scale, better, worse):
    "IPC 10, hard labels, width 32, every seed with a scoring run of its own"
    larger_than_both_spreads(read_table(table, scale, results, (10,)), better, worse)


def test_the_larger_set_wants_harder_images():
    "ten classes: easiest above random by the mean at IPC 1, below it at IPC 50"
    f = read_table('x01-place', 'tiny10', results).groupby(['ipc', 'method']).top1.mean()
    assert f[1, 'el2n-easyB'] > f[1, 'random'] and f[50, 'el2n-easyB'] < f[50, 'random']


def test_distilled_sets_are_what_their_networks_think_they_are():
    """every optimised set of the committed rows: at least 95 % named correctly, statistics nearer than at the
    start; from noise, SRe2L, CDA and LPLD below a fifth"""
    made = [r for r in ResultStore(results/'cifar10.jsonl').all() if 'stat' in r.get('made', {})]
    assert {'sre2l', 'cda', 'gvbsm', 'lpld', 'dwa', 'edc'} <= {r['method'] for r in made}
    for r in made:
        first, last = r['made']['stat']
        assert min(r['made']['right']) >= 95 and last < first, (r['method'], r['ipc'], r['seed'])
        if r['method'] in ('sre2l', 'cda', 'lpld'):
            assert last < first/5, (r['method'], r['ipc'], r['seed'], last/first)


def test_every_column_of_tables_4_and_5_has_rows():
    f = read_table('t04', 'cifar10', results, (10,))
    for m in BENCH:
        for label in (m, f'{m}, soft'): assert (f.method == label).sum() >= 3, label


def cost_tables():
    "Notebooks that say how often their tables were run, with that output."
    for path in sorted((root/'nbs'/'experiments').glob('*.ipynb')):
        cells = nbformat.read(path, 4).cells
        for c in cells:
            if c.cell_type == 'code' and re.search(r'^cost\(', c.source, re.M):
                yield path.name, cells[0].source, c.outputs[0].data['text/plain']


@pytest.mark.parametrize('name, header, shown', list(cost_tables()))
def test_headers_say_how_many_runs(name, header, shown):
    "every number of runs per cell stands in the part of the header that is about seeds"
    about = next(part for part in header.split(';') if 'seeds' in part)
    ns = {n for fewest, most in re.findall(r'n = (\d+)(?: to (\d+))?', shown) for n in (fewest, most) if n}
    assert ns and ns <= set(re.findall(r'\d+', about)), f'{name}: {sorted(ns)} runs per cell, the header says: {about}'


def test_every_stored_file_is_listed():
    "nbs/results/README.md says of each file what made it, who reads it and on which machine; dates need git."
    lines = [line.split(' | ') for line in (results/'README.md').read_text().splitlines() if line.startswith('| `')]
    listed = {name.strip('| `'): columns for name, *columns in lines}
    tool = runpy.run_path(str(root/'tools'/'results.py'))
    assert set(listed) == {p.name for p in tool['files']()}
    notebooks = tool['notebooks']()
    for path in tool['files']():
        now = [tool['MADE'][path.name], tool['readers'](path, notebooks), tool['machines'](path)]
        assert listed[path.name][:3] == now, f'{path.name}: run `python tools/results.py`'


def test_every_maker_is_listed_and_there():
    "No script makes a file that the list does not name, and the list names no script that is gone."
    named = set(re.findall(r'nbs/results/make/(\w+\.py)', (results/'README.md').read_text()))
    assert named == {p.name for p in (results/'make').glob('*.py')}


def test_no_experiment_makes_its_own_file():
    "What takes long is made by a command or a script; a cell that does not run would rot."
    for p in (root/'nbs'/'experiments').glob('*.ipynb'):
        assert not re.search(r'#\| *eval: *false', p.read_text()), p.name
