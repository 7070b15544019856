"""Make rows of the paper's tables for so many minutes, the most wanted first; call it again to go on.

Rows, scoring runs and checkpoints are kept in OUT ($OUT, else _runs/rows), rows in OUT/DATA.jsonl.
Rows that nbs/results or OUT has are not made again. On a borrowed machine bring OUT back, then
`python tools/device_rows.py OUT --merge` adds its new rows to nbs/results.
Images are found through PCA_NB_DATA; a scale whose images are not there is left out, and said.
`--list` only says what is missing.
"""
import argparse
import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT/'nbs'/'results'
WANTED = (  # table, scale, IPCs (() = all), most seeds; from the top
    ('t05', 'imagenette128-resnet18', (10, 50), 3),
    ('t07', 'imagenette128-resnet18', (10,), 3),
    ('t05', 'tiny-resnet18', (10, 50), 3),
    ('t07', 'tiny-resnet18', (10,), 3),
    ('t05', 'cifar10', (10, 50), 10),
    ('x01-steps', 'cifar10', (), 10),
    ('t05', 'imagenette', (10, 50), 10),
    ('t07', 'cifar10', (10, 50), 10),
    ('t07', 'imagenette', (10, 50), 10),
    ('t05', 'tiny', (10, 50), 10),
    ('t07', 'tiny', (10,), 10),
    ('t05', 'imagenette160-resnet18', (10, 50), 3),
    ('x01-long', 'cifar10', (), 3),
    ('x01-steps', 'imagenette', (), 3),
    ('x01-place', 'tiny25', (), 3),
    ('x01-place', 'tiny50', (), 3),
    ('x01-size', 'imagenette64', (), 10),
    ('t06', 'cifar10', (10, 50), 5),
    ('t11', 'imagenette', (10, 50), 5),
    ('t12', 'cifar10', (), 5),
    ('t23', 'imagenette', (10, 50), 5),
    ('t24', 'imagenette', (10, 50), 5),
    ('t05', 'cifar10', (1, 100), 10),
)


def runs_of(table, scale, ipcs, seeds):
    from pca_nb.tables import runs_for
    return [cfg for _, cfg in runs_for(table, scale, ipcs) if cfg.seed < seeds]


def known_keys(out):
    "Return the keys of all rows that are there, here or in the repository."
    from pca_nb.result_store import ResultStore
    return {row['key'] for folder in (RESULTS, out) for path in folder.glob('*.jsonl')
            for row in ResultStore(path).all() if 'key' in row}


def images_at_hand(scale):
    from pca_nb.core import Refused
    from pca_nb.datasets import load_data
    from pca_nb.tables import SCALES
    try: load_data(SCALES[scale].data, 'test', SCALES[scale].size)
    except (Refused, OSError) as e: return print(f'{scale}: left out, {e}')
    return True


def make(out, minutes, workers, device, together):
    from pca_nb.benchmarking import run_in_processes
    from pca_nb.budget import Budget
    from pca_nb.result_store import ResultStore
    from pca_nb.tables import rows_file
    budget = Budget(minutes, say=print)
    at_hand = {}
    for wanted in WANTED:
        table, scale = wanted[:2]
        known = known_keys(out)
        cfgs = [cfg for cfg in runs_of(*wanted) if cfg.key not in known]
        if not cfgs: continue
        if budget.rest <= 0: break
        if not at_hand.setdefault(scale, images_at_hand(scale)): continue
        print(f'{table}, {scale}: {len(cfgs)} runs, {budget.rest/60:.0f} min left', flush=True)
        run_in_processes(cfgs, ResultStore(rows_file(scale, out)), out, workers, None, device, budget, together)


def show(out):
    known = known_keys(out)
    for wanted in WANTED:
        cfgs = runs_of(*wanted)
        missing = sum(cfg.key not in known for cfg in cfgs)
        print(f'{wanted[0]:10} {wanted[1]:24} {missing:4} of {len(cfgs):4} rows are missing')


def merge(out):
    "Add the rows of OUT to nbs/results, each once."
    from pca_nb.result_store import ResultStore
    for path in sorted(out.glob('*.jsonl')):
        store = ResultStore(RESULTS/path.name)
        have = {row['key'] for row in store.all()} if store.path.exists() else set()
        new = [row for row in ResultStore(path).all() if row.get('key') not in have and 'cfg' in row]
        for row in new: store.add(row)
        print(f'{path.name}: {len(new)} new rows')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', nargs='?', type=Path, default=os.environ.get('OUT', '_runs/rows'))
    parser.add_argument('--minutes', type=float, default=9.)
    parser.add_argument('--workers', type=int, default=0)
    parser.add_argument('--device')
    parser.add_argument('--together', type=int, default=0)
    parser.add_argument('--list', action='store_true')
    parser.add_argument('--merge', action='store_true')
    given = parser.parse_args()
    out = Path(given.out)
    if given.list: show(out)
    elif given.merge: merge(out)
    else: make(out, given.minutes, given.workers, given.device, given.together)
