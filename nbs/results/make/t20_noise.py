"""Test twenty networks that were never trained on CIFAR-10.

Writes nbs/results/untrained.json, which nbs/experiments/t20_noise.ipynb reads.
"""
import argparse
import json
from pathlib import Path

import torch

from pca_nb.datasets import load_data
from pca_nb.models import make_model
from pca_nb.validate import validate


def main(out):
    test = load_data('cifar10', 'test', 32)
    tops = []
    for seed in range(20):
        net = make_model('convnet3-w32', 10, 32, seed)
        tops.append(validate(net, test)['top1'])
    Path(out).write_text(json.dumps(tops))
    print(f'{out}: {min(tops):.2f} to {max(tops):.2f} %')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', nargs='?', default='nbs/results/untrained.json')
    torch.set_num_threads(1)
    main(**vars(parser.parse_args()))
