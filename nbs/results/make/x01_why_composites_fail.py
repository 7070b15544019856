"""Test the networks of x01's 64 px rows on sharp test images, and on test images made as soft as resized cells.

Trains fifteen networks again and writes nbs/results/softness.json, which
nbs/experiments/x01_why_composites_fail.ipynb reads.
HOME is the folder of the grid that made the rows (`--home` of `pca-nb table x01-size --scale imagenette64`).
"""
import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from pca_nb.combine import shrink
from pca_nb.datasets import load_data
from pca_nb.grid import Grid
from pca_nb.models import make_model
from pca_nb.runs import build_set
from pca_nb.tables import runs_for
from pca_nb.train import train
from pca_nb.validate import validate

METHODS = ('random', 'tiles', 'pca', 'tiles, lsq', 'pca, lsq')


def soften(data):
    "Return the images shrunk to half their side, as a composite's cells are, and enlarged again."
    small = shrink(data.images[:], (32, 32)).float()
    large = F.interpolate(small, (64, 64), mode='bilinear').round().to(torch.uint8)
    return replace(data, images=large)


def accuracies(cfg, full, sharp, soft, home):
    "Return the accuracies of one run's network on the two test sets."
    small = build_set(cfg, full, Grid(home).scores(cfg))
    net = make_model(cfg.arch, small.n_classes, cfg.size, cfg.seed)
    train(net, small, cfg.recipe, cfg.seed, sharp, device='cpu')
    return dict(sharp=validate(net, sharp)['top1'], soft=validate(net, soft)['top1'])


def main(home, out):
    full = load_data('imagenette', 'train', 64)
    sharp = load_data('imagenette', 'test', 64)
    soft = soften(sharp)
    rows = []
    for method, cfg in runs_for('x01-size', 'imagenette64', (10,)):
        if method in METHODS:
            rows.append(dict(method=method, seed=cfg.seed, **accuracies(cfg, full, sharp, soft, home)))
            print(rows[-1], flush=True)
    Path(out).write_text(json.dumps(rows))


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('home')
    parser.add_argument('out', nargs='?', default='nbs/results/softness.json')
    main(**vars(parser.parse_args()))
