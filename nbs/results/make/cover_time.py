"""Measure how long `cover` takes to choose from as many images as ImageNet has, and the memory that it needs.

Features are synthetic: 1,281,167 of 512 numbers in 16 bits, in 1,000 classes of ten heaps each; IPC 10 with 2×2 cells.
Writes nbs/results/cover-time.json, which the notebook `cover` of the library reads.
"""
import json
import os
import resource
import time
from pathlib import Path

import torch

from pca_nb.core import generator
from pca_nb.cover import cover_factor, POOL_SHARE
from pca_nb.coverage import take_covering
from pca_nb.machine import environment_info
from pca_nb.protocols import N_TRAIN

N_CLASSES, D, IPC = 1000, 512, 10
N = N_TRAIN['imagenet']


def peak():
    "The most bytes that this process has held so far."
    return 1024*resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def synthetic_features(labels):
    "Features after a ReLU: ten heaps per class."
    out = torch.empty(len(labels), D, dtype=torch.float16)
    for c in range(N_CLASSES):
        g = generator(0, 'class', c)
        rows = (labels == c).nonzero()[:, 0]
        heaps = torch.randn(10, D, generator=g)
        noise = torch.randn(len(rows), D, generator=g)
        out[rows] = (heaps[torch.randint(10, (len(rows),), generator=g)]+noise).relu().half()
    return out


def main():
    labels = torch.arange(N)*N_CLASSES//N
    features = synthetic_features(labels)
    scores = torch.rand(N, generator=generator(0, 'scores'))
    n = IPC*cover_factor(IPC, 224)**2
    before, start = peak(), time.perf_counter()
    cpu = time.process_time()
    chosen = take_covering(features, scores, labels, range(N_CLASSES), n, POOL_SHARE, generator(0))
    row = dict(images=N, classes=N_CLASSES, numbers=D, n=n, share=POOL_SHARE, chosen=len(chosen.unique()),
               seconds=round(time.perf_counter()-start, 1), cpu_seconds=round(time.process_time()-cpu, 1),
               features_bytes=features.nbytes, peak_bytes_before=before, peak_bytes=peak(),
               **environment_info('cpu'), cores=os.cpu_count())
    file = Path(__file__).parents[1]/'cover-time.json'
    file.write_text(json.dumps(row, indent=1)+'\n')
    print(row)


main()
