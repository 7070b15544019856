"The loop: the same whether killed, read from disk, or run in another process."
from dataclasses import replace

import pytest
import torch

from pca_nb.augment import AugmentCfg
from pca_nb.core import generator
from pca_nb.imageset import ImageSet
from pca_nb.decode import LazyImages, prefetch_batches
from pca_nb.files import encode_images
from pca_nb.models import make_model
from pca_nb.scores import record_dynamics, Recorder, ScoringCfg
from pca_nb.recipes import HARD, Recipe, RECIPES, scale_recipe, SCHEDULES
from pca_nb.train import train

AUG = AugmentCfg(mix='cutmix', mix_labels=True, mix_per='image')


def toy(n=50, S=16, classes=5):
    g = generator(0)
    return ImageSet(torch.randint(256, (n, 3, S, S), generator=g).to(torch.uint8), torch.arange(n) % classes, 'abcde',
                    name='toy')


def weights(recipe, data, ckpt=None, stops=(None,), callbacks=lambda: ()):
    for stop in stops:
        net = make_model('convnet2-w32', 5, 16)
        cbs = callbacks()
        log = train(net, data, recipe, 3, data, cbs, stop_epoch=stop, device='cpu', ckpt=ckpt)
    return net.state_dict(), log, cbs


@pytest.mark.parametrize('recipe', [replace(HARD, augment=AUG), replace(RECIPES['ccs'], lr=.01),
                                    replace(RECIPES['sgd'], lr=.01)], ids=['adamw', 'ccs', 'sgd'])
def test_killed_anywhere_ends_the_same(recipe, tmp_path):
    recipe = replace(recipe, epochs=6, batch=16, eval_every=2)
    whole, log, (rec,) = weights(recipe, toy(), callbacks=lambda: (Recorder(50),))
    again, log2, (rec2,) = weights(recipe, toy(), tmp_path/'c.pt', (1, 4, None), lambda: (Recorder(50),))
    assert all(torch.equal(whole[k], again[k]) for k in whole)
    assert log.drop(columns='per_class').equals(log2.drop(columns='per_class'))
    assert all(torch.equal(rec.sums[k], rec2.sums[k]) for k in rec.sums)


def test_on_demand_trains_as_resident():
    data = toy()
    lazy = replace(data, images=LazyImages(encode_images(data), 16))
    recipe = replace(HARD, epochs=3, batch=16)
    a = weights(recipe, data)[0]
    b = weights(recipe, lazy)[0]
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_batches_cover_the_order_once():
    data = toy()
    order = torch.randperm(50, generator=generator(1))
    for images in (data.images, LazyImages(encode_images(data), 16)):
        got = list(prefetch_batches(images, order.split(16)))
        assert torch.equal(torch.cat([i for i, _ in got]), order)
        assert torch.equal(torch.cat([x for _, x in got]), data.images[order])


def test_the_seed_decides_everything():
    recipe = replace(HARD, epochs=2, batch=16)
    torch.manual_seed(1)
    a = weights(recipe, toy())[0]
    torch.manual_seed(2)
    b = weights(recipe, toy())[0]
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_training_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    weights(replace(HARD, epochs=1), toy())
    assert torch.equal(torch.rand(3), want)


def test_recording_changes_nothing():
    recipe = replace(HARD, epochs=3, batch=16)
    a = weights(recipe, toy())[0]
    b = weights(recipe, toy(), callbacks=lambda: (Recorder(50),))[0]
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_el2n_of_ten_epochs_is_that_of_the_long_run():
    cfg = ScoringCfg('convnet2-w32', replace(RECIPES['ccs'], epochs=14, batch=16, lr=.01), el2n_epochs=5)
    data = replace(toy(), classes=tuple('abcde'))
    assert torch.equal(record_dynamics(data, cfg, device='cpu').sums['el2n'],
                       record_dynamics(data, replace(cfg, stop_epoch=5), device='cpu').sums['el2n'])


def test_scaled_never_does_less_than_the_papers_smallest_cell():
    for n in (10, 37, 100, 1000, 5000, 10**4, 10**6):
        r = scale_recipe(HARD, n)
        steps = -(-n // r.batch)
        assert r.batch <= 128 and r.epochs * steps >= 2400 and (steps >= 8 or r.batch <= 16) and r.lr == HARD.lr


@pytest.mark.parametrize('name', SCHEDULES)
def test_rates_start_at_lr_and_never_rise(name):
    rates = [Recipe(schedule=name, lr=.1).rate(e) for e in range(300)]
    assert rates[0] == pytest.approx(.1) and all(a >= b for a, b in zip(rates, rates[1:]))


def test_recipes_are_the_papers():
    "Table 1 (CDA's column) and the released evaluator's configs, constant by constant"
    h, s = RECIPES['hard'], RECIPES['sgd']
    assert (h.epochs, h.batch, h.optimizer, h.lr, h.weight_decay, h.decay_all, h.schedule,
            h.lr_every) == (300, 128, 'adamw', 1e-3, .01, False, 'cosine', 'epoch')
    assert (h.augment.crop_scale, h.augment.flip, h.augment.mix, h.label_smoothing,
            h.eval_every) == ((.08, 1.), .5, 'none', 0., 50)
    assert (s.optimizer, s.lr, s.momentum, s.nesterov, s.weight_decay, s.decay_all,
            s.batch) == ('sgd', .1, .9, False, 1e-4, True, 128)
    assert replace(RECIPES['pca'], augment=replace(RECIPES['pca'].augment, patches='none')) == h
    c = RECIPES['ccs']
    assert (c.epochs, c.batch, c.lr, c.weight_decay, c.lr_every, c.lr_min) == (60, 256, .1, 1e-4, 'step', 1e-4)


def test_every_epoch_has_views_of_its_own(monkeypatch):
    from pca_nb import objective as engine
    seen, draw = [], engine.draw_view
    monkeypatch.setattr(engine, 'draw_view', lambda *a: seen.append(draw(*a)) or seen[-1])
    weights(replace(HARD, epochs=3, batch=50), toy())
    assert not any(torch.equal(a.box, b.box) for a, b in zip(seen, seen[1:])) and len(seen) == 3
