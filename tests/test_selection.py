"Prune and combine against per-class loops."
import io

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from PIL import Image

from pca_nb import combine as combine_module
from pca_nb.combine import assign_to_cells, combine, shrink, SHRINKS, split_cells, Tiling
from pca_nb.core import generator
from pca_nb.decode import LazyImages
from pca_nb.imageset import ImageSet
from pca_nb.pca import pca
from pca_nb.prune import ccs, PRUNERS, take_easiest, take_hardest, water_fill
from pca_nb.resize import cell_boxes, resize_weights


def problem(seed, classes=3, n=60, ties=False):
    "Scores and labels with every class large enough"
    g = generator(seed)
    y = torch.cat([torch.arange(classes).repeat(12), torch.randint(classes, (n,), generator=g)])
    s = torch.randint(4, y.shape, generator=g).float() if ties else torch.randn(y.shape, generator=g)
    return s, y, tuple('abcdefgh'[:classes])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.booleans(), st.booleans(), st.booleans())
def test_take_is_a_sort_in_each_class(seed, ipc, hard, balanced, ties):
    s, y, names = problem(seed, ties=ties)
    take = take_hardest if hard else take_easiest
    idx = take(s, y, names, ipc, generator(seed), balanced)
    assert len(idx) == len(idx.unique()) == ipc * 3
    groups = [(y == c).nonzero()[:, 0] for c in range(3)] if balanced else [torch.arange(len(y))]
    for mine, group in zip(idx.chunk(len(groups)), groups):
        want = sorted(s[group].tolist(), reverse=hard)[:len(mine)]
        assert s[mine].tolist() == want
        assert set(mine.tolist()) <= set(group.tolist())


def test_ties_fall_by_seed_not_by_position():
    y = torch.zeros(1000, dtype=torch.int64)
    y[500:] = 1
    chosen = [take_easiest(torch.zeros(1000), y, ('a', 'b'), 50, generator(s))[:50] for s in range(20)]
    means = torch.stack([idx.float().mean() for idx in chosen])
    assert abs(means.mean() - 249.5) < 30
    assert len(means.round().unique()) > 10


@given(st.lists(st.integers(0, 30), min_size=1, max_size=12), st.integers(0, 200))
def test_water_fill(sizes, budget):
    out = water_fill(torch.tensor(sizes), budget)
    assert out.sum() == min(budget, sum(sizes))
    assert (out <= torch.tensor(sizes)).all()
    left = [i for i, n in enumerate(sizes) if out[i] < n]           # strata with images left got the largest shares
    assert not left or out.max() - out[left].min() <= 1


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6))
def test_ccs_keeps_its_budget_and_its_cut(seed, ipc):
    s, y, names = problem(seed)
    idx = ccs(s, y, names, ipc, generator(seed), beta=.2)
    assert y[idx].bincount(minlength=3).tolist() == [ipc] * 3
    assert len(idx.unique()) == 3 * ipc
    assert s[idx].max() <= s.sort().values[len(s) - int(.2 * len(s)) - 1]


def full_set(S=12, n=72, classes=2):
    x = torch.randint(256, (n, 3, S, S), generator=generator(0)).to(torch.uint8)
    return ImageSet(x, torch.arange(n) % classes, ['a', 'b', 'c'][:classes], name='toy')


@pytest.mark.parametrize('f', [1, 2, 3, 5, 12])
@pytest.mark.parametrize('S', [12, 17])
def test_any_factor_and_size(f, S):
    "Cell by cell against shrinking one image alone; 5 ∤ 12 and nothing divides 17"
    full = full_set(S, n=2 * f * f)
    by_class = full.labels.argsort(stable=True)
    out = combine(full, assign_to_cells(by_class, 2, f, generator(0)))
    assert out.images.shape == (2, 3, S, S) and out.grid == f
    boxes = cell_boxes(torch.arange(f * f), f, (S, S)).tolist()
    for n in range(2):
        for k, (t, left, h, w) in enumerate(boxes):
            one = full.images[out.index[n, k]][None]
            assert torch.equal(out.images[n, :, t:t + h, left:left + w], shrink(one, (h, w))[0])


# ---- the same bytes as one image after the other ----
def matrix(big, small, how):
    if how == 'antialias': return resize_weights(torch.tensor([0]), torch.tensor([big]), big, small)[0]
    enlarge = resize_weights(torch.tensor([0]), torch.tensor([small]), small, big)[0]
    return torch.linalg.pinv(enlarge.double()).float()


def plain_shrink(image, size, how):
    "One image as torch shrinks it in planes; by products where it cannot, every matrix made anew."
    if image.shape[-2:] == size: return image
    if how == 'antialias' and 1 not in size: return F.interpolate(image, size, mode='bilinear', antialias=True)
    rows, cols = (matrix(big, small, how) for big, small in zip(image.shape[-2:], size))
    return (rows @ image.float() @ cols.mT).round().clamp(0, 255).to(torch.uint8)


def one_by_one(images, idx, f, how):
    "Composites as `combine` made them at first: every image by itself, on one thread of torch."
    size, threads = images.shape[-2:], torch.get_num_threads()
    out = torch.empty(len(idx), 3, *size, dtype=torch.uint8)
    torch.set_num_threads(1)
    for composite, row in zip(out, idx.tolist()):
        for i, (t, left, h, w) in zip(row, cell_boxes(torch.arange(f*f), f, size).tolist()):
            composite[:, t:t+h, left:left+w] = plain_shrink(images[i:i+1], (h, w), how)[0]
    torch.set_num_threads(threads)
    return out


def random_set(H, W, n=23):
    "Noise, black and white, and ramps, whose rounding differs most; one class shown."
    g = generator(0, 'set', H, W)
    x = torch.randint(256, (n, 3, H, W), generator=g)
    x[:7] = (x[:7] > 127)*255
    x[7:14] = (torch.arange(H)[:, None]*5+torch.arange(W)*3+x[7:14, :, :1, :1]) % 256
    return ImageSet(x.to(torch.uint8), torch.zeros(n, dtype=torch.long), ('a', 'b'))


CASES = [(f, side) for f in (1, 2, 3, 4, 5, 7) for side in ((8, 8), (17, 17), (32, 32), (33, 33), (30, 43), (64, 64))]


@pytest.mark.parametrize('bytes_per_call', [1, 2**16, 2**21])
@pytest.mark.parametrize('f, side', [*CASES, (2, (224, 224)), (3, (224, 224)), (4, (224, 224)), (2, (225, 223))])
@pytest.mark.parametrize('n', [1, 11])
def test_combining_gives_the_bytes_of_one_image_after_the_other(f, side, n, bytes_per_call, monkeypatch):
    "Four planes side by side and many composites per call change no byte, in threads as behind a read."
    monkeypatch.setattr(combine_module, '_PER_CALL', bytes_per_call)
    full = random_set(*side)
    idx = torch.randint(len(full), (n, f*f), generator=generator(n))
    assert torch.equal(combine(full, idx).images, one_by_one(full.images, idx, f, 'antialias'))


@pytest.mark.parametrize('f, side', CASES)
def test_least_squares_gives_the_bytes_of_one_image_after_the_other(f, side):
    full = random_set(*side)
    idx = torch.randint(len(full), (11, f*f), generator=generator(1))
    for _ in range(2):  # with weights made anew and with kept ones
        assert torch.equal(combine(full, idx, 'lsq').images, one_by_one(full.images, idx, f, 'lsq'))


@pytest.mark.parametrize('f', [1, 2, 3, 4])
@pytest.mark.parametrize('n', [3, 130])
def test_images_behind_a_read_give_the_same_composites(f, n):
    def png(image):
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, 'PNG')
        return file.getvalue()
    full = random_set(33, 33)
    lazy = ImageSet(LazyImages([png(im) for im in full.images], 33), full.labels, full.classes)
    idx = torch.randint(len(full), (n, f*f), generator=generator(2))
    assert torch.equal(combine(lazy, idx).images, combine(full, idx).images)


def test_no_composites_at_all():
    assert combine(random_set(12, 12), torch.empty(0, 4, dtype=torch.long)).images.shape == (0, 3, 12, 12)


@pytest.mark.parametrize('side', [(4, 4), (8, 6), (32, 32), (224, 64)])
def test_halving_is_1_3_3_1_in_whole_numbers(side):
    "Columns, then rows, each rounded half up; 3, 3, 1 at the ends: in doubles, nothing of torch's own resizing."
    def halved(x):
        inner = F.pad(x, (1, 1)).unfold(-1, 4, 2)
        weights = torch.tensor([1., 3, 3, 1]).double().repeat(inner.shape[-2], 1)
        weights[0, 0] = weights[-1, -1] = 0
        return ((inner*weights).sum(-1)/weights.sum(-1)+.5).floor()
    x = random_set(*side).images
    want = halved(halved(x.double()).mT).mT.to(torch.uint8)
    assert torch.equal(shrink(x, (side[0]//2, side[1]//2)), want)


def test_shrinking_to_the_same_size_changes_nothing():
    x = full_set().images
    for how in SHRINKS:
        assert torch.equal(shrink(x, (12, 12), how), x)


def test_pca_says_which_image_sits_where():
    full = full_set(S=16)
    s = torch.randn(72, generator=generator(1))
    small = pca(full, 2, s, Tiling(2), generator(0))
    for c in (0, 1):
        easiest = s.masked_fill(full.labels != c, torch.inf).argsort()[:8]
        assert set(small.index[small.labels == c].flatten().tolist()) == set(easiest.tolist())
    assert torch.equal(split_cells(small).labels, full.labels[split_cells(small).index[:, 0]])


def test_every_pruner_is_a_function_of_the_seed():
    s, y, names = problem(0, n=200)
    for name, rule in PRUNERS.items():
        first = rule(s, y, names, 4, generator(7))
        again = rule(s, y, names, 4, generator(7))
        assert torch.equal(first, again), name
