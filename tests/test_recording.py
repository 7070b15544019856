"""Steps drawn in chunks and replayed from a recording: the numbers of one step at a time, drawn and called anew."""
import math
from dataclasses import replace

import pytest
import torch
from stand_ins import Eager

from pca_nb import chunks, train as training
from pca_nb.augment import AugmentCfg, draw_view
from pca_nb.callbacks import Callback
from pca_nb.chunks import EpochViews
from pca_nb.core import generator
from pca_nb.imageset import ImageSet
from pca_nb.label_plan import LabelPlan, LabelStoreCfg
from pca_nb.label_store import write_labels
from pca_nb.models import make_model
from pca_nb.objective import LabelSource
from pca_nb.recipes import RECIPES
from pca_nb.recording import LaunchCounter, Repeated, Tape
from pca_nb.scores import Recorder
from pca_nb.stored_labels import StoredLabels
from pca_nb.teachers import Teacher, TeacherLabels
from pca_nb.train import train
from pca_nb.validate import validate, Validation

CPU = torch.device('cpu')
HARD = replace(RECIPES['hard'], epochs=5, batch=16, eval_every=2)


def images(n, size=16, grid=1):
    g = generator(0, 'pixels', n)
    index = torch.arange(n)[:, None].expand(n, grid*grid)
    return ImageSet(torch.randint(0, 256, (n, 3, size, size), generator=g, dtype=torch.uint8), torch.arange(n) % 5,
                    range(5), index, grid)


PLAIN, TILED, TEST = images(41), images(41, grid=2), images(23)


def network(arch='convnet3-w32', seed=0): return make_model(arch, 5, 16, seed)


def trained(recipe, data=PLAIN, arch='convnet3-w32', **options):
    "Weights and log of a run."
    net = network(arch)
    log = train(net, data, recipe, 1, TEST, device='cpu', **options)
    return list(net.state_dict().values()), log


def same(a, b):
    assert all(torch.equal(v, w) for v, w in zip(a[0], b[0]))
    assert a[1].loss.tolist() == b[1].loss.tolist()
    assert a[1].nll.dropna().tolist() == b[1].nll.dropna().tolist()


# --- drawn together -------------------------------------------------------------------------------------------------

def slow_view(n, size, aug, grid, g):
    "One batch, drawn by plain torch calls in the order that every stored row depends on."
    boxes = [[0, 0, *size]]*n
    order = None
    if grid > 1 and aug.patches == 'extract':
        cell = torch.randint(grid*grid, (n,), generator=g)
        h, w = size[0]//grid, size[1]//grid
        boxes = [[c//grid*h, c % grid*w, h, w] for c in cell.tolist()]
    elif grid > 1 and aug.patches == 'shuffle4':
        rows, cols = (torch.rand(n, grid, generator=g).argsort(1) for _ in range(2))
        order = (rows[:, :, None]*grid+cols[:, None]).flatten(1)
    elif grid > 1 and aug.patches == 'shuffle':
        order = torch.rand(n, grid*grid, generator=g).argsort(1)
    u = torch.rand(4, n, 10, generator=g)
    flip = torch.rand(n, generator=g) < aug.flip
    partner = lam = None
    if aug.mix == 'mixup':
        partner = torch.rand(n, generator=g).argsort()
        m = 1 if aug.mix_per == 'batch' else n
        gamma = torch._standard_gamma(torch.full((2, m), aug.mix_alpha), generator=g)
        on = torch.rand(3, m, generator=g)[2] < aug.mix_prob
        lam = torch.where(on, gamma[0]/gamma.sum(0), 1.).expand(n)
    return boxes, u, flip, order, partner, lam


@pytest.mark.parametrize('patches', ['none', 'extract', 'shuffle', 'shuffle4'])
@pytest.mark.parametrize('per', ['batch', 'image'])
def test_batches_drawn_at_once_are_drawn_in_turn(patches, per):
    "Against plain calls, batch by batch; the crop is the first of ten tries that fits, in integers."
    aug = AugmentCfg(patches=patches, mix='mixup', mix_per=per, mix_prob=.6, crop_scale=(.3, 1.))
    lengths = [7, 7, 3]
    view = draw_view(lengths, (16, 16), aug, 2, generator(5))
    g, begin = generator(5), 0
    for n in lengths:
        boxes, u, flip, order, partner, lam = slow_view(n, (16, 16), aug, 2, g)
        for i in range(n):
            k = begin+i
            top, left, H, W = boxes[i]
            area = H*W*(torch.tensor(.3)+(torch.tensor(1.)-.3)*u[0, i])
            aspect = torch.exp(math.log(3/4)+(math.log(4/3)-math.log(3/4))*u[1, i])
            tries = [(int((a/r).sqrt().round()), int((a*r).sqrt().round()), j)
                     for j, (a, r) in enumerate(zip(area, aspect))]
            fits = [(h, w, j) for h, w, j in tries if 0 < h <= H and 0 < w <= W]
            if fits:
                h, w, j = fits[0]
                at = [top+min(int(u[2, i, j]*(H-h+1)), H-h), left+min(int(u[3, i, j]*(W-w+1)), W-w), h, w]
                assert view.box[k].tolist() == at
            assert view.flip[k] == flip[i]
            assert view.mix.partner[k] == begin+partner[i] and view.mix.lam[k] == lam[i]
            if order is not None: assert torch.equal(view.order[k], order[i])
        begin += n


@pytest.mark.parametrize('name', ['hard', 'pca', 'ccs', 'hard-cutmix'])
def test_the_size_of_a_chunk_changes_no_weight(name, monkeypatch):
    recipe = replace(RECIPES[name], epochs=3, batch=16, eval_every=2)
    data = TILED if 'pca' in name else PLAIN
    runs = []
    for limit in (1, 2**15, 2**26):
        monkeypatch.setitem(chunks.CHUNK_BYTES, 'cpu', limit)
        runs.append(trained(recipe, data))
    same(runs[0], runs[1])
    same(runs[0], runs[2])


@pytest.mark.parametrize('name', ['hard', 'pca', 'hard-cutmix', 'rded'])
def test_views_cost_few_launches_per_step(name, monkeypatch):
    "At batch 128, with the chunks of a GPU: at most eight launches per step (mixing: four draws more)."
    monkeypatch.setitem(chunks.CHUNK_BYTES, 'cpu', chunks.CHUNK_BYTES['cuda'])
    data = images(5120, grid=2)
    views = EpochViews(data, replace(RECIPES[name], batch=128), LabelSource(), 0, CPU)
    list(views.chunks(0)) # constants are sent once
    with LaunchCounter() as counter: steps = sum(len(c.lengths) for c in views.chunks(1))
    assert steps == 40
    mixed = views.recipe.augment.mix != 'none'
    assert counter.total/steps <= (12 if mixed else 8), dict(counter.launches)
    asks = {'_local_scalar_dense', 'nonzero', '_unique2', 'masked_select', 'is_nonzero'}
    assert not asks & set(counter.launches)


@pytest.mark.parametrize('soft', [False, True])
def test_a_step_asks_the_device_for_nothing(soft, monkeypatch):
    "No value is read and no shape depends on one, from the first view to the last update of an epoch."
    counts = []
    real = training._epoch

    def counted(run, epoch):
        with LaunchCounter() as counter: loss = real(run, epoch)
        counts.append(counter.launches)
        return loss
    monkeypatch.setattr(training, '_epoch', counted)
    if soft: trained(replace(RECIPES['edc'], epochs=2, batch=16), TILED, labels=TeacherLabels(teacher()))
    else: trained(replace(RECIPES['pca'], epochs=2, batch=16), TILED, callbacks=[Recorder(len(TILED))])
    assert len(counts) == 2
    for launches in counts:
        assert not {'_local_scalar_dense', 'nonzero', '_unique2', 'masked_select', 'is_nonzero'} & set(launches)


# --- replayed -------------------------------------------------------------------------------------------------------

def teacher(seed=7): return Teacher(network(seed=seed), 'convnet3-w32', 16)


def eager_and_recorded(recipe, data=PLAIN, arch='convnet3-w32', **options):
    same(trained(recipe, data, arch, recorder=Eager, **options), trained(recipe, data, arch, recorder=Tape, **options))


@pytest.mark.parametrize('name', ['hard', 'sgd', 'pca', 'ccs', 'hard-cutmix'])
def test_recorded_steps_are_eager_steps(name):
    "AdamW and SGD, rates per epoch and per step, views of cells, mixed images, a shorter last batch."
    recipe = replace(RECIPES[name], epochs=6, batch=16, eval_every=1)
    eager_and_recorded(recipe, TILED if 'pca' in name else PLAIN)


def test_recorded_steps_of_mixed_labels_and_batch_norm():
    mixed = replace(HARD, augment=AugmentCfg(mix='cutmix', mix_labels=True, mix_prob=.7, mix_per='image'))
    eager_and_recorded(mixed, arch='convnet3-bn')


@pytest.mark.parametrize('name', ['soft', 'rded', 'edc', 'gvbsm'])
def test_recorded_steps_with_a_live_teacher(name):
    "The teacher is asked inside the recording; EDC's averaged weights are kept inside it too."
    recipe = replace(RECIPES[name], epochs=5, batch=16, eval_every=2)
    teachers = [teacher(7), teacher(8)] if recipe.ensemble == 'norm' else [teacher()]
    eager_and_recorded(recipe, TILED, labels=TeacherLabels(*teachers))


def test_recorded_steps_with_stored_labels(tmp_path):
    recipe = replace(RECIPES['rded'], epochs=5, batch=16, eval_every=2)
    plan = LabelPlan(TILED, recipe, LabelStoreCfg(), 1)
    write_labels(tmp_path/'labels', plan, TeacherLabels(teacher()), 'cpu', torch.float32)
    eager_and_recorded(recipe, TILED, labels=StoredLabels(tmp_path/'labels', TILED))


def test_scores_of_a_recorded_run():
    "Sums over chunks, beside a replayed network, are those of a run that calls and records step by step."
    class StepByStep(Recorder): each_step = True
    sums = []
    for kind, recorder in ((StepByStep, Eager), (Recorder, Tape), (StepByStep, Tape)):
        rec = kind(len(PLAIN), el2n_epochs=3)
        trained(replace(RECIPES['ccs'], epochs=5, batch=16), recorder=recorder, callbacks=[rec])
        sums.append(rec.sums)
    for k, v in sums[0].items(): assert torch.equal(v, sums[1][k]) and torch.equal(v, sums[2][k])


def test_a_callback_sees_every_step():
    "With its images, and the logits from before the step, whether or not others take chunks."
    class Watch(Callback):
        def __init__(self): self.seen = []
        def after_batch(self, epoch, idx, logits, labels): self.seen.append((epoch, idx.tolist(), logits.clone()))
    runs = []
    for recorder, others in ((None, []), (Tape, [Recorder(len(PLAIN))])):
        watch = Watch()
        trained(HARD, recorder=recorder, callbacks=[watch, *others])
        runs.append(watch.seen)
    assert [len(idx) for _, idx, _ in runs[0][:3]] == [16, 16, 9]
    assert [s[:2] for s in runs[0]] == [s[:2] for s in runs[1]]
    for (_, _, a), (_, _, b) in zip(*runs): assert torch.allclose(a, b, atol=1e-3) # the rate is a tensor in one


def test_killed_while_recording_and_resumed(tmp_path):
    recipe = replace(RECIPES['edc'], epochs=8, batch=16, eval_every=3)
    options = dict(data=TILED, labels=TeacherLabels(teacher()), recorder=Tape)
    whole = trained(recipe, **options)
    trained(recipe, ckpt=tmp_path/'c.pt', stop_epoch=4, **options)
    same(whole, trained(recipe, ckpt=tmp_path/'c.pt', **options))


def test_a_checkpoint_moves_between_recorded_and_not(tmp_path):
    "Its rate is a tensor in one and a number in the other; each keeps its own, and the run ends as it should."
    recipe = replace(HARD, epochs=12, optimizer='sgd', lr=.01)
    for first, then in ((Tape, None), (None, Tape)):
        ckpt = tmp_path/f'{first}.pt'
        trained(recipe, ckpt=ckpt, stop_epoch=3, recorder=first)
        weights, log = trained(recipe, ckpt=ckpt, recorder=then)
        expected, expected_log = trained(recipe, recorder=then)
        assert all(torch.allclose(a, b, atol=2e-5) for a, b in zip(weights, expected))
        assert log.loss.tolist() == pytest.approx(expected_log.loss.tolist(), abs=2e-5)


def test_a_diverging_run_is_named_and_not_saved(tmp_path, monkeypatch):
    recipe = replace(RECIPES['sgd'], epochs=9, batch=16, lr=1e12)
    real = training.Trainer.__post_init__

    def late(run):
        real(run)
        run.lag = 1 # as on a GPU, where the loss of an epoch is read when the next is queued
    for recorder, init in ((None, real), (Tape, real), (None, late)):
        monkeypatch.setattr(training.Trainer, '__post_init__', init)
        with pytest.raises(FloatingPointError, match='lower the learning rate'):
            trained(recipe, ckpt=tmp_path/'c.pt', save_every=0., recorder=recorder)
        if (tmp_path/'c.pt').exists():
            state = torch.load(tmp_path/'c.pt', weights_only=True)
            assert all(math.isfinite(row['loss']) for row in state['log'])


def test_a_recorded_validation_is_the_same():
    net = network('convnet3-bn')
    measure = Validation(net, TEST, batch=7, recorder=Tape)
    for _ in range(5):
        with torch.no_grad():
            for p in net.parameters(): p.mul_(1.1)
        assert measure() == validate(net, TEST, batch=7)
    assert net.training and len(measure.add_all.kept) == 1


def test_a_recording_repeats_operations_and_no_python():
    "In place, out of place, through a view, two results; what Python decided stays decided."
    x, total, flag = torch.ones(4), torch.zeros(4), [1.]

    def f():
        total.add_(x)
        big = torch.where(total > 2, total, 0.)
        x[:2] += flag[0]
        return big, *total.max(0)
    tape = Tape(f)
    flag[0] = 100.
    for _ in range(2): tape.replay()
    assert x.tolist() == [4., 4., 1., 1.] and total.tolist() == [6., 6., 3., 3.]
    assert [t.tolist() for t in tape.out] == [[6., 6., 3., 3.], 6., 0]


def test_keys_have_recordings_of_their_own():
    f = Repeated(lambda key, x: x*key, Tape, warm_up=1)
    for k in range(4): assert f(2, torch.tensor([float(k)])).item() == 2*k
    for k in range(4): assert f(3, torch.tensor([float(k)])).item() == 3*k
    assert f(2, torch.tensor([5.])).item() == 10 and set(f.kept) == {2, 3}
