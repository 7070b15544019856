"""Collect the shape of three difficulty scores and what each picks, from the scoring runs that the tables rank by.

Writes nbs/results/score-shapes.json, which nbs/experiments/f06_score_shapes.ipynb reads.
HOME is the grid's folder (`--home` of `pca-nb table`); scoring runs that it lacks are made there, which takes three to
twelve minutes a run on one core, and photographs are found through PCA_NB_DATA.
"""
import argparse
import json
from pathlib import Path

import torch

from pca_nb.core import generator
from pca_nb.datasets import load_data
from pca_nb.grid import Grid
from pca_nb.prune import score_profile
from pca_nb.runs import run_cfg
from pca_nb.scores import difficulty

SCORES = ('el2n', 'forgetting', 'aum')
RUNS = {  # data set -> pixels, scoring runs
    'tinyimagenet100': (64, 3),
    'imagenette': (64, 3),
    'cifar10': (32, 3),
    'digits': (16, 1),
}


def profiles_of_run(data, full, size, seed, home):
    "Return the profile of every score in one scoring run, and the run's epochs."
    cfg = run_cfg(data, 'ccs', 10, seed, size=size)
    dynamics = Grid(home).scores(cfg)
    profiles = {}
    for name in SCORES:
        score = difficulty(dynamics, name)
        profiles[name] = score_profile(score, full.labels, full.classes, 10, generator(seed))
    return profiles | {'epochs': dynamics.epochs}


def profiles_of_data(data, home):
    "Return one entry per scoring run of a data set."
    size, runs = RUNS[data]
    full = load_data(data, 'train', size)
    return [profiles_of_run(data, full, size, seed, home) for seed in range(runs)]


def main(home, out, data):
    shapes = {name: profiles_of_data(name, home) for name in data}
    Path(out).write_text(json.dumps(shapes))
    runs = sum(map(len, shapes.values()))
    print(f'{out}: {runs} scoring runs of {", ".join(shapes)}')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('home')
    parser.add_argument('out', nargs='?', default='nbs/results/score-shapes.json')
    parser.add_argument('--data', nargs='+', choices=RUNS, default=list(RUNS), help='only these data sets')
    torch.set_num_threads(1)
    main(**vars(parser.parse_args()))
