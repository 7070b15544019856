"Runs that are trained in step: rows, failures and groups of a grid, at the grid's own door."
import pickle
from dataclasses import replace

import pytest
import torch

from pca_nb import groups, validate
from pca_nb.augment import AugmentCfg
from pca_nb.datasets import load_data
from pca_nb.grid import process_pool, run_grid, RunsFailed
from pca_nb.groups import GroupFailed
from pca_nb.models import make_model
from pca_nb.recipes import Recipe
from pca_nb.result_store import ResultStore
from pca_nb.runs import run_cfg
from pca_nb.together import train_together
from pca_nb.train import train, Trainer

VIEWS = AugmentCfg(crop_scale=(.5, 1.), flip=0.)


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    "float32 on every processor, one thread"
    monkeypatch.setattr(validate, 'pick_dtype', lambda device: torch.float32)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def short(method, seed, **change):
    cfg = run_cfg('digits', method, 2, seed)
    scoring = cfg.scoring and replace(cfg.scoring, recipe=replace(cfg.scoring.recipe, epochs=3), stop_epoch=0)
    return replace(cfg, recipe=replace(cfg.recipe, epochs=6, eval_every=3, **change), scoring=scoring)


def rows(path): return {row['key']: row for row in ResultStore(path).all()}


def test_a_grid_of_groups_has_the_rows_of_single_runs(tmp_path):
    "Plain images and composites, three seeds each, and one run of another length that stands alone."
    cfgs = [short(method, seed) for method in ('random', 'tiles') for seed in range(3)]
    cfgs.append(replace(cfgs[0], recipe=replace(cfgs[0].recipe, epochs=7)))
    frame = run_grid(cfgs, ResultStore(tmp_path/'a.jsonl'), tmp_path, device='cpu', together=3)
    run_grid(cfgs, ResultStore(tmp_path/'b.jsonl'), tmp_path, device='cpu', together=1)
    many, single = rows(tmp_path/'a.jsonl'), rows(tmp_path/'b.jsonl')
    assert [many[c.key].get('together') for c in cfgs] == [3]*6+[None] and len(frame) == 7
    for key, row in single.items():
        for name in ('method', 'seed', 'set', 'images', 'image_bytes', 'label_bytes', 'epochs', 'cfg'):
            assert many[key][name] == row[name], name
        assert many[key]['loss'] == pytest.approx(row['loss'], rel=2e-3)
        assert many[key]['top1'] == pytest.approx(row['top1'], abs=1)
    assert not list((tmp_path/'ckpt').iterdir())


@pytest.mark.parametrize('name', ['sgd', 'adamw'])
def test_resnets_in_step_lose_what_they_lose_alone(name):
    full = load_data('digits')
    recipe = Recipe(VIEWS, epochs=2, batch=8, optimizer=name, lr=1e-3)
    sets = [full[torch.arange(s, 200+s, 10)] for s in range(3)]   # 20 images: two batches of 8 and one of 4
    def runs(): return [Trainer(make_model('resnet18', 10, 16, s), sets[s], recipe, s, device='cpu') for s in range(3)]
    for log, run in zip(train_together(runs()), runs()):
        alone = train(run.model, run.data, recipe, run.seed, device='cpu')
        assert log.loss[0] == pytest.approx(alone.loss[0], rel=.02) and log.epoch.tolist() == [0, 1]


def test_workers_make_groups_and_say_which_runs_failed(tmp_path):
    "Four runs with an absurd learning rate in two groups, and a healthy one."
    bad = [short('random', seed, lr=1e30) for seed in range(4)]
    store = ResultStore(tmp_path/'r.jsonl')
    with process_pool(2) as ex:
        with pytest.raises(RunsFailed, match='4 of 5 runs failed.*the loss is'):
            run_grid([*bad, short('random', 0)], store, tmp_path, executor=ex, device='cpu', together=2)
    assert [row['cfg']['recipe']['lr'] for row in store.all()] == [.001]


def test_a_set_that_cannot_be_made_spoils_its_own_run_only(tmp_path, monkeypatch):
    cfgs = [short('random', seed) for seed in range(3)]
    whole = groups.prepare_run

    def breaks(cfg, *args):
        if cfg.seed == 1: raise ValueError('no set')
        return whole(cfg, *args)
    monkeypatch.setattr(groups, 'prepare_run', breaks)
    store = ResultStore(tmp_path/'r.jsonl')
    with pytest.raises(ValueError, match='no set'): run_grid(cfgs, store, tmp_path, device='cpu', together=3)
    assert sorted((row['seed'], row['together']) for row in store.all()) == [(0, 2), (2, 2)]


def test_a_run_that_fits_no_group_is_made_alone(tmp_path, monkeypatch):
    "Seed 2 has images with other statistics."
    cfgs = [short('random', seed) for seed in range(3)]
    whole = groups.prepare_run

    def odd(cfg, *args):
        run = whole(cfg, *args)
        if cfg.seed == 2: run.seen = replace(run.seen, stats=((0,)*3, (1,)*3))
        return run
    monkeypatch.setattr(groups, 'prepare_run', odd)
    store = ResultStore(tmp_path/'r.jsonl')
    run_grid(cfgs, store, tmp_path, device='cpu', together=3)
    assert {row['seed']: row.get('together') for row in store.all()} == {0: 2, 1: 2, 2: None}


def test_failures_travel_between_processes():
    error = pickle.loads(pickle.dumps(GroupFailed([(short('random', 0), FloatingPointError('nan'))])))
    assert error.failed[0][0] == short('random', 0) and str(error.failed[0][1]) == 'nan'
