"""What a bigger machine buys: the same work here and there, for tutorials/4_more_machines.

scale.py OUT.json [--device cuda] [--workers 1,2] [--processes 1,2] [--threads 1] [--rounds 3]

Adds this machine's rows to OUT.json.
Processes of a torchrun job compute on the CPU, with so many threads each, or on one GPU each.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from pca_nb.augment import AugmentCfg
from pca_nb.result_store import ResultStore
from pca_nb.grid import process_pool, run_grid
from pca_nb.storage import atomic_write
from pca_nb.machine import environment_info, pick_device
from pca_nb.distributed import init_distributed
from pca_nb.datasets import load_data
from pca_nb.runs import run_cfg
from pca_nb.scores import read_dynamics, record_dynamics, ScoringCfg, SUMS
from pca_nb.timing import cpu_name
from pca_nb.measurements import our_training
from pca_nb.recipes import RECIPES
from pca_nb.reference_loop import photos

# network, pixels, batch, images per round on a CPU and on a GPU
TRAINED = (('convnet2-w32', 16, 100, 4000, 200_000), ('convnet3-w32', 32, 100, 1000, 100_000),
           ('convnet4-w32', 64, 100, 500, 50_000), ('resnet18', 224, 100, 200, 10_000))


def training(device, rounds):
    "Images a second of `train`, hard labels, the set resident; the epochs of a round follow from its images"
    for arch, size, batch, cpu, gpu in TRAINED:
        n = cpu if device.type == 'cpu' else gpu
        data = photos(min(n, 1000), size)
        run = our_training(data, arch, batch, n//len(data), device)
        run()
        yield dict(what=f'training {arch} at {size} px', unit='images/s', batch=batch,
                   values=[round(run(), 1) for _ in range(rounds)])


def grids(device, workers, rounds):
    "Runs a minute of a grid of eight on the digits, 600 steps each, by worker processes"
    cfgs = [run_cfg('digits', 'random', 10, s, min_steps=600) for s in range(8)]
    for w in workers:
        values = []
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as d, process_pool(w) as ex:
                list(ex.map(ready, range(w)))                          # workers start before the clock does
                t = time.perf_counter()
                run_grid(cfgs, ResultStore(f'{d}/rows.jsonl'), d, executor=ex, device=str(device))
                values.append(round(60*len(cfgs)/(time.perf_counter()-t), 2))
        yield dict(what='a grid of small runs', unit='runs/minute', workers=w, values=values)


def ready(_):
    "Long enough that every worker gets one"
    import pca_nb.bench  # noqa: F401  its imports are what takes time
    time.sleep(3)


def scored(out, device, threads, rounds):
    "One process of a torchrun job: record scores, and say how many images a second"
    torch.set_num_threads(threads)
    full = photos(2048, 64)
    def cfg(epochs):
        return ScoringCfg('convnet4-w32', replace(RECIPES['ccs'], epochs=epochs, batch=256,
                                                  augment=AugmentCfg(crop_scale=None, flip=0.)), el2n_epochs=9)
    values = []
    for k in range(rounds + 1):                                        # the first warms up
        t = time.perf_counter()
        record_dynamics(full, cfg(1 if k == 0 else 2), f'{out}/{k}.npz', device)
        values.append(round(2*len(full)/(time.perf_counter() - t), 1))
    if init_distributed()[0] == 0:
        Path(f'{out}/values.json').write_text(json.dumps(values[1:]))


def jobs(device, processes, threads, rounds):
    "Images a second of a scoring run under torchrun, and how far the recorded sums are from those of one process"
    torchrun, alone = Path(sys.executable).parent/'torchrun', None
    how = [str(torchrun)] if torchrun.exists() else [sys.executable, '-m', 'torch.distributed.run']
    for k in processes:
        with tempfile.TemporaryDirectory() as d:
            r = subprocess.run([*how, '--nproc-per-node', str(k), '--rdzv-backend', 'c10d', '--rdzv-endpoint',
                                'localhost:0', __file__, '--score', d, '--device', device.type, '--threads',
                                str(threads), '--rounds', str(rounds)],
                               env=os.environ | dict(CI='1', OMP_NUM_THREADS=str(threads)), capture_output=True,
                               text=True)
            if r.returncode:
                raise SystemExit(r.stderr[-3000:])
            values = json.loads(Path(f'{d}/values.json').read_text())
            sums = read_dynamics(f'{d}/0.npz').sums
        alone = alone or sums
        off = {s: round((sums[s] - alone[s]).abs().max().item(), 6) for s in SUMS}
        yield dict(what='a scoring run', unit='images/s', processes=k, threads_each=threads, values=values,
                   largest_difference=off)


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('out', nargs='?', type=Path)
    a.add_argument('--device')
    a.add_argument('--workers', default='')
    a.add_argument('--processes', default='')
    a.add_argument('--threads', type=int, default=1)
    a.add_argument('--rounds', type=int, default=3)
    a.add_argument('--score', help=argparse.SUPPRESS)
    a.add_argument('--no-training', action='store_true')
    a = a.parse_args()
    if a.score:
        return scored(a.score, a.device, a.threads, a.rounds)
    dev = pick_device(a.device)
    def many(text): return [int(k) for k in text.split(',') if k]
    here = environment_info(dev) | dict(cpu=cpu_name(), cores=os.cpu_count())
    load_data('digits')
    rows = json.loads(a.out.read_text()) if a.out.exists() else []
    for make in (() if a.no_training else (training(dev, a.rounds),)) + (grids(dev, many(a.workers), a.rounds),
                                                                         jobs(dev, many(a.processes), a.threads,
                                                                              a.rounds)):
        for row in make:
            print(row, flush=True)
            rows.append(row | here)
            atomic_write(a.out, lambda tmp: tmp.write_text(json.dumps(rows, indent=1) + '\n'))


if __name__ == '__main__':
    main()
