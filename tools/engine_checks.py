"""What must hold of the engine on a device: recorded = not recorded, resumed = uninterrupted, CPU = GPU, nobody waits.

`tests/test_engine_gpu.py` asserts it where there is CUDA, `device_engine.py` writes it down on a borrowed GPU, and its
dry run checks the checks on a CPU, where a `Tape` stands in for CUDA graphs.
A check returns whether it held and a line that says what was compared.
"""
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch

from pca_nb import train as engine
from pca_nb.augment import AugmentCfg, draw_view
from pca_nb.core import generator
from pca_nb.imageset import ImageSet
from pca_nb.label_plan import LabelPlan, LabelStoreCfg
from pca_nb.label_store import write_labels
from pca_nb.models import make_model
from pca_nb.objective import LabelSource
from pca_nb.recipes import RECIPES
from pca_nb.recording import CannotRecord, CudaRecording, Tape
from pca_nb.scores import Recorder, SUMS
from pca_nb.stored_labels import StoredLabels
from pca_nb.teachers import Teacher, TeacherLabels
from pca_nb.train import train
from pca_nb.validate import Validation

EPOCHS = 6  # two as they are, one in which steps are recorded, three that are replayed
BATCH = 16  # of 41 images: the last step of an epoch has 9
MIXED = AugmentCfg(mix='cutmix', mix_labels=True)
CASES = dict(plain='hard', extract='pca', cutmix='hard-cutmix', recording='ccs', live='edc', stored='soft-plain')


@dataclass
class Place:
    "Where the engine runs, and what stands for recorded steps and for steps that are not."
    device: torch.device
    recorder: object
    eager: object


def refuse(f, like):
    "Record nothing; the rates of the steps are on the device all the same."
    raise CannotRecord('not wanted')


def place_on(device):
    device = torch.device(device)
    return Place(device, CudaRecording, None) if device.type == 'cuda' else Place(device, Tape, refuse)


def images(n, grid=1):
    g = generator(0, 'pixels', n)
    index = torch.arange(n)[:, None].expand(n, grid*grid)
    pixels = torch.randint(0, 256, (n, 3, 16, 16), generator=g, dtype=torch.uint8)
    return ImageSet(pixels, torch.arange(n) % 5, range(5), index, grid)


def network(seed=0): return make_model('convnet3-w32', 5, 16, seed)


def recipe_of(case):
    recipe = replace(RECIPES[CASES[case]], epochs=EPOCHS, batch=BATCH, eval_every=1)
    return replace(recipe, augment=MIXED) if case == 'cutmix' else recipe


def data_of(case): return images(41, 2 if recipe_of(case).augment.patches != 'none' else 1)


@lru_cache
def teacher(case):  # each has its own, which stays where it was moved to
    return Teacher(network(7), 'convnet3-w32', 16)


@lru_cache
def stored_folder():
    "Return a folder of soft labels, which lives as long as the process."
    folder = tempfile.TemporaryDirectory()
    plan = LabelPlan(data_of('stored'), recipe_of('stored'), LabelStoreCfg('fp32'), 1)
    write_labels(Path(folder.name)/'labels', plan, TeacherLabels(teacher('stored')), 'cpu', torch.float32)
    return folder


def labels_of(case):
    if case == 'live': return TeacherLabels(teacher('live'))
    if case == 'stored': return StoredLabels(Path(stored_folder().name)/'labels', data_of('stored'))
    return None


def outcome(place, case, recorder, **options):
    "Return everything that a run leaves: weights, losses, metrics and recorded sums, as tensors on the CPU."
    net, data = network(), data_of(case)
    noted = Recorder(len(data), 3, place.device) if case == 'recording' else None
    options = dict(labels=labels_of(case), dtype=torch.float32) | options
    log = train(net, data, recipe_of(case), 1, images(23), [noted] if noted else [], device=place.device,
                recorder=recorder, **options)
    left = [*net.state_dict().values(), *(torch.tensor(log[c].values) for c in ('loss', 'top1', 'nll'))]
    if noted: left += [noted.sums[name] for name in SUMS]
    return [t.detach().cpu() for t in left]


def differing(a, b): return sum(not torch.equal(x, y) for x, y in zip(a, b, strict=True))


@contextmanager
def exact_kernels():
    "Let libraries choose kernels that give the same bits every time, and no shortened float32."
    backends = torch.backends.cudnn
    before = backends.deterministic, backends.benchmark, backends.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    backends.deterministic, backends.benchmark, backends.allow_tf32 = True, False, False
    torch.backends.cuda.matmul.allow_tf32 = False
    try: yield
    finally:
        backends.deterministic, backends.benchmark, backends.allow_tf32 = before[:3]
        torch.backends.cuda.matmul.allow_tf32 = before[3]


def recorded_is_eager(place, case):
    "Bit by bit, and as a yardstick two runs that are not recorded."
    with exact_kernels():
        eager, again = (outcome(place, case, place.eager) for _ in range(2))
        recorded = outcome(place, case, place.recorder)
    apart, yardstick = differing(recorded, eager), differing(again, eager)
    return not apart, f'{apart} of {len(eager)} tensors differ; {yardstick} between two runs that are not recorded'


def resumed_is_uninterrupted(place, case):
    "A recorded run that stops in its fourth epoch, when it replays, and goes on from its checkpoint."
    with exact_kernels(), tempfile.TemporaryDirectory() as d:
        whole = outcome(place, case, place.recorder)
        options = dict(ckpt=f'{d}/c.pt')
        outcome(place, case, place.recorder, stop_epoch=4, **options)
        apart = differing(outcome(place, case, place.recorder, **options), whole)
    return not apart, f'{apart} of {len(whole)} tensors differ'


class HostViews(LabelSource):
    "Views drawn on the CPU, so that two devices see the same."
    def views(self, chunks, data, recipe, seed, epoch, dev):
        g = generator(seed, 'views', epoch)
        for steps in chunks:
            yield draw_view([len(s) for s in steps], data.size, recipe.augment, data.grid, g).send(dev), None


def cpu_is_device(place, case):
    "The losses of 20 steps in float32, views drawn on the CPU for both."
    def losses(device, recorder):
        data = data_of(case)
        recipe = replace(recipe_of(case), epochs=7, schedule='constant', lr=recipe_of(case).lr/10)  # 21 steps
        return torch.tensor(train(network(), data, recipe, 1, device=device, dtype=torch.float32, labels=HostViews(),
                                  recorder=recorder).loss.values)
    with exact_kernels(): here, there = losses('cpu', None), losses(place.device, place.recorder)
    apart = ((here-there)/here).abs().max().item()
    return apart < 1e-3, f'losses of {len(here)} epochs differ by at most {apart:.1e} of their size'


@contextmanager
def no_waiting(device, first=0):
    "Make it an error if the host waits for the device inside an epoch or a validation's pass, from epoch `first` on."
    usual = engine._epoch, Validation._add_all
    now = dict(epoch=0)

    def watched(f, *args):
        if now['epoch'] < first: return f(*args)
        torch.cuda.set_sync_debug_mode('error')
        try: return f(*args)
        finally: torch.cuda.set_sync_debug_mode('default')

    def epoch_of(run, epoch):
        now['epoch'] = epoch
        return watched(usual[0], run, epoch)

    def add_all_of(self, key): return watched(usual[1], self, key)
    if device.type == 'cuda': engine._epoch, Validation._add_all = epoch_of, add_all_of
    try: yield
    finally: engine._epoch, Validation._add_all = usual


def nobody_waits(place, case):
    """Two epochs as they are; then replayed ones of a recorded run, whose recording may wait once.

    A run before makes libraries and constants ready.
    """
    for recorder, first, last in ((place.eager, 0, 2), (place.recorder, 3, EPOCHS)):
        outcome(place, case, recorder, stop_epoch=last)
        try:
            with no_waiting(place.device, first): outcome(place, case, recorder, stop_epoch=last)
        except RuntimeError as e: return False, f'epochs {first} to {last-1}: {str(e).splitlines()[0]}'
    said = f'2 epochs, and {EPOCHS-3} that were replayed'
    return True, said if place.device.type == 'cuda' else 'this device cannot tell'


def is_right(place, check, case):
    "Return whether a check holds, and what it says; an error is a check that does not hold."
    try: return CHECKS[check](place, case)
    except Exception as e: return False, f'{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ""}'


CHECKS = dict(recorded_is_eager=recorded_is_eager, nobody_waits=nobody_waits, cpu_is_device=cpu_is_device,
              resumed_is_uninterrupted=resumed_is_uninterrupted)
CHECKED = [(check, case) for check in CHECKS for case in CASES if check != 'cpu_is_device' or not recipe_of(case).soft]
