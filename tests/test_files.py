"Sets on disk, read back by us and by other people's readers."
import numpy as np
import pytest
import torch

from pca_nb.core import generator
from pca_nb.imageset import ImageSet
from pca_nb.files import save_folder, save_npz
from pca_nb.parquet import save_parquet
from pca_nb.datasets import _DEBIAN, load_data


@pytest.fixture
def composites():
    "Eleven classes whose names do not sort as numbers do"
    x = torch.randint(256, (33, 3, 12, 12), generator=generator(0)).to(torch.uint8)
    return ImageSet(x, torch.arange(33) // 3, [str(i) for i in range(11)], torch.arange(33 * 4).view(33, 4), 2,
                    'toy/pca', ((.1, .2, .3), (.4, .5, .6)))


def same(a, b):
    assert torch.equal(a.images, b.images)
    assert torch.equal(a.labels, b.labels)
    assert torch.equal(a.index, b.index)
    assert (a.grid, a.classes, a.name, a.stats) == (b.grid, b.classes, b.name, b.stats)


def test_folder_parquet_and_npz_give_the_set_back(composites, tmp_path):
    same(load_data(save_folder(composites, tmp_path/'f')), composites)
    same(load_data(save_parquet(composites, tmp_path/'p.parquet')), composites)
    same(load_data(save_npz(composites, tmp_path/'n')), composites)


@pytest.mark.parametrize('ipc', [1, 2, 3, 50])
def test_rethinkdcs_reader(composites, tmp_path, ipc):
    "rethinkdc 0.3.2's folder reader itself: first `ipc` files of every class, classes by sorted folder name"
    theirs = pytest.importorskip('rethinkdc.imagenet_ipc').ImageFolderIPC

    class Reader(theirs):   # newer torchvision passes `allow_empty`, which their method does not know
        @staticmethod
        def make_dataset(*a, allow_empty=False, **kw): return theirs.make_dataset(*a, **kw)

    folder = save_folder(composites, tmp_path/'f')/'images'
    d = Reader(str(folder), image_number=ipc)
    keep = torch.cat([(composites.labels == c).nonzero()[:ipc, 0] for c in range(11)])
    assert [y for _, y in d] == composites.labels[keep].tolist()
    pixels = np.stack([np.asarray(im) for im, _ in d])
    assert np.array_equal(pixels, composites.images[keep].permute(0, 2, 3, 1).numpy())


def test_hugging_faces_reader(composites, tmp_path, monkeypatch):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    datasets = pytest.importorskip('datasets')
    file = save_parquet(composites, tmp_path/'p.parquet')
    d = datasets.load_dataset('parquet', data_files=str(file), cache_dir=str(tmp_path/'cache'))['train']
    assert d.features['label'].names == list(composites.classes)
    assert d['label'][:] == composites.labels.tolist()
    assert d['index'][:] == composites.index.tolist()
    assert np.array_equal(np.asarray(d[7]['image']), composites.images[7].permute(1, 2, 0).numpy())


def test_sets_of_a_hub_layout_are_read(tmp_path):
    "A parquet written by `datasets` itself"
    datasets = pytest.importorskip('datasets')
    from PIL import Image
    images = [Image.fromarray(np.full((9 + i, 20, 3), 10 * i, np.uint8)) for i in range(6)]
    features = datasets.Features(image=datasets.Image(), class_id=datasets.ClassLabel(names=['cat', 'dog']))
    rows = dict(image=images, class_id=[0, 1] * 3)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path/'h.parquet'))
    s = load_data(tmp_path/'h.parquet', size=8)
    assert (s.classes, s.labels.tolist(), s.size) == (('cat', 'dog'), [0, 1] * 3, (8, 8))
    assert [int(im.float().mean()) for im in s.images] == [0, 10, 20, 30, 40, 50]


def test_real_parquet(shared_data):
    s = load_data(shared_data/'cifar10-test.parquet')
    assert (len(s), s.size, s.counts.tolist()) == (10_000, (32, 32), [1000] * 10)
    assert 'airplane' in s.classes


@pytest.mark.skipif(not _DEBIAN.exists(), reason=f'no {_DEBIAN}: apt-get install dataset-fashion-mnist')
def test_debians_fashion_mnist():
    s = load_data('fashion-mnist', 'test')
    assert (len(s), s.size, s.counts.tolist()) == (10_000, (28, 28), [1000] * 10)


def test_tiny_imagenet_layout(tmp_path, monkeypatch):
    "train/<wnid>/images and val_annotations.txt, without a torchvision reader"
    from PIL import Image
    monkeypatch.setenv('PCA_NB_DATA', str(tmp_path))
    from pca_nb.datasets import _tiny
    root = tmp_path/'tiny-imagenet-200'
    for wnid, grey in (('n02', 20), ('n01', 10)):
        (root/'train'/wnid/'images').mkdir(parents=True)
        Image.new('RGB', (64, 64), (grey,) * 3).save(root/'train'/wnid/'images'/f'{wnid}_0.JPEG')
    (root/'val'/'images').mkdir(parents=True)
    Image.new('RGB', (64, 64), (99,) * 3).save(root/'val'/'images'/'val_0.JPEG')
    (root/'val'/'val_annotations.txt').write_text('val_0.JPEG\tn02\t0\t0\t62\t62\n')
    train = _tiny('train', 64, 1.)
    test = _tiny('test', 64, 1.)
    assert train.classes == test.classes == ('n01', 'n02')
    assert test.labels.tolist() == [1]
    assert int(train.images[1, 0, 0, 0]) == 20
