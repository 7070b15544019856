"""Collect which images each method keeps, from the scores of a finished grid.

Writes nbs/results/chosen.json, which nbs/experiments/f04_patches.ipynb and f05_gallery_pca.ipynb read.
HOME is the grid's folder (`--home` of `pca-nb table`).
"""
import argparse
import json
from pathlib import Path

import torch

from pca_nb.datasets import load_data
from pca_nb.grid import DEMO, Grid
from pca_nb.runs import build_set, run_cfg


def chosen_positions(data, size, home):
    "Return the positions that every method of the demo keeps with ten images per class and seed 0."
    full = load_data(data, 'train', size)
    cfgs = [run_cfg(data, method, 10, size=size) for method in DEMO]
    return {cfg.method: build_set(cfg, full, Grid(home).scores(cfg)).index.tolist() for cfg in cfgs}


def main(home, out):
    chosen = {data: chosen_positions(data, size, home) for data, size in (('imagenette', 64), ('digits', 16))}
    Path(out).write_text(json.dumps(chosen))
    print(f'{out}: {sum(map(len, chosen.values()))} sets')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('home')
    parser.add_argument('out', nargs='?', default='nbs/results/chosen.json')
    torch.set_num_threads(1)
    main(**vars(parser.parse_args()))
