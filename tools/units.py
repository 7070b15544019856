"""How far real images are from the statistics of networks that learned them: nbs/results/units.json, for 13_distill.

units.py HOME [OUT]    HOME is the folder of a grid that has trained CIFAR-10 teachers (`--home` of `pca-nb table t04`)
"""
import json
import sys
from dataclasses import replace

import torch

from pca_nb.augment import AugmentCfg
from pca_nb.machine import environment_info, pick_device
from pca_nb.datasets import load_data
from pca_nb.grid import asked
from pca_nb.distillers import DistilCfg
from pca_nb.distill_terms import real_distance
from pca_nb.teachers import make_teacher, TeacherCfg
from pca_nb.statistics import MatchCfg, matched_layers, StatMatcher
from pca_nb.runs import run_cfg
from pca_nb.recipes import RECIPES, scale_recipe

# and their learning rates
NETWORKS = [('convnet2-w32', .1), ('convnet3-w32', .1), ('convnet3-w64', .1), ('convnet3-bn', .1), ('resnet18', .02),
            ('resnet18', .1)]
VIEWS = AugmentCfg(crop_scale=(.5, 1.), flip=0.)


def noise_distance(net, seed):
    with StatMatcher(net, MatchCfg()) as m, torch.no_grad():
        net(torch.randn(100, 3, 16, 16, generator=torch.Generator().manual_seed(seed)))
        return m.loss(torch.arange(100) % 10).item()


def about(data, t, lr, full, cfg, noise):
    return dict(data=data, arch=t.arch, lr=lr, top1=t.top1, layers=len(matched_layers(t.net)),
                channels=sum(m.num_features for _, m in matched_layers(t.net)),
                real=[round(real_distance(t.net, full, cfg, 10, seed=s), 3) for s in range(3)], noise=noise,
                **environment_info(pick_device('cpu')))


def main(home, out='nbs/results/units.json'):
    full = load_data('digits')
    test = load_data('digits', 'test')
    cfg = DistilCfg(jitter=(-1, 1), crop=(.5, 1.), flip=0.)
    rows = []
    for arch, lr in NETWORKS:
        recipe = replace(scale_recipe(replace(RECIPES['ccs'], epochs=10, lr=lr), len(full), steps_per_epoch=40,
                                      min_steps=400), augment=VIEWS)
        t = make_teacher(full, TeacherCfg(arch, recipe, 0, 16), test, device='cpu')
        rows.append(about('digits', t, lr, full, cfg, [round(noise_distance(t.net, s), 2) for s in range(3)]))
        print(rows[-1], flush=True)
    full = load_data('cifar10')
    for seed in range(3):
        run = run_cfg('cifar10', 'sre2l', 10, seed)
        rows.append(about('cifar10', asked(run, home, device='cpu')[0], run.synthesis.teachers[0].recipe.lr, full,
                          run.synthesis.cfg, []))
        print(rows[-1], flush=True)
    with open(out, 'w') as f: json.dump(rows, f, indent=1)


if __name__ == '__main__':
    torch.set_num_threads(1)
    main(*sys.argv[1:])
