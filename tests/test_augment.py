"What a network sees: against torchvision and slow loops, over random shapes."
import itertools

import torch
from hypothesis import given, settings, strategies as st
from torchvision.transforms.v2 import functional as F2

from pca_nb.resize import cell_boxes, cell_edges, crop_resize, draw_crops
from pca_nb.mix import draw_mix, MixCfg
from pca_nb.augment import apply_view, AugmentCfg, draw_cell_orders, draw_view, shuffle_cells
from pca_nb.core import generator

RAW = (0.,) * 3, (1 / 255,) * 3   # leaves pixels in 0..255
sizes = st.integers(3, 40)


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, st.integers(2, 48), st.integers(2, 48), st.booleans(), st.integers(0, 10**6))
def test_crop_is_torchvisions(H, W, h, w, flip, seed):
    g = generator(seed)
    x = torch.rand(1, 3, H, W, generator=g)
    t, left = (int(torch.randint(n, (), generator=g)) for n in (H, W))
    bh, bw = (1 + int(torch.randint(n - a, (), generator=g)) for n, a in ((H, t), (W, left)))
    # torch 2.15's antialiased resize is wrong for windows and outputs one pixel wide (it repeats the first row)
    if min(bh, bw) < 2:
        return
    want = F2.resized_crop(x, t, left, bh, bw, [h, w])
    got = crop_resize(x, torch.tensor([[t, left, bh, bw]]), (h, w), torch.tensor([flip]))
    assert torch.allclose(got, want.flip(-1) if flip else want, atol=1e-4)   # positions are moved by 1e-6 of the side


@settings(max_examples=30, deadline=None)
@given(st.integers(6, 40), st.integers(1, 5), st.floats(.01, 1), st.integers(0, 10**6))
def test_extraction_reads_one_cell_only(S, f, low, seed):
    "Every other cell may hold anything: the view of a composite does not change by one bit"
    g = generator(seed)
    x = torch.randint(256, (8, 3, S, S), generator=g).to(torch.uint8)
    v = draw_view(8, (S, S), AugmentCfg(crop_scale=(low, 1.), patches='extract'), f, generator(seed, 'v'))
    cells = [(t, left, t + h, left + w) for t, left, h, w in cell_boxes(torch.arange(f * f), f, (S, S)).tolist()]
    keep = torch.zeros(8, 1, S, S, dtype=torch.bool)
    for i, (t, left, h, w) in enumerate(v.box.tolist()):
        top, first, bottom, last = next(c for c in cells if c[0] <= t < c[2] and c[1] <= left < c[3])
        assert t + h <= bottom and left + w <= last
        keep[i, :, top:bottom, first:last] = True
    if v.box[:, 2:].min() < 2:   # a window of one pixel may read its neighbour with a float's rounding as weight
        return
    other = torch.where(keep, x, 255 - x)
    assert torch.equal(apply_view(other, v, RAW), apply_view(x, v, RAW))


@given(st.integers(1, 60), st.integers(1, 8))
def test_cells_tile_the_side(total, f):
    if f > total:
        return
    e = cell_edges(total, f)
    sides = [b - a for a, b in zip(e, e[1:])]
    assert e[0] == 0 and e[-1] == total
    assert sides == sorted(sides, reverse=True) and sides[0] - sides[-1] <= 1


def test_shuffle_is_a_slow_loop():
    x = torch.rand(5, 3, 12, 12, generator=generator(0))
    order = draw_cell_orders(5, 3, g=generator(1))
    want = torch.empty_like(x)
    for b, k in itertools.product(range(5), range(9)):
        (i, j) = divmod(k, 3)
        (p, q) = divmod(int(order[b, k]), 3)
        want[b, :, 4 * i:4 * i + 4, 4 * j:4 * j + 4] = x[b, :, 4 * p:4 * p + 4, 4 * q:4 * q + 4]
    assert torch.equal(shuffle_cells(x, order), want)


def test_all_arrangements_are_equally_likely():
    counts = torch.zeros(24)
    perms = {p: i for i, p in enumerate(itertools.permutations(range(4)))}
    for o in draw_cell_orders(24_000, 2, g=generator(0)).tolist():
        counts[perms[tuple(o)]] += 1
    assert ((counts - 1000)**2 / 1000).sum() < 49.7   # chi-square, 23 degrees of freedom, p = 0.001


def test_cell_choice_is_uniform_and_new_each_step():
    g = generator(0)
    aug = AugmentCfg(patches='extract', crop_scale=None)
    first, second = (draw_view(4000, (16, 16), aug, 2, g).box[:, :2] for _ in range(2))
    cells = (first // 8 * torch.tensor([2, 1])).sum(1).bincount()
    assert ((cells - 1000.)**2 / 1000).sum() < 16.3   # 3 degrees of freedom, p = 0.001
    assert .2 < (first == second).all(1).float().mean() < .3


def test_crops_stay_inside_any_region():
    region = torch.tensor([[3, 5, 9, 2], [0, 0, 1, 1], [10, 10, 50, 7]]).repeat(300, 1)
    b = draw_crops(region, (.01, 1.), g=generator(0))
    start, end = region[:, :2], region[:, :2] + region[:, 2:]
    assert (b[:, :2] >= start).all()
    assert (b[:, :2] + b[:, 2:] <= end).all()
    assert (b[:, 2:] > 0).all()


def test_mixing_probability_and_cutout_side():
    lam = draw_mix(20_000, (8, 8), MixCfg('mixup', prob=.3, per='image'), generator(0)).lam
    assert abs((lam < 1).float().mean() - .3) < .02
    box = draw_mix(2000, (32, 32), MixCfg('cutout', side=.5, per='image'), generator(0)).box
    assert box[:, 2].max() == 16 and box[:, 3].max() == 16
    assert (box[:, 2] == 16).float().mean() > .4   # clipped at the border only


def test_same_generator_same_view_and_one_device():
    aug = AugmentCfg(mix='cutmix', mix_per='image')
    a, b = (draw_view(9, (20, 20), aug, 1, generator(3)) for _ in range(2))
    assert torch.equal(a.box, b.box)
    assert torch.equal(a.flip, b.flip)
    assert torch.equal(a.mix.box, b.mix.box)
    assert torch.equal(a.mix.partner, b.mix.partner)
