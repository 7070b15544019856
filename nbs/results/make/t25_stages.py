"""Measure what each stage of SRe2L and of PCA costs on this machine, CIFAR-10 at IPC 10.

Processor seconds of one thread, so that other work on the machine does not count. Long stages are run in part:
2 of the epochs of scoring and squeezing, 50 of the 1,000 iterations, 5 of the epochs of relabelling.
Writes nbs/results/stages.json, which nbs/experiments/t25_cost.ipynb reads.
"""
import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from pca_nb.datasets import load_data
from pca_nb.distill import synthesise
from pca_nb.files import encode_images
from pca_nb.label_plan import LabelPlan
from pca_nb.label_store import fkd_bytes, write_labels
from pca_nb.machine import environment_info, pick_device
from pca_nb.models import make_model
from pca_nb.runs import build_set, run_cfg
from pca_nb.scores import record_dynamics
from pca_nb.teachers import Teacher, TeacherLabels
from pca_nb.train import train

CPU = 'cpu'


def seconds(f, *args, **options):
    "Return the processor seconds of a call, and its result."
    start = time.process_time()
    out = f(*args, **options)
    return time.process_time()-start, out


class Stages:
    "The measured stages, one row each."
    def __init__(self):
        self.rows = []

    def add(self, method, stage, spent, part=1, whole=1, fixed=0, kept=0):
        total = round(fixed+spent*whole/part, 1)
        self.rows.append(dict(method=method, stage=stage, measured=part, whole=whole, seconds=total, kept=kept))
        print(self.rows[-1], flush=True)


def png_bytes(images):
    return sum(map(len, encode_images(images, 'png')))


def squeeze(stages, full, cfg):
    recipe = cfg.synthesis.teachers[0].recipe
    net = make_model('convnet3-w32', 10, 32)
    train(net, full, recipe, stop_epoch=1, device=CPU)   # warms up
    spent, _ = seconds(train, net, full, recipe, stop_epoch=2, device=CPU)
    weights = sum(v.numel()*v.element_size() for v in net.state_dict().values())
    stages.add('SRe2L', 'squeeze', spent, 2, recipe.epochs, kept=weights)
    return Teacher(net, 'convnet3-w32', 32, full.classes, full.stats, 70.)   # two epochs are enough for a timing


def recover(stages, full, cfg, teacher):
    short, _ = seconds(synthesise, full, 10, replace(cfg.synthesis.cfg, steps=10), [teacher], device=CPU)
    long, (small, _) = seconds(synthesise, full, 10, replace(cfg.synthesis.cfg, steps=60), [teacher], device=CPU)
    fixed = max(0, short-(long-short)/5)
    stages.add('SRe2L', 'recover', long-short, 50, cfg.synthesis.cfg.steps, fixed, png_bytes(small))
    return small


def relabel(stages, small, cfg, teacher):
    recipe = replace(cfg.recipe, epochs=5)
    with tempfile.TemporaryDirectory() as folder:
        labels = TeacherLabels(teacher)
        spent, _ = seconds(write_labels, Path(folder)/'labels', LabelPlan(small, recipe), labels, device=CPU)
    stages.add('SRe2L', 'relabel', spent, 5, cfg.recipe.epochs, kept=fkd_bytes(len(small)*cfg.recipe.epochs, 10))


def prune_and_combine(stages, full, cfg):
    spent, dynamics = seconds(record_dynamics, full, replace(cfg.scoring, stop_epoch=2), device=CPU)
    stages.add('PCA', 'prune', spent, 2, cfg.scoring.recipe.epochs)
    spent, composites = seconds(build_set, cfg, full, dynamics)
    stages.add('PCA', 'combine', spent, kept=png_bytes(composites))


def main(out):
    full, stages = load_data('cifar10'), Stages()
    sre2l = run_cfg('cifar10', 'sre2l', 10)
    teacher = squeeze(stages, full, sre2l)
    small = recover(stages, full, sre2l, teacher)
    relabel(stages, small, run_cfg('cifar10', 'sre2l', 10, recipe='soft'), teacher)
    prune_and_combine(stages, full, run_cfg('cifar10', 'pca', 10))
    cfg = dict(data='cifar10', ipc=10, arch='convnet3-w32')
    with open(out, 'w') as f:
        json.dump(dict(rows=stages.rows, cfg=cfg, **environment_info(pick_device(CPU))), f, indent=1)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', nargs='?', default='nbs/results/stages.json')
    torch.set_num_threads(1)
    main(**vars(parser.parse_args()))
