"""Measure how far real images are from the statistics of networks that learned them.

Writes nbs/results/units.json, which nbs/library/30_distill_terms.ipynb reads.
HOME is the folder of a grid that has trained CIFAR-10 teachers (`--home` of `pca-nb table t04`).
"""
import argparse
import json
from dataclasses import replace

import torch

from pca_nb.augment import AugmentCfg
from pca_nb.datasets import load_data
from pca_nb.distill_terms import real_distance
from pca_nb.distillers import DistilCfg
from pca_nb.grid import Grid
from pca_nb.machine import environment_info, pick_device
from pca_nb.recipes import RECIPES, scale_recipe
from pca_nb.runs import run_cfg
from pca_nb.statistics import MatchCfg, matched_layers, StatMatcher
from pca_nb.teachers import make_teacher, TeacherCfg

NETWORKS = [  # and their learning rates
    ('convnet2-w32', .1),
    ('convnet3-w32', .1),
    ('convnet3-w64', .1),
    ('convnet3-bn', .1),
    ('resnet18', .02),
    ('resnet18', .1),
]
VIEWS = AugmentCfg(crop_scale=(.5, 1.), flip=0.)
DIGITS = DistilCfg(jitter=(-1, 1), crop=(.5, 1.), flip=0.)


def noise_distance(net, seed):
    noise = torch.randn(100, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    with StatMatcher(net, MatchCfg()) as stats, torch.no_grad():
        net(noise)
        return stats.loss(torch.arange(100) % 10).item()


def describe(data, teacher, lr, full, cfg, noise):
    "Return one row: the network, and its distances of real images and of noise."
    layers = matched_layers(teacher.net)
    real = [round(real_distance(teacher.net, full, cfg, 10, seed=seed), 3) for seed in range(3)]
    return dict(data=data, arch=teacher.arch, lr=lr, top1=teacher.top1, layers=len(layers),
                channels=sum(layer.num_features for _, layer in layers), real=real, noise=noise,
                **environment_info(pick_device('cpu')))


def digits_rows():
    full = load_data('digits')
    test = load_data('digits', 'test')
    for arch, lr in NETWORKS:
        recipe = replace(RECIPES['ccs'], epochs=10, lr=lr)
        recipe = replace(scale_recipe(recipe, len(full), steps_per_epoch=40, min_steps=400), augment=VIEWS)
        teacher = make_teacher(full, TeacherCfg(arch, recipe, 0, 16), test, device='cpu')
        noise = [round(noise_distance(teacher.net, seed), 2) for seed in range(3)]
        yield describe('digits', teacher, lr, full, DIGITS, noise)


def cifar_rows(home):
    full = load_data('cifar10')
    for seed in range(3):
        run = run_cfg('cifar10', 'sre2l', 10, seed)
        teacher = Grid(home, device='cpu').makers(run)[0]
        lr = run.synthesis.teachers[0].recipe.lr
        yield describe('cifar10', teacher, lr, full, run.synthesis.cfg, [])


def main(home, out):
    rows = []
    for part in (digits_rows(), cifar_rows(home)):
        for row in part:
            rows.append(row)
            print(row, flush=True)
    with open(out, 'w') as f:
        json.dump(rows, f, indent=1)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('home')
    parser.add_argument('out', nargs='?', default='nbs/results/units.json')
    torch.set_num_threads(1)
    main(**vars(parser.parse_args()))
