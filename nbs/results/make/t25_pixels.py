"""Measure images·iterations per second of the pixel loop, with and without statistics, and of the network alone.

Writes nbs/results/pixels.json, which nbs/experiments/t25_cost.ipynb reads.
"""
import argparse
import json
import os

import torch

from pca_nb.machine import environment_info, pick_device
from pca_nb.pixel_speed import pixel_speed

SETTINGS = (
    dict(arch='convnet3-w32', size=32, batch=100, steps=20),
    dict(arch='convnet3-bn', size=32, batch=100, steps=5),
    dict(arch='resnet18', size=32, batch=50, steps=3),
)


def main(out):
    device = pick_device()
    rows = []
    for setting in SETTINGS:
        for dtype in (torch.float32, torch.bfloat16):
            rounds = pixel_speed(**setting, rounds=5, device=device, dtype=dtype).round(1)
            name = str(dtype).removeprefix('torch.')
            rows += [dict(**setting, dtype=name, **r) for r in rounds.to_dict('records')]
            print(setting['arch'], name, rounds.median().to_dict(), 'load', os.getloadavg()[0], flush=True)
    with open(out, 'w') as f:
        json.dump(dict(rows=rows, load=os.getloadavg()[0], **environment_info(device)), f, indent=1)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', nargs='?', default='nbs/results/pixels.json')
    torch.set_num_threads(1)
    main(**vars(parser.parse_args()))
