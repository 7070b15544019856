"""Write a tree that looks like ImageNet-1K to every tool, for rehearsals: synthetic photographs, nobody's data.

synthetic_imagenet.py OUT --classes 1000 --share 0.01     12,812 training images, about 1.6 GB

OUT/train/<wnid>/<wnid>_<number>.JPEG   class folders of uneven size, as many images as ImageNet has, times the share
OUT/val/ILSVRC2012_val_<number>.JPEG    one image per class in one flat folder
OUT/LOC_val_solution.csv                which class each of those has
OUT/imagenet-data-score.pt              drawn scores in the layout that CCS published, in ImageFolder's order

Every JPEG has 500×375 pixels, quality 95 and about 110 kB, as in ImageNet on average.
A class is a texture: its own wave length, direction and two colours, so a network can learn it from one glance.
An image mixes two windows of its class's texture, so no two are alike; fine grain gives it its bytes.
An image that is there is kept, so an interrupted run goes on; OUT/made.json keeps the options, others are refused.
"""
import argparse
import io
import json
import os
import pickle
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

HEIGHT, WIDTH = 375, 500
QUALITY = 95
FIELD = 768                # side of a class's texture, pixels; it wraps round
FULL = 1300                # training images of 895 of ImageNet's classes; the others have from 732 on
FEWEST, FEWER_CLASSES, IN_ALL = 732, 105, 1_281_167
GRAIN = 9.5                # standard deviation of the grain, levels
EPOCHS = 60                # of the run behind the published scores


def full_counts(seed):
    "Return 1,000 class sizes with ImageNet's smallest, largest and sum; which class has which is drawn."
    few = FEWEST+(FULL-1-FEWEST)*np.linspace(0, 1, FEWER_CLASSES)**.46
    few = few.round().astype(int)
    rest = IN_ALL-FULL*(1000-FEWER_CLASSES)-few.sum()
    few[1:-1] += np.diff(np.linspace(0, rest, FEWER_CLASSES-1).round().astype(int))
    return np.random.default_rng(seed).permutation(np.r_[np.full(1000-FEWER_CLASSES, FULL), few])


def class_counts(classes, share, seed):
    "Return the sizes of so many classes, times the share; rounding errors do not add up."
    ends = np.r_[0, full_counts(seed)[:classes].cumsum()]*share
    return np.diff(ends.round().astype(int)).clip(min=1)


def wnid(c):
    "Return a well-formed synset name that no real class has; sorted as the numbers are."
    return f'n9{c:04d}{c*7 % 1000:03d}'


def file_names(c, n):
    "Return the names of a class's training images; numbers are not padded, as in ImageNet."
    return [f'{wnid(c)}_{3+37*i}.JPEG' for i in range(n)]


def spread(c, k):
    "Return k numbers in [0,1) that are far from those of other classes (an additive recurrence)."
    root = 1.2
    for _ in range(30):
        root = (1+root)**(1/(k+1))
    return (.5+(c+1)*root**-np.arange(1., k+1)) % 1


class Texture:
    "What the images of one class have in common: a random field with a ring of waves, and two colours."
    def __init__(self, c, seed):
        g = np.random.default_rng((seed, c))
        self.numbers = spread(c, 8)
        wave, turn = 8*10**self.numbers[0], np.pi*self.numbers[1]    # 8 to 80 pixels
        y, x = np.fft.fftfreq(FIELD)[:, None], np.fft.rfftfreq(FIELD)[None]
        along, across = x*np.cos(turn)+y*np.sin(turn), y*np.cos(turn)-x*np.sin(turn)
        power = np.exp(-((abs(along)*wave-1)**2+(across*wave)**2)/.18)+.02/(1+(200*np.hypot(x, y))**2)
        shape = power.shape
        waves = g.standard_normal(shape, np.float32)+1j*g.standard_normal(shape, np.float32)
        field = np.fft.irfft2(waves*np.sqrt(power), s=(FIELD, FIELD)).astype(np.float32)
        self.field = np.tile(field/field.std(), (2, 2))              # windows may run over the border
        self.base = (70+115*self.numbers[2:5]).astype(np.float32)
        direction = self.numbers[5:8]-.5
        self.swing = (40*direction/np.linalg.norm(direction)).astype(np.float32)

    def window(self, g):
        top, left = g.integers(FIELD, size=2)
        return self.field[top:top+HEIGHT, left:left+WIDTH]

    def image(self, g, grain):
        "Draw (375,500,3) pixels."
        turn = g.uniform(0, 2*np.pi)
        waves = np.float32(np.cos(turn))*self.window(g)+np.float32(np.sin(turn))*self.window(g)
        light = grain.window(g)+np.float32(g.normal(0, 10))
        pixels = np.empty((HEIGHT, WIDTH, 3), np.uint8)
        for k in range(3):
            level = waves*self.swing[k]
            level += light
            level += self.base[k]
            pixels[..., k] = level.clip(0, 255)
        return pixels


class Grain:
    "Fine noise that all images draw windows from."
    def __init__(self, seed):
        noise = np.random.default_rng((seed, 10**6)).normal(0, GRAIN, (2*FIELD, 2*FIELD))
        self.noise = noise.astype(np.float32)

    def window(self, g):
        top, left = g.integers(2*FIELD-HEIGHT), g.integers(2*FIELD-WIDTH)
        return self.noise[top:top+HEIGHT, left:left+WIDTH]


def write(path, data):
    "Write a file so that it is complete or not there."
    part = path.with_name(f'.{path.name}.part')
    part.write_bytes(data)
    os.replace(part, path)


def jpeg(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, 'JPEG', quality=QUALITY)
    return file.getvalue()


def write_class(c, names, val_name, out, seed, grain):
    "Write the images of one class that are not there yet; return how many."
    folder = out/'train'/wnid(c)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder/name for name in names]+[out/'val'/val_name]
    missing = [(i, path) for i, path in enumerate(files) if not path.exists()]
    texture = Texture(c, seed) if missing else None
    for i, path in missing:
        write(path, jpeg(texture.image(np.random.default_rng((seed, c, i+1)), grain)))
    return len(missing)


def scores(labels, seed):
    "Draw scores of images as easy and hard as a beta distribution has it, in the layout of CCS."
    g = np.random.default_rng((seed, 10**6+1))
    ease = g.beta(3, 1.2, len(labels))
    correct = g.binomial(EPOCHS, ease)
    forgotten = g.binomial(np.minimum(correct, EPOCHS-correct), .4)
    margin = EPOCHS*(1.8*ease-.8)*g.uniform(.9, 1, len(labels))
    el2n = 10*2**.5*(1-ease)**.5*g.uniform(.9, 1, len(labels))
    whole, real = torch.int32, torch.float32
    return dict(targets=torch.tensor(labels, dtype=whole), el2n=torch.tensor(el2n, dtype=real),
                correctness=torch.tensor(correct, dtype=whole), forgetting=torch.tensor(forgotten, dtype=whole),
                last_correctness=torch.tensor(g.random(len(labels)) < ease, dtype=whole),
                accumulated_margin=torch.tensor(margin, dtype=real))


def write_lists(out, val_classes, labels, seed):
    "Write which class every validation image has, and the score file."
    lines = [f'ILSVRC2012_val_{i+1:08d},{wnid(c)} 1 1 {WIDTH} {HEIGHT} ' for i, c in enumerate(val_classes)]
    write(out/'LOC_val_solution.csv', '\n'.join(['ImageId,PredictionString', *lines, '']).encode())
    write(out/'imagenet-data-score.pt', pickle.dumps(scores(labels, seed)))


def check_options(out, **options):
    "Keep the options beside the images; exit if those that are there were made with others."
    file = out/'made.json'
    before = json.loads(file.read_text()) if file.exists() else options
    if before != options:
        sys.exit(f'{out} was made with {before}: give these, or another folder')
    write(file, json.dumps(options).encode())


def main(out, classes=1000, share=.01, seed=0):
    "Write what is missing; return how many images that were."
    (out/'val').mkdir(parents=True, exist_ok=True)
    check_options(out, classes=classes, share=share, seed=seed)
    counts = class_counts(classes, share, seed)
    val_classes = np.random.default_rng((seed, 10**6+2)).permutation(classes)
    val_names = {c: f'ILSVRC2012_val_{i+1:08d}.JPEG' for i, c in enumerate(val_classes)}
    grain = Grain(seed)
    start, made = time.perf_counter(), 0
    for c, n in enumerate(counts):
        made += write_class(c, file_names(c, n), val_names[c], out, seed, grain)
        if (c+1) % 100 == 0 or c+1 == classes:
            per_second = made/(time.perf_counter()-start)
            print(f'{c+1} of {classes} classes, {made:,} images written, {per_second:.0f} per second', flush=True)
    write_lists(out, val_classes, np.repeat(np.arange(classes), counts), seed)
    few, most = counts.min(), counts.max()
    print(f'{counts.sum():,} training images, {few} to {most} per class, and {classes} others in {out}')
    return made


def share_of(text):
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError('must be above 0 and at most 1')
    return value


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', type=Path)
    parser.add_argument('--classes', type=int, default=1000, choices=range(2, 1001), metavar='2 to 1000')
    parser.add_argument('--share', type=share_of, default=.01, help="of ImageNet's images per class")
    parser.add_argument('--seed', type=int, default=0)
    main(**vars(parser.parse_args()))
