"""Work is not lost: kill -9 at random moments, two processes on one store, damaged files, no memory, NaN, Ctrl-C."""
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import fault_worker
from pca_nb import grid, result_store
from pca_nb import train as engine
from pca_nb.datasets import load_data
from pca_nb.models import make_model
from pca_nb.recipes import RECIPES
from pca_nb.result_store import ResultStore
from pca_nb.run import run_one
from pca_nb.scores import read_dynamics, record_dynamics, ScoringCfg
from pca_nb.storage import DamagedFileWarning, file_lock
from pca_nb.callbacks import Callback
from pca_nb.train import train
from pca_nb.workers import RunsFailed

HERE = Path(__file__).parent
HARD = RECIPES['hard']


# ---- what a job leaves, and whether it is the same ----
def rows_of(path):
    "The rows of a store without what differs from run to run."
    rows = [{k: v for k, v in r.items() if k not in ('seconds', 'check')} for r in ResultStore(path).all()]
    return sorted(rows, key=lambda r: r['key'])


def content(tensors): return b''.join(v.numpy().tobytes() for v in tensors.values())


def result(job, home):
    "What the job was for, as comparable bytes."
    if job == 'grid': return json.dumps(rows_of(home/'rows.jsonl'))
    if job == 'scoring': return content(read_dynamics(home/'scores.npz').sums)
    return content(torch.load(home/'weights.pt', weights_only=True))


def read_any(file):
    "Read a file that a job leaves, or fail."
    if file.suffix == '.jsonl': assert not ResultStore(file).lines()[1]
    elif file.suffix == '.npz': read_dynamics(file)
    else: torch.load(file, weights_only=True)


def torn(home):
    "Files that are there but cannot be read: none, whenever the job is killed."
    bad = []
    for file in home.rglob('*'):
        if file.name.startswith('.') or file.is_dir(): continue   # unfinished, under a hidden name
        try: read_any(file)
        except Exception as e: bad.append((file.name, repr(e)))
    return bad


class Server:
    "The process of `fault_worker.py`, which forks, kills and interrupts."
    def __init__(self):
        clean = {k: v for k, v in os.environ.items() if k not in ('IN_TEST', 'MPLBACKEND')}
        self.process = subprocess.Popen([sys.executable, HERE/'fault_worker.py'], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True,
                                        env=clean | dict(CI='1', OMP_NUM_THREADS='1'))
        assert self.answer() == 'ready'

    def answer(self): return self.process.stdout.readline().strip()

    def send(self, **order):
        print(json.dumps(order, default=str), file=self.process.stdin, flush=True)
        return self.answer()

    def job(self, job, home, delay=60., copies=1): return self.send(job=job, home=home, delay=delay, copies=copies)

    def command(self, words, said, **interrupt):
        return int(self.send(words=[*map(str, words)], said=said, **interrupt))

    def close(self):
        self.process.stdin.close()
        self.process.wait()


@pytest.fixture(scope='module')
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope='module')
def whole(server, tmp_path_factory):
    "What each job gives when nobody disturbs it: (result, seconds, its folder)."
    out = {}
    for job in fault_worker.JOBS:
        home = tmp_path_factory.mktemp(f'whole-{job}')
        start = time.monotonic()
        assert server.job(job, home) == 'done'
        out[job] = result(job, home), time.monotonic()-start, home
    return out


# ---- 1. kill -9 ----
WHILE = dict(scoring='scoring', training='training', grid='a grid runs')


@pytest.mark.parametrize('job', fault_worker.JOBS)
def test_killed_at_random_moments(job, server, whole, tmp_path, slow, tally):
    "Killed again and again, then left alone: the same result, bit for bit, and never half a file."
    want, seconds, _ = whole[job]
    rng = random.Random(job)
    kills = wrong = n = 0
    half = []
    while kills < (24 if slow else 3):
        home = tmp_path/str(n)
        home.mkdir(exist_ok=True)
        state = server.job(job, home, rng.uniform(0, .8*seconds))
        if state == 'killed':
            kills += 1
            half += torn(home)
        else:
            assert state == 'done'
            wrong += result(job, home) != want
            n += 1
    home = tmp_path/str(n)
    home.mkdir(exist_ok=True)
    assert server.job(job, home) == 'done'
    wrong += result(job, home) != want
    left = [f.name for f in home.rglob('.*') if '.tmp' in f.name]
    tally.count(f'kill -9 while {WHILE[job]}', kills, len(half)+wrong)
    assert not half and not wrong and not left


def test_killed_while_exporting(server, tmp_path, tally):
    "A folder is complete or not there; what the dead left is removed by the next."
    out = tmp_path/'out'
    killed = lost = 0
    for delay in (.01, .05, .1):
        killed += server.job('exporting', tmp_path, delay) == 'killed'
        lost += out.exists() and len(load_data(out)) != 1197
    if not out.exists(): assert server.job('exporting', tmp_path) == 'done'
    tally.count('kill -9 while a folder is exported', killed, lost)
    assert killed and not lost
    assert len(load_data(out)) == 1197 and [p.name for p in tmp_path.iterdir()] == ['out']


# ---- 2. two at once ----
ADD = '''
import sys, time
from pathlib import Path
from pca_nb.result_store import ResultStore
path, me = sys.argv[1:]
store = ResultStore(path)
Path(path+me).touch()
while not all(Path(path+who).exists() for who in 'ab'): time.sleep(.0001)   # begin together
for i in range(80):
    store.add(dict(key=f'{i if i%2 else me}-{i}', note='x'*300, who=me))
'''


def test_two_processes_add_to_one_store(tmp_path, tally):
    "Half of the keys are shared, and they are added at the same moments: every key once, no line torn."
    path = tmp_path/'r.jsonl'
    both = [subprocess.Popen([sys.executable, '-c', ADD, path, who]) for who in 'ab']
    assert [p.wait() for p in both] == [0, 0]
    rows, bad = ResultStore(path).lines()
    lines = path.read_text().count('\n')
    tally.count('two processes add 160 rows to one store, 40 of them the same', 160,
                abs(120-len(rows))+abs(lines-120)+len(bad))
    assert len(rows) == 120 == lines and not bad


def test_two_processes_run_one_grid(server, whole, tmp_path, tally):
    "Both end, and the rows are those of one, each once."
    assert server.job('grid', tmp_path, copies=2) == 'done'
    same = result('grid', tmp_path) == whole['grid'][0]
    tally.count('two processes run one grid', 2, 2*(not same))
    assert same and (tmp_path/'rows.jsonl').read_text().count('\n') == len(fault_worker.GRID)


# ---- 3. damaged files ----
def noise(data): return np.random.default_rng(0).bytes(len(data))
SPOIL = dict(cut=lambda data: data[:len(data)//2], emptied=lambda data: b'', noise=noise)
WHERE = dict(rows=('grid', 'rows.jsonl'), checkpoint=('training', 'run.pt'), scores=('scoring', 'scores.npz'))


@pytest.fixture
def one_thread():
    "As in the workers: rounding depends on the number of threads."
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize('how', SPOIL)
@pytest.mark.parametrize('what', WHERE)
def test_damaged_file_is_made_again(what, how, whole, tmp_path, one_thread, monkeypatch, tally):
    "Found, named, set aside, made again; the result is the same."
    job, name = WHERE[what]
    home = shutil.copytree(whole[job][2], tmp_path/'home')
    file = home/name
    file.write_bytes(SPOIL[how](file.read_bytes()))
    if job == 'training': (home/'weights.pt').unlink()
    monkeypatch.setattr(engine, 'SAVE_EVERY', 0)
    with pytest.warns(DamagedFileWarning, match=f'{name} is damaged .* set aside as {name}.damaged1'):
        fault_worker.JOBS[job](home)
    same = result(job, home) == whole[job][0]
    tally.count(f'{what} file {how}', 1, int(not same))
    assert same and (home/f'{name}.damaged1').exists()


def test_a_changed_digit_in_a_row_is_found(server, whole, tmp_path):
    "Still JSON, but not what was written: that row is made again, the others are read."
    home = shutil.copytree(whole['grid'][2], tmp_path/'home')
    file = home/'rows.jsonl'
    lines = file.read_text().splitlines()
    row = json.loads(lines[1])
    lines[1] = json.dumps(row | dict(top1=row['top1']+1))
    file.write_text('\n'.join(lines)+'\n')
    with pytest.warns(DamagedFileWarning, match='line 2 is no complete row'): ResultStore(file).repair()
    assert len(ResultStore(file).all()) == len(fault_worker.GRID)-1
    assert server.job('grid', home) == 'done' and result('grid', home) == whole['grid'][0]


def test_a_store_being_repaired_on_a_full_disk_keeps_its_rows(tmp_path, monkeypatch, tally):
    "Whatever fails while bad lines are moved away, the good rows stay where they are."
    rows = ResultStore(tmp_path/'r.jsonl')
    for k in 'abc': rows.add(dict(key=k))
    rows.path.write_text(rows.path.read_text()+'{"key": "torn')
    write = result_store.atomic_write

    def full(path, *a):
        if path == rows.path: raise OSError(28, 'No space left on device')
        return write(path, *a)
    monkeypatch.setattr(result_store, 'atomic_write', full)
    with tally.one('full disk while a store is repaired'):
        with pytest.warns(DamagedFileWarning), pytest.raises(OSError): rows.repair()
        assert [r['key'] for r in rows.all()] == ['a', 'b', 'c']


def test_a_full_disk_leaves_no_part_of_a_row(tmp_path, monkeypatch):
    "The system call takes ten bytes, then no more: the file is cut back, and the message says what to do."
    rows = ResultStore(tmp_path/'r.jsonl')
    rows.add(dict(key='a'))
    before = rows.path.read_bytes()
    write, calls = os.write, []

    def full(fd, data):
        calls.append(fd)
        if len(calls) > 1: raise OSError(28, 'No space left on device')
        return write(fd, data[:10])
    monkeypatch.setattr(result_store.os, 'write', full)
    with pytest.raises(OSError, match='row b was not written to .*r.jsonl .No space.*: free some space and run again'):
        rows.add(dict(key='b'))
    assert rows.path.read_bytes() == before


def test_repair_leaves_a_good_store_alone(tmp_path):
    rows = ResultStore(tmp_path/'r.jsonl')
    rows.repair()
    rows.add(dict(key='a'))
    before = rows.path.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        rows.repair()
    assert rows.path.read_bytes() == before


# ---- 4. memory, NaN ----
NO_MEMORY = {'on a GPU': torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 GiB'),
             'on the CPU': RuntimeError("[enforce fail at alloc_cpu.cpp:117] data. DefaultCPUAllocator: can't "
                                        "allocate memory: you tried to allocate 1 bytes."),
             'in Python': MemoryError()}


@pytest.fixture(scope='module')
def small(): return load_data('digits')[torch.arange(0, 1197, 20)]


@pytest.mark.parametrize('where', NO_MEMORY)
def test_out_of_memory_says_what_to_lower(where, small, tally):
    class Full(Callback):
        def after_batch(self, epoch, *_):
            if epoch == 2: raise NO_MEMORY[where]
    words = 'my run: cpu ran out of memory in epoch 2 of 5, with 16 images of 16 px a step: lower the batch'
    with tally.one(f'out of memory {where}'):
        with pytest.raises(MemoryError, match=words) as e:
            train(make_model('convnet2-w32', 10, 16), small, replace(HARD, epochs=5, batch=16), callbacks=[Full()],
                  device='cpu', desc='my run')
        assert 'starts over' in str(e.value)


TIGHT = '''
import resource, torch
from dataclasses import replace
from pca_nb.models import make_model
from pca_nb.recipes import RECIPES
from pca_nb.reference_loop import photos
from pca_nb.train import train
from pca_nb.workers import RunsFailed
s, net = photos(64, 96), make_model('convnet3-bn', 10, 96)
recipe = replace(RECIPES['hard'], epochs=1)
train(net, s, replace(recipe, batch=2), device='cpu', stop_epoch=1)
now = int(open('/proc/self/statm').read().split()[0])*4096
resource.setrlimit(resource.RLIMIT_AS, (now+2**28, now+2**28))
try: train(net, s, replace(recipe, batch=64), device='cpu', desc='tight')
except MemoryError as e: print('SAID', e)
'''


def test_a_real_lack_of_memory():
    "With an address space of a few gigabytes: the same words, no traceback of the allocator alone."
    r = subprocess.run([sys.executable, '-c', TIGHT], capture_output=True, text=True, env=os.environ | dict(CI='1'))
    said = 'SAID tight: cpu ran out of memory in epoch 0 of 1, with 64 images of 96 px a step: lower the batch'
    assert said in r.stdout, r.stderr[-2000:]


def test_nan_loss_names_the_run_and_keeps_no_checkpoint(small, tmp_path, tally):
    ckpt = tmp_path/'c.pt'
    words = r'my run: the loss is .* at epoch \d+ with lr=\S+: lower the learning rate'
    with tally.one('a loss that is no number'), pytest.raises(FloatingPointError, match=words):
        train(make_model('convnet2-w32', 10, 16), small, replace(HARD, epochs=9, optimizer='sgd', lr=1e20),
              device='cpu', desc='my run', ckpt=ckpt, save_every=0)
    saved = torch.load(ckpt, weights_only=True) if ckpt.exists() else None
    assert saved is None or all(np.isfinite(r['loss']) for r in saved['log'])


# ---- 5. Ctrl-C, and runs that fail ----
@pytest.mark.parametrize('sig', [signal.SIGINT, signal.SIGTERM], ids=['Ctrl-C', 'SIGTERM'])
def test_interrupted_command_says_how_to_go_on(sig, server, tmp_path, tally):
    "Exit code 130 and one line; the same command again finishes."
    words = ['score', 'digits', '--out', tmp_path/'s.npz', '--epochs', '20', '--device', 'cpu']
    ckpt = tmp_path/'s.ckpt'
    code = server.command(words, tmp_path/'said', until=ckpt, sig=int(sig))
    said = (tmp_path/'said').read_text().strip()
    tally.count({signal.SIGINT: 'Ctrl-C', signal.SIGTERM: 'SIGTERM'}[sig], 1, int(code != 130 or not ckpt.exists()))
    assert code == 130 and ckpt.exists() and said.count('\n') == 0, said
    assert 'scoring digits: stopped in epoch' in said and 'run it again to go on from' in said
    assert server.command(words, tmp_path/'said') == 0 and (tmp_path/'s.npz').exists()


def test_one_failing_run_does_not_stop_the_others(tmp_path, monkeypatch):
    def fails(cfg, *a, **kw):
        if cfg.seed == 1: raise FloatingPointError('the loss is nan')
        return run_one(cfg, *a, **kw)
    monkeypatch.setattr(grid, 'run_one', fails)
    words = (r'2 of 4 runs failed, the others are in .*r.jsonl; the first, digits random ipc 2 seed 1 '
             r'\([0-9a-f]{12}\): the loss is nan')
    with pytest.raises(RunsFailed, match=words):
        grid.run_grid(fault_worker.GRID, ResultStore(tmp_path/'r.jsonl'), tmp_path, device='cpu')
    assert sorted(r['seed'] for r in ResultStore(tmp_path/'r.jsonl').all()) == [0, 0]


def test_a_lock_waits_for_its_holder(tmp_path):
    order = []

    def second():
        with file_lock(tmp_path/'f'): order.append('second')
    with file_lock(tmp_path/'f'):
        t = threading.Thread(target=second)
        t.start()
        time.sleep(.1)
        order.append('first')
    t.join()
    assert order == ['first', 'second']


def test_a_grid_that_is_interrupted_ends_its_workers(tmp_path, clean_env):
    "SIGTERM to `pca-nb benchmark --workers 2`: one line, soon, and nobody is left; the same command again goes on."
    words = [Path(sys.executable).parent/'pca-nb', 'benchmark', 'digits', '--methods', 'random', '--ipc', '1,2',
             '--seeds', '2', '--home', tmp_path, '--workers', '2', '--device', 'cpu']
    p = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
                         env=clean_env | dict(CI='1'), start_new_session=True)
    while not (tmp_path/'ckpt').exists(): time.sleep(.01)
    time.sleep(4)   # until the workers run
    p.send_signal(signal.SIGTERM)
    said = p.communicate(timeout=30)[1]
    assert p.returncode == 130 and 'runs finished: run it again' in said, said
    with pytest.raises(ProcessLookupError):   # no worker is left in its group
        for _ in range(200):
            os.killpg(p.pid, 0)
            time.sleep(.05)


# ---- 6. files of other runs ----
def test_scores_of_another_run_are_not_passed_off(small, tmp_path):
    "A whole score file at the same path, but of another network: refused, not returned."
    cfg = ScoringCfg('convnet2-w32', replace(HARD, epochs=1, batch=16))
    record_dynamics(small, cfg, tmp_path/'s.npz', 'cpu')
    with pytest.raises(ValueError, match='s.npz was recorded by another run'):
        record_dynamics(small, replace(cfg, seed=1), tmp_path/'s.npz', 'cpu')


def test_a_checkpoint_of_another_network_is_refused(small, tmp_path):
    def run(arch):
        return train(make_model(arch, 10, 16), small, replace(HARD, epochs=2, batch=16), device='cpu',
                     ckpt=tmp_path/'c.pt', stop_epoch=1)
    run('convnet2-w32')
    with pytest.raises(ValueError, match='belongs to another run'): run('convnet3-w64')
