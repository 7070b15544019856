"Two processes do the work of one: torchrun, a process pool, Dask; and one of them dies."
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
import torch

import fault_worker
from pca_nb.result_store import ResultStore
from pca_nb.grid import run_grid
from pca_nb.workers import process_pool
from pca_nb.distributed import shard_bounds
from pca_nb.scores import read_dynamics, SUMS

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def one_thread():
    "As in the workers: rounding depends on the number of threads."
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


JOB = '''
import json, os, signal, sys, torch
from dataclasses import replace
from pca_nb import train as engine, validate
from pca_nb.augment import AugmentCfg
from pca_nb.distributed import init_distributed
from pca_nb.datasets import load_data
from pca_nb.models import make_model
from pca_nb.recipes import HARD, RECIPES
from pca_nb.scores import ScoringCfg, record_dynamics
from pca_nb.callbacks import Callback
from pca_nb.train import train
torch.set_num_threads(1)
validate.pick_dtype = lambda dev: torch.float32 # rounding alone, so that 1e-3 can be asked for
engine.SAVE_EVERY = 0
out, n, arch, mix, dies, epochs = sys.argv[1:7]
n, dies, epochs = int(n), int(dies), int(epochs)
full, test = load_data('digits')[torch.arange(n)], load_data('digits', 'test')
views = AugmentCfg(crop_scale=(.5, 1.), flip=0., mix=mix, mix_labels=mix!='none')
class Dies(Callback):
    def after_batch(self, epoch, *_):
        if epoch==dies and init_distributed()[0]==1: os.kill(os.getpid(), signal.SIGKILL)
net = make_model(arch, 10, 16)
# AdamW would blow up the rounding of gradients that are zero
log = train(net, full, replace(HARD, optimizer='sgd', lr=.02, epochs=epochs, batch=64, eval_every=2, augment=views)
           , 0, test, [Dies()], device='cpu', ckpt=out+'/run.pt', desc='two')
plain = replace(views, mix='none', mix_labels=False)
scoring = ScoringCfg(arch, replace(RECIPES['ccs'], epochs=epochs, batch=65, lr=.005, augment=plain), el2n_epochs=2)
if dies<0: record_dynamics(full, scoring, out+'/scores.npz', 'cpu')
if init_distributed()[0]==0:
    torch.save({k:v for k,v in net.state_dict().items()}, out+'/net.pt')
    open(out+'/log.json', 'w').write(log.drop(columns='per_class').to_json())
'''


def start(n_processes, out, n=321, arch='convnet2-w32', mix='none', dies=-1, epochs=4):
    "Run the job in one process or under torchrun."
    out.mkdir(parents=True, exist_ok=True)
    (out/'job.py').write_text(JOB)
    how = [Path(sys.executable).parent/'torchrun', '--nproc-per-node', str(n_processes), '--master-port', '0',
           '--rdzv-backend', 'c10d', '--rdzv-endpoint', 'localhost:0'] if n_processes > 1 else [sys.executable]
    return subprocess.run([*how, out/'job.py', out, str(n), arch, mix, str(dies), str(epochs)], capture_output=True,
                          text=True, env=os.environ | dict(CI='1', OMP_NUM_THREADS='1'))


def outcome(out): return torch.load(out/'net.pt', weights_only=True), json.loads((out/'log.json').read_text())


@pytest.mark.parametrize('arch,mix,n,epochs,tol', [('convnet2-w32', 'none', 65, 1, 1e-5),
                                                   ('convnet3', 'cutmix', 131, 1, 1e-5),
                                                   ('convnet2-w32', 'none', 330, 4, 1e-2)])
def test_two_processes_train_and_score_as_one(arch, mix, n, epochs, tol, tmp_path):
    """Weights, losses, metrics and every score agree: to rounding after a few steps (with 65 images the second step has
    one     image, and one process none), and to what 24 steps of training make of rounding."""
    for k in (1, 2):
        r = start(k, tmp_path/str(k), n=n, arch=arch, mix=mix, epochs=epochs)
        assert r.returncode == 0, r.stderr[-3000:]
    (one, log1), (two, log2) = (outcome(tmp_path/k) for k in '12')
    assert log1['lr'] == log2['lr'] and list(log1) == list(log2)
    assert np.allclose(list(log1['loss'].values()), list(log2['loss'].values()), atol=tol)
    for k in one: assert torch.allclose(one[k].float(), two[k].float(), atol=tol), k
    a, b = (read_dynamics(tmp_path/k/'scores.npz') for k in '12')
    assert a.epochs == b.epochs == epochs
    for k in SUMS: assert (a.sums[k]-b.sums[k]).abs().quantile(1. if epochs == 1 else .95) < max(10*tol, 1e-3), k
    assert (b.sums['el2n'] > 0).all() and (b.sums['entropy'] > 0).all()   # every image was recorded
    assert a.features.shape == b.features.shape == (n, 512)   # the network's 2,048, projected
    alike = torch.cosine_similarity(a.features.float(), b.features.float())
    assert (alike > 1-max(10*tol, 1e-3)).all()   # every image, at its own place
    assert not list(tmp_path.rglob('.*tmp*'))


def test_every_image_is_recorded_once_an_epoch(tmp_path):
    """With steps of length zero a network answers the same each epoch: the sums of three epochs are three times
    those of one."""
    (tmp_path/'job.py').write_text('''
import sys, torch
from dataclasses import replace
from pca_nb import validate
from pca_nb.augment import AugmentCfg
from pca_nb.datasets import load_data
from pca_nb.recipes import RECIPES
from pca_nb.scores import ScoringCfg, record_dynamics
validate.pick_dtype = lambda dev: torch.float32
for epochs in (1, 3):
    whole = AugmentCfg(crop_scale=None, flip=0.)
    still = replace(RECIPES['ccs'], epochs=epochs, batch=50, lr=1e-30, lr_min=0., augment=whole)
    cfg = ScoringCfg('convnet3', still, el2n_epochs=9)
    record_dynamics(load_data('digits')[torch.arange(203)], cfg, f'{sys.argv[1]}/{epochs}.npz', 'cpu')
''')
    r = subprocess.run([Path(sys.executable).parent/'torchrun', '--nproc-per-node', '2', '--rdzv-backend', 'c10d',
                        '--rdzv-endpoint', 'localhost:0', tmp_path/'job.py', tmp_path],
                       capture_output=True, text=True, env=os.environ | dict(CI='1', OMP_NUM_THREADS='1'))
    assert r.returncode == 0, r.stderr[-3000:]
    one, three = (read_dynamics(tmp_path/f'{k}.npz') for k in (1, 3))
    for k in ('el2n', 'margin', 'logit_margin', 'correct'):
        assert torch.allclose(3*one.sums[k], three.sums[k], atol=1e-4), k
    assert (one.sums['el2n'] > .1).all() and (three.sums['forgotten'] == 0).all()


def test_a_dead_process_ends_the_job_and_leaves_a_checkpoint(tmp_path, tally):
    """kill -9 of the second process in epoch 2: the job fails and says why; the same command goes on and ends as if
    nothing had been."""
    r = start(2, tmp_path/'a', dies=2)
    assert (r.returncode != 0 and 'two: ' in r.stderr
            and ('another process of the job is gone, in epoch 2 of 4' in r.stderr
                 or 'stopped in epoch 2 of 4' in r.stderr)), r.stderr[-3000:]
    assert 'run it again to go on from' in r.stderr
    saved = torch.load(tmp_path/'a'/'run.pt', weights_only=True)
    assert len(saved['log']) == 2
    for out in 'ab':
        r = start(2, tmp_path/out, dies=-2)
        assert r.returncode == 0, r.stderr[-3000:]
    (one, log1), (two, log2) = (outcome(tmp_path/k) for k in 'ab')
    with tally.one('kill -9 of one process of a torchrun job'):
        assert log1['loss'] == log2['loss'] and all(torch.equal(one[k], two[k]) for k in one)


def test_shares_cover_a_batch():
    for n in range(0, 9):
        for world in range(1, 5):
            e = shard_bounds(n, world)
            assert (e[0] == 0 and e[-1] == n
                    and max(b-a for a, b in zip(e, e[1:]))-min(b-a for a, b in zip(e, e[1:])) <= 1)


def test_a_grid_under_torchrun_is_refused(tmp_path, monkeypatch):
    from pca_nb import grid
    monkeypatch.setattr(grid, 'init_distributed', lambda: (0, 2))
    with pytest.raises(ValueError, match='a grid gives each run a process of its own: start it without torchrun'):
        run_grid(fault_worker.GRID, ResultStore(tmp_path/'r.jsonl'), tmp_path)


# ---- grids ----
def made(path):
    return {r['key']: {k: v for k, v in r.items() if k not in ('seconds', 'check')} for r in ResultStore(path).all()}


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    "The grid's rows from one process with one thread."
    home = tmp_path_factory.mktemp('alone')
    torch.set_num_threads(1)
    run_grid(fault_worker.GRID, ResultStore(home/'rows.jsonl'), home, device='cpu')
    return made(home/'rows.jsonl')


LONG = [fault_worker.short('random', s, 60) for s in range(4)]


def kill_one(pids, path):
    "SIGKILL to the first worker as soon as one row is there."
    while not ResultStore(path).all(): time.sleep(.02)
    before = {r['key']: r['seconds'] for r in ResultStore(path).all()}
    os.kill(pids[0], signal.SIGKILL)
    return before


def test_a_killed_worker_of_a_process_pool_loses_nothing(tmp_path, tally):
    "The grid says what happened; run again, it makes only what is missing."
    import threading
    rows, got = ResultStore(tmp_path/'r.jsonl'), {}
    with process_pool(2) as ex:
        ex.submit(os.getpid).result()
        killer = threading.Thread(target=lambda: got.update(before=kill_one(list(ex._processes), rows.path)))
        killer.start()
        with pytest.raises(ChildProcessError, match=r'a worker died .* run it again, rows in .*r.jsonl are kept'):
            run_grid(LONG, rows, tmp_path, executor=ex, device='cpu')
        killer.join()
    kept = len(rows.all())
    with process_pool(2) as ex: frame = run_grid(LONG, rows, tmp_path, executor=ex, device='cpu')
    after = {r['key']: r['seconds'] for r in rows.all()}
    again = sum(after[k] != v for k, v in got['before'].items())
    tally.count('kill -9 of a worker of a process pool', 1, int(again > 0))
    assert len(frame) == 4 and 1 <= kept and again == 0 and not list((tmp_path/'ckpt').iterdir())


def test_dask_makes_the_same_rows_and_survives_a_killed_worker(tmp_path, alone, tally):
    "Two worker processes; the nanny starts the dead one again and its runs are made there."
    distributed = pytest.importorskip('distributed', reason="Dask is an optional extra: pip install 'pca_nb[dask]'")
    import threading
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1,
                                  dashboard_address=None) as cluster, distributed.Client(cluster) as client:
        client.run(torch.set_num_threads, 1)
        run_grid(fault_worker.GRID, ResultStore(tmp_path/'a.jsonl'), tmp_path/'a', executor=client.get_executor(),
                 device='cpu')
        assert made(tmp_path/'a.jsonl') == alone
        pids = [w['pid'] for w in client.run(lambda: dict(pid=os.getpid())).values()]
        got = {}
        rows = ResultStore(tmp_path/'b.jsonl')
        killer = threading.Thread(target=lambda: got.update(before=kill_one(pids, rows.path)))
        killer.start()
        frame = run_grid(LONG, rows, tmp_path/'b', executor=client.get_executor(), device='cpu')
        killer.join()
    after = {r['key']: r['seconds'] for r in rows.all()}
    again = sum(after[k] != v for k, v in got['before'].items())
    tally.count('kill -9 of a Dask worker', 1, int(again > 0))
    assert len(frame) == 4 and again == 0 and rows.path.read_text().count('\n') == 4


def test_anything_with_submit_will_do(tmp_path, alone):
    "The interface of Slurm's submitit: `submit`, and jobs with `result` and `cancel`; no `map`, no `shutdown`."
    class Slurm:
        def submit(self, f, *a):
            job = Future()
            job.set_result(f(*a))
            return job
    run_grid(fault_worker.GRID, ResultStore(tmp_path/'r.jsonl'), tmp_path, executor=Slurm(), device='cpu')
    assert made(tmp_path/'r.jsonl') == alone
