"""What each stage of SRe2L and of PCA costs on this machine, CIFAR-10 at IPC 10: nbs/results/stages.json, for t25_cost.

Processor seconds of one thread, so that other work on the machine does not count. Long stages are run in part:
2 of the epochs of scoring and squeezing, 50 of the 1,000 iterations, 5 of the epochs of relabelling.

stages.py [OUT]
"""
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from pca_nb.machine import environment_info, pick_device
from pca_nb.files import encode_images
from pca_nb.datasets import load_data
from pca_nb.distill import synthesise
from pca_nb.teachers import Teacher, TeacherLabels
from pca_nb.runs import build_set, run_cfg
from pca_nb.models import make_model
from pca_nb.scores import record_dynamics
from pca_nb.label_store import fkd_bytes, write_labels
from pca_nb.train import train


def seconds(f):
    t = time.process_time()
    out = f()
    return time.process_time()-t, out


def main(out='nbs/results/stages.json'):
    full, dev = load_data('cifar10'), 'cpu'
    sre2l = run_cfg('cifar10', 'sre2l', 10)
    soft = run_cfg('cifar10', 'sre2l', 10, recipe='soft')
    p = run_cfg('cifar10', 'pca', 10)
    squeeze, net, rows = sre2l.synthesis.teachers[0], make_model('convnet3-w32', 10, 32), []

    def note(method, stage, part, whole, spent, fixed, kept):
        rows.append(dict(method=method, stage=stage, measured=part, whole=whole,
                         seconds=round(fixed+spent*whole/part, 1), kept=kept))
        print(rows[-1], flush=True)
    train(net, full, squeeze.recipe, stop_epoch=1, device=dev)   # warms up
    t, _ = seconds(lambda: train(net, full, squeeze.recipe, stop_epoch=2, device=dev))
    weights = sum(v.numel()*v.element_size() for v in net.state_dict().values())
    note('SRe2L', 'squeeze', 2, squeeze.recipe.epochs, t, 0, weights)
    teacher = Teacher(net, 'convnet3-w32', 32, full.classes, full.stats, 70.)   # two epochs are enough to be asked
    a, (small, _) = seconds(lambda: synthesise(full, 10, replace(sre2l.synthesis.cfg, steps=10), [teacher], device=dev))
    b, (small, _) = seconds(lambda: synthesise(full, 10, replace(sre2l.synthesis.cfg, steps=60), [teacher], device=dev))
    note('SRe2L', 'recover', 50, sre2l.synthesis.cfg.steps, b-a, max(0, a-(b-a)/5),
         sum(map(len, encode_images(small, 'png'))))
    with tempfile.TemporaryDirectory() as d:
        r = replace(soft.recipe, epochs=5)
        t, _ = seconds(lambda: write_labels(Path(d)/'labels', small, r, TeacherLabels(teacher), 0, device=dev))
    note('SRe2L', 'relabel', 5, soft.recipe.epochs, t, 0, fkd_bytes(len(small)*soft.recipe.epochs, 10))
    scoring = replace(p.scoring, stop_epoch=2)
    t, dynamics = seconds(lambda: record_dynamics(full, scoring, device=dev))
    note('PCA', 'prune', 2, p.scoring.recipe.epochs, t, 0, 0)
    t, s = seconds(lambda: build_set(p, full, dynamics))
    note('PCA', 'combine', 1, 1, t, 0, sum(map(len, encode_images(s, 'png'))))
    json.dump(dict(rows=rows, cfg=dict(data='cifar10', ipc=10, arch='convnet3-w32'),
                   **environment_info(pick_device(dev))), open(out, 'w'), indent=1)


if __name__ == '__main__':
    torch.set_num_threads(1)
    main(*sys.argv[1:])
