"Prune and combine against per-class loops."
import pytest
import torch
from hypothesis import given, settings, strategies as st

from pca_nb.combine import assign_to_cells, combine, shrink, SHRINKS, split_cells, Tiling
from pca_nb.core import generator
from pca_nb.imageset import ImageSet
from pca_nb.pca import pca
from pca_nb.prune import ccs, PRUNERS, take_easiest, take_hardest, water_fill
from pca_nb.resize import cell_boxes


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
