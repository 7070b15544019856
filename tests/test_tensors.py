"""Sets of other people: files of tensors, soft labels that came with them, classes without names, other evaluators.

Every input is made here."""
import json
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from mutations import TESTS
from pca_nb.augment import apply_view, AugmentCfg, normalise
from pca_nb.class_folders import list_class_folder
from pca_nb.combine import combine
from pca_nb.compression import compress
from pca_nb.core import generator, Refused
from pca_nb.evaluation import Evaluation, evaluate
from pca_nb.files import load_npz, read_folder, save_folder, save_npz
from pca_nb.given_labels import GivenLabels, mix_soft
from pca_nb.imageset import IMAGENET_STATS, ImageSet, match_classes, rename_by_order
from pca_nb.listing import read_listing, ReadOptions
from pca_nb.models import make_model
from pca_nb.parquet import read_parquet
from pca_nb.progress import ReadingNote
from pca_nb.recipes import GivenRecipe, HARD, RECIPES, SOFT
from pca_nb.runs import run_cfg
from pca_nb.teachers import Teacher
from pca_nb.tensor_files import is_tensor_file, is_tensor_folder, list_tensor_file, list_tensor_folder
from pca_nb.tensors import as_labels, as_pixels, load_tensors
from pca_nb.objective import LabelSource
from pca_nb.train import train

pytestmark = pytest.mark.filterwarnings('ignore::pca_nb.progress.ReadingNote')
STATS = (.49, .48, .44), (.2, .21, .22)
STATED = ReadOptions(stats=STATS)


@pytest.fixture
def images(): return torch.randint(256, (12, 3, 8, 8), generator=generator(0)).to(torch.uint8)


@pytest.fixture
def labels(): return torch.arange(12) % 3


@pytest.fixture
def soft(labels):
    noise = torch.rand(12, 3, generator=generator(1))*.4
    return (torch.eye(3)[labels]+noise)/(1+noise.sum(1, keepdim=True))


def refused(says, f, *args, **kw):
    "A refusal in words, with a way out."
    with pytest.raises(Refused) as e: f(*args, **kw)
    assert says in str(e.value) and e.value.fix, str(e.value)
    return str(e.value)


def saved(obj, path, **kw):
    torch.save(obj, path, **kw)
    return path


# ---- case 9: the arrangements ----

def arrangements(x, y):
    return {
        'pair': (x, y),
        'list': [x, y],
        'pair with a rate': (x, y, torch.tensor(.01)),
        'DC': {'data': [[x, y]], 'accs_all_exps': {'ConvNet': [np.float64(.5)]*3}},
        'repetitions': {'data': [[x, y], [x.flip(0), y.flip(0)]]},
        'bare repetitions': [(x, y), (x.flip(0), y.flip(0))],
        'dict': dict(images=x, labels=y),
        'dict of synthetic ones': dict(image_syn=x, label_syn=y, epoch=3),
        'splits': dict(images_train=x, labels_train=y, images_val=x[:3], labels_val=y[:3]),
        'nested splits': dict(train=dict(data=x, targets=y), test=dict(data=x[:3], targets=y[:3])),
        'test beside': dict(images=x, labels=y, images_test=x[:3], labels_test=y[:3]),
    }


@pytest.mark.parametrize('kind', arrangements(torch.zeros(1), torch.zeros(1)))
@pytest.mark.parametrize('legacy', [False, True], ids=['zip', 'before torch 1.6'])
def test_arrangements(kind, legacy, images, labels, tmp_path):
    x = normalise(images, STATS)
    path = saved(arrangements(x, labels)[kind], tmp_path/'set.pt', _use_new_zipfile_serialization=not legacy)
    listing = list_tensor_file(path, STATED)
    assert is_tensor_file(path) and torch.equal(listing.images, images) and torch.equal(listing.labels, labels)
    assert listing.soft is None and listing.classes == ('0', '1', '2')
    s = read_listing(listing, STATED)
    assert (s.stats, s.name, len(s.files)) == (STATS, 'set', 12)
    path.unlink()
    assert torch.equal(s.images, images) and torch.equal(s.labels, labels)   # nothing hangs on the file


def test_the_split_that_is_asked_for(images, labels, tmp_path):
    for kind, word in (('splits', 'validation'), ('nested splits', 'test'), ('test beside', 'test')):
        path = saved(arrangements(images, labels)[kind], tmp_path/f'{word}.pt')
        assert len(list_tensor_file(path)) == 12 and list_tensor_file(path).split == 'train'
        assert len(list_tensor_file(path, ReadOptions(split='test'))) == 3
    refused('choose one of test, train', list_tensor_file, path, ReadOptions(split='holdout'))


def test_repetitions_are_told_apart(images, labels, tmp_path):
    path = saved(arrangements(images, labels)['repetitions'], tmp_path/'res_DC.pt')
    first = list_tensor_file(path)
    assert first.split == '0' and '2 repetitions' in first.notes[0]
    assert torch.equal(list_tensor_file(path, ReadOptions(split='1')).images, images.flip(0))
    refused("no split 'test'", list_tensor_file, path, ReadOptions(split='test'))


def test_class_names_of_a_file(images, labels, tmp_path):
    path = saved(dict(images=images, labels=labels, classes=['cat', 'dog', 'fox']), tmp_path/'x.pth')
    assert list_tensor_file(path).classes == ('cat', 'dog', 'fox')


@pytest.mark.parametrize('form', ['logits', 'probabilities', 'one-hot', 'numbers'])
def test_datms_three_files(form, images, labels, soft, tmp_path):
    "images_best.pt, labels_best.pt, lr_best.pt; the labels may require gradients, as they did while they were learned."
    logits = (soft.log()+3).requires_grad_()
    given = {'logits': logits, 'probabilities': soft, 'one-hot': torch.eye(3)[labels], 'numbers': labels}[form]
    folder = tmp_path/'datm'
    folder.mkdir()
    saved(normalise(images, STATS).requires_grad_(), folder/'images_best.pt')
    saved(given, folder/'labels_best.pt')
    saved(torch.tensor(.0103), folder/'lr_best.pt')
    assert is_tensor_folder(folder) and not is_tensor_folder(tmp_path)
    listing = list_tensor_folder(folder, STATED)
    assert torch.equal(listing.images, images) and torch.equal(listing.labels, labels)
    assert any('learning rate' in note for note in listing.notes)
    assert any('logits' in note for note in listing.notes) == (form == 'logits')
    if form in ('logits', 'probabilities'):
        s = read_listing(listing, STATED)
        assert torch.allclose(s.soft, soft, atol=1e-6) and s.name == 'datm'
    else: assert listing.soft is None
    assert torch.equal(list_tensor_file(folder/'images_best.pt', STATED).images, images)


def test_several_pairs_of_files(images, labels, tmp_path):
    "The best are read; without a best one, somebody has to choose."
    for k in (0, 100):
        saved(images, tmp_path/f'images_{k}.pt')
        saved(labels, tmp_path/f'labels_{k}.pt')
    refused('2 files of images', list_tensor_folder, tmp_path)
    assert torch.equal(list_tensor_file(tmp_path/'images_100.pt').labels, labels)
    saved(images.flip(0), tmp_path/'images_best.pt')
    saved(labels.flip(0), tmp_path/'labels_best.pt')
    assert torch.equal(list_tensor_folder(tmp_path).images, images.flip(0))


def test_soft_labels_beside_hard_ones(images, labels, soft, tmp_path):
    path = saved(dict(images=images, labels=labels, soft_labels=soft), tmp_path/'x.pt')
    listing = list_tensor_file(path)
    assert torch.equal(listing.soft, soft) and torch.equal(listing.labels, labels)
    other = saved(dict(images=images, labels=labels.roll(1), soft_labels=soft), tmp_path/'y.pt')
    assert any('12 of 12 soft labels are largest at another class' in note for note in list_tensor_file(other).notes)


# ---- case 9: values ----

@pytest.mark.parametrize('dtype', [torch.uint8, torch.int16, torch.int64, torch.float32, torch.float64])
@pytest.mark.parametrize('order', ['channels first', 'channels last', 'grey', 'grey with a channel'])
def test_bytes_of_any_type(dtype, order, images):
    x = {'channels first': images, 'channels last': images.permute(0, 2, 3, 1), 'grey': images[:, 0],
         'grey with a channel': images[:, :1]}[order]
    want = images if order.startswith('ch') else images[:, :1].expand(-1, 3, -1, -1)
    assert torch.equal(as_pixels(x.to(dtype), ReadOptions(), 'x')[0], want)
    if dtype.is_floating_point: assert torch.equal(as_pixels(x.to(dtype)/255, ReadOptions(), 'x')[0], want)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_floats(dtype, images):
    x = normalise(images, STATS)
    error = (as_pixels(x.to(dtype), STATED, 'x')[0].int()-images.int()).abs().max()
    assert error <= (1 if dtype == torch.float16 else 2)


def test_denormalised_plainly(images):
    "Against a loop over channels, with values that overshoot: they are clipped, and it is said how many."
    x = 1.2*normalise(images, STATS)
    pixels, notes = as_pixels(x, STATED, 'x')
    for c in range(3):
        plain = [min(255, max(0, round(255*(v*STATS[1][c]+STATS[0][c])))) for v in x[:, c].flatten().tolist()]
        assert (pixels[:, c].flatten().int()-torch.tensor(plain)).abs().max() <= 1
    assert 'lie outside of 0 to 1 and are clipped' in notes[0]


def test_many_chunks(images):
    x = images.repeat(50, 1, 1, 1)   # 600 images: three chunks
    assert torch.equal(as_pixels(normalise(x, STATS), STATED, 'x')[0], x)


@pytest.mark.parametrize('normalised_first', [False, True])
def test_zca_against_kornia(normalised_first, images, tmp_path):
    "kornia's own whitening, undone with its mean and matrix: given, in a file, and under kornia's names."
    kornia = pytest.importorskip('kornia')
    coarse = torch.randint(256, (400, 3, 3, 3), generator=generator(3)).float()
    many = F.interpolate(coarse, (8, 8), mode='bilinear').to(torch.uint8)   # smooth, as photographs are
    unit = normalise(many, STATS) if normalised_first else many/255
    zca = kornia.enhance.ZCAWhitening(eps=.1).fit(unit)
    x = zca(unit[:12])
    names = dict(mean_vector=zca.mean_vector, transform_matrix=zca.transform_matrix)
    for given in ((zca.mean_vector, zca.transform_matrix), saved(names, tmp_path/'zca.pt')):
        options = ReadOptions(zca=given, stats=STATS if normalised_first else None)
        pixels, _ = as_pixels(x, options, 'x')
        assert (pixels.int()-many[:12].int()).abs().max() <= 1
    refused('ZCA', as_pixels, x, ReadOptions(), 'x')
    if not normalised_first: assert 'ZCA' in as_pixels(x, STATED, 'x')[1][-1]
    refused('6, 6', as_pixels, x, ReadOptions(zca=(torch.zeros(6), torch.eye(6))), 'x')


def test_whitened_by_its_company(images, labels, tmp_path):
    "images_zca_best.pt holds the pixels of whitened images (MTT, DATM): without the matrix the others are refused."
    contents = dict(images_best=normalise(images, STATS), images_zca_best=images/255, labels_best=labels)
    for name, content in contents.items(): saved(content, tmp_path/f'{name}.pt')
    refused('is whitened (ZCA)', list_tensor_folder, tmp_path, STATED)
    refused('is whitened (ZCA)', list_tensor_file, tmp_path/'images_best.pt', STATED)
    assert torch.equal(list_tensor_file(tmp_path/'images_zca_best.pt').images, images)
    unwhitened = ReadOptions(zca=(torch.zeros(192), torch.eye(192)), stats=STATS)
    assert torch.equal(list_tensor_folder(tmp_path, unwhitened).images, images)


@pytest.mark.parametrize('change,says', [
    (lambda x: x/16, 'from 0 to 15.9'),                                  # digits' range
    (lambda x: x/127.5-1, 'stats'),                                      # -1 to 1
    (lambda x: x*2., 'neither 0 to 1 nor 0 to 255'),
    (lambda x: x.int()*300, 'neither 0 to 1 nor 0 to 255'),
    (lambda x: torch.full_like(x, torch.nan, dtype=torch.float), 'not finite'),
    (lambda x: torch.full_like(x, torch.inf, dtype=torch.float), 'not finite'),
    (lambda x: x[:, :, :5]/255, 'of squares'),
    (lambda x: x[:, :2], 'give (N,3,H,W)'),
    (lambda x: x[:0], 'give (N,3,H,W)'),
    (lambda x: (x/255).to(torch.complex64), 'no plain numbers'),
    (lambda x: (x/255).to_sparse(), 'no plain numbers'),
    (lambda x: x[:1].expand(10**6, -1, -1, -1), 'larger than what is stored'),
])
def test_images_that_are_refused(change, says, images):
    refused(says, as_pixels, change(images), ReadOptions(), 'x.pt')


def test_statistics_that_do_not_fit(images):
    refused('were not normalised', as_pixels, images/255, STATED, 'x')
    refused('lie outside', as_pixels, 40*normalise(images, STATS), STATED, 'x')
    for bad in (((0.,), (1.,)), ((0, 0, 0), (1, 1, 0)), ((0, 0, 0), (1, -1, 1))):
        refused('stats=', as_pixels, normalise(images, STATS), ReadOptions(stats=bad), 'x')


@pytest.mark.parametrize('values,says', [
    (torch.tensor([0, 1, -1]), 'label 2 is -1'),
    (torch.tensor([0., .5]), 'label 1 is 0.5'),
    (torch.tensor([0., torch.nan]), 'not finite'),
    (torch.tensor([[1, 1, 0], [0, 1, 0]]), 'several classes'),
    (torch.tensor([[0, 0], [0, 1]]), 'several classes or none'),
    (torch.tensor([0, 1]).to_sparse(), 'no plain numbers'),
    (torch.zeros(1).expand(10**9), 'larger than what is stored'),
])
def test_labels_that_are_refused(values, says): refused(says, as_labels, values, 'y.pt')


@pytest.mark.parametrize('content,says', [
    (dict(weight=torch.zeros(8, 3, 3, 3), bias=torch.zeros(8)), "'weight', 'bias', none of them"),
    ({'\x1b[31mred': torch.zeros(2)}, r"'\x1b[31mred'"),                 # shown, not sent to the terminal
    (dict(images=torch.zeros(2, 3, 4, 4), imgs=torch.zeros(2, 3, 4, 4)), 'several images'),
    ([], 'holds a list'), ({}, 'none of them'), (3, 'holds a int'), ('words', 'holds a str'), (None, 'NoneType'),
    (torch.zeros(2, 3, 4, 4), 'images without labels'), (torch.zeros(2), 'none of them named and shaped as images'),
    ((torch.zeros(2, 3, 4, 4), torch.zeros(3)), '2 images and 3 labels'),
    ((torch.zeros(2, 3, 4, 4), torch.tensor([0, 2])), 'no image has label 1'),
    ((torch.zeros(2, 3, 4, 4), torch.tensor([0, 2**60])), 'no image has label 1'),
    ((torch.zeros(2, 3, 4, 4), torch.tensor([0, 1]), torch.zeros(2, 3, 4, 4)), 'no pair'),
])
def test_contents_that_are_refused(content, says, tmp_path):
    refused(says, list_tensor_file, saved(content, tmp_path/'x.pt'))


def test_places_that_are_no_tensor_files(tmp_path):
    for name in ('absent.pt', 'a.png', ''): refused('no such file of tensors', list_tensor_file, tmp_path/name)
    assert not is_tensor_file(tmp_path) and not is_tensor_folder(tmp_path/'absent')
    (tmp_path/'folder.pt').mkdir()
    assert not is_tensor_file(tmp_path/'folder.pt')


# ---- nothing in a file runs ----

class Burglar:
    "An object whose unpickling would write a file."
    def __init__(self, mark): self.mark = str(mark)
    def __reduce__(self): return os.system, (f'touch {self.mark}',)


class Opener(Burglar):
    def __reduce__(self): return open, (self.mark, 'w')


class Evaluator(Burglar):
    def __reduce__(self): return eval, (f"open({self.mark!r}, 'w')",)


@pytest.mark.parametrize('legacy', [False, True], ids=['zip', 'before torch 1.6'])
@pytest.mark.parametrize('kind', [Burglar, Opener, Evaluator])
@pytest.mark.parametrize('place', ['alone', 'in a pair', 'in a dict', 'as a key', 'deep'])
def test_pickles_never_run(kind, place, legacy, images, labels, tmp_path):
    mark = tmp_path/'was-here'
    evil = kind(mark)
    content = {'alone': evil, 'in a pair': (images, labels, evil), 'as a key': {evil: images},
               'in a dict': dict(images=images, labels=labels, note=evil),
               'deep': {'data': [[images, labels]], 'accs_all_exps': {'ConvNet': [.5, evil]}}}[place]
    path = saved(content, tmp_path/'x.pt', _use_new_zipfile_serialization=not legacy)
    refused('which only running its code would restore', list_tensor_file, path)
    assert not mark.exists()
    run, words = evil.__reduce__()
    run(*words)   # and it would have
    assert mark.exists()


def test_pickles_beside_images_never_run(images, labels, tmp_path):
    "As labels they are refused, as a matrix too; a learning rate is not even opened."
    mark = tmp_path/'was-here'
    saved(images, tmp_path/'images_best.pt')
    saved(Burglar(mark), tmp_path/'labels_best.pt')
    for read in (lambda: list_tensor_folder(tmp_path), lambda: list_tensor_file(tmp_path/'images_best.pt'),
                 lambda: as_pixels(images/3-1, ReadOptions(zca=tmp_path/'labels_best.pt'), 'x')):
        refused('which only running its code would restore', read)
    saved(labels, tmp_path/'labels_best.pt')
    saved(Burglar(mark), tmp_path/'lr_best.pt')
    assert len(list_tensor_folder(tmp_path)) == 12 and not mark.exists()


def test_networks_and_arrays_are_named(tmp_path, images, labels):
    refused('torch.nn.modules', load_tensors, saved(torch.nn.Linear(2, 2), tmp_path/'net.pt'))
    refused('multiarray', load_tensors, saved((images.numpy(), labels.numpy()), tmp_path/'arrays.pt'))


class Forged:
    "A numpy number whose type is not one of numbers."
    def __init__(self, code): self.code = code
    def __reduce__(self):
        make = np.float64(0).__reduce__()[0]
        return make, (np.dtype(self.code), bytes(8))


@pytest.mark.parametrize('code', ['O', 'U2', 'S8', 'V8', 'M8', 'c8'])
def test_numpy_numbers_are_numbers(code, tmp_path):
    refused('', load_tensors, saved([Forged(code)], tmp_path/'x.pt'))


def test_numpy_numbers(tmp_path):
    numbers = [np.float64(.5), np.float32(-.25), np.float16(2), np.int64(-3), np.int8(5), np.uint32(7), np.bool_(True)]
    assert load_tensors(saved(numbers, tmp_path/'x.pt')) == [.5, -.25, 2., -3, 5, 7, True]


def test_packed_archives_are_refused(tmp_path, images, labels):
    "A megabyte of zeros in a kilobyte."
    plain, packed = saved((images, labels), tmp_path/'a.pt'), tmp_path/'b.pt'
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(packed, 'w', zipfile.ZIP_DEFLATED) as new:
        for m in old.infolist(): new.writestr(m.filename, old.read(m))
    refused('packed members', list_tensor_file, packed)


MUTATE = '''
import io, json, resource, sys, time, warnings
from pathlib import Path
import numpy as np, torch
from pca_nb.listing import read_listing, ReadOptions
from pca_nb.tensor_files import list_tensor_file
from mutations import Mutations
warnings.simplefilter('ignore')
n, home = int(sys.argv[1]), Path(sys.argv[2])
damage = Mutations(0)
rng = damage.rng
flip, cut, junk = damage.flip, damage.cut, damage.junk
x = torch.rand(4, 3, 8, 8)
y = torch.tensor([0, 1, 0, 1])
def written(content, **kw):
    torch.save(content, buf := io.BytesIO(), **kw)
    return buf.getvalue()
old = dict(_use_new_zipfile_serialization=False)
seeds = [written((x, y)), written({'data': [[x, y]], 'accuracies': [np.float64(1)]}), written((x, y), **old),
         written(dict(images=x.half(), soft_labels=torch.rand(4, 2)))]
def early(b):
    "Flips in the first 600 bytes, where the pickle lies."
    return flip(b[:600])+b[600:]
now = int(open('/proc/self/statm').read().split()[0])*4096
resource.setrlimit(resource.RLIMIT_AS, (now+4*2**30,)*2)
out = dict(files=0, read=0, named=0, slowest=0., odd=[])
path = home/'x.pt'
for k in range(n):
    path.write_bytes((flip, early, cut, junk)[k%4](seeds[k//4%4]))
    start = time.perf_counter()
    out['files'] += 1
    try:
        s = read_listing(list_tensor_file(path))
        assert tuple(s.images.shape)==(4, 3, 8, 8) and s.images.dtype==torch.uint8
        out['read'] += 1
    except ValueError as e:
        out['named'] += 1
        if not str(e): out['odd'].append('no words')
    except BaseException as e: out['odd'].append(repr(e)[:200])
    out['slowest'] = max(out['slowest'], time.perf_counter()-start)
peak = next(line for line in open('/proc/self/status') if line.startswith('VmHWM'))
out['peak_mb'] = int(peak.split()[1])/1024
print(json.dumps(out))
'''


def test_mutated_files_are_read_or_named(slow, tally, tmp_path):
    "Bit flips, truncations and junk in four kinds of files, in a process of its own."
    r = subprocess.run([sys.executable, '-c', MUTATE, '8000' if slow else '2000', str(tmp_path)], capture_output=True,
                       text=True, timeout=900, env=os.environ | dict(CI='1', PYTHONPATH=TESTS))
    assert r.returncode == 0, r.stderr[-3000:]
    out = json.loads(r.stdout.splitlines()[-1])
    tally.count('files of tensors mutated', out['files'], out['files']-out['read']-out['named'])
    assert out['files'] >= 2000 and not out['odd'], out
    assert out['read'] > 200 and out['named'] > 200 and out['slowest'] < 10 and out['peak_mb'] < 2500, out


# ---- soft labels that came with a set ----

VIEWS = AugmentCfg(crop_scale=(.5, 1.), flip=.5)


@pytest.fixture
def given(soft, labels):
    x = torch.randint(256, (12, 3, 16, 16), generator=generator(4)).to(torch.uint8)
    return ImageSet(x, labels, ('a', 'b', 'c'), soft=soft, name='theirs', stats=STATS)


@pytest.mark.parametrize('mix', ['none', 'cutmix', 'mixup', 'cutout'])
@pytest.mark.parametrize('per', ['batch', 'image'])
@pytest.mark.parametrize('hard_weight', [0., .3])
def test_training_is_that_of_a_plain_loop(mix, per, hard_weight, given):
    "Two epochs of SGD: `train` against a loop that mixes labels image by image and adds divergences class by class."
    recipe = GivenRecipe(epochs=2, batch=5, optimizer='sgd', lr=.05, momentum=0., weight_decay=0., eval_every=9,
                         schedule='constant', hard_weight=hard_weight, augment=replace(VIEWS, mix=mix, mix_per=per))
    source = GivenLabels(given)
    fast, slow = (make_model('convnet3', 3, 16, 0) for _ in range(2))
    log = train(fast, given, recipe, 0, labels=source, device='cpu', dtype=torch.float32)
    slow.train()
    for epoch in range(2):
        steps = LabelSource().order(given, recipe, 0, epoch)
        for idx, (view, _) in zip(steps, LabelSource().views([[s] for s in steps], given, recipe, 0, epoch, 'cpu')):
            p = slow(apply_view(given.images[idx], view, given.stats)).softmax(1)
            loss = 0.
            for i, own in enumerate(idx.tolist()):
                lam, other = 1., own
                if mix in ('cutmix', 'mixup'): lam, other = view.mix.lam[i].item(), idx[view.mix.partner[i]].item()
                for c in range(3):
                    q = lam*given.soft[own, c].item()+(1-lam)*given.soft[other, c].item()
                    loss = loss+q*(np.log(q)-p[i, c].log())
                loss = loss-hard_weight*p[i, given.labels[own]].log()
            slow.zero_grad()
            (loss/len(idx)).backward()
            with torch.no_grad():
                for w in slow.parameters(): w -= .05*w.grad
    assert np.isfinite(log.loss).all()
    for a, b in zip(fast.parameters(), slow.parameters()): assert torch.allclose(a, b, atol=2e-5), (a-b).abs().max()


def test_zeros_and_ones(given):
    "Labels with zeros have a finite loss, and one-hot ones are hard labels."
    one_hot = replace(given, soft=torch.eye(3)[given.labels])
    a, b = (make_model('convnet3', 3, 16, 0) for _ in range(2))
    plain = dict(epochs=2, batch=6, augment=VIEWS)
    log = train(a, one_hot, GivenRecipe(**plain), labels=GivenLabels(one_hot), device='cpu', dtype=torch.float32)
    train(b, one_hot, replace(HARD, **plain), device='cpu', dtype=torch.float32)
    assert np.isfinite(log.loss).all()
    for p, q in zip(a.parameters(), b.parameters()): assert torch.allclose(p, q, atol=1e-4)


def test_mixed_labels_are_probabilities(soft):
    from pca_nb.mix import draw_mix, MixCfg
    for kind in ('cutmix', 'mixup', 'cutout'):
        mixed = mix_soft(soft, draw_mix(12, (8, 8), MixCfg(kind, per='image'), generator(0)))
        assert torch.allclose(mixed.sum(1), torch.ones(12)) and (mixed >= 0).all()


def test_what_given_labels_refuse(given):
    source = GivenLabels(given)
    hard = replace(given, soft=None)
    refused('came without soft labels', GivenLabels, hard)
    refused('did not come with', source.check, hard, GivenRecipe())
    refused('did not come with', source.check, given[torch.arange(11, -1, -1)], GivenRecipe())
    refused('learns from hard labels', source.check, given, HARD)
    refused('compares logits', source.check, given, replace(SOFT, loss='mse'))
    refused('one cell', source.check, given, GivenRecipe(augment=AugmentCfg(patches='extract')))
    refused('probabilities', GivenRecipe, loss='mse')
    refused('GivenLabels', train, make_model('convnet3', 3, 16, 0), given, GivenRecipe())
    assert GivenLabels(replace(given, soft=given.soft.roll(1, 0))).key != source.key


def test_evaluate_by_given_labels(given, tmp_path):
    fields = dict(seeds=1, epochs=3, arch='convnet3', device='cpu')
    test = replace(given, soft=None)
    soft = evaluate(given, test, recipe='soft-given', home=tmp_path, **fields)
    assert evaluate(given, test, recipe='soft-given', home=tmp_path, **fields).equals(soft)   # read
    hard = evaluate(given, test, home=tmp_path, **fields)
    assert hard.nll[0] != soft.nll[0] and len((tmp_path/'evaluate.jsonl').read_text().splitlines()) == 2
    turned = replace(given, soft=given.soft.roll(1, 1))
    assert Evaluation(turned, test, 'soft-given', arch='convnet3').key(0) \
        != Evaluation(given, test, 'soft-given', arch='convnet3').key(0)
    refused('came without soft labels', evaluate, test, test, recipe='soft-given')
    refused('learns from the labels of the set', evaluate, given, test, recipe='soft-given', teachers=['t.pt'])
    refused('came with a set', run_cfg, 'digits', 'random', 1, recipe='soft-given')
    assert RECIPES['soft-given'].given and not RECIPES['soft'].given


def test_a_file_of_tensors_from_disk_to_accuracy(given, tmp_path):
    for name, content in dict(images=normalise(given.images, STATS), labels=given.soft.log()).items():
        saved(content, tmp_path/f'{name}_best.pt')
    s = read_listing(list_tensor_folder(tmp_path, STATED))
    numbered = replace(given, classes=('0', '1', '2'), soft=None)
    fields = dict(seeds=1, recipe='soft-given', epochs=2, arch='convnet3', device='cpu')
    got = evaluate(s, numbered, **fields)
    want = evaluate(replace(given, classes=('0', '1', '2'), name=s.name, soft=s.soft), numbered, **fields)
    assert got.equals(want)


def test_where_soft_labels_are_kept(given, tmp_path):
    "Whole images keep them, in memory and on disk; composites and crops lose them, and it is said."
    idx = torch.tensor([3, 0, 4])
    assert torch.equal(given[idx].soft, given.soft[idx])
    small = compress(given, 'random', ipc=2)
    assert torch.equal(small.soft, given.soft[small.index[:, 0]])
    assert torch.equal(combine(given, idx[:, None]).soft, given.soft[idx])
    with pytest.warns(ReadingNote, match='soft labels of theirs are left out'):
        four = combine(given, torch.tensor([[0, 3, 6, 9]]))
    assert four.soft is None
    assert torch.equal(read_folder(save_folder(small, tmp_path/'f')).soft, small.soft)
    assert torch.equal(load_npz(save_npz(small, tmp_path/'n')).soft, small.soft)
    assert read_folder(save_folder(four, tmp_path/'g')).soft is None
    (tmp_path/'f'/'soft.npy').unlink()
    refused('soft.npy is missing or damaged', read_folder, tmp_path/'f')
    np.save(tmp_path/'f'/'soft.npy', np.array([Burglar(tmp_path/'was-here')]), allow_pickle=True)
    refused('soft.npy is missing or damaged', read_folder, tmp_path/'f')
    assert not (tmp_path/'was-here').exists()
    np.save(tmp_path/'f'/'soft.npy', np.full((6, 3), np.nan, np.float32))
    refused('no probabilities', read_folder, tmp_path/'f')


def test_crops_lose_soft_labels(given):
    from pca_nb.rded import CropSearchCfg, rded, selective_crop
    net = make_model('convnet3', 3, 16, 0).eval()
    with pytest.warns(ReadingNote, match='its images are cropped'):
        assert selective_crop(given, net, CropSearchCfg(n=2), generator(0)).soft is None
    with pytest.warns(ReadingNote, match='its images are cropped'):
        assert rded(given, 1, net, CropSearchCfg(n=2, pool=4), 2, generator(0)).soft is None


# ---- case 8: classes matched by order ----

def folder_of(root, names, per_class=2, file='{c}/class{k:03d}_id{i:03d}.jpg'):
    "Class folders in SRe2L's layout; every class has its own colour."
    for k, name in enumerate(names):
        for i in range(per_class):
            path = root/file.format(c=name, k=k, i=i)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new('RGB', (16, 16), (20*k, 255-20*k, 90)).save(path, 'PNG')
    return root


WNIDS = 'n01440764', 'n01443537', 'n01484850', 'n01491361'


@pytest.mark.parametrize('names', [
    [f'new{k:03d}' for k in range(12)],   # SRe2L
    [f'{k:05d}' for k in range(12)],      # RDED, DD-Ranking
    [f'class{k}' for k in range(12)],     # which sort as 0, 1, 10, 11, 2
    [str(k) for k in range(12)],
])
def test_sre2ls_folders_against_imagenets_names(names, tmp_path):
    wnids = [f'n0144{k:04d}' for k in range(12)]
    distilled = read_listing(list_class_folder(folder_of(tmp_path/'syn', names)))
    test = read_listing(list_class_folder(folder_of(tmp_path/'val', wnids, file='{c}/ILSVRC_{k}_{i}.JPEG')))
    assert "match='order'" in refused('use the same names', match_classes, test, distilled)
    with pytest.warns(ReadingNote, match=f'ORDER, not by name: {names[0]} is n01440000, {names[1]} is n01440001, '
                                         f'{names[2]} is n01440002, …'):
        matched = match_classes(test, distilled, match='order')
    colour = {c: distilled.images[distilled.labels == c][0, 0, 0, 0].item() for c in range(12)}
    assert [colour[y] for y in matched.labels.tolist()] == test.images[:, 0, 0, 0].tolist()
    renamed = rename_by_order(distilled, test)
    assert renamed.classes[distilled.classes.index(names[10])] == 'n01440010'


def test_what_order_refuses(given):
    four = ImageSet(given.images[:4], torch.arange(4), WNIDS)
    refused('3 classes cannot be matched by order with 4', match_classes, four, given, 'order')
    refused('choose one of name, order', match_classes, given, given, 'position')
    refused('match them by name', match_classes, replace(given, classes=('b', 'c', 'd')), given, 'order')
    same = match_classes(replace(given, classes=('c', 'b', 'a')), given, 'order')   # names win where they are there
    assert same.labels.tolist() == (2-given.labels).tolist()
    assert match_classes(given, replace(given, classes=WNIDS[:3]), 'order').soft is None


def test_evaluate_by_order_and_a_teacher_that_knows_better(given):
    "A teacher of the test set's classes says when the distilled classes are in another order."
    x = torch.zeros(30, 3, 16, 16, dtype=torch.uint8)
    y = torch.arange(30) % 3
    x[torch.arange(30), y] = 200   # class c is bright in channel c
    test = ImageSet(x, y, WNIDS[:3], stats=STATS)
    distilled = replace(test[torch.arange(6)], classes=('new000', 'new001', 'new002'), index=None)
    refused("match='order'", evaluate, distilled, test, seeds=1)
    fields = dict(seeds=1, epochs=2, arch='convnet3', device='cpu', match='order')
    with pytest.warns(ReadingNote, match='new000 is n01440764'): evaluate(distilled, test, **fields)

    class ByChannel(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(3))
        def forward(self, x): return 5*x.mean((2, 3))*self.scale

    teacher = Teacher(ByChannel(), 'by channel', 16, WNIDS[:3], STATS, 100.)
    Evaluation(distilled, test, 'soft', [teacher], 'convnet3', 2, match='order', device='cpu')
    turned = replace(distilled, labels=(distilled.labels+1) % 3)
    refused('its classes are in another order', Evaluation, turned, test, 'soft', [teacher], 'convnet3', 2,
            match='order', device='cpu')


# ---- case 10: other people's evaluators ----

@pytest.fixture(scope='module')
def ddranking():
    return pytest.importorskip('ddranking', reason="pip install --no-deps ddranking==0.2.0 timm")


def test_rethinkdcs_reader_and_ours_agree(tmp_path):
    "Its folder reader on SRe2L's layout and on our export of it; its columns on the Hub are read by ours."
    theirs = pytest.importorskip('rethinkdc.imagenet_ipc').ImageFolderIPC

    class reader(theirs):   # newer torchvision passes `allow_empty`, which their method does not know
        @staticmethod
        def make_dataset(*a, allow_empty=False, **kw): return theirs.make_dataset(*a, **kw)

    def read(root): return [(np.asarray(im), y) for im, y in reader(str(root), image_number=10)]
    root = folder_of(tmp_path/'syn', [f'new{k:03d}' for k in range(4)])
    ours = read_listing(list_class_folder(root))
    for place in (root, save_folder(ours, tmp_path/'out')/'images'):
        found = read(place)
        assert [y for _, y in found] == ours.labels.tolist()
        assert np.array_equal(np.stack([x for x, _ in found]), ours.images.permute(0, 2, 3, 1).numpy())


def test_rethinkdcs_columns_are_read(tmp_path, monkeypatch):
    "What its adapter for the Hub takes, `image` and `class_id`, written by `datasets` and read by ours."
    adapter = pytest.importorskip('rethinkdc.imagenet_ipc').HFDatasetAdapter
    datasets = pytest.importorskip('datasets')
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    pictures = [Image.new('RGB', (16, 16), (40*k, 0, 9)) for k in range(4)]
    d = datasets.Dataset.from_dict(dict(image=pictures, class_id=[0, 1, 1, 0]),
                                   features=datasets.Features(image=datasets.Image(), class_id=datasets.Value('int64')))
    d.to_parquet(str(tmp_path/'p.parquet'))
    s = read_parquet(tmp_path/'p.parquet')
    theirs = adapter(dict(train=d))
    assert [y for _, y in theirs] == s.labels.tolist()
    assert np.array_equal(np.stack([np.asarray(x) for x, _ in theirs]), s.images.permute(0, 2, 3, 1).numpy())


@pytest.fixture
def six():
    "Six classes: DD-Ranking measures top-5."
    x = torch.randint(256, (12, 3, 16, 16), generator=generator(5)).to(torch.uint8)
    soft = torch.rand(12, 6, generator=generator(6))+2*torch.eye(6).repeat(2, 1)
    return ImageSet(x, torch.arange(12) % 6, tuple('abcdef'), soft=soft/soft.sum(1, keepdim=True), stats=STATS)


def place_of(given, monkeypatch, ddranking, kind):
    "DD-Ranking's evaluator of 'hard' or 'soft' labels, with our images in the place of its downloads."
    import importlib
    module = importlib.import_module(f'ddranking.metrics.{kind}_label')
    data = ddranking.utils.TensorDataset(normalise(given.images, given.stats), given.labels)
    same = {c: c for c in range(6)}
    monkeypatch.setattr(module, 'get_dataset', lambda *_: (3, (16, 16), *STATS, 6, data, data, data, same, same))
    return module


COMMON = dict(dataset='CIFAR10', ipc=2, model_name='ConvNet-3', data_aug_func=None, optimizer='sgd', weight_decay=0.,
              momentum=0., lr_scheduler='step', step_size=99, im_size=(16, 16), num_epochs=2, syn_batch_size=12,
              num_workers=0, device='cpu')


def measured(evaluator, monkeypatch, module, labels):
    "The network as their evaluator leaves it, started as ours does."
    nets = []

    def build(model_name, num_classes, im_size, **_):
        nets.append(make_model('convnet3', num_classes, im_size[0], 0))
        return nets[-1]
    monkeypatch.setattr(module, 'build_model', build)
    monkeypatch.setattr(module, 'validate', lambda **_: 50.)
    evaluator.test_interval = 1
    return nets, labels(evaluator)[0]


def plain(recipe): return replace(recipe, epochs=2, batch=12, optimizer='sgd', lr=.01, momentum=0., weight_decay=0.,
                                  schedule='constant', eval_every=9, augment=AugmentCfg(crop_scale=None, flip=0.))


def test_dd_ranking_trains_on_our_folder_as_we_do(ddranking, six, tmp_path, monkeypatch):
    "Our export through its reader and loop ends at the weights of ours: full batches, so the order is no matter."
    from torchvision import transforms
    module = place_of(six, monkeypatch, ddranking, 'hard')
    folder = save_folder(six, tmp_path/'out')/'images'
    views = transforms.Compose([transforms.ToTensor(), transforms.Normalize(*STATS)])
    evaluator = module.LabelRobustScoreHard(custom_train_trans=views, save_path=f'{tmp_path}/r/x.csv', **COMMON)
    nets, _ = measured(evaluator, monkeypatch, module,
                       lambda e: e._compute_hard_label_metrics_helper(None, str(folder), None, .01, 'syn'))
    ours = make_model('convnet3', 6, 16, 0)
    train(ours, six, plain(HARD), device='cpu', dtype=torch.float32)
    for a, b in zip(nets[-1].parameters(), ours.parameters()): assert torch.allclose(a, b, atol=1e-5)


def test_dd_ranking_trains_on_soft_labels_as_we_do(ddranking, six, tmp_path, monkeypatch):
    "DATM's form through its loop and through our reader and 'soft-given': the same weights."
    module = place_of(six, monkeypatch, ddranking, 'soft')
    x, logits = normalise(six.images, STATS), six.soft.log()
    asked = dict(soft_label_criterion='kl', soft_label_mode='S', teacher_model_names=[],
                 loss_fn_kwargs=dict(temperature=1.), save_path=f'{tmp_path}/r/x.csv')
    evaluator = module.LabelRobustScoreSoft(**asked, **COMMON)
    nets, _ = measured(evaluator, monkeypatch, module,
                       lambda e: e._compute_soft_label_metrics_helper(x, None, logits, .01))
    saved((x, logits), tmp_path/'set.pt')
    read = read_listing(list_tensor_file(tmp_path/'set.pt', STATED))
    ours = make_model('convnet3', 6, 16, 0)
    train(ours, read, plain(GivenRecipe()), labels=GivenLabels(read), device='cpu', dtype=torch.float32)
    for a, b in zip(nets[-1].parameters(), ours.parameters()): assert torch.allclose(a, b, atol=1e-4)


def test_dd_rankings_files_are_read(ddranking, given, tmp_path):
    "What it writes of random images: tensors beside each other, and folders called 00000, 00001, …"
    data = ddranking.utils.TensorDataset(normalise(given.images, STATS), given.labels.tolist())
    of_class = [(given.labels == c).nonzero()[:, 0].tolist() for c in range(3)]
    x, y = ddranking.utils.get_random_data_tensors('CIFAR10', data, of_class, 2, {c: c for c in range(3)}, 0,
                                                   str(tmp_path/'tensors'))
    s = read_listing(list_tensor_folder(tmp_path/'tensors', STATED))
    assert torch.equal(s.labels, y) and torch.allclose(normalise(s.images, STATS), x, atol=1e-5)
    samples = [[str(p) for p in sorted((folder_of(tmp_path/'real', WNIDS)/c).iterdir())] for c in WNIDS]
    ddranking.utils.get_random_data_path('ImageNette', samples, 2, 0, str(tmp_path/'folders'))
    mine = read_listing(list_class_folder(tmp_path/'folders'))
    real = read_listing(list_class_folder(tmp_path/'real'))
    assert match_classes(real, mine, 'order').labels.tolist() == mine.labels.tolist()
    assert torch.equal(mine.images, real.images)


def test_both_evaluators_agree_on_record():
    "The stored numbers: less than a percent between the means."
    judged = json.loads((Path(__file__).parents[1]/'nbs'/'results'/'evaluators.json').read_text())
    for kind in {r['set'] for r in judged['rows']}:
        rows = [r for r in judged['rows'] if r['set'] == kind]
        assert len(rows) >= 5 and abs(np.mean([r['theirs']-r['ours'] for r in rows])) < 1, kind


def test_imagenet_statistics_are_the_default(images, labels, tmp_path):
    assert read_listing(list_tensor_file(saved((images, labels), tmp_path/'x.pt'))).stats == IMAGENET_STATS
