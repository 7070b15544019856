"""Collect one image per class as each method stores it, from the sets and scores of a finished grid.

Writes nbs/results/gallery.npz, which nbs/experiments/f09_galleries.ipynb reads.
HOME is the grid's folder (`--home` of `pca-nb table`).
"""
import argparse
from pathlib import Path

import numpy as np
import torch

from pca_nb.datasets import load_data
from pca_nb.grid import Grid
from pca_nb.methods import BENCH
from pca_nb.runs import build_set, run_cfg

MORE = ('sre2l-real', 'rded-f2')


def stored_set(method, full, home):
    "Return the set that a method stores with ten images per class and seed 0."
    cfg = run_cfg('cifar10', method, 10)
    grid = Grid(home)
    made = grid.synthetic_set(cfg)
    return made[0] if made else build_set(cfg, full, grid.scores(cfg))


def main(home, out):
    full = load_data('cifar10')
    first_of_class = torch.arange(full.n_classes)*10
    images = {m: stored_set(m, full, home).images[first_of_class].numpy() for m in (*BENCH, *MORE)}
    np.savez_compressed(out, classes=np.array(full.classes), methods=np.array(list(images)),
                        images=np.stack(list(images.values())))
    print(f'{out}: {len(images)} methods, {Path(out).stat().st_size/1e3:.0f} kB')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('home')
    parser.add_argument('out', nargs='?', default='nbs/results/gallery.npz')
    torch.set_num_threads(1)
    main(**vars(parser.parse_args()))
