"The generator of a synthetic ImageNet: a tree that is read like the real one, at any share of its size."
import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pca_nb.datasets import load_data
from pca_nb.defaults import read_scores

pytestmark = pytest.mark.filterwarnings('ignore::pca_nb.progress.ReadingNote')
root = Path(__file__).resolve().parents[1]
generator = runpy.run_path(str(root/'nbs'/'results'/'make'/'synthetic_imagenet.py'))


def test_the_generator_makes_a_tree_that_is_read(tmp_path):
    make = generator['main']
    assert make(tmp_path, classes=12, share=.003) == sum(generator['class_counts'](12, .003, 0))+12
    train, held = load_data(tmp_path, size=64), load_data(tmp_path, 'test', size=64)
    counts = generator['class_counts'](12, .003, 0)
    assert train.counts.tolist() == counts.tolist() and held.counts.tolist() == [1]*12
    assert train.classes == held.classes == tuple(generator['wnid'](c) for c in range(12))
    assert read_scores(tmp_path/'imagenet-data-score.pt', train)['el2n'].shape == (len(train),)
    files = sorted(tmp_path.rglob('*.JPEG'))
    assert {Image.open(f).size for f in files} == {(500, 375)}
    assert 90_000 < np.mean([f.stat().st_size for f in files]) < 130_000

    before = {f: f.read_bytes() for f in files}
    lost = files[::7]
    for f in lost: f.unlink()
    assert make(tmp_path, classes=12, share=.003) == len(lost)          # what is there is kept
    assert {f: f.read_bytes() for f in files} == before                 # what was lost comes back the same
    with pytest.raises(SystemExit, match='was made with'): make(tmp_path, classes=11, share=.003)
    assert json.loads((tmp_path/'made.json').read_text()) == dict(classes=12, share=.003, seed=0)


def test_the_generators_classes_can_be_told_apart(tmp_path):
    "The class with the nearest mean colour is the right one far more often than one in twelve."
    generator['main'](tmp_path, classes=12, share=.003)
    train, held = load_data(tmp_path, size=32), load_data(tmp_path, 'test', size=32)

    def colours(s): return s.images.float().mean((2, 3))
    means = torch.stack([colours(train)[train.labels == c].mean(0) for c in range(12)])
    nearest = torch.cdist(colours(held), means).argmin(1)
    assert (nearest == held.labels).float().mean() > .5


def test_class_sizes_are_imagenets():
    counts = generator['full_counts'](0)
    assert (counts.sum(), counts.min(), counts.max(), len(counts)) == (1_281_167, 732, 1300, 1000)
    small = generator['class_counts'](1000, .01, 0)
    assert (small.sum(), small.max(), len(small)) == (12_812, 13, 1000) and small.min() >= 7
