"""The picture of the README, nbs/images/pca.png: prune, combine and augment on two sample photographs.

Which images are kept is only illustrated (the first four of each class); everything else is what the package does.
"""
import io
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from PIL import Image

from pca_nb.augment import AugmentCfg, apply_view, draw_view
from pca_nb.combine import combine
from pca_nb.core import generator
from pca_nb.datasets import sample_photos

PIXELS = ((0,)*3, (1/255,)*3)   # mean and deviation that leave pixels as they are


def show(fig, box, image, edge='white', width=0.):
    "One image at (left, bottom, side) in inches of the figure."
    w, h = fig.get_size_inches()
    ax = fig.add_axes((box[0]/w, box[1]/h, box[2]/w, box[2]/h))
    ax.imshow(image.permute(1, 2, 0).numpy().astype('uint8'))
    ax.set(xticks=[], yticks=[])
    for side in ax.spines.values(): side.set(edgecolor=edge, linewidth=width)


def words(fig, x, y, title, text):
    w, h = fig.get_size_inches()
    fig.text(x/w, y/h, title, fontsize=12, weight='bold', va='bottom')
    fig.text(x/w, y/h, text, fontsize=8.5, va='top', color='0.25')


def main(path='nbs/images/pca.png'):
    photos = sample_photos(96)
    fig = plt.figure(figsize=(9.6, 2.5), dpi=100)
    kept = torch.stack([torch.arange(4)+8*c for c in range(2)])
    small = combine(photos, kept, 'lsq')
    for c in range(2):
        y = 1.02-.98*c
        for k in range(8):
            chosen = k < 4
            where = (.08+.46*(k % 4), y+.46*(k < 4), .42)
            show(fig, where, photos.images[8*c+k]*(1 if chosen else .35)+(0 if chosen else 160), '#1f77b4', 2*chosen)
        show(fig, (2.75, y+.01, .88), small.images[c])
        batch = small.images[c:c+1].expand(6, -1, -1, -1)
        view = draw_view(6, small.size, AugmentCfg((.35, 1.), patches='extract'), 2, generator(3, c))
        for k, seen in enumerate(apply_view(batch, view, PIXELS).clamp(0, 255)):
            show(fig, (4.55+.84*k, y+.06, .78), seen)
    words(fig, .08, 2.24, 'prune', 'keep the easiest images of each class')
    words(fig, 2.75, 2.24, 'combine', 'four whole images in one')
    words(fig, 4.55, 2.24, 'augment', 'while training, extract one cell and crop inside it, anew at every step')
    for x in (2.2, 3.95): fig.text(x/9.6, .38, '→', fontsize=22, color='0.4')
    Path(path).parent.mkdir(exist_ok=True)
    pixels = io.BytesIO()
    fig.savefig(pixels, format='png')
    Image.open(pixels).convert('RGB').quantize(200).save(path, optimize=True)


if __name__ == '__main__':
    main()
