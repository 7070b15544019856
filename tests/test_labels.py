"Soft labels: the losses against closed forms, replay against live, and stores that were stopped, cut or mixed up."
import random
import shutil
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pca_nb.augment import AugmentCfg
from pca_nb.result_store import ResultStore
from pca_nb.grid import Grid, run_grid
from pca_nb.combine import assign_to_cells, combine
from pca_nb.core import generator
from pca_nb.datasets import load_data
from pca_nb.teachers import ensemble_logits, make_teacher, Teacher, TeacherCfg, TeacherLabels
from pca_nb.runs import run_cfg
from pca_nb.models import make_model
from pca_nb.prune import random_balanced
from pca_nb.codecs import CODECS
from pca_nb.label_plan import LabelPlan, LabelStoreCfg
from pca_nb.label_store import label_bytes, write_labels
from pca_nb.stored_labels import StoredLabels
from pca_nb.recipes import HARD, RECIPES, SOFT_LOSSES, SoftRecipe
from pca_nb.train import train

FULL = load_data('digits')


def teacher(seed=3, arch='convnet2-w32'):
    return Teacher(make_model(arch, 10, 16, seed), arch, 16, FULL.classes, FULL.stats)


def tiled(f=2, ipc=4):
    g = generator(0)
    return combine(FULL, assign_to_cells(random_balanced(torch.zeros(len(FULL)), FULL.labels, FULL.classes, ipc*f*f,
                                                         g), 10, f, g), 'lsq')


def weights(data, recipe, labels, **kw):
    net = make_model('convnet2-w32', 10, 16)
    log = train(net, data, recipe, labels=labels, device='cpu', **kw)
    return torch.cat([v.flatten().double() for v in net.state_dict().values()]), log


SHORT = dict(epochs=3, batch=16, eval_every=3)


def test_kl_and_its_gradient():
    "torch's own KLDivLoss, and the gradient (p−q)/T"
    z, t = (torch.randn(7, 5, generator=generator(k), dtype=torch.double) for k in (0, 1))
    r = SoftRecipe(temperature=4.)
    oracle = nn.KLDivLoss(reduction='sum')((z/4).log_softmax(1), (t/4).softmax(1))
    assert torch.allclose(SOFT_LOSSES['kl'](z, t, r),
                          oracle) and torch.allclose(SOFT_LOSSES['kl'](z, t, replace(r, t_squared=True)), 16*oracle)
    z.requires_grad_()
    SOFT_LOSSES['kl'](z, t, r).backward()
    assert torch.allclose(z.grad, ((z/4).softmax(1)-(t/4).softmax(1))/4)
    assert torch.autograd.gradcheck(lambda z: SOFT_LOSSES['mse'](z, t, r), z)
    assert torch.allclose(SOFT_LOSSES['mse'](z, t, r), F.mse_loss(z, t)*7)


def test_a_soft_step_by_hand():
    "One step of SGD under MSE + 0.3 CE, two teachers, no views: a plain loop gives the same weights."
    data = FULL[torch.arange(32)]
    a = teacher(1)
    b = teacher(2)
    r = SoftRecipe(AugmentCfg(crop_scale=None, flip=0.), epochs=2, batch=16, optimizer='sgd', lr=.05, weight_decay=0.,
                   decay_all=True, loss='mse', hard_weight=.3, ensemble='norm')
    ours, plain = (make_model('convnet2-w32', 10, 16) for _ in range(2))
    train(ours, data, r, labels=TeacherLabels(a, b), device='cpu', dtype=torch.float32)
    opt = torch.optim.SGD(plain.parameters(), lr=.05, momentum=.9)
    x = (data.images/255.-torch.tensor(data.stats[0])[:, None, None])/torch.tensor(data.stats[1])[:, None, None]
    for e in range(2):
        opt.param_groups[0]['lr'] = r.rate(e)
        for i in torch.randperm(32, generator=generator(0, 'order', e)).split(16):
            z = [t.net(x[i]) for t in (a, b)]
            nu = sum(v.norm() for v in z)/2
            loss = ((plain(x[i])-sum(nu/v.norm()*v for v in z)/2)**2).mean()+.3*F.cross_entropy(plain(x[i]),
                                                                                                data.labels[i])
            for m in plain.modules():
                if isinstance(m, nn.BatchNorm2d): m.momentum = 0. # the loss above asks the student twice
            opt.zero_grad()
            loss.backward()
            opt.step()
    for p, q in zip(ours.parameters(), plain.parameters()): assert torch.allclose(p, q, atol=2e-4)


def test_averaged_weights_are_measured_and_kept():
    "EDC's mean of the weights, against one kept by hand; batch statistics stay the last."
    seen, r = [], SoftRecipe(**SHORT, ema=.7)
    from pca_nb.callbacks import Callback
    net = make_model('convnet2-w32', 10, 16)
    data = FULL[torch.arange(40)]
    start = [p.detach().clone() for p in net.parameters()]
    class Keeps(Callback):
        def after_batch(self, *_): seen.append([p.detach().clone() for p in net.parameters()])
    train(net, data, r, labels=TeacherLabels(teacher()), device='cpu', callbacks=[Keeps()])
    mean = start
    for step in seen: mean = [.7*m+.3*p for m, p in zip(mean, step)]
    for p, m, last in zip(net.parameters(), mean, seen[-1]):
        assert torch.allclose(p, m, atol=1e-6) and not torch.equal(p, last)


@pytest.mark.parametrize('ema', [0., .9])
def test_killed_and_resumed(tmp_path, ema):
    data = FULL[torch.arange(60)]
    r = SoftRecipe(**SHORT | dict(epochs=6), ema=ema)
    whole, log = weights(data, r, TeacherLabels(teacher()))
    weights(data, r, TeacherLabels(teacher()), stop_epoch=4, ckpt=tmp_path/'c.pt')
    with pytest.raises(ValueError, match='belongs to another run'):
        weights(data, r, TeacherLabels(teacher(4)), ckpt=tmp_path/'c.pt')
    again, log2 = weights(data, r, TeacherLabels(teacher()), ckpt=tmp_path/'c.pt')
    assert torch.equal(whole, again) and log.loss.tolist() == log2.loss.tolist()


VIEWS = [dict(), dict(crop_scale=None, flip=0.), dict(mix='cutmix'), dict(mix='cutmix', mix_per='image', mix_prob=.5),
         dict(mix='mixup'), dict(mix='mixup', mix_per='image'), dict(mix='cutout'),
         dict(patches='extract'), dict(patches='extract', mix='cutmix'), dict(patches='shuffle'),
         dict(patches='shuffle4', mix='mixup')]


@pytest.mark.parametrize('views', VIEWS, ids=str)
@pytest.mark.parametrize('how', ['stored', 'seed'])
def test_replay_is_live(tmp_path, views, how):
    "Every kind of view, plain and composite: the network trained from the store is the live one, bit for bit."
    data = tiled() if views.get('patches') else FULL[torch.arange(43)]
    r = SoftRecipe(AugmentCfg(**dict(crop_scale=(.3, 1.)) | views), **SHORT)
    live = TeacherLabels(teacher(1), teacher(2))
    kept = StoredLabels(write_labels(tmp_path/'s', LabelPlan(data, r, LabelStoreCfg('fp32', how)), live, 'cpu'), data)
    assert torch.equal(weights(data, r, kept)[0], weights(data, r, live)[0])
    assert kept.nbytes >= label_bytes(data, r,
                                      LabelStoreCfg('fp32', how)) and set(p.suffix
                                                                          for p in kept.path.iterdir()) == {'.npy',
                                                                                                            '.json'}


def test_other_losses_may_use_the_same_answers(tmp_path):
    data = FULL[torch.arange(43)]
    r = SoftRecipe(**SHORT)
    kept = StoredLabels(write_labels(tmp_path/'s', LabelPlan(data, r, LabelStoreCfg('fp32')), TeacherLabels(teacher()),
                                     'cpu'), data)
    other = replace(r, loss='mse', hard_weight=.1, lr=2e-3, schedule='smoothed', epochs=2, ema=.5)
    assert not torch.equal(weights(data, r, kept)[0], weights(data, other, kept)[0])


def test_a_store_that_was_stopped_anywhere_goes_on(tmp_path, tally):
    """Cut every unfinished file at random places, as a killed writer and its disk may leave them: the finished
    store is the same."""
    data = FULL[torch.arange(43)]
    r = SoftRecipe(AugmentCfg(mix='cutmix'), **SHORT)
    live = TeacherLabels(teacher())
    rng = random.Random(0)
    lost = 0
    whole = write_labels(tmp_path/'whole', LabelPlan(data, r), live, 'cpu')
    for k in range(12):
        part = tmp_path/f'{k}.part'
        shutil.copytree(whole, part)
        for f in part.glob('*.npy'):
            raw = f.read_bytes()
            head = len(raw)-np.load(f).nbytes
            f.write_bytes(raw[:rng.randint(head, len(raw))])
        write_labels(tmp_path/str(k), LabelPlan(data, r), live, 'cpu')
        lost += any(f.read_bytes() != (tmp_path/str(k)/f.name).read_bytes() for f in whole.iterdir()) or part.exists()
    tally.count('a half-written label store', 12, lost)
    assert not lost


def test_every_flipped_bit_is_found(tmp_path, tally):
    data = FULL[torch.arange(43)]
    r = SoftRecipe(AugmentCfg(mix='cutmix'), **SHORT)
    rng = random.Random(1)
    missed = 0
    s = write_labels(tmp_path/'s', LabelPlan(data, r), TeacherLabels(teacher()), 'cpu')
    files = sorted(s.glob('*.npy'))
    for k in range(60):
        f = files[k % len(files)]
        raw = bytearray(f.read_bytes())
        at = rng.randrange(len(raw))
        raw[at] ^= 1 << rng.randrange(8)
        old = f.read_bytes()
        f.write_bytes(raw)
        try:
            kept = StoredLabels(s, data)
            for i in range(kept.meta['steps']): kept.step(i)
            missed += 1
        except ValueError: pass
        f.write_bytes(old)
    tally.count('a flipped bit in a label store', 60, missed)
    assert not missed


def test_codecs_on_every_shape():
    for name, codec in CODECS.items():
        for n, C in ((1, 2), (3, 7), (5, 10), (2, 300)):
            z = 8*torch.randn(n, C, generator=generator(n))
            a = codec.encode(z)
            assert {k: (v.shape[0], v.shape[1:], v.dtype)
                    for k, v in a.items()} == {k: (n, s, np.dtype(d)) for k, (d, s) in codec.arrays(C).items()}
            back = codec.decode(a, C)
            assert back.shape == (n, C) and back.dtype == torch.float32 and torch.isfinite(back).all()
            if name in ('int8', 'int4', 'fp16', 'top5'):
                assert (back.argmax(1) == z.argmax(1)).float().mean() >= (1 if name != 'int4' else .5)


def test_int8_against_torchs_own_quantiser():
    "The same levels as torch.fake_quantize with the same step, one answer at a time."
    z = 3*torch.randn(20, 37, generator=generator(5))
    a = CODECS['int8'].encode(z)
    ours = CODECS['int8'].decode(a, 37)
    for i in range(20):
        lo = float(a['lo'][i])
        step = float(a['step'][i])
        theirs = torch.fake_quantize_per_tensor_affine(z[i]-lo, step, 0, 0, 255)+lo
        assert torch.allclose(ours[i], theirs, atol=step*1.01) and (ours[i]-theirs).abs().median() < 1e-5


def test_ensembles_share_out_their_say():
    "Under 'norm' a teacher's scale does not matter beyond the common one; under 'mean' the loud one wins."
    z = torch.randn(2, 6, 10, generator=generator(0))
    loud = z*torch.tensor([1., 50.])[:, None, None]
    def cos(a, b): return F.cosine_similarity(a.flatten(), b.flatten(), 0).item()
    assert cos(ensemble_logits(z, 'norm'),
               ensemble_logits(loud, 'norm')) > .9999 and cos(ensemble_logits(loud, 'mean'), z[1]) > .99


def test_a_teacher_that_was_killed_is_the_same_teacher(tmp_path, monkeypatch):
    from pca_nb import teachers
    cfg = TeacherCfg('convnet2-w32', replace(RECIPES['ccs'], epochs=4, batch=64, lr=.02), size=16)
    full = FULL[torch.arange(300)]
    test = load_data('digits', 'test')
    whole, real = make_teacher(full, cfg, test, device='cpu'), teachers.train
    monkeypatch.setattr(teachers, 'train', lambda *a, **kw: real(*a, **kw | dict(stop_epoch=2, save_every=0)))
    make_teacher(full, cfg, test, tmp_path/'t.pt', 'cpu')
    (tmp_path/'t.pt').unlink()                     # stopped after two epochs, before it was finished
    real(make_model('convnet2-w32', 10, 16, 0), full, cfg.recipe, 0, test, stop_epoch=2, device='cpu',
         ckpt=tmp_path/'t.ckpt', save_every=0)
    monkeypatch.undo()
    assert make_teacher(full, cfg, test, tmp_path/'t.pt', 'cpu').key == whole.key and not (tmp_path/'t.ckpt').exists()


def test_a_grid_with_teachers(tmp_path):
    """Hard, live and stored rows of one set; the stored fp32 row is the live one's; teachers are trained once;
    nothing is left behind."""
    def cut(c):
        return replace(c, recipe=replace(c.recipe, epochs=5, eval_every=5),
                       **(dict(soft=replace(c.soft, teachers=tuple(replace(t, recipe=replace(t.recipe, epochs=2))
                                                                   for t in c.soft.teachers))) if c.recipe.soft
                          else {}))
    cfgs = [cut(run_cfg('digits', 'random', 2, 0, recipe=r, labels=label))
            for r, label in (('hard', None), ('soft', None), ('soft', LabelStoreCfg('fp32')),
                         ('soft', LabelStoreCfg('int4', 'seed', 'shuffled', .5)))]
    f = run_grid(cfgs, ResultStore(tmp_path/'r.jsonl'), tmp_path, device='cpu')
    hard, live, kept, small = f.to_dict('records')
    assert f['set'].nunique() == 1 and f.labels.tolist() == ['hard']+['soft']*3
    assert (live['top1'], live['loss']) == (kept['top1'], kept['loss']) != (small['top1'], small['loss'])
    assert (hard['label_bytes'], live['label_bytes']) == (0, 0) and 0 < small['label_bytes'] < kept['label_bytes']
    assert (live['fkd_bytes'] == kept['fkd_bytes'] == 20*5*45 and live['teachers'] == kept['teachers']
            and len(list((tmp_path/'teachers').glob('*.pt'))) == 1)
    assert not list((tmp_path/'labels').glob('[!.]*')) and Grid().teachers(cfgs[0]) == []  # hidden: locks
    bad = replace(cfgs[1],
                  soft=replace(cfgs[1].soft,
                               teachers=tuple(replace(t, recipe=replace(t.recipe, epochs=1, lr=1e-9, lr_min=0.))
                                              for t in cfgs[1].soft.teachers)))
    more = cut(run_cfg('digits', 'random', 2, 1))
    with pytest.raises(ValueError, match='below 20 %'):
        run_grid([bad, more], ResultStore(tmp_path/'r.jsonl'), tmp_path, device='cpu')
    assert more in ResultStore(tmp_path/'r.jsonl')        # a teacher that knows nothing costs its own rows only


def test_hard_runs_know_nothing_of_teachers():
    "Their keys hold no field of soft labels; those of version 0.2 went through tools/migrate_rows.py."
    assert [run_cfg(*a).key for a in (('digits', 'random', 1), ('cifar10', 'pca', 10, 3),
                                      ('imagenette', 'ccs', 50))] == ['7104146e6307', 'd85891c3f699', '110886f02540']
    assert HARD.soft is False and HARD.ema == 0 and not {'soft', 'ema'} & {f.name for f in fields(HARD)}


def test_recipes_are_tables_1_and_17():
    """Every column of the paper's tables of settings, read off a recipe and the number of teachers that the
    benchmark gives it."""
    from pca_nb.paper import PAPER_RECIPES, recipe_settings, SETTINGS
    from pca_nb.tables import runs_for
    assert {m: recipe_settings(RECIPES[r], k) for m, (r, k) in PAPER_RECIPES.items()} == SETTINGS
    assert recipe_settings(RECIPES['edc-code'], 4) != SETTINGS['EDC']
    asked = {label.removeprefix('random, '): c for label, c in runs_for('t01', 'cifar10') if c.recipe.soft}
    for r, k in PAPER_RECIPES.values(): assert (len(asked[r].soft.teachers) > 1) == (k > 1)
    assert len(set(asked['gvbsm'].soft.teachers)) == len(asked['gvbsm'].soft.teachers)
    r = RECIPES   # what the tables do not print, from the released code
    assert {(r[k].temperature, r[k].t_squared, r[k].weight_decay, r[k].decay_all, r[k].label_smoothing, r[k].lr_every,
             r[k].augment.mix_prob, r[k].augment.mix_labels)
            for k, _ in PAPER_RECIPES.values()} == {(20., False, .01, False, 0., 'epoch', 1., False)}
    schedules = {k: r[k].schedule for k in ('soft', 'sre2l', 'gvbsm', 'rded', 'edc', 'edc-code')}
    assert schedules == {'soft': 'cosine', 'sre2l': 'cosine', 'gvbsm': 'cosine', 'rded': 'smoothed', 'edc': 'smoothed',
                         'edc-code': 'linear-half'}
    assert (r['gvbsm'].ensemble, r['edc'].ema, r['edc-code'].hard_weight) == ('norm', .99, .025)


def test_noise_is_normal_and_comes_from_nowhere():
    """Mean 0 and deviation 1 after normalising, save for what clipping to pixels takes; no image of the full set is
    in it."""
    from pca_nb.augment import normalise
    from pca_nb.runs import build_set
    cfg = run_cfg('digits', 'noise', 50)
    s = build_set(cfg, FULL)
    x = normalise(s.images, s.stats)
    (mean, std) = (torch.tensor(v) for v in s.stats)
    z = torch.randn(200_000, generator=generator(9))
    for c in range(3):
        oracle = z.clamp(-mean[c]/std[c], (1-mean[c])/std[c])
        assert abs(x[:, c].mean()-oracle.mean()) < .02 and abs(x[:, c].std()-oracle.std()) < .02
    assert (s.index == -1).all() and s.counts.tolist() == [50]*10
    assert torch.equal(build_set(cfg, FULL).images,
                       s.images) and not torch.equal(build_set(run_cfg('digits', 'noise', 50, 1), FULL).images,
                                                     s.images)


def test_lplds_pool_by_hand():
    """Three batches a pseudo-epoch, drawn with replacement, the last replaced by the one before it; two batches
    that begin with the same image are told apart no more."""
    from pca_nb.label_plan import replay_lpld
    first = [7, 4, 7, 1, 2]   # the first image of five kept batches: 0 and 2 collide
    for e in range(40):
        ids = torch.randint(5, (3,), generator=generator(3, 'pool', e)).tolist()
        ids[2] = ids[1]
        want = []
        for i in ids:         # what a dictionary from first image to batch answers, filled in drawing order
            seen = {}
            for j in ids: seen[first[j]] = j
            want.append((i, seen[first[i]]))
        assert replay_lpld(first, 3, 3, e) == want
    every = [replay_lpld(first, 3, 3, e) for e in range(200)]
    assert any(i != j for p in every for i, j in p) and all(p[1] == p[2]
                                                            for p in every) and len({str(p) for p in every}) > 10


def test_a_store_is_of_one_set(tmp_path):
    "Pixels, classes, normalisation and size all count, when it is opened and when it trains."
    data = FULL[torch.arange(43)]
    r = SoftRecipe(**SHORT)
    path = write_labels(tmp_path/'s', LabelPlan(data, r), TeacherLabels(teacher()), 'cpu')
    others = [replace(data, images=255-data.images), replace(data, classes=data.classes[::-1]),
              replace(data, stats=((.5,)*3, (.5,)*3)), FULL[torch.arange(44)]]
    for other in others:
        with pytest.raises(ValueError, match='labels for another set'): StoredLabels(path, other)
        with pytest.raises(ValueError, match='labels for another set'): weights(other, r, StoredLabels(path, data))


def test_what_a_store_says_of_itself_is_checked(tmp_path):
    import json
    data = FULL[torch.arange(43)]
    r = SoftRecipe(**SHORT)
    path = write_labels(tmp_path/'s', LabelPlan(data, r), TeacherLabels(teacher()), 'cpu')
    meta = json.loads((path/'meta.json').read_text())
    for change in (dict(seed=1), dict(steps=8), dict(recipe=meta['recipe'] | dict(epochs=7)), dict(check='0')):
        (path/'meta.json').write_text(json.dumps(meta | change))
        with pytest.raises(ValueError, match='not what was written'): StoredLabels(path, data)
    (path/'meta.json').write_text('[]')
    with pytest.raises(ValueError, match='not what was written'): StoredLabels(path, data)


def test_logits_beyond_a_codec_are_refused(tmp_path):
    class Loud(TeacherLabels):
        def teacher_logits(self, *a): return 1e6*super().teacher_logits(*a)
    data = FULL[torch.arange(43)]
    r = SoftRecipe(**SHORT)
    for codec in ('fp16', 'int8', 'top5'):
        with pytest.raises(ValueError, match='can hold'):
            write_labels(tmp_path/codec, LabelPlan(data, r, LabelStoreCfg(codec)), Loud(teacher()), 'cpu')
    write_labels(tmp_path/'fp32', LabelPlan(data, r, LabelStoreCfg('fp32')), Loud(teacher()), 'cpu')


def test_a_flipped_bit_in_a_teacher_is_found(tmp_path):
    from pca_nb.teachers import load_teacher
    path = teacher().save(tmp_path/'t.pt')
    rng = random.Random(4)
    missed = 0
    raw = path.read_bytes()
    key = load_teacher(path).key
    for _ in range(25):
        bad = bytearray(raw)
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
        try: missed += load_teacher(path).key != key
        except ValueError: pass
    assert not missed
