"""Measure what a bigger machine buys: the same work here and there.

Adds this machine's rows to OUT, by default nbs/results/scale.json, which nbs/tutorials/4_more_machines.ipynb reads.
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
from pca_nb.datasets import load_data
from pca_nb.distributed import init_distributed
from pca_nb.grid import run_grid
from pca_nb.workers import process_pool
from pca_nb.machine import environment_info, pick_device
from pca_nb.recipes import RECIPES
from pca_nb.reference_loop import photos
from pca_nb.result_store import ResultStore
from pca_nb.runs import run_cfg
from pca_nb.scores import read_dynamics, record_dynamics, ScoringCfg, SUMS
from pca_nb.storage import atomic_write
from pca_nb.timing import cpu_name
from pca_nb.training_speed import our_training

# network, pixels, images per round on a CPU and on a GPU
TRAINED = (
    ('convnet2-w32', 16, 4000, 200_000),
    ('convnet3-w32', 32, 1000, 100_000),
    ('convnet4-w32', 64, 500, 50_000),
    ('resnet18', 224, 200, 10_000),
)
BATCH = 100


def training(device, rounds):
    "Yield images per second of `train`, hard labels, the set resident; a round's epochs follow from its images."
    for arch, size, cpu, gpu in TRAINED:
        n = cpu if device.type == 'cpu' else gpu
        data = photos(min(n, 1000), size)
        run = our_training(data, arch, BATCH, n//len(data), device=device)
        run()
        values = [round(run(), 1) for _ in range(rounds)]
        yield dict(what=f'training {arch} at {size} px', unit='images/s', batch=BATCH, values=values)


def grids(device, workers, rounds):
    "Yield runs per minute of a grid of eight on the digits, 600 steps each, by worker processes."
    cfgs = [run_cfg('digits', 'random', 10, seed, min_steps=600) for seed in range(8)]
    for n in workers:
        values = []
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as folder, process_pool(n) as pool:
                list(pool.map(ready, range(n)))                        # workers start before the clock does
                start = time.perf_counter()
                run_grid(cfgs, ResultStore(f'{folder}/rows.jsonl'), folder, executor=pool, device=str(device))
                values.append(round(60*len(cfgs)/(time.perf_counter()-start), 2))
        yield dict(what='a grid of small runs', unit='runs/minute', workers=n, values=values)


def ready(_):
    "Take long enough that every worker gets one; this module's imports, done by then, are what takes time."
    time.sleep(3)


def scoring_cfg(epochs):
    recipe = replace(RECIPES['ccs'], epochs=epochs, batch=256, augment=AugmentCfg(crop_scale=None, flip=0.))
    return ScoringCfg('convnet4-w32', recipe, el2n_epochs=9)


def scored(out, device, threads, rounds):
    "Record scores as one process of a torchrun job; the first writes how many images per second."
    torch.set_num_threads(threads)
    full = photos(2048, 64)
    values = []
    for k in range(rounds + 1):                                        # the first warms up
        start = time.perf_counter()
        record_dynamics(full, scoring_cfg(1 if k == 0 else 2), f'{out}/{k}.npz', device)
        values.append(round(2*len(full)/(time.perf_counter()-start), 1))
    if init_distributed()[0] == 0:
        Path(f'{out}/values.json').write_text(json.dumps(values[1:]))


def torchrun(folder, device, n, threads, rounds):
    "Run `scored` in n processes."
    program = Path(sys.executable).parent/'torchrun'
    command = [str(program)] if program.exists() else [sys.executable, '-m', 'torch.distributed.run']
    command += ['--nproc-per-node', str(n), '--rdzv-backend', 'c10d', '--rdzv-endpoint', 'localhost:0']
    command += [__file__, '--score', folder, '--device', device.type]
    command += ['--threads', str(threads), '--rounds', str(rounds)]
    env = os.environ | dict(CI='1', OMP_NUM_THREADS=str(threads))
    r = subprocess.run(command, env=env, capture_output=True, text=True)
    if r.returncode:
        sys.exit(r.stderr[-3000:])


def jobs(device, processes, threads, rounds):
    "Yield images per second of a scoring run under torchrun, and how far its sums are from those of one process."
    alone = None
    for n in processes:
        with tempfile.TemporaryDirectory() as folder:
            torchrun(folder, device, n, threads, rounds)
            values = json.loads(Path(f'{folder}/values.json').read_text())
            sums = read_dynamics(f'{folder}/0.npz').sums
        alone = alone or sums
        off = {s: round((sums[s]-alone[s]).abs().max().item(), 6) for s in SUMS}
        yield dict(what='a scoring run', unit='images/s', processes=n, threads_each=threads, values=values,
                   largest_difference=off)


def measure(device, args):
    if not args.no_training:
        yield from training(device, args.rounds)
    yield from grids(device, args.workers, args.rounds)
    yield from jobs(device, args.processes, args.threads, args.rounds)


def main(args):
    device = pick_device(args.device)
    here = environment_info(device) | dict(cpu=cpu_name(), cores=os.cpu_count())
    load_data('digits')
    rows = json.loads(args.out.read_text()) if args.out.exists() else []
    for row in measure(device, args):
        print(row, flush=True)
        rows.append(row | here)
        atomic_write(args.out, lambda tmp: tmp.write_text(json.dumps(rows, indent=1) + '\n'))


def numbers(text):
    return [int(k) for k in text.split(',') if k]


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', nargs='?', type=Path, default='nbs/results/scale.json')
    parser.add_argument('--device', help='cpu or cuda')
    parser.add_argument('--workers', type=numbers, default=[], help='1,2: worker processes of the grid')
    parser.add_argument('--processes', type=numbers, default=[], help='1,2: processes of the scoring run')
    parser.add_argument('--threads', type=int, default=1, help='of a process of the scoring run')
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--no-training', action='store_true')
    parser.add_argument('--score', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.score:
        scored(args.score, args.device, args.threads, args.rounds)
    else:
        main(args)
