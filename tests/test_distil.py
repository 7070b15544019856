"The pixel loop of distillation, recorded and not: the same pixels, killed and resumed; its operations per step."
from dataclasses import replace

import pytest
import torch
from stand_ins import Eager
from torch import nn

from pca_nb import distill
from pca_nb.distillers import DISTILLERS
from pca_nb.distill import _Batch, _Loop, step_inputs, STEPS_AT_ONCE, synthesise, SynthesisOptions
from pca_nb.distill_terms import class_members, densification_loss, draw_views, plan_batches
from pca_nb.distributed import BATCH_NORMS, sync_batch_norm
from pca_nb.imageset import ImageSet
from pca_nb.models import make_model
from pca_nb.progress import ReadingNote
from pca_nb.recording import CannotRecord, LaunchCounter, Repeated, Tape
from pca_nb.resize import read_at
from pca_nb.statistics import collect_stats, draw_counts, matched_layers, MatchCfg, StatMatcher
from pca_nb.augment import AugmentCfg
from pca_nb.teachers import Teacher

CPU = dict(device='cpu', dtype=torch.float32)


@pytest.fixture(scope='module')
def full():
    g = torch.Generator().manual_seed(3)
    labels = torch.arange(40) % 5
    return ImageSet(torch.randint(0, 256, (40, 3, 16, 16), generator=g, dtype=torch.uint8), labels, range(5))


@pytest.fixture(scope='module')
def teachers(full):
    "Two networks of different depth, so that they have different layers to leave out."
    made = []
    for arch in ('convnet3-bn', 'convnet2-w32'):
        net = make_model(arch, 5, 16, 7).train()
        with torch.no_grad(): net(full.images.float()/255-.5)
        made.append(Teacher(net.eval(), arch, 16, top1=90.))
    return made


@pytest.fixture(autouse=True)
def any_teacher(monkeypatch): monkeypatch.setattr(distill, 'check_accuracy', lambda *_: None)


def short(name, **changes):
    "A method's constants for small images, cut to some steps that use all of it."
    return replace(DISTILLERS[name][1], **dict(steps=9, batch=10, jitter=(0, 4)) | changes)


# name -> (constants, how many networks)
METHODS = {
    'sre2l': (short('sre2l'), 1),
    'cda': (short('cda', views_per='batch'), 1),
    'lpld': (short('lpld'), 1),
    'dwa': (short('dwa', steps=6), 1),
    'dwa-code': (short('dwa-code', steps=6, batch=2, perturb_steps=2), 1),  # moves add up in the second batch
    'gvbsm': (short('gvbsm', steps=14), 2),
    'edc': (short('edc', keep_iterate='best', lr=.5), 2),
}


def made(full, teachers, name, recorder, **options):
    cfg, n = METHODS[name]
    images, log = synthesise(full, 4, cfg, teachers[:n], 1, every=1, recorder=recorder, **CPU | options)
    return images.images, log


@pytest.mark.parametrize('name', METHODS)
def test_recorded_pixels_are_those_of_single_steps(full, teachers, name, monkeypatch):
    "Pixels and every entry of the log, over several batches; and what should be replayed was."
    replays, replay = [], Tape.replay
    monkeypatch.setattr(Tape, 'replay', lambda self: replays.append(1) or replay(self))
    whole, whole_log = made(full, teachers, name, Eager)
    again, log = made(full, teachers, name, Tape)
    cfg, n = METHODS[name]
    assert len(replays) == len(plan_batches(5, 4, cfg))*(cfg.steps-3*n)
    assert torch.equal(again, whole) and log.equals(whole_log)


@pytest.mark.parametrize('name', ('lpld', 'dwa-code', 'gvbsm', 'edc'))
@pytest.mark.parametrize('at', (1, 7))
def test_killed_while_recording_and_resumed(full, teachers, name, at, tmp_path):
    "In the second batch, before anything was recorded or after; the pixels and the log are those of the whole run."
    if METHODS[name][0].steps <= at+1: at = 4
    whole, whole_log = made(full, teachers, name, Tape)
    seen = []

    def dies(step, *_):
        seen.append(step)
        if seen.count(0) == 2 and step == at: raise InterruptedError
    ckpt = tmp_path/'c.pt'
    with pytest.raises(InterruptedError): made(full, teachers, name, Tape, ckpt=ckpt, save_every=0, watch=dies)
    images, log = made(full, teachers, name, Tape, ckpt=ckpt)
    assert torch.equal(images, whole) and log.equals(whole_log)


def test_the_best_pixels_survive(full, teachers, tmp_path, monkeypatch):
    "At a rate that leads away from real images the best are the first, and a resumed run still knows them."
    still = dict(crop=None, jitter=(0, 0), flip=0.)
    away = short('sre2l-real', keep_iterate='best', lr=9., steps=5, batch=20, **still)
    monkeypatch.setitem(METHODS, 'best', (away, 1))
    whole, log = made(full, teachers, 'best', Tape)
    assert log.loss.argmin() == 0

    def dies(step, *_):
        if step == 3: raise InterruptedError
    ckpt = tmp_path/'c.pt'
    with pytest.raises(InterruptedError): made(full, teachers, 'best', Tape, ckpt=ckpt, save_every=0, watch=dies)
    assert torch.equal(made(full, teachers, 'best', Tape, ckpt=ckpt)[0], whole)


def test_a_checkpoint_of_one_way_is_taken_up_by_the_other(full, teachers, tmp_path):
    "Single steps with a Python number as rate, then recorded: near the pixels of either."
    def dies(step, *_):
        if step == 4: raise InterruptedError
    whole = made(full, teachers, 'edc', Tape)[0].float()
    for first, second in ((None, Tape), (Tape, None)):
        ckpt = tmp_path/f'{first}.pt'
        with pytest.raises(InterruptedError):
            made(full, teachers, 'edc', first, ckpt=ckpt, save_every=0, watch=dies)
        off = (made(full, teachers, 'edc', second, ckpt=ckpt)[0].float()-whole).abs()
        assert off.median() == 0 and (off > 2).float().mean() < .02


def a_batch(full, teachers, name, **options):
    cfg = replace(METHODS[name][0], batch=20, steps=2*STEPS_AT_ONCE)
    loop = _Loop(full, 4, cfg, teachers[:1], 0, SynthesisOptions(**CPU | options))
    idx, groups = plan_batches(5, 4, cfg)[0]
    return loop, _Batch(loop, 0, idx, groups, torch.randn(len(idx), 3, 16, 16), loop.nets)


@pytest.mark.parametrize('name, most', (('sre2l', 20), ('cda', 20), ('gvbsm', 21), ('edc', 24)))
def test_operations_of_a_step_without_a_network(full, teachers, name, most):
    "Views, Adam and pixels; drawn one step at a time they were 113, or 56 without a crop."
    loop, batch = a_batch(full, teachers, name, recorder=Eager)
    loop.terms = lambda batch, turn, rows, columns, counts: dict(loss=read_at(batch.x, rows, columns).sum())
    with LaunchCounter() as counter:
        for turn, *tensors in step_inputs(batch): batch.take(turn, *tensors)
    assert counter.total/batch.loop.cfg.steps <= most


def test_a_recorded_step_reads_no_number_back(full, teachers):
    "Nothing on the tape asks the device, or makes a tensor of Python numbers."
    for name in METHODS:
        loop, batch = a_batch(full, teachers, name, recorder=Tape)
        take = Repeated(batch.take, Tape)
        with batch.matchers[0]:
            for (turn, *tensors), _ in zip(step_inputs(batch), range(3)): take(turn, *tensors)
        (_, tape), = take.kept.values()
        used = {op.overloadpacket.__name__ for op, *_ in tape.steps}
        asks = {'_local_scalar_dense', 'nonzero', '_unique2', 'item', 'lift_fresh', 'one_hot', 'is_nonzero'}
        assert not used & asks, (name, used & asks)


def test_one_line_where_a_device_cannot_record(full, teachers):
    "Said once for all batches; the pixels are those of single steps."
    def refuses(f, like): raise CannotRecord('not on this device')
    with pytest.warns(ReadingNote, match='not recorded') as said:
        images, _ = made(full, teachers, 'sre2l', refuses)
    assert len([w for w in said if 'not recorded' in str(w.message)]) == 1
    assert torch.equal(images, made(full, teachers, 'sre2l', Eager)[0])


def test_views_do_not_depend_on_their_neighbours():
    "Any cut of the steps gives the same positions, and a resumed run begins in the middle."
    cfg = short('cda', steps=40)
    x = torch.zeros(7, 3, 20, 24)
    def drawn(steps): return draw_views(cfg, x, steps, [torch.Generator().manual_seed(k) for k in steps])
    together = drawn(range(40))
    for cut in (range(3), range(3, 17), range(39, 40)):
        for a, b in zip(together, drawn(cut)): assert torch.equal(a[cut.start:cut.stop], b)


def test_densification_by_positions_is_that_by_labels():
    "As it was written first: by comparing labels on the way."
    x, labels = torch.randn(9, 3, 8, 8), torch.tensor([2, 0, 2, 1, 1, 0, 2, 4, 4])
    flat, total = x.flatten(1), torch.zeros(())
    for c in labels.unique():
        images = flat[labels == c]
        eigenvalues = torch.linalg.eigvalsh(images@images.T)
        target = (eigenvalues/4).log_softmax(0)
        total = total+(target.softmax(0)*(target-eigenvalues.log_softmax(0))).sum()
    assert torch.equal(densification_loss(x, class_members(labels)), total)


def test_layers_left_out_count_for_nothing(full, teachers):
    "Neither in the distance nor in its gradient; and every convolution is left out now and then, no other layer."
    match = MatchCfg(('bn', 'conv'), patch=4, drop=.5)
    net = teachers[0].net
    x = torch.randn(6, 3, 16, 16).requires_grad_()
    labels = torch.arange(6) % 5
    with StatMatcher(net, match, collect_stats(net, full, match, AugmentCfg())) as stats:
        expected = stats.expect(labels)
        counts = torch.stack([draw_counts(stats, torch.Generator().manual_seed(k)) for k in range(40)])
        is_conv = torch.tensor([kind == 'conv' for kind, _ in stats.layers])
        net(x)
        some, = torch.autograd.grad(stats.distance(expected, ~is_conv), x)
    assert counts[:, ~is_conv].all() and (.2 < counts[:, is_conv].float().mean(0)).all()
    assert (counts[:, is_conv].float().mean(0) < .8).all()
    with StatMatcher(net, replace(match, kinds=('bn',), first=1.)) as stats:
        net(x)
        bn, = torch.autograd.grad(stats.loss(labels), x)
    assert torch.allclose(some, bn, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('device_type', ('cuda', 'cpu'))
@pytest.mark.parametrize('arch', ('convnet3-bn', 'resnet18'))
def test_synchronised_batch_norm_keeps_the_network(device_type, arch):
    "The same tensors under the same names, the same outputs, and its layers are still found."
    images = torch.randn(4, 3, 32, 32)
    net = make_model(arch, 5, 32, 1).eval()
    before, layers = net.state_dict(keep_vars=True), matched_layers(net, ('bn', 'conv'))
    outputs = net(images)
    assert sync_batch_norm(net, device_type) is net
    after = net.state_dict(keep_vars=True)
    assert list(after) == list(before) and all(after[k] is before[k] for k in before)
    norms = [m for m in net.modules() if isinstance(m, BATCH_NORMS)]
    assert norms and all(isinstance(m, nn.SyncBatchNorm) == (device_type == 'cuda') for m in norms)
    assert not any(type(m) is nn.BatchNorm2d for m in norms)
    assert [kind for kind, _ in matched_layers(net, ('bn', 'conv'))] == [kind for kind, _ in layers]
    assert torch.equal(net(images), outputs)
    plain = make_model(arch, 5, 32, 2)
    plain.load_state_dict(net.state_dict())
    assert torch.equal(plain.eval()(images), outputs)


@pytest.mark.parametrize('device_type', ('cuda', 'cpu'))
def test_distilling_with_a_network_of_several_processes(full, teachers, device_type):
    "A teacher that was trained under torchrun gives the pixels of one that was not."
    synced = make_model('convnet3-bn', 5, 16, 0)
    synced.load_state_dict(teachers[0].net.state_dict())
    synced = sync_batch_norm(synced.eval(), device_type)
    images = made(full, teachers, 'sre2l', None)[0]
    assert torch.equal(made(full, [Teacher(synced, 'convnet3-bn', 16, top1=90.)], 'sre2l', None)[0], images)
