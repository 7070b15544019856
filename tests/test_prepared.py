"Images prepared once: the pixels of the files, whatever interrupts the preparation, and good for everything."
import json
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pca_nb import prepared
from pca_nb.compression import compress
from pca_nb.core import Refused
from pca_nb.datasets import load_data
from pca_nb.decode import decode_all, LazyImages, read_image
from pca_nb.evaluation import EvaluationPlan
from pca_nb.files import save_folder
from pca_nb.imageset import content_hash
from pca_nb.inspection import inspect
from pca_nb.layouts import list_images
from pca_nb.listing import ReadOptions
from pca_nb.models import make_model
from pca_nb.prepared import INDEX, list_prepared, prepare, PrepareCfg, PreparedImages, shard_path
from pca_nb.progress import ReadingNote
from pca_nb.recipes import RECIPES
from pca_nb.scores import record_dynamics, ScoringCfg
from pca_nb.train import train
from pca_nb.validate import validate

SMALL = PrepareCfg(size=32, per_shard=7)


def write_tree(root, classes, each, val=2):
    "Textures of 500×375, a little brighter from class to class."
    rng = np.random.default_rng(0)
    for split, n in (('train', each), ('val', val)):
        for c in range(classes):
            folder = root/split/f'n{c + 1000:08d}'
            folder.mkdir(parents=True)
            for i in range(n):
                blots = rng.integers(0, 150, (15, 20, 3)) + 100*c//classes
                im = Image.fromarray(blots.astype(np.uint8)).resize((500, 375))
                im.save(folder/f'{folder.name}_{i}.JPEG', quality=90)
    return root


@pytest.fixture(scope='module')
def tree(tmp_path_factory): return write_tree(tmp_path_factory.mktemp('imagenet'), 4, 6)


@pytest.fixture(scope='module')
def folder(tree, tmp_path_factory):
    "The training images, prepared in four shards"
    out = tmp_path_factory.mktemp('ready')/'train'
    prepare(list_images(tree), out, SMALL)
    return out


def shards(folder): return {p.name: p.read_bytes() for p in sorted(folder.glob('*.npy'))}


@pytest.mark.parametrize('zoom', [1., 256/224])
def test_pixels_are_those_of_the_files_in_imagefolders_order(tree, tmp_path, zoom):
    from torchvision.datasets import ImageFolder
    prepare(list_images(tree), tmp_path/'x', replace(SMALL, zoom=zoom))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', ReadingNote)
        s = load_data(tmp_path/'x')
    theirs = ImageFolder(tree/'train')
    assert [tree/'train'/f for f in s.files] == [Path(p) for p, _ in theirs.samples]
    assert s.labels.tolist() == theirs.targets and list(s.classes) == theirs.classes
    for i, (path, _) in enumerate(theirs.samples):
        assert torch.equal(s.images[i][0], read_image(path, 32, zoom)), path


def test_it_is_the_set_of_the_files(tree, folder):
    "In memory or not: the same set by every measure, so that rows and scores of one are those of the other."
    s, files = load_data(folder), load_data(tree, size=32, resident=False)
    assert isinstance(s.images, PreparedImages) and isinstance(files.images, LazyImages)
    assert content_hash(s) == content_hash(files) and s.name == files.name
    assert content_hash(load_data(folder, resident=True)) == content_hash(load_data(tree, size=32))


def stop_at(monkeypatch, shard):
    "Ctrl-C while that shard is decoded"
    def decode(lazy, desc):
        if desc.startswith(f'shard {shard} '): raise KeyboardInterrupt
        return decode_all(lazy, desc)
    monkeypatch.setattr(prepared, 'decode_all', decode)


@pytest.mark.parametrize('shard', [1, 2, 4])
def test_interrupted_it_goes_on_with_the_same_bytes(tree, folder, tmp_path, monkeypatch, shard):
    out = tmp_path/'x'
    stop_at(monkeypatch, shard)
    with pytest.raises(KeyboardInterrupt, match=f'stopped: {shard-1} of 4 shards are in .*run it again to go on'):
        prepare(list_images(tree), out, SMALL)
    monkeypatch.undo()
    assert len(shards(out)) == shard-1 and not (out/INDEX).exists() and not list(out.glob('.*'))
    with pytest.raises(Refused, match='is unfinished: it has no prepared.npz: run the same `pca-nb imagenet prepare`'):
        load_data(out)
    made = []
    monkeypatch.setattr(prepared, '_decode_shard', lambda job, k, f=prepared._decode_shard: made.append(k) or f(job, k))
    prepare(list_images(tree), out, SMALL)
    assert made == list(range(shard-1, 4)) and shards(out) == shards(folder)
    made.clear()
    prepare(list_images(tree), out, SMALL)
    assert not made


def test_a_cut_shard_is_refused_by_name_and_made_again(tree, folder, tmp_path):
    out = tmp_path/'x'
    prepare(list_images(tree), out, SMALL)
    before = shards(out)
    shard_path(out, 2).write_bytes(before['shard-00002.npy'][:-1])
    with pytest.raises(Refused, match=r'shard-00002.npy has 21,631 bytes of 21,632: run the same'): load_data(out)
    prepare(list_images(tree), out, SMALL)
    assert shards(out) == before == shards(folder)
    shard_path(out, 0).unlink()
    with pytest.raises(Refused, match='shard-00000.npy has 0 bytes'): load_data(out)


def test_a_cut_index_is_refused_by_name(tree, tmp_path):
    out = tmp_path/'x'
    prepare(list_images(tree), out, SMALL)
    (out/INDEX).write_bytes((out/INDEX).read_bytes()[:-30])
    with pytest.raises(Refused, match='prepared.npz is no index of prepared images'): load_data(out)
    (out/INDEX).unlink()
    prepare(list_images(tree), out, SMALL)
    assert len(load_data(out)) == 24


@pytest.mark.parametrize('cfg, what', [(replace(SMALL, size=16), 'size 32, not 16'),
                                       (replace(SMALL, zoom=1.1), 'zoom 1.0, not 1.1'),
                                       (replace(SMALL, per_shard=5), 'per_shard 7, not 5')])
def test_parts_of_two_preparations_never_mix(tree, folder, cfg, what):
    with pytest.raises(Refused, match=f'holds other prepared images .{what}.: give another folder'):
        prepare(list_images(tree), folder, cfg)


def test_other_images_never_mix(tree, folder):
    with pytest.raises(Refused, match='holds other prepared images .images 24, not 8'):
        prepare(list_images(tree, ReadOptions('validation')), folder, SMALL)


def test_a_full_disk_is_refused_before_any_work(tree, tmp_path, monkeypatch):
    usage = prepared.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(prepared.shutil, 'disk_usage', lambda _: usage._replace(free=1000))
    with pytest.raises(Refused, match=r'needs 0.0 GB more, 0.0 GB are free: free some space'):
        prepare(list_images(tree), tmp_path/'x', SMALL)
    assert not (tmp_path/'x').exists()


def test_a_disk_that_fills_up_leaves_no_half_shard(tree, tmp_path, monkeypatch):
    def full(path, arr):
        Path(path).write_bytes(b'half')
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(prepared.np, 'save', full)
    with pytest.raises(OSError, match='free some space'): prepare(list_images(tree), tmp_path/'x', SMALL)
    assert not shards(tmp_path/'x')


def test_damaged_images_are_left_out_by_name(tree, tmp_path):
    import shutil
    root = shutil.copytree(tree, tmp_path/'tree')
    victim = sorted((root/'train').rglob('*.JPEG'))[8]
    whole = victim.read_bytes()
    victim.write_bytes(whole[:200])
    with pytest.raises(Refused, match='1 of 7 images cannot be read: .*--skip-damaged'):
        prepare(list_images(root), tmp_path/'x', SMALL)
    with pytest.warns(ReadingNote, match='1 of 24 images are damaged and left out'):
        prepare(list_images(root), tmp_path/'x', replace(SMALL, skip_damaged=True))
    s, others = load_data(tmp_path/'x'), [i for i in range(24) if i != 8]
    assert s.images.counts == (7, 6, 7, 3) and len(s) == 23
    assert torch.equal(s.images[:], load_data(tree, size=32).images[others])
    victim.write_bytes(whole)   # repaired: its shard is made again, whole
    (tmp_path/'x'/INDEX).unlink()
    shard_path(tmp_path/'x', 1).unlink()
    prepare(list_images(root), tmp_path/'x', SMALL)
    assert len(load_data(tmp_path/'x')) == 24


def trained(s, test=None, **change):
    net = make_model('convnet2-w32', s.n_classes, s.size[0], 0)
    log = train(net, s, replace(RECIPES['hard'], epochs=2, batch=5, **change), 0, test, device='cpu')
    return log, net.state_dict()


def test_training_is_bit_for_bit_that_of_resident_images(folder):
    mapped, held = load_data(folder), load_data(folder, resident=True)
    (log1, net1), (log2, net2) = trained(mapped, mapped), trained(held, held)
    assert isinstance(held.images, torch.Tensor) and log1.equals(log2)
    assert all(torch.equal(net1[k], net2[k]) for k in net1)


def test_scores_sets_and_accuracy_are_those_of_resident_images(folder):
    mapped, held = load_data(folder), load_data(folder, resident=True)
    cfg = ScoringCfg('convnet2-w32', replace(RECIPES['ccs'], epochs=2, batch=8))
    a, b = (record_dynamics(s, cfg, device='cpu') for s in (mapped, held))
    assert all(torch.equal(a.sums[k], b.sums[k]) for k in a.sums)
    for method in ('random', 'pca', 'ccs'):
        one, two = (compress(s, method, 1, scores=a, factor=2*(method == 'pca'), device='cpu') for s in (mapped, held))
        assert torch.equal(one.images, two.images) and torch.equal(one.index, two.index)
    net = make_model('convnet2-w32', 4, 32, 0)
    assert validate(net, mapped) == validate(net, held)


def first_pixels(s): return s.images[:3], len(s.images.maps)


def test_another_process_maps_its_own_shards(folder):
    "What travels is names and numbers."
    import pickle
    s = load_data(folder)
    s.images[:]
    assert len(pickle.dumps(s.images)) < 2000
    with ProcessPoolExecutor(1, mp_context=get_context('spawn')) as pool:
        pixels, opened = pool.submit(first_pixels, s).result()
    assert torch.equal(pixels, s.images[:3]) and opened == 1


def test_a_compressed_set_keeps_its_cells(folder, tmp_path):
    "Composites that are too many for memory may be prepared as well."
    full = load_data(folder, resident=True)
    small = compress(full, 'pca', 1, scores=torch.arange(24.), factor=2, device='cpu')
    save_folder(small, tmp_path/'small')
    prepare(list_images(tmp_path/'small'), tmp_path/'ready', SMALL)
    back = load_data(tmp_path/'ready')
    assert back.grid == 2 and torch.equal(back.index, small.index) and torch.equal(back.images[:], small.images)
    assert (back.name, back.stats) == (small.name, small.stats)


def test_inspect_reads_no_pixels_unasked(folder, monkeypatch):
    from pca_nb import inspection
    assert inspect(folder).duplicates is not None   # few enough
    monkeypatch.setattr(inspection, 'MAX_UNASKED_PIXELS', 1000)
    found = inspect(folder)
    assert found.ok and 'not looked for' in found.undecoded and 'prepared images' in str(found)
    assert '<img' in found._repr_html_()


def test_a_foreign_index_executes_nothing(folder, tmp_path):
    about = np.array([object()], dtype=object)
    np.savez(tmp_path/INDEX, labels=about, index=about, counts=about, about=about)
    with pytest.raises(Refused, match='is no index of prepared images'): list_prepared(tmp_path)


def test_commands_read_it(tree, folder, tmp_path, shell):
    cpu = ('--device', 'cpu')
    words = ('imagenet', 'prepare', tree, '--out', tmp_path/'val', '--size', 32, '--split', 'validation')
    said = shell(*words)
    assert '0 to make' in shell(*words)
    assert '8 images of 4 classes: 0.0 GB in 1 shards, 1 to make' in said and 'prepared: 8 images' in said
    shell('score', folder, '--out', tmp_path/'s.npz', '--epochs', 2, '--arch', 'convnet2-w32', *cpu)
    shell('compress', folder, '--out', tmp_path/'small', '--ipc', 1, '--factor', 2, '--scores', tmp_path/'s.npz', *cpu)
    said = shell('evaluate', tmp_path/'small', '--test', tmp_path/'val', '--epochs', 2, '--seeds', 1, '--arch',
                 'convnet2-w32', *cpu)
    assert 'chance 25.0 %' in said
    assert "has no split 'test'" in shell('evaluate', tmp_path/'small', '--test', folder, ok=False)


def test_skipped_images_are_listed_by_the_command(tree, tmp_path, shell):
    import shutil
    root = shutil.copytree(tree, tmp_path/'tree')
    victim = sorted((root/'train').rglob('*.JPEG'))[3]
    victim.write_bytes(b'')
    words = ('imagenet', 'prepare', root, '--out', tmp_path/'x', '--size', 32)
    assert 'an empty file' in shell(*words, ok=False)
    said = shell(*words, '--skip-damaged')
    assert 'prepared: 23 images' in said
    shell(*words, '--skip-damaged')   # again: nothing is made, and nothing is listed twice
    assert victim.name in (tmp_path/'x'/'damaged.txt').read_text().splitlines()[0].split('\t')[0]
    assert len((tmp_path/'x'/'damaged.txt').read_text().splitlines()) == 1
    assert json.loads((tmp_path/'x'/'preparing.json').read_text())['images'] == 24


def test_the_papers_protocol_wants_test_images_of_its_zoom(tree, tmp_path):
    "the plan prints the zoom with six digits; what was prepared at another one is refused"
    small = load_data(tree, 'train', 64)
    for name, zoom in (('right', 1.142857), ('wrong', 1.)):
        prepare(list_images(tree, ReadOptions('validation')), tmp_path/name, PrepareCfg(size=64, zoom=zoom))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')          # val is read in the place of test, and is zoomed; the network is slow
        right, wrong = (load_data(tmp_path/name, 'test') for name in ('right', 'wrong'))
        assert EvaluationPlan(small, right, protocol='paper', device='cpu').cfg.batch == 128
        with pytest.raises(Refused, match='is read at zoom 1, this protocol tests at 1.14'):
            EvaluationPlan(small, wrong, protocol='paper', device='cpu')
