"Rows and grids: the same from one process or two, killed or not."
import json
from dataclasses import replace

import pytest
import torch

from pca_nb import grid, run
from pca_nb.result_store import ResultStore
from pca_nb.run import run_one
from pca_nb.grid import process_pool, run_grid
from pca_nb.methods import Method, METHODS
from pca_nb.runs import build_set, run_cfg
from pca_nb.stats import summary
from pca_nb.core import generator
from pca_nb.datasets import load_data
from pca_nb.distillers import DISTILLERS
from pca_nb.train import train

CUT = dict(epochs=4, eval_every=2)


def short(method, seed=0, ipc=2):
    c = run_cfg('digits', method, ipc, seed)
    s = c.scoring and replace(c.scoring, recipe=replace(c.scoring.recipe, epochs=2, batch=256), stop_epoch=0)
    return replace(c, recipe=replace(c.recipe, **CUT), scoring=s)


def numbers(frame):
    return frame[['key', 'top1', 'nll', 'loss', 'set']].sort_values('key').values.tolist()


def test_two_processes_make_the_rows_of_one(tmp_path):
    import torch
    cfgs = [short(m, s) for m in ('random', 'pca') for s in (0, 1)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    one = run_grid(cfgs, ResultStore(tmp_path/'a.jsonl'), tmp_path, device='cpu')
    torch.set_num_threads(threads)
    with process_pool(2) as ex:
        two = run_grid(cfgs, ResultStore(tmp_path/'b.jsonl'), tmp_path, executor=ex, device='cpu')
    assert numbers(one) == numbers(two)


def test_a_killed_grid_loses_no_row(tmp_path, monkeypatch):
    cfgs = [short('random', s) for s in range(3)]
    rows = ResultStore(tmp_path/'r.jsonl')
    done = []
    whole = numbers(run_grid(cfgs, ResultStore(tmp_path/'w.jsonl'), tmp_path, device='cpu'))
    make = run.run_one

    def dies_at_two(cfg, *a, **kw):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(cfg)
        return make(cfg, *a, **kw)
    monkeypatch.setattr(grid, 'run_one', dies_at_two)
    with pytest.raises(KeyboardInterrupt):
        run_grid(cfgs, rows, tmp_path, device='cpu')
    assert len(rows.all()) == 2
    monkeypatch.setattr(grid, 'run_one', lambda cfg, *a, **kw: done.append(cfg) or make(cfg, *a, **kw))
    # only the third was made again
    assert numbers(run_grid(cfgs, rows, tmp_path, device='cpu')) == whole and len(done) == 3


def test_nothing_is_trained_when_one_run_of_the_grid_cannot_work(tmp_path, monkeypatch):
    monkeypatch.setattr(grid, 'record_dynamics', lambda *a, **k: pytest.fail('recorded'))
    with pytest.raises(ValueError, match='pca with ipc=100'):
        run_grid([run_cfg('digits', 'el2n-easyB', 1), run_cfg('digits', 'pca', 100)], ResultStore(tmp_path/'r.jsonl'),
                 tmp_path)
    assert not (tmp_path/'r.jsonl').exists()


@pytest.fixture(scope='module')
def network():
    "A teacher for digits: four epochs"
    from pca_nb.teachers import make_teacher, TeacherCfg
    from pca_nb.recipes import RECIPES
    full = load_data('digits')
    return make_teacher(full, TeacherCfg('convnet2-w32', replace(RECIPES['ccs'], epochs=4, batch=32), 0, 16),
                        load_data('digits', 'test'), device='cpu')


MADE_OF_NOTHING = {'noise', *DISTILLERS}


def test_every_method_keeps_the_contract(network):
    """ipc images a class (on average without balance), provenance inside the full set (-1 throughout where images
    come from nowhere), the same set for the same seed"""
    from pca_nb.scores import Dynamics, SUMS
    import torch
    full = load_data('digits')
    dyn = Dynamics({k: torch.rand(len(full), generator=generator(0, k)) for k in SUMS}, 60, 10, {})
    for name in METHODS:
        cfg = run_cfg('digits', name, 3, iteration_share=.001)
        a, b = (build_set(cfg, full, dyn, [network]*len(cfg.synthesis.teachers if cfg.synthesis else ()), 'cpu')
                for _ in range(2))
        assert len(a) == 30 and a.size == (16, 16) and torch.equal(a.images,
                                                                   b.images) and torch.equal(a.index, b.index), name
        assert a.grid == cfg.tiling.factor, name
        if name in MADE_OF_NOTHING: assert (a.index == -1).all(), name
        else:
            assert (0 <= a.index.min() and a.index.max() < len(full)
                    and a.index.unique().numel() == a.index.numel()), name
            assert (full.labels[a.index] == a.labels[:, None]).all(), name
        if not name.endswith(('-easy', '-hard', '-global')):
            assert a.counts.tolist() == [3] * 10, name


def test_a_newcomers_method_is_one_entry(tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, 'first',
                        Method(lambda full, ipc, use: METHODS['random'].make(full, ipc, replace(use, g=generator(0)))))
    frame = run_grid([short('first', s) for s in (0, 1)], ResultStore(tmp_path/'r.jsonl'), tmp_path, device='cpu')
    assert frame.set.nunique() == 1 and summary(frame).n.tolist() == [2]


def test_hard_and_soft_rows_learn_from_one_distilled_set(tmp_path, monkeypatch):
    """networks are trained once, pixels optimised once, whatever the labels; a grid that is killed while optimising
    goes on from there"""
    from pca_nb import methods
    cfgs = [replace(c, recipe=replace(c.recipe, **CUT), synthesis=replace(c.synthesis, teachers=(t,)), soft=c.soft
                    and replace(c.soft, teachers=(t,)))
            for r in ('hard', 'soft') for c in [run_cfg('digits', 'sre2l', 2, recipe=r, iteration_share=.003)]
            for t in [replace(c.synthesis.teachers[0], recipe=replace(c.synthesis.teachers[0].recipe, epochs=3,
                                                                      batch=64))]]
    calls, whole = [], methods.synthesise

    def counted(*a):
        calls.append(a)
        if len(calls) == 1: raise KeyboardInterrupt
        return whole(*a)
    monkeypatch.setattr(methods, 'synthesise', counted)
    with pytest.raises(KeyboardInterrupt): run_grid(cfgs, ResultStore(tmp_path/'r.jsonl'), tmp_path, device='cpu')
    frame = run_grid(cfgs, ResultStore(tmp_path/'r.jsonl'), tmp_path, device='cpu')
    assert len(calls) == 2 and frame.set.nunique() == 1 and frame.labels.tolist() == ['hard', 'soft']
    assert [m['steps'] for m in frame.made] == [12, 12] and len(list((tmp_path/'teachers').glob('*.pt'))) == 1
    assert all(m['seconds'] > 0 and m['asked'][0]['top1'] > 50 for m in frame.made)
    assert not list((tmp_path/'sets').glob('*.ckpt'))


def test_a_decoded_set_stores_composites_and_trains_on_their_cells(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(run, 'train', lambda net, s, *a, **k: seen.append(s) or train(net, s, *a, **k))
    frame = run_grid([short('pca+decode')], ResultStore(tmp_path/'r.jsonl'), tmp_path, device='cpu')
    assert frame.images.tolist() == [20] and len(seen[0]) == 80 and seen[0].grid == 1


def test_rows_say_where_they_come_from(tmp_path):
    run_grid([short('random')], ResultStore(tmp_path/'r.jsonl'), tmp_path, device='cpu')
    row = json.loads((tmp_path/'r.jsonl').read_text())
    assert row['key'] == short('random').key and row['cfg']['recipe']['epochs'] == 4
    assert {'device', 'dtype', 'torch', 'torchvision', 'python', 'pca_nb', 'seconds', 'image_bytes', 'label_bytes',
            'best_top1', 'best_epoch'} <= set(row)
    assert row['images'] == 20 and row['best_top1'] >= row['top1'] and row['best_epoch'] in (0, 2, 3)


@pytest.mark.parametrize('plain, composed', [('random', 'tiles'), ('el2n-easyB', 'pca')])
def test_composites_hold_the_images_of_the_larger_plain_set(plain, composed):
    "x01 compares 10 composites with the same 40 images whole"
    full = load_data('digits')
    scores = dict(el2n=torch.randn(len(full), generator=generator(0)))
    whole, cells = (build_set(run_cfg('digits', m, i, 1), full, scores).index for m, i in ((plain, 12), (composed, 3)))
    assert cells.shape == (30, 4) and sorted(cells.flatten().tolist()) == sorted(whole.flatten().tolist())


@pytest.fixture
def own():
    "A place for methods of a test's own"
    before = dict(METHODS)
    yield METHODS
    METHODS.clear()
    METHODS.update(before)


def test_what_a_method_notes_stands_in_its_row(own):
    def noting(full, ipc, use):
        use.notes['why'] = 'the first'
        return full[torch.cat([(full.labels == c).nonzero()[:ipc, 0] for c in range(full.n_classes)])]
    own['noting'] = Method(noting)
    full = load_data('digits')
    test = load_data('digits', 'test')
    row = run_one(run_cfg('digits', 'noting', 1, min_steps=2), full, test, device='cpu')
    assert row['made']['why'] == 'the first' and 0 <= row['made']['seconds'] <= row['seconds']['make'] + .01
    assert 'made' not in run_one(run_cfg('digits', 'random', 1, min_steps=2), full, test, device='cpu')


@pytest.mark.parametrize('spoil,what', [
    (lambda s: s[torch.arange(9)], 'images 9'),
    (lambda s: replace(s, stats=((0.,)*3, (1.,)*3)), 'stats'),
    (lambda s: replace(s, images=s.images[..., :8]), 'size'),
    (lambda s: replace(s, classes=s.classes[::-1]), 'classes'),
    (lambda s: replace(s, index=None), '`index` names images of other classes'),
    (lambda s: replace(s, index=s.index+10**6), '`index` names images of other classes')])
def test_a_set_that_cannot_be_compared_is_refused_before_training(own, spoil, what, monkeypatch):
    full = load_data('digits')
    own['odd'] = Method(lambda full, ipc, use: spoil(METHODS['random'].make(full, ipc, use)))
    monkeypatch.setattr('pca_nb.run.train', None)              # nothing may get so far
    with pytest.raises(ValueError, match=what): run_one(run_cfg('digits', 'odd', 1), full, full, device='cpu')


def test_workers_import_a_module_of_ones_own(tmp_path, monkeypatch):
    "What it registers is known there; a name that is wrong is told before any worker starts."
    (tmp_path/'my_own.py').write_text("from pca_nb.methods import METHODS, Method, make_pruned\nMETHODS['my-own'] = "
                                      "Method(make_pruned('random'))\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ImportError, match='my_wrong'): process_pool(1, modules=['my_wrong'])
    try:
        with process_pool(1, modules='my_own') as ex:
            frame = run_grid([run_cfg('digits', 'my-own', 1, min_steps=2)], ResultStore(tmp_path/'r.jsonl'), tmp_path,
                             executor=ex, device='cpu')
    finally: METHODS.pop('my-own', None)
    assert frame.method.tolist() == ['my-own']
