"""A process that does a job in a forked child and kills it when asked; imports are paid once.

Reads lines of JSON `{"job", "home", "delay"}` and answers `done`, `killed` or `failed`. A child that is alive after
`delay` seconds gets SIGKILL."""
import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

if __name__ == '__main__': torch.set_num_threads(1)   # before anything is computed, so that children can fork
from pca_nb import train as engine  # noqa: E402
from pca_nb.augment import AugmentCfg  # noqa: E402
from pca_nb.result_store import ResultStore
from pca_nb.grid import run_grid
from pca_nb.runs import run_cfg  # noqa: E402
from pca_nb.storage import atomic_write  # noqa: E402
from pca_nb.datasets import load_data  # noqa: E402
from pca_nb.models import make_model  # noqa: E402
from pca_nb.scores import record_dynamics, ScoringCfg  # noqa: E402
from pca_nb.recipes import HARD, RECIPES
from pca_nb.train import train  # noqa: E402

if __name__ == '__main__': engine.SAVE_EVERY = 0   # a checkpoint every epoch
FULL = load_data('digits')
TEST = load_data('digits', 'test')
VIEWS = AugmentCfg(crop_scale=(.5, 1.), flip=0.)


def short(method, seed, epochs=12):
    c = run_cfg('digits', method, 2, seed)
    s = c.scoring and replace(c.scoring, recipe=replace(c.scoring.recipe, epochs=3, batch=256), stop_epoch=0)
    return replace(c, recipe=replace(c.recipe, epochs=epochs, eval_every=6), scoring=s)


GRID = [short(m, s) for m in ('random', 'pca') for s in (0, 1)]


def scoring(home):
    record_dynamics(FULL, ScoringCfg('convnet2-w32', replace(RECIPES['ccs'], epochs=8, batch=128, lr=.02,
                                                             augment=VIEWS)), home/'scores.npz', 'cpu')


def training(home):
    net = make_model('convnet2-w32', 10, 16)
    train(net, FULL[torch.arange(0, 1197, 6)], replace(HARD, epochs=20, batch=32, augment=VIEWS), ckpt=home/'run.pt',
          device='cpu')
    atomic_write(home/'weights.pt', lambda tmp: torch.save(net.state_dict(), tmp))


def grid(home): run_grid(GRID, ResultStore(home/'rows.jsonl'), home, device='cpu')


JOBS = dict(scoring=scoring, training=training, grid=grid)


def attempt(job, home, delay):
    "Do a job in a child; kill it after `delay` seconds."
    if not (child := os.fork()):
        code = 1
        try:
            JOBS[job](Path(home))
            code = 0
        finally: os._exit(code)
    end = time.monotonic()+delay
    while not (state := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return 'killed'
        time.sleep(.001)
    return 'failed' if state[1] else 'done'


if __name__ == '__main__':
    for line in sys.stdin:
        print(attempt(**json.loads(line)), flush=True)
