"""One image of every class as each method stores it, from the sets and scores of a finished grid: nbs/results/gallery.npz, for f09_galleries.

gallery.py HOME [OUT]    HOME is the grid's folder (`--home` of `pca-nb table`)
"""
import sys
from pathlib import Path

import numpy as np
import torch

from pca_nb.grid import distilled, recorded
from pca_nb.datasets import load_data
from pca_nb.methods import BENCH
from pca_nb.runs import build_set, run_cfg

MORE = ('sre2l-real', 'rded-f2')


def main(home, out='nbs/results/gallery.npz'):
    full, images = load_data('cifar10'), {}
    for m in (*BENCH, *MORE):
        cfg = run_cfg('cifar10', m, 10)
        s = (distilled(cfg, home) or [build_set(cfg, full, recorded(cfg, home))])[0]
        images[m] = s.images[torch.arange(full.n_classes)*10].numpy()   # the first of every class
    np.savez_compressed(out, classes=np.array(full.classes), methods=np.array(list(images)),
                        images=np.stack(list(images.values())))
    print(f'{out}: {len(images)} methods, {Path(out).stat().st_size/1e3:.0f} kB')


if __name__ == '__main__':
    torch.set_num_threads(1)
    main(*sys.argv[1:])
