"""A process that does jobs in forked children, and kills or interrupts them when told to.

Imports take seconds and jobs take one, so imports are paid once: every job is a fork of a process that has them.
The process writes `ready`, then reads lines of JSON and answers each with a line:

`{"job": "grid", "home": "…", "delay": 0.4, "copies": 1}`
    Do a job, `copies` times at once. What is alive after `delay` seconds gets SIGKILL.
    The answer is `done`, `killed` or `failed`.
`{"words": ["score", …], "until": "…", "sig": 2, "said": "…"}`
    Run `pca-nb`, its stderr written to the file `said`. It gets the signal as soon as the file `until` is there.
    The answer is its exit code.
"""
import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

if __name__ == '__main__': torch.set_num_threads(1)   # before anything is computed, so that children can fork
from pca_nb import cli  # noqa: E402
from pca_nb import train as engine  # noqa: E402
from pca_nb.augment import AugmentCfg  # noqa: E402
from pca_nb.datasets import load_data  # noqa: E402
from pca_nb.files import save_folder  # noqa: E402
from pca_nb.grid import run_grid  # noqa: E402
from pca_nb.models import make_model  # noqa: E402
from pca_nb.recipes import RECIPES  # noqa: E402
from pca_nb.result_store import ResultStore  # noqa: E402
from pca_nb.runs import run_cfg  # noqa: E402
from pca_nb.scores import record_dynamics, ScoringCfg  # noqa: E402
from pca_nb.storage import atomic_write  # noqa: E402
from pca_nb.train import train  # noqa: E402

if __name__ == '__main__': engine.SAVE_EVERY = 0   # a checkpoint every epoch
FULL = load_data('digits')
load_data('digits', 'test')   # cached, so that children need not read it
VIEWS = AugmentCfg(crop_scale=(.5, 1.), flip=0.)


def short(method, seed, epochs=12):
    "A run of two images per class and few epochs."
    cfg = run_cfg('digits', method, 2, seed)
    scoring = cfg.scoring
    if scoring: scoring = replace(scoring, recipe=replace(scoring.recipe, epochs=3, batch=256), stop_epoch=0)
    return replace(cfg, recipe=replace(cfg.recipe, epochs=epochs, eval_every=6), scoring=scoring)


GRID = [short(method, seed) for method in ('random', 'pca') for seed in (0, 1)]


# ---- jobs ----
def scoring(home):
    recipe = replace(RECIPES['ccs'], epochs=8, batch=128, lr=.02, augment=VIEWS)
    record_dynamics(FULL, ScoringCfg('convnet2-w32', recipe), home/'scores.npz', 'cpu')


def training(home):
    net = make_model('convnet2-w32', 10, 16)
    recipe = replace(RECIPES['hard'], epochs=20, batch=32, augment=VIEWS)
    train(net, FULL[torch.arange(0, 1197, 6)], recipe, ckpt=home/'run.pt', device='cpu')
    atomic_write(home/'weights.pt', lambda tmp: torch.save(net.state_dict(), tmp))


def grid(home): run_grid(GRID, ResultStore(home/'rows.jsonl'), home, device='cpu')


def exporting(home): save_folder(FULL, home/'out')


JOBS = dict(scoring=scoring, training=training, grid=grid)   # what is resumed
ALL_JOBS = JOBS | dict(exporting=exporting)


# ---- children ----
def forked(work):
    "Do `work` in a child, whose exit code is what it returns; give the child's process id."
    if child := os.fork(): return child
    code = 1
    try: code = work() or 0
    finally:
        sys.stderr.flush()
        os._exit(code)


def attempt(job, home, delay, copies=1):
    "Do a job in children; kill those that are alive after `delay` seconds."
    children = [forked(lambda: ALL_JOBS[job](Path(home))) for _ in range(copies)]
    end = time.monotonic()+delay
    states = []
    for child in children:
        while not (ended := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < end: time.sleep(.001)
        if ended[0]: states.append('failed' if ended[1] else 'done')
        else:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            states.append('killed')
    return next((s for s in ('failed', 'killed') if s in states), 'done')


def command(words, said, until=None, sig=None):
    "Run `pca-nb` in a child, interrupt it when a file is there, and return its exit code."
    def work():
        signal.signal(signal.SIGINT, signal.default_int_handler)   # a shell's background jobs ignore it
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.argv = ['pca-nb', *words]
        try: cli.main()
        except SystemExit as e: return e.code or 0
    child = forked(work)
    if sig:
        while not Path(until).exists(): time.sleep(.001)
        os.kill(child, sig)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == '__main__':
    print('ready', flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        print(command(**order) if 'words' in order else attempt(**order), flush=True)
