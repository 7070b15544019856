"""Work is not lost: kill -9 at random moments, two processes on one store, damaged files, no memory, NaN, Ctrl-C."""
import json
import os
import random
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

import victim
from pca_nb import train as engine
from pca_nb.result_store import ResultStore
from pca_nb.storage import DamagedFileWarning
from pca_nb.datasets import load_data
from pca_nb.models import make_model
from pca_nb.scores import read_dynamics
from pca_nb.recipes import HARD
from pca_nb.train import Callback, train

HERE = Path(__file__).parent


# ---- what a job leaves, and whether it is the same ----
def rows_of(path):
    return sorted(({k: v for k, v in r.items() if k not in ('seconds', 'check')} for r in ResultStore(path).all()),
                  key=lambda r: r['key'])


def result(job, home):
    "What the job was for, as comparable bytes."
    if job == 'grid': return json.dumps(rows_of(home/'rows.jsonl'))
    if job == 'scoring': return b''.join(v.numpy().tobytes() for v in read_dynamics(home/'scores.npz').sums.values())
    return b''.join(v.numpy().tobytes() for v in torch.load(home/'weights.pt', weights_only=True).values())


def torn(home):
    "Files that are there but cannot be read: none, whenever the job is killed."
    bad = []
    for f in home.rglob('*'):
        if f.name.startswith('.') or f.is_dir(): continue   # unfinished, under a hidden name
        try:
            if f.suffix == '.jsonl': assert not ResultStore(f).lines()[1]
            elif f.suffix == '.npz': read_dynamics(f)
            else: torch.load(f, weights_only=True)
        except Exception as e: bad.append((f.name, repr(e)))
    return bad


@pytest.fixture(scope='module')
def server():
    "`ask(job, home, delay)` of a process that forks and kills."
    p = subprocess.Popen([sys.executable, HERE/'victim.py'], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                         env=os.environ | dict(CI='1', OMP_NUM_THREADS='1'))

    def ask(job, home, delay=60.):
        print(json.dumps(dict(job=job, home=str(home), delay=delay)), file=p.stdin, flush=True)
        return p.stdout.readline().strip()
    yield ask
    p.stdin.close()
    p.wait()


@pytest.fixture(scope='module')
def whole(server, tmp_path_factory):
    "What each job gives when nobody disturbs it, and how long it takes."
    out = {}
    for job in victim.JOBS:
        home = tmp_path_factory.mktemp(f'whole-{job}')
        start = time.monotonic()
        assert server(job, home) == 'done'
        out[job] = result(job, home), time.monotonic()-start
    return out


# ---- 1. kill -9 ----
@pytest.mark.parametrize('job', victim.JOBS)
def test_killed_at_random_moments(job, server, whole, tmp_path, slow, tally):
    "Killed again and again, then left alone: the same result, bit for bit, and never half a file."
    want, seconds = whole[job]
    rng, kills, wrong, n, half = random.Random(job), 0, 0, 0, []
    while kills < (24 if slow else 3):
        (home := tmp_path/str(n)).mkdir(exist_ok=True)
        if (state := server(job, home, rng.uniform(0, .8*seconds))) == 'killed':
            kills += 1
            half += torn(home)
            continue
        assert state == 'done'
        wrong += result(job, home) != want
        n += 1
    (home := tmp_path/str(n)).mkdir(exist_ok=True)
    assert server(job, home) == 'done'
    wrong += result(job, home) != want
    left = [f.name for f in home.rglob('.*') if '.tmp' in f.name]
    tally.count('kill -9 while '+dict(scoring='scoring', training='training', grid='a grid runs')[job], kills,
                len(half)+wrong)
    assert not half and not wrong and not left


def test_killed_while_exporting(tmp_path, tally):
    "A folder is complete or not there; what the dead left is removed by the next."
    code = ("import os, signal, sys, threading, time, random\nfrom pca_nb.datasets import load_data\nfrom "
            "pca_nb.files import save_folder\ns = load_data('digits')\n"
            "if sys.argv[2]!='-': threading.Thread(target=lambda: (time.sleep(float(sys.argv[2])), "
            "os.kill(os.getpid(), signal.SIGKILL)), daemon=True).start()\n"
            "save_folder(s, sys.argv[1])")
    killed = lost = 0
    for delay in ('0.01', '0.05', '0.1'):
        r = subprocess.run([sys.executable, '-c', code, tmp_path/'out', delay])
        killed += r.returncode == -signal.SIGKILL
        lost += (tmp_path/'out').exists() and len(load_data(tmp_path/'out')) != 1197
    if not (tmp_path/'out').exists():
        assert subprocess.run([sys.executable, '-c', code, tmp_path/'out', '-']).returncode == 0
    tally.count('kill -9 while a folder is exported', killed, lost)
    assert killed and not lost and len(load_data(tmp_path/'out')) == 1197 and [p.name
                                                                               for p in tmp_path.iterdir()] == ['out']


# ---- 2. two at once ----
ADD = ("import sys, time\nfrom pathlib import Path\nfrom pca_nb.result_store import ResultStore\nrows, ready = "
       "ResultStore(sys.argv[1]), Path(sys.argv[1]+sys.argv[2])\nready.touch()\n"
       "while not all(Path(sys.argv[1]+w).exists() for w in 'ab'): time.sleep(.0001)\n"   # begin together
       "for i in range(80): rows.add(dict(key=f'{i if i%2 else sys.argv[2]}-{i}', note='x'*300, who=sys.argv[2]))")


def test_two_processes_add_to_one_store(tmp_path, tally):
    "Half of the keys are shared, and they are added at the same moments: every key once, no line torn."
    both = [subprocess.Popen([sys.executable, '-c', ADD, tmp_path/'r.jsonl', who]) for who in 'ab']
    assert [p.wait() for p in both] == [0, 0]
    rows, bad = ResultStore(tmp_path/'r.jsonl').lines()
    lines = (tmp_path/'r.jsonl').read_text().count('\n')
    tally.count('two processes add 160 rows to one store, 40 of them the same', 160,
                abs(120-len(rows))+abs(lines-120)+len(bad))
    assert len(rows) == 120 == lines and not bad


def test_two_processes_run_one_grid(whole, tmp_path, tally):
    both = [subprocess.Popen([sys.executable, '-c',
                              'import sys, pathlib; sys.path.insert(0, sys.argv[1]); import victim; '
                              'victim.grid(pathlib.Path(sys.argv[2]))', HERE, tmp_path],
                             env=os.environ | dict(CI='1', OMP_NUM_THREADS='1')) for _ in range(2)]
    assert [p.wait() for p in both] == [0, 0]
    same = result('grid', tmp_path) == whole['grid'][0]
    tally.count('two processes run one grid', 2, 2*(not same))
    assert same and (tmp_path/'rows.jsonl').read_text().count('\n') == len(victim.GRID)


# ---- 3. damaged files ----
SPOIL = dict(cut=lambda b: b[:len(b)//2], emptied=lambda b: b'', noise=lambda b: np.random.default_rng(0).bytes(len(b)))
WHERE = dict(rows=('grid', 'rows.jsonl'), checkpoint=('training', 'run.pt'), scores=('scoring', 'scores.npz'))


@pytest.mark.parametrize('how', SPOIL)
@pytest.mark.parametrize('what', WHERE)
def test_damaged_file_is_made_again(what, how, server, whole, tmp_path, monkeypatch, tally):
    "Found, named, set aside, made again; the result is the same."
    job, name = WHERE[what]
    assert server(job, tmp_path) == 'done'
    file = tmp_path/name
    file.write_bytes(SPOIL[how](file.read_bytes()))
    if job == 'training': (tmp_path/'weights.pt').unlink()
    monkeypatch.setattr(engine, 'SAVE_EVERY', 0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.warns(DamagedFileWarning, match=f'{name} is damaged .* set aside as {name}.damaged1'):
        victim.JOBS[job](tmp_path)
    torch.set_num_threads(threads)
    same = result(job, tmp_path) == whole[job][0]
    tally.count(f'{what} file {how}', 1, int(not same))
    assert same and (tmp_path/f'{name}.damaged1').exists()


def test_a_changed_digit_in_a_row_is_found(server, whole, tmp_path):
    "Still JSON, but not what was written: that row is made again, the others are read."
    assert server('grid', tmp_path) == 'done'
    file = tmp_path/'rows.jsonl'
    lines = file.read_text().splitlines()
    row = json.loads(lines[1])
    lines[1] = json.dumps(row | dict(top1=row['top1']+1))
    file.write_text('\n'.join(lines)+'\n')
    with pytest.warns(DamagedFileWarning, match='line 2 is no complete row'): ResultStore(file).mend()
    assert len(ResultStore(file).all()) == len(victim.GRID)-1
    assert server('grid', tmp_path) == 'done' and result('grid', tmp_path) == whole['grid'][0]


def test_a_store_being_mended_on_a_full_disk_keeps_its_rows(tmp_path, monkeypatch, tally):
    "Whatever fails while bad lines are moved away, the good rows stay where they are."
    from pca_nb import result_store
    rows = ResultStore(tmp_path/'r.jsonl')
    for k in 'abc': rows.add(dict(key=k))
    rows.path.write_text(rows.path.read_text()+'{"key": "torn')
    write = result_store.atomic_write

    def full(path, *a):
        if path == rows.path: raise OSError(28, 'No space left on device')
        return write(path, *a)
    monkeypatch.setattr(result_store, 'atomic_write', full)
    with tally.one('full disk while a store is mended'):
        with pytest.warns(DamagedFileWarning), pytest.raises(OSError): rows.mend()
        assert [r['key'] for r in rows.all()] == ['a', 'b', 'c']


def test_mend_leaves_a_good_store_alone(tmp_path):
    rows = ResultStore(tmp_path/'r.jsonl')
    rows.mend()
    rows.add(dict(key='a'))
    before = rows.path.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        rows.mend()
    assert rows.path.read_bytes() == before


# ---- 5. memory, NaN, Ctrl-C ----
def SMALL(): return load_data('digits')[torch.arange(0, 1197, 20)]
NO_MEMORY = {'on a GPU': torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 GiB'),
             'on the CPU': RuntimeError("[enforce fail at alloc_cpu.cpp:117] data. DefaultCPUAllocator: can't "
                                        "allocate memory: you tried to allocate 1 bytes."),
             'in Python': MemoryError()}


@pytest.mark.parametrize('where', NO_MEMORY)
def test_out_of_memory_says_what_to_lower(where, tally):
    class Full(Callback):
        def after_batch(self, epoch, *_):
            if epoch == 2: raise NO_MEMORY[where]
    with tally.one(f'out of memory {where}'):
        with pytest.raises(MemoryError,
                           match=r'my run: cpu ran out of memory in epoch 2 of 5, with 16 images of 16 px a step: '
                                 r'lower the batch') as e:
            train(make_model('convnet2-w32', 10, 16), SMALL(), replace(HARD, epochs=5, batch=16), callbacks=[Full()],
                  device='cpu', desc='my run')
        assert 'starts over' in str(e.value)


def test_a_real_lack_of_memory(tmp_path):
    "With an address space of a few gigabytes: the same words, no traceback of the allocator alone."
    code = ("import resource, sys, torch\nfrom dataclasses import replace\nfrom pca_nb.train import *\nfrom "
            "pca_nb.recipes import *\nfrom pca_nb.models import make_model\nfrom pca_nb.reference_loop import photos\n"
            "s, net = photos(64, 96), make_model('convnet3-bn', 10, 96)\n"
            "train(net, s, replace(HARD, epochs=1, batch=2), device='cpu', stop_epoch=1)\n"
            "now = int(open('/proc/self/statm').read().split()[0])*4096\nresource.setrlimit(resource.RLIMIT_AS, "
            "(now+2**28, now+2**28))\n"
            "try: train(net, s, replace(HARD, epochs=1, batch=64), device='cpu', desc='tight')\nexcept MemoryError "
            "as e: print('SAID', e)")
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=os.environ | dict(CI='1'))
    said = 'SAID tight: cpu ran out of memory in epoch 0 of 1, with 64 images of 96 px a step: lower the batch'
    assert said in r.stdout, r.stderr[-2000:]


def test_nan_loss_names_the_run_and_keeps_no_checkpoint(tmp_path, tally):
    with tally.one('a loss that is no number'), pytest.raises(FloatingPointError,
                                                              match=r'my run: the loss is .* at epoch \d+ with '
                                                                    r'lr=\S+: lower the learning rate'):
        train(make_model('convnet2-w32', 10, 16), SMALL(), replace(HARD, epochs=9, optimizer='sgd', lr=1e20),
              device='cpu', desc='my run', ckpt=tmp_path/'c.pt', save_every=0)
    saved = torch.load(tmp_path/'c.pt', weights_only=True) if (tmp_path/'c.pt').exists() else None
    assert saved is None or all(np.isfinite(r['loss']) for r in saved['log'])


@pytest.mark.parametrize('sig', [signal.SIGINT, signal.SIGTERM], ids=['Ctrl-C', 'SIGTERM'])
def test_interrupted_command_says_how_to_go_on(sig, tmp_path, clean_env, tally):
    "Exit code 130 and one line; the same command again finishes."
    code = ('import sys; sys.argv[0] = "pca-nb"; from pca_nb import train; train.SAVE_EVERY = 0; '
            'from pca_nb.cli import main; main()')
    words = [sys.executable, '-c', code, 'score', 'digits', '--out', tmp_path/'s.npz', '--epochs', '40', '--device',
             'cpu']
    p = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
                         env=clean_env | dict(CI='1'),
                         # a shell's background jobs ignore it
                         preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    while not (tmp_path/'s.ckpt').exists(): time.sleep(.01)
    p.send_signal(sig)
    said = p.communicate()[1].strip()
    lost = not (p.returncode == 130 and (tmp_path/'s.ckpt').exists())
    tally.count({signal.SIGINT: 'Ctrl-C', signal.SIGTERM: 'SIGTERM'}[sig], 1, int(lost))
    assert (p.returncode == 130 and said.count('\n') == 0 and 'scoring digits: stopped in epoch' in said
            and 'run it again to go on from' in said), said
    assert subprocess.run(words, env=clean_env | dict(CI='1'),
                          capture_output=True).returncode == 0 and (tmp_path/'s.npz').exists()


def test_one_failing_run_does_not_stop_the_others(tmp_path, monkeypatch):
    from pca_nb import grid, run
    make = run.run_one

    def fails(cfg, *a, **kw):
        if cfg.seed == 1: raise FloatingPointError('the loss is nan')
        return make(cfg, *a, **kw)
    monkeypatch.setattr(grid, 'run_one', fails)
    with pytest.raises(grid.RunsFailed,
                       match=r'2 of 4 runs failed, the others are in .*r.jsonl; the first, digits random ipc 2 seed '
                             r'1 \([0-9a-f]{12}\): the loss is nan'):
        grid.run_grid(victim.GRID, ResultStore(tmp_path/'r.jsonl'), tmp_path, device='cpu')
    assert sorted(r['seed'] for r in ResultStore(tmp_path/'r.jsonl').all()) == [0, 0]


def test_a_lock_waits_for_its_holder(tmp_path):
    from pca_nb.storage import file_lock
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
    "SIGTERM to `pca-nb bench --workers 2`: one line, soon, and nobody is left; the same command again goes on."
    words = [Path(sys.executable).parent/'pca-nb', 'bench', 'digits', '--methods', 'random', '--ipc', '1,2', '--seeds',
             '2', '--home', tmp_path, '--workers', '2', '--device', 'cpu']
    p = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
                         env=clean_env | dict(CI='1'), start_new_session=True)
    while not (tmp_path/'ckpt').exists(): time.sleep(.01)
    time.sleep(4)
    p.send_signal(signal.SIGTERM)
    said = p.communicate(timeout=30)[1]
    assert p.returncode == 130 and 'runs finished: run it again' in said, said
    with pytest.raises(ProcessLookupError):   # no worker is left in its group
        for _ in range(200):
            os.killpg(p.pid, 0)
            time.sleep(.05)


def test_scores_of_another_run_are_not_passed_off(tmp_path):
    "A whole score file at the same path, but of another network: refused, not returned."
    from pca_nb.scores import record_dynamics, ScoringCfg
    cfg = ScoringCfg('convnet2-w32', replace(HARD, epochs=1, batch=16))
    record_dynamics(SMALL(), cfg, tmp_path/'s.npz', 'cpu')
    with pytest.raises(ValueError, match='s.npz was recorded by another run'):
        record_dynamics(SMALL(), replace(cfg, seed=1), tmp_path/'s.npz', 'cpu')


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    def run(arch):
        return train(make_model(arch, 10, 16), SMALL(), replace(HARD, epochs=2, batch=16), device='cpu',
                     ckpt=tmp_path/'c.pt', stop_epoch=1)
    run('convnet2-w32')
    with pytest.raises(ValueError, match='belongs to another run'): run('convnet3-w64')
