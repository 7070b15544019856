"The committed rows say what the notebooks and the README say."
from pathlib import Path

import pytest

from pca_nb.bench import DEMO, Rows, compare, run_cfg

results = Path(__file__).resolve().parents[1]/'nbs'/'results'


@pytest.mark.parametrize('name', ['digits', 'cifar10'])
def test_rows_are_whole_and_found_by_their_configuration(name):
    rows = Rows(results/f'{name}.jsonl').all()
    assert len(rows) == len((results/f'{name}.jsonl').read_text().splitlines())
    for r in rows:
        assert {'device', 'torch', 'torchvision', 'python', 'dtype'} <= set(r) and 0 <= r['top1'] <= 100
    a = next(r for r in rows if r['method'] == 'pca' and r['cfg']['recipe']['optimizer'] == 'adamw' and r['seed'] == 0 and r['ipc'] == 10)
    assert run_cfg(name, 'pca', 10, 0).key == a['key']


def test_pca_beats_random_on_digits():
    rows = Rows(results/'digits.jsonl').frame([run_cfg('digits', m, 1, s) for m in DEMO for s in range(5)])
    assert compare(rows, 'pca', 'random').verdict.tolist() == ['holds']


@pytest.mark.parametrize('better, worse', [('el2n-easyB', 'random'), ('random', 'el2n-hardB'), ('pca', 'pca+none')])
def test_cifar10_orderings(better, worse):
    "IPC 10, hard labels: each difference is larger than both spreads, with n >= 3"
    f = Rows(results/'cifar10.jsonl').frame([run_cfg('cifar10', m, 10, s) for m in (better, worse) for s in range(5)])
    a, b = (f[f.method == m].top1 for m in (better, worse))
    assert min(len(a), len(b)) >= 3
    assert a.mean() - b.mean() > max(a.std(), b.std())
