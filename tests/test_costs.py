"The profile of relabelling and the memory of a step, against made-up events, a slowed writer, tensors counted by hand."
import hashlib
import time
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pca_nb import costs
from pca_nb.augment import AugmentCfg
from pca_nb.combine import assign_to_cells, combine
from pca_nb.core import generator
from pca_nb.datasets import load_data
from pca_nb.teachers import Teacher, TeacherLabels
from pca_nb.models import make_model
from pca_nb.prune import random_balanced
from pca_nb.costs import OPERATIONS, peak_memory, relabel_profile, step_memory, write_fkd
from pca_nb.label_plan import LabelPlan
from pca_nb.label_store import fkd_bytes, write_labels
from pca_nb.stored_labels import StoredLabels
from pca_nb.recipes import SOFT

FULL = load_data('digits')
TINY = dict(arch='convnet2-w32', size=16, batch=8, steps=3, classes=10, device='cpu')


def live(classes=10):
    return TeacherLabels(Teacher(make_model('convnet2-w32', classes, 16, 3), 'convnet2-w32', 16, stats=FULL.stats))


def event(name, start, ms, mb=0, own=None, gpu=0, device='CPU'):
    "What torch's profiler says of a stretch: microseconds and bytes"
    own = mb if own is None else own
    return SimpleNamespace(name=name, device_type=getattr(torch.autograd.DeviceType, device),
                           time_range=SimpleNamespace(start=1e3*start, end=1e3*(start+ms)),
                           cpu_time_total=1e3*ms, self_cpu_time_total=1e3*ms, cpu_memory_usage=mb*2**20,
                           self_cpu_memory_usage=own*2**20,
                           device_time_total=1e3*gpu, self_device_time_total=1e3*gpu, device_memory_usage=0,
                           self_device_memory_usage=0)


def batch(at, write):
    """A batch that begins at `at` ms: 1 to the device, 2 of views, 3 of the teacher, `write`, and nothing named for
    another 4"""
    named = [('to the device', 0, 1), ('crop and flip', 1, 2), ('teacher', 3, 3), ('write', 6, write)]
    return [*(event(f'labels: {n}', at+t, ms, mb=5, own=0) for n, t, ms in named),
            event('aten::copy_', at+.1, .5, mb=5),
            event('aten::rand', at+6+write, 1, mb=2, gpu=.25), event('[memory]', at+6+write+2, 0, mb=-22),
            event('labels: write', at+6, 50, device='CUDA')]


def test_operations_of_made_up_events():
    at, events = 0, []
    for w in (90, 80, 7, 9, 5, 70, 60):   # two to warm up, three that count, two beyond
        events += batch(at, w)
        at += 6+w+4
    f = costs._operations(SimpleNamespace(events=lambda: events[::-1]), 3, device=True).set_index('operation')
    assert f.index.tolist() == list(OPERATIONS)
    assert f.cpu_ms.to_dict() == pytest.approx({'to the device': 1, 'crop and flip': 2, 'mix': 0, 'teacher': 3,
                                                'to the CPU': 0, 'encode': 0, 'write': 7, 'other': 4})
    assert f.loc['write', ['low', 'high']].tolist() == pytest.approx([5, 9])
    assert f.cpu_mb[['to the device', 'mix', 'other']].tolist() == pytest.approx([5, 0, 5+2-22-4*5])
    # the stretch on the device itself is not counted again
    assert f.device_ms[['write', 'other']].tolist() == pytest.approx([0, .25])
    assert 'device_ms' not in costs._operations(SimpleNamespace(events=lambda: events), 3)


def test_every_part_of_a_batch_is_named_once_and_in_order(tmp_path):
    recipe = replace(SOFT, batch=16, epochs=2)
    data = FULL[torch.arange(40)]
    for write in costs.FORMATS.values():
        p = costs.profile_of(partial(write, tmp_path/write.__name__, data, recipe, live(), device='cpu'))
        named = sorted((e.time_range.start, e.name) for e in p.events() if e.name.startswith('labels: '))
        assert [n for _, n in named] == [f'labels: {op}' for op in OPERATIONS[:-1]]*6


def test_a_slow_writer_and_a_slow_teacher_are_found(monkeypatch):
    save, teacher_logits = torch.save, TeacherLabels.teacher_logits
    monkeypatch.setattr(torch, 'save', lambda *a: (time.sleep(.05), save(*a)))
    monkeypatch.setattr(TeacherLabels, 'teacher_logits',
                        lambda *a, **kw: (time.sleep(.1), teacher_logits(*a, **kw))[1])
    f = relabel_profile(**TINY).pivot(index='operation', columns='format', values='low')
    assert (f.loc['teacher'] > 100).all() and f.FKD['write'] > 50
    assert f.ours['write'] < 50 and (f.drop(index=['teacher', 'write']) < 50).all(axis=None)


def test_a_profiled_store_has_the_same_bytes(tmp_path):
    recipe = replace(SOFT, batch=16, epochs=2)
    data = FULL[torch.arange(40)]
    def content(p): return {f.name: hashlib.sha1(f.read_bytes()).hexdigest() for f in p.iterdir()}
    plain = write_labels(tmp_path/'a', LabelPlan(data, recipe), live(), 'cpu')
    costs.profile_of(lambda: write_labels(tmp_path/'b', LabelPlan(data, recipe), live(), 'cpu'), profile_memory=True)
    assert content(plain) == content(tmp_path/'b')


@pytest.mark.parametrize('views', [dict(mix='cutmix'), dict(mix='mixup', crop_scale=None), dict(mix='cutout', flip=0.),
                                   dict(mix='cutmix', mix_prob=.5), dict(mix='cutmix', patches='extract')], ids=str)
def test_the_archives_hold_what_the_store_holds(tmp_path, views):
    g = generator(0)
    data = combine(FULL, assign_to_cells(random_balanced(torch.zeros(len(FULL)), FULL.labels, FULL.classes, 16, g), 10,
                                         2, g), 'lsq') if 'patches' in views else FULL[torch.arange(40)]
    recipe = replace(SOFT, batch=16, epochs=2, augment=AugmentCfg(**dict(crop_scale=(.3, 1.)) | views))
    kept = StoredLabels(write_labels(tmp_path/'s', LabelPlan(data, recipe), live(), 'cpu'), data)
    write_fkd(tmp_path/'f', data, recipe, live(), 'cpu')
    for i, (e, b) in enumerate(kept.plan.steps.tolist()):
        coords, flip, partner, lam, (t, label, bottom,
                                     right), z = torch.load(tmp_path/'f'/f'epoch_{e}'/f'batch_{b}.tar')
        _, view, ours = kept.step(i)
        assert torch.equal((coords*torch.tensor([*data.size, *data.size])).round().long(),
                           view.box) and torch.equal(z.float(), ours)
        assert torch.equal(flip, view.flip) and torch.equal(partner, view.mix.partner) and lam == view.mix.lam[0].item()
        assert [t, label, bottom-t, right-label] == view.mix.box[0].tolist()
        assert (coords.dtype, flip.dtype, partner.dtype, z.dtype) == (torch.float32, torch.bool, torch.int64,
                                                                      torch.float16)
    assert i+1 == len(list((tmp_path/'f').rglob('*.tar')))


def test_an_archive_is_as_large_as_theirs(tmp_path):
    """128 labels of 1,000 classes: SRe2L's own writer made 261,893 bytes; the store's arrays stay below the bare
    format's"""
    data = replace(FULL[torch.arange(128)], classes=tuple(range(1000)))
    recipe = replace(SOFT, batch=128, epochs=1)
    size = next(write_fkd(tmp_path/'f', data, recipe, live(1000), 'cpu').rglob('*.tar')).stat().st_size
    assert size == pytest.approx(261_893, rel=.002) and size > fkd_bytes(128, 1000)
    kept = write_labels(tmp_path/'s', LabelPlan(data, recipe), live(1000), 'cpu')
    assert sum(f.stat().st_size for f in kept.glob('*.npy')) < fkd_bytes(128, 1000)


@pytest.mark.parametrize('views', [dict(mix='none'), dict(mix='cutmix', mix_per='image'),
                                   dict(mix='cutmix', patches='shuffle')], ids=str)
def test_what_an_archive_cannot_hold(tmp_path, views):
    with pytest.raises(ValueError, match='one mixing for the whole batch'):
        write_fkd(tmp_path/'f', FULL[torch.arange(16)], replace(SOFT, augment=AugmentCfg(**views)), live(), 'cpu')
    assert not (tmp_path/'f').exists()


@pytest.mark.parametrize('wrong', [dict(steps=0), dict(batch=1)])
def test_nothing_to_profile(wrong):
    with pytest.raises(ValueError, match='at least one batch counts'): relabel_profile(**TINY | wrong)


def test_memory_of_a_convolution():
    """Input, output of the ReLU and its gradient are alive together; oneDNN may want room beside them, but not as
    much again"""
    conv = nn.Conv2d(16, 24, 3, padding=1).to(memory_format=torch.channels_last)
    def backwards(n):
        conv(torch.zeros(n, 16, 20, 20).contiguous(memory_format=torch.channels_last)).relu().sum().backward()
    backwards(2)
    an_image = (peak_memory(lambda: backwards(48), 'cpu')-peak_memory(lambda: backwards(16), 'cpu'))/32
    assert (16+24+24)*400*4 <= an_image < 2*(16+24+24)*400*4


def test_memory_that_was_there_before_is_not_counted():
    old = [torch.zeros(5000)]
    def f():
        old.clear()
        return torch.zeros(1000)
    assert peak_memory(f, 'cpu') == 4000


def saved_bytes(arch, n):
    "What autograd keeps for the way back, every tensor once, without the weights"
    net, kept = make_model(arch, 10, 32), {}
    own = {p.data_ptr() for p in (*net.parameters(), *net.buffers())}
    def pack(t):
        if t.data_ptr() not in own: kept[t.data_ptr()] = t.untyped_storage().nbytes()
        return t
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = net(torch.zeros(n, 3, 32, 32)).sum()
    return sum(kept.values()), loss


@pytest.mark.parametrize('arch, least', [('convnet3-w32', 8), ('resnet18', 2)])
def test_memory_of_a_step(arch, least):
    """Linear in the batch; an image's share is what autograd keeps, less the last small outputs that are gone when
    the weights' gradients have come, and at most one and a half of the widest outputs more"""
    a, b, c = (step_memory(arch, 32, least*k, device='cpu', dtype=torch.float32) for k in (2, 4, 8))
    assert (c-b)/(b-a) == pytest.approx(2, rel=.03)
    kept = (saved_bytes(arch, 4)[0]-saved_bytes(arch, 2)[0])/2/2**20
    widest = (32 if arch == 'convnet3-w32' else 64)*32*32*4/2**20
    assert .95*kept <= (c-b)/(4*least) <= kept+1.5*widest
