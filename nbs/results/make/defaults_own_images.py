"""Measure how long one seed takes on images of one's own, 64 px, 10 classes × 10 images, by network, on the CPU.

defaults_own_images.py [--rounds 3] [--threads 2]   writes own-images.json beside this folder

The whole protocol has 2,401 steps. A few epochs of it are timed step by step, the networks in turn, and the rest is
extrapolated by steps. On a busy machine steps take longer than on a quiet one, so three numbers are kept beside the
load: the median and the fastest step with so many threads, and the processor's own time per step with one thread, in
which waiting for others does not count. Read by app/51_defaults.
"""
import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
import torch

from pca_nb.defaults import default_arch, default_recipe
from pca_nb.machine import environment_info
from pca_nb.models import make_model
from pca_nb.reference_loop import photos
from pca_nb.timing import cpu_name
from pca_nb.callbacks import Callback
from pca_nb.train import train
from pca_nb.workload import steps_of

EPOCHS = {'convnet4-w32': 10, 'convnet3-bn': 3, 'resnet18': 2}   # of seven steps, timed in a round


class Clock(Callback):
    "The time at the end of every step."
    def __init__(self, now): self.now, self.at = now, []
    def after_batch(self, *_): self.at.append(self.now())


def seconds_of_steps(arch, data, epochs, threads, now=time.perf_counter):
    "The seconds of every step but the first."
    torch.set_num_threads(threads)
    net = make_model(arch, data.n_classes, data.size[0], 0)
    clock = Clock(now)
    train(net, data, default_recipe(data, epochs=epochs), 0, callbacks=[clock], device='cpu')
    return np.diff(clock.at).tolist()


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('--rounds', type=int, default=3)
    a.add_argument('--threads', type=int, default=2)
    a = a.parse_args()
    data = photos(100, 64)
    assert default_arch(data, 'cpu') == next(iter(EPOCHS))
    load = os.getloadavg()[0]
    for arch in EPOCHS: seconds_of_steps(arch, data, 1, a.threads)   # warms up
    wall = {arch: [] for arch in EPOCHS}
    own = {arch: [] for arch in EPOCHS}
    for _ in range(a.rounds):
        for arch, n in EPOCHS.items():
            wall[arch] += seconds_of_steps(arch, data, n, a.threads)
            own[arch] += seconds_of_steps(arch, data, 1, 1, time.process_time)
    networks = [dict(arch=arch, n=len(wall[arch]), median=round(float(np.median(wall[arch])), 5),
                     fastest=round(min(wall[arch]), 5), n_one_thread=len(own[arch]),
                     cpu_one_thread=round(float(np.median(own[arch])), 5)) for arch in EPOCHS]
    torch.set_num_threads(a.threads)
    machine = environment_info('cpu') | dict(cpu=cpu_name(), cores=os.cpu_count(), load=round(load, 2))
    out = dict(machine=machine, size=64, classes=10, images=len(data), default=default_arch(data, 'cpu'),
               steps=steps_of(default_recipe(data), len(data)), seconds_per_step=networks)
    path = Path(__file__).resolve().parents[1]/'own-images.json'
    path.write_text(json.dumps(out, indent=1)+'\n')
    print(path.read_text())


if __name__ == '__main__':
    main()
