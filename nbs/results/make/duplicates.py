"""Measure what the difference hash finds among known photographs, and how often it errs.

duplicates.py [--images 1000]   writes nbs/results/duplicates.json, which nbs/library/09a_duplicates.ipynb reads

Copies of test images are made (saved as a JPEG of quality 30, halved, made grey, brighter, cut by 3 % at every border)
and counted as found if their hash is at most `WITHIN` bits from the original's. Then every set is searched for
duplicates between its training and test images; near pairs in one class are most likely right, pairs in two are wrong.
"""
import argparse
import io
import json
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance

from pca_nb.core import generator
from pca_nb.datasets import load_data
from pca_nb.duplicates import bits_apart, difference_hash, find_duplicates, WITHIN
from pca_nb.machine import environment_info
from pca_nb.timing import cpu_name


def saved(im):
    file = io.BytesIO()
    im.save(file, 'JPEG', quality=30)
    return Image.open(file)


def cut(im):
    n = max(1, round(.03*im.width))
    return im.crop((n, n, im.width-n, im.height-n)).resize(im.size)


COPIES = {'JPEG 30': saved, 'half size': lambda im: im.resize((im.width//2, im.height//2)).resize(im.size),
          'grey': lambda im: im.convert('L'), 'brighter': lambda im: ImageEnhance.Brightness(im).enhance(1.3),
          'cut 3 %': cut}


def found(images, copy):
    "The share of copies that are within the threshold, percent."
    copies = [copy(Image.fromarray(image.permute(1, 2, 0).numpy())).convert('RGB') for image in images]
    pixels = torch.from_numpy(np.stack([np.asarray(im) for im in copies])).permute(0, 3, 1, 2)
    apart = bits_apart(difference_hash(images), difference_hash(pixels))
    return round(100*float((apart <= WITHIN).mean()), 1)


def row(name, n, seed):
    train, test = load_data(name), load_data(name, 'test')
    few = torch.randperm(len(test), generator=generator(seed, 'copies'))[:n]
    shares = {kind: found(test.images[few], copy) for kind, copy in COPIES.items()}
    start = time.perf_counter()
    pairs = find_duplicates(train, test, near=True)
    seconds = round(time.perf_counter()-start, 1)
    near = pairs.of('across splits', 'near')
    return dict(data=name, size=train.size[0], images=pairs.images, seed=seed, copies=n, found=shares,
                exact=len(pairs.of('across splits')), near=len(near),
                near_in_one_class=int((near['class'] == near['first class']).sum()), seconds=seconds)


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('--images', type=int, default=1000)
    a = a.parse_args()
    torch.set_num_threads(1)
    about = environment_info('cpu') | dict(cpu=cpu_name())
    rows = [row(name, a.images, 0) | about for name in ('cifar10', 'imagenette')]
    path = Path(__file__).resolve().parents[1]/'duplicates.json'
    path.write_text(json.dumps(rows, indent=1)+'\n')
    print(path.read_text())


if __name__ == '__main__':
    main()
