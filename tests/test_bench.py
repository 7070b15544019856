"Rows and grids: the same from one process or two, killed or not."
import json
from dataclasses import replace

import pandas as pd
import pytest
import torch

from pca_nb import grid, html_report, methods, run
from pca_nb.core import generator
from pca_nb.datasets import DATASETS, load_data
from pca_nb.distillers import DISTILLERS
from pca_nb.grid import Grid, run_grid
from pca_nb.workers import process_pool
from pca_nb.methods import display_data, display_name, Method, METHODS
from pca_nb.recipes import RECIPES
from pca_nb.result_store import ResultStore
from pca_nb.run import run_one
from pca_nb.runs import build_set, run_cfg
from pca_nb.scores import Dynamics, SUMS
from pca_nb.stats import summary
from pca_nb.tables import runs_for, SCALES, TABLES
from pca_nb.teachers import make_teacher, TeacherCfg
from pca_nb.train import train

CUT = dict(epochs=4, eval_every=2)


def short(method, seed=0, ipc=2):
    "A run of few epochs, by scores of two epochs."
    cfg = run_cfg('digits', method, ipc, seed)
    scoring = cfg.scoring
    if scoring: scoring = replace(scoring, recipe=replace(scoring.recipe, epochs=2, batch=256), stop_epoch=0)
    return replace(cfg, recipe=replace(cfg.recipe, **CUT), scoring=scoring)


def numbers(frame):
    return frame[['key', 'top1', 'nll', 'loss', 'set']].sort_values('key').values.tolist()


@pytest.fixture(scope='module')
def full(): return load_data('digits')


@pytest.fixture(scope='module')
def held_out(): return load_data('digits', 'test')


@pytest.fixture
def store(tmp_path): return ResultStore(tmp_path/'r.jsonl')


@pytest.fixture
def own():
    "A place for methods of a test's own"
    before = dict(METHODS)
    yield METHODS
    METHODS.clear()
    METHODS.update(before)


# ---- grids ----
def test_two_processes_make_the_rows_of_one(tmp_path):
    cfgs = [short(m, s) for m in ('random', 'pca') for s in (0, 1)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    one = run_grid(cfgs, ResultStore(tmp_path/'a.jsonl'), tmp_path, device='cpu')
    torch.set_num_threads(threads)
    with process_pool(2) as ex:
        two = run_grid(cfgs, ResultStore(tmp_path/'b.jsonl'), tmp_path, executor=ex, device='cpu')
    assert numbers(one) == numbers(two)


def test_a_killed_grid_loses_no_row(store, tmp_path, monkeypatch):
    cfgs = [short('random', s) for s in range(3)]
    whole = numbers(run_grid(cfgs, ResultStore(tmp_path/'w.jsonl'), tmp_path, device='cpu'))
    done = []

    def counted(cfg, *a, **kw):
        done.append(cfg)
        return run_one(cfg, *a, **kw)

    def dies_at_two(cfg, *a, **kw):
        if len(done) == 2: raise KeyboardInterrupt
        return counted(cfg, *a, **kw)
    monkeypatch.setattr(grid, 'run_one', dies_at_two)
    with pytest.raises(KeyboardInterrupt): run_grid(cfgs, store, tmp_path, device='cpu')
    assert len(store.all()) == 2
    monkeypatch.setattr(grid, 'run_one', counted)
    again = numbers(run_grid(cfgs, store, tmp_path, device='cpu'))
    assert again == whole and len(done) == 3   # only the third was made again


def test_nothing_is_trained_when_one_run_of_the_grid_cannot_work(store, tmp_path, monkeypatch):
    monkeypatch.setattr(grid, 'record_dynamics', lambda *a, **k: pytest.fail('recorded'))
    cfgs = [run_cfg('digits', 'el2n-easyB', 1), run_cfg('digits', 'pca', 100)]
    with pytest.raises(ValueError, match='pca with ipc=100'): run_grid(cfgs, store, tmp_path)
    assert not store.path.exists()


def test_hard_and_soft_rows_learn_from_one_distilled_set(store, tmp_path, monkeypatch):
    """networks are trained once, pixels optimised once, whatever the labels; a grid that is killed while optimising
    goes on from there"""
    def cut(recipe):
        cfg = run_cfg('digits', 'sre2l', 2, recipe=recipe, iteration_share=.003)
        teacher = cfg.synthesis.teachers[0]
        teachers = (replace(teacher, recipe=replace(teacher.recipe, epochs=3, batch=64)),)
        soft = cfg.soft and replace(cfg.soft, teachers=teachers)
        return replace(cfg, recipe=replace(cfg.recipe, **CUT), soft=soft,
                       synthesis=replace(cfg.synthesis, teachers=teachers))
    cfgs = [cut('hard'), cut('soft')]
    calls, whole = [], methods.synthesise

    def counted(*a):
        calls.append(a)
        if len(calls) == 1: raise KeyboardInterrupt
        return whole(*a)
    monkeypatch.setattr(methods, 'synthesise', counted)
    with pytest.raises(KeyboardInterrupt): run_grid(cfgs, store, tmp_path, device='cpu')
    frame = run_grid(cfgs, store, tmp_path, device='cpu')
    assert len(calls) == 2 and frame.set.nunique() == 1 and frame.labels.tolist() == ['hard', 'soft']
    assert [m['steps'] for m in frame.made] == [12, 12] and len(list((tmp_path/'teachers').glob('*.pt'))) == 1
    assert all(m['seconds'] > 0 and m['asked'][0]['top1'] > 50 for m in frame.made)
    assert not list((tmp_path/'sets').glob('*.ckpt'))


def test_a_grid_gives_what_its_rows_were_made_of(store, tmp_path):
    "Scores and sets that a `Grid` hands out are those of the runs, read from the files that the runs left."
    cfg = short('pca')
    frame = run_grid([cfg], store, tmp_path, device='cpu')
    place = Grid(tmp_path, device='cpu')
    before = place.score_file(cfg).stat().st_mtime_ns
    full, _ = place.sets(cfg)
    s = build_set(cfg, full, place.scores(cfg))
    assert run._set_hash(s) == frame.set[0] and place.score_file(cfg).stat().st_mtime_ns == before
    assert not place.ckpt_file(cfg).exists() and not place.label_folder(cfg).exists()


def test_a_decoded_set_stores_composites_and_trains_on_their_cells(store, tmp_path, monkeypatch):
    seen = []

    def noted(net, s, *a, **kw):
        seen.append(s)
        return train(net, s, *a, **kw)
    monkeypatch.setattr(run, 'train', noted)
    frame = run_grid([short('pca+decode')], store, tmp_path, device='cpu')
    assert frame.images.tolist() == [20] and len(seen[0]) == 80 and seen[0].grid == 1


def test_rows_say_where_they_come_from(store, tmp_path):
    run_grid([short('random')], store, tmp_path, device='cpu')
    row = json.loads(store.path.read_text())
    assert row['key'] == short('random').key and row['cfg']['recipe']['epochs'] == 4
    assert {'device', 'dtype', 'torch', 'torchvision', 'python', 'pca_nb', 'seconds', 'image_bytes', 'label_bytes',
            'best_top1', 'best_epoch'} <= set(row)
    assert row['images'] == 20 and row['best_top1'] >= row['top1'] and row['best_epoch'] in (0, 2, 3)


# ---- methods ----
@pytest.fixture(scope='module')
def network(full, held_out):
    "A teacher for digits: four epochs"
    cfg = TeacherCfg('convnet2-w32', replace(RECIPES['ccs'], epochs=4, batch=32), 0, 16)
    return make_teacher(full, cfg, held_out, device='cpu')


MADE_OF_NOTHING = {'noise', *DISTILLERS}
UNBALANCED = ('-easy', '-hard', '-global')


@pytest.mark.parametrize('name', METHODS)
def test_every_method_keeps_the_contract(name, full, network):
    """ipc images per class (on average without balance), provenance inside the full set (-1 throughout where images
    come from nowhere), the same set for the same seed"""
    features = torch.randn(len(full), 8, generator=generator(0)).half()
    dynamics = Dynamics({k: torch.rand(len(full), generator=generator(0, k)) for k in SUMS}, 60, 10, {}, features)
    cfg = run_cfg('digits', name, 3, iteration_share=.001)
    teachers = [network]*len(cfg.synthesis.teachers if cfg.synthesis else ())
    a, b = (build_set(cfg, full, dynamics, teachers, 'cpu') for _ in range(2))
    assert len(a) == 30 and a.size == (16, 16) and a.grid == cfg.tiling.factor
    assert torch.equal(a.images, b.images) and torch.equal(a.index, b.index)
    if name in MADE_OF_NOTHING: assert (a.index == -1).all()
    else:
        assert 0 <= a.index.min() and a.index.max() < len(full)
        assert a.index.unique().numel() == a.index.numel()
        assert (full.labels[a.index] == a.labels[:, None]).all()
    if not name.endswith(UNBALANCED): assert a.counts.tolist() == [3]*10


def test_scores_of_an_earlier_version_are_refused_where_features_are_needed(store, tmp_path):
    "The file is named and so is the way out; methods that only rank use it as it is."
    ours, pca = short('cover'), short('pca')
    place = grid.Grid(tmp_path, device='cpu')
    file = place.score_file(ours)
    assert file == place.score_file(pca)   # one scoring run for both
    now = place.scores(ours)
    replace(now, features=None).save(file)
    assert place.scores(pca).features is None
    with pytest.raises(ValueError, match=f'cover needs features, and {file} was written by .*: remove it'):
        place.scores(ours)
    full = place.sets(ours)[0]
    rows = pd.DataFrame(dict(data='digits', method=['pca', 'cover']))
    assert [*html_report._small_sets(rows, full, now)] == ['pca', 'cover']   # a page shows what can be made
    assert [*html_report._small_sets(rows, full, place.scores(pca))] == ['pca']
    file.unlink()
    assert torch.equal(place.scores(ours).features, now.features)
    assert run_grid([ours], store, tmp_path, device='cpu').method.tolist() == ['cover']


@pytest.mark.parametrize('plain, composed', [('random', 'tiles'), ('el2n-easyB', 'pca')])
def test_composites_hold_the_images_of_the_larger_plain_set(plain, composed, full):
    "x01 compares 10 composites with the same 40 images whole"
    scores = dict(el2n=torch.randn(len(full), generator=generator(0)))
    whole, cells = (build_set(run_cfg('digits', m, i, 1), full, scores).index for m, i in ((plain, 12), (composed, 3)))
    assert cells.shape == (30, 4) and sorted(cells.flatten().tolist()) == sorted(whole.flatten().tolist())


def labels_of_tables():
    "Every label of every table at every scale that it has runs at."
    for table in TABLES:
        for scale in SCALES:
            try: yield from (label for label, _ in runs_for(table, scale))
            except ValueError: pass   # no runs of this table at this scale


def test_display_names_are_distinct_and_in_plain_words():
    "Every key of `METHODS` and every label of a table; no key, option or file name is left in them."
    labels = {*METHODS, *labels_of_tables()}
    shown = [display_name(label) for label in labels]
    assert len(labels) > 150 and len(set(shown)) == len(labels)
    for word in ('easyB', 'hardB', 'el2n', 'pca', 'lsq', 'sre2l', 'convnet', '_', '+none', 'soft-'):
        assert not [s for s in shown if word in s], word


@pytest.mark.parametrize('names', [DATASETS, SCALES], ids=['data', 'scales'])
def test_data_sets_have_distinct_display_names(names):
    assert len({display_data(key) for key in names}) == len(names)


# ---- methods of one's own ----
def test_a_newcomers_method_is_one_entry(own, store, tmp_path):
    def first(full, ipc, inputs): return METHODS['random'].make(full, ipc, replace(inputs, g=generator(0)))
    own['first'] = Method(first)
    frame = run_grid([short('first', s) for s in (0, 1)], store, tmp_path, device='cpu')
    assert frame.set.nunique() == 1 and summary(frame).n.tolist() == [2]


def test_what_a_method_notes_stands_in_its_row(own, full, held_out):
    def noting(full, ipc, inputs):
        inputs.notes['why'] = 'the first'
        return full[torch.cat([(full.labels == c).nonzero()[:ipc, 0] for c in range(full.n_classes)])]
    own['noting'] = Method(noting)
    row = run_one(run_cfg('digits', 'noting', 1, min_steps=2), full, held_out, device='cpu')
    assert row['made']['why'] == 'the first' and 0 <= row['made']['seconds'] <= row['seconds']['make'] + .01
    assert 'made' not in run_one(run_cfg('digits', 'random', 1, min_steps=2), full, held_out, device='cpu')


@pytest.mark.parametrize('spoil,what', [
    (lambda s: s[torch.arange(9)], 'images 9'),
    (lambda s: replace(s, stats=((0.,)*3, (1.,)*3)), 'stats'),
    (lambda s: replace(s, images=s.images[..., :8]), 'size'),
    (lambda s: replace(s, classes=s.classes[::-1]), 'classes'),
    (lambda s: replace(s, index=None), '`index` names images of other classes'),
    (lambda s: replace(s, index=s.index+10**6), '`index` names images of other classes')])
def test_a_set_that_cannot_be_compared_is_refused_before_training(own, full, spoil, what, monkeypatch):
    own['odd'] = Method(lambda full, ipc, inputs: spoil(METHODS['random'].make(full, ipc, inputs)))
    monkeypatch.setattr(run, 'train', None)              # nothing may get so far
    with pytest.raises(ValueError, match=what): run_one(run_cfg('digits', 'odd', 1), full, full, device='cpu')


def test_a_method_with_an_unknown_need_for_teachers_is_refused(own):
    own['odd'] = Method(METHODS['random'].make, teachers='two')
    with pytest.raises(KeyError, match="unknown need for teachers 'two': choose one of .*one, other, several"):
        run_cfg('digits', 'odd', 1)


MY_OWN = '''
from pca_nb.methods import METHODS, Method, make_pruned
METHODS['my-own'] = Method(make_pruned('random'))
'''


def test_workers_import_a_module_of_ones_own(own, store, tmp_path, monkeypatch):
    "What it registers is known there; a name that is wrong is refused before any worker starts."
    (tmp_path/'my_own.py').write_text(MY_OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ImportError, match='my_wrong'): process_pool(1, modules=['my_wrong'])
    with process_pool(1, modules='my_own') as ex:
        cfg = run_cfg('digits', 'my-own', 1, min_steps=2)
        frame = run_grid([cfg], store, tmp_path, executor=ex, device='cpu')
    assert frame.method.tolist() == ['my-own']
