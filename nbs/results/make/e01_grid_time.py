"""Time a part of Table 5 on CIFAR-10 before and after the engine changed, in two worker processes of one thread each.

Writes nbs/results/grid-time.json, which nbs/experiments/e01_engine.ipynb reads.
BEFORE is a checkout of the commit before (`git worktree add BEFORE 4502719`).
The part: two seeds, six methods without distilled ones, IPC 10, hard labels; two scoring runs of 50,000 images.
Both trees make the same twelve rows, one tree after the other; each in folders of its own that are removed.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

METHODS = 'random', 'forgetting-easyB', 'el2n-easyB', 'aum-easyB', 'ccs', 'pca'
SEEDS = 3, 4


def timed(cfgs, store, home):
    from pca_nb.benchmarking import run_in_processes
    start = time.perf_counter()
    run_in_processes(cfgs, store, home, 2)
    return time.perf_counter()-start


def serve(home):
    "Make the rows with whatever `pca_nb` is found first; print seconds."
    from pca_nb.result_store import ResultStore
    from pca_nb.runs import run_cfg
    store = ResultStore(Path(home)/'rows.jsonl')
    cfgs = [run_cfg('cifar10', method, 10, seed, size=32) for seed in SEEDS for method in METHODS]
    before = os.times()
    scoring = timed([c for c in cfgs if c.method == 'el2n-easyB'], store, home)
    rest = timed(cfgs, store, home)
    after = os.times()
    cpu = after.children_user+after.children_system-before.children_user-before.children_system
    print(json.dumps({'scoring': scoring, 'rows': rest, 'cpu': cpu}))


def run(folder):
    env = os.environ | dict(PYTHONPATH=str(Path(folder).resolve()), OMP_NUM_THREADS='1', CI='1')
    with tempfile.TemporaryDirectory() as home:
        done = subprocess.run([sys.executable, __file__, '--serve', home], env=env, text=True, check=True,
                              stdout=subprocess.PIPE)
    return json.loads(done.stdout.splitlines()[-1])


def main(before, out, home):
    if home: return serve(home)
    from pca_nb.machine import environment_info
    from pca_nb.timing import cpu_name
    here = Path(__file__).resolve().parents[3]
    rows = [dict(engine=name)|run(folder) for name, folder in (('before', before), ('after', here))]
    about = environment_info('cpu')|dict(cpu=cpu_name(), cores=os.cpu_count(), seeds=SEEDS, methods=METHODS, ipc=10)
    Path(out).write_text(json.dumps(dict(rows=rows)|about, indent=1)+'\n')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('before', nargs='?', help='a checkout of the commit before')
    parser.add_argument('--out', default=Path(__file__).resolve().parents[1]/'grid-time.json')
    parser.add_argument('--serve', default='', help=argparse.SUPPRESS)
    given = parser.parse_args()
    main(given.before, given.out, given.serve)
