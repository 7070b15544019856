"What networks think of crops: the same numbers however images are stored and batched, and the rows of the notebooks."
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from pca_nb.rded import CropSearchCfg, selective_crop
from pca_nb.core import generator
from pca_nb.decode import LazyImages
from pca_nb.files import encode_image
from pca_nb.datasets import load_data
from pca_nb.entropy import CHUNK, crop_changes, CROP_PAIRS, crop_stats, crop_twice, set_entropy
from pca_nb.crop_theory import crop_advantage, MIN_AREAS, read_entropy, SUBSETS, zero_crossing
from pca_nb.models import make_model

RESULTS = Path(__file__).resolve().parents[1]/'nbs'/'results'


@pytest.fixture(scope='module')
def full(): return load_data('digits')


@pytest.fixture(scope='module')
def net():
    "Untrained, but with answers that differ from image to image"
    n = make_model('convnet2-w32', 10, 16, seed=0)
    for p in n.parameters(): p.data.mul_(2)
    return n


def same(a, b, tol=1e-6):
    return torch.allclose(a.sums[:5], b.sums[:5], atol=tol) and torch.allclose(a.whole, b.whole, atol=tol)


def test_a_chunk_does_not_depend_on_what_follows(full, net):
    few = crop_stats(full[torch.arange(CHUNK)], net, n_crops=3, seed=1)
    more = crop_stats(full[torch.arange(CHUNK+40)], net, n_crops=3, seed=1)
    assert same(few, more[torch.arange(CHUNK)])
    # the same images again, in the next chunk
    twice = crop_stats(full[torch.arange(2*CHUNK)%CHUNK], net, n_crops=3, seed=1)
    assert torch.allclose(twice.whole[:, :CHUNK], twice.whole[:, CHUNK:])
    assert not torch.allclose(twice.sums[0, :CHUNK], twice.sums[0, CHUNK:], atol=1e-6)


def test_images_read_on_demand_give_the_same(full, net):
    s = full[torch.arange(30)]
    lazy = replace(s, images=LazyImages([encode_image(im) for im in s.images], 16))
    assert same(crop_stats(s, net, n_crops=4), crop_stats(lazy, net, n_crops=4))
    pair = crop_twice(s, net, n_crops=4)
    lazy_pair = crop_twice(lazy, net, n_crops=4)
    for k in CROP_PAIRS: assert same(pair[k], lazy_pair[k])
    assert torch.allclose(torch.tensor(set_entropy(s, net).values), torch.tensor(set_entropy(lazy, net).values))


def test_single_changes_are_what_the_sums_sum(full, net):
    s = full[torch.arange(CHUNK-9, CHUNK+11)]
    d = crop_changes(s, net, (.2, .6), 5, seed=2)
    c = crop_stats(s, net, (.2, .6), 5, seed=2)
    assert torch.allclose(d.sum(1), c.sums[:2], atol=1e-9)
    assert torch.equal((d > 0).sum(1).double(), c.sums[5:7])


def test_asking_leaves_the_network_as_it_was(full):
    n = make_model('convnet2-w32', 10, 16, seed=0)
    if isinstance(n, nn.Sequential): n.append(nn.BatchNorm1d(10))
    n.train()
    before = {k: v.clone() for k, v in n.state_dict().items()}
    crop_stats(full[torch.arange(8)], n, n_crops=2)
    set_entropy(full[torch.arange(8)], n)
    assert n.training
    assert all(torch.equal(v, before[k]) for k, v in n.state_dict().items())
    assert all(p.grad is None for p in n.parameters())


def test_entropy_stays_inside_its_range(full, net):
    c = crop_stats(full[torch.arange(60)], net, n_crops=6)
    nll, entropy = c.after
    assert (nll >= 0).all()
    assert (entropy >= 0).all() and (entropy <= math.log(10)+1e-9).all()
    assert (c.rises >= 0).all() and (c.rises <= 1).all()


def test_a_set_has_no_advantage_over_itself(full, net):
    s = full[torch.arange(20)]
    gap = crop_advantage(s, s, net, (1., .5), 3)
    assert gap.shape == (2, 2, 20) and gap.abs().max() == 0
    assert zero_crossing((1., .5), gap[:, 0])['r'] == 1
    unseen = selective_crop(s, net, CropSearchCfg(1), generator(0))
    assert crop_advantage(s, unseen, net, (1., .5), 3).abs().max() > 0


def test_a_pair_of_crops_shares_its_draw(full, net):
    c = crop_twice(full[torch.arange(40)], net, (.3, .3), 4, (1., 1.))
    assert torch.equal(c['twice'].whole, c['placed'].whole)
    assert not torch.allclose(c['nested'].sums, c['placed'].sums)
    assert not torch.allclose(c['nested'].sums, c['twice'].sums)


def test_stored_rows_are_complete_and_possible():
    rows = [json.loads(line) for line in (RESULTS/'entropy.jsonl').read_text().splitlines()]
    crops = [r for r in rows if r['what'] in ('crops', 'twice')]
    names = [tuple(r.get(k) for k in ('what', 'data', 'net', 'seed', 'score', 'subset', 'ipc', 'low', 'look'))
             for r in crops]
    assert len(set(names)) == len(names)
    for r in crops:
        assert all(0 <= r[k] <= 1 for k in ('p_nll', 'p_entropy', 'concordant')) and r['low'] in MIN_AREAS
        assert r['corr'] is None or -1 <= r['corr'] <= 1
        assert r['subset'] in (*SUBSETS, 'unseen') and r['device'] and r['torch']
    seeds = {}
    for n, r in zip(names, crops): seeds.setdefault(n[:3]+n[4:], set()).add(r['seed'])
    assert all(s == {0, 1, 2} for s in seeds.values())


def test_rows_that_are_asked_for_by_a_wrong_name_are_named():
    with pytest.raises(KeyError, match='there are crops'): read_entropy(RESULTS, 'cropps')
    with pytest.raises(KeyError, match='cifar10'): read_entropy(RESULTS, 'crops', data='cifar')
