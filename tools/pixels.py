"""Images·iterations a second of the pixel loop, with and without statistics, and of the network alone: nbs/results/pixels.json, for t25_cost.

pixels.py [OUT]
"""
import json
import os
import sys

import torch

from pca_nb.machine import environment_info, pick_device
from pca_nb.costs import pixel_speed

SETTINGS = (dict(arch='convnet3-w32', size=32, batch=100, steps=20),
            dict(arch='convnet3-bn', size=32, batch=100, steps=5), dict(arch='resnet18', size=32, batch=50, steps=3))


def main(out='nbs/results/pixels.json'):
    dev, rows = pick_device(), []
    for s in SETTINGS:
        for dtype in (torch.float32, torch.bfloat16):
            f = pixel_speed(**s, rounds=5, device=dev, dtype=dtype).round(1)
            rows += [dict(**s, dtype=str(dtype).removeprefix('torch.'), **r) for r in f.to_dict('records')]
            print(s['arch'], dtype, f.median().to_dict(), 'load', os.getloadavg()[0], flush=True)
    json.dump(dict(rows=rows, load=os.getloadavg()[0], **environment_info(dev)), open(out, 'w'), indent=1)


if __name__ == '__main__':
    torch.set_num_threads(1)
    main(*sys.argv[1:])
