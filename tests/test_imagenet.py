"""What somebody with ImageNet-1K relies on: the order of classes and files, both layouts of its validation images,
pixels as torchvision crops and resizes them, and the order of the published scores.

The trees are small and made here, with real wnids."""
import pickle
import runpy
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.models import ResNet18_Weights
from torchvision.transforms import v2

from pca_nb.core import Refused
from pca_nb.datasets import load_data, sample_photos
from pca_nb.defaults import read_scores
from pca_nb.imageset import ImageSet
from pca_nb.protocols import N_TRAIN, PAPER_PROTOCOL
from pca_nb.scores import read_ccs_scores
from pca_nb import teachers
from pca_nb.teachers import check_imagenet_order, ClassOrderWarning, load_teacher

pytestmark = pytest.mark.filterwarnings('ignore::pca_nb.progress.ReadingNote')
root = Path(__file__).resolve().parents[1]
generator = runpy.run_path(str(root/'nbs'/'results'/'make'/'synthetic_imagenet.py'))

WNIDS = {  # twelve of ImageNet's classes -> their names in torchvision
    'n01440764': 'tench', 'n01443537': 'goldfish', 'n01484850': 'great white shark', 'n02102040': 'English springer',
    'n02979186': 'cassette player', 'n03000684': 'chain saw', 'n03028079': 'church', 'n03394916': 'French horn',
    'n03417042': 'garbage truck', 'n03445777': 'golf ball', 'n03888257': 'parachute', 'n15075141': 'toilet tissue'}
NUMBERS = (10, 7, 1002)   # of the files of a class: as words they are sorted 10, 1002, 7


def save(path, level, size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', size, (level, 255-level, level)).save(path, 'JPEG', quality=95)


@pytest.fixture
def tree(tmp_path):
    "train/<wnid>/ with three images per class, made in an order that is not that of names"
    for c, wnid in reversed(list(enumerate(WNIDS))):
        for k, number in enumerate(NUMBERS): save(tmp_path/'train'/wnid/f'{wnid}_{number}.JPEG', 18*c+5*k)
    return tmp_path


def validation(folder, layout, classes=tuple(WNIDS)):
    "Two images per class in class folders, or flat with one of ImageNet's two lists; the images are the same"
    pairs = [(2*c+k+1, wnid, 18*c+5*k) for c, wnid in enumerate(classes) for k in (0, 1)]
    shuffled = [pairs[i] for i in np.random.default_rng(0).permutation(len(pairs))]
    shuffled = [(i+1, wnid, level) for i, (_, wnid, level) in enumerate(shuffled)]
    for number, wnid, level in shuffled:
        place = folder/'val'/wnid if layout == 'folders' else folder/'val'
        save(place/f'ILSVRC2012_val_{number:08d}.JPEG', level)
    if layout == 'kaggle':
        lines = [f'ILSVRC2012_val_{i:08d},{wnid} 1 2 30 20 ' for i, wnid, _ in reversed(shuffled)]
        (folder/'LOC_val_solution.csv').write_text('\n'.join(['ImageId,PredictionString', *lines, '']))
    if layout == 'synsets':
        (folder/'imagenet_2012_validation_synset_labels.txt').write_text(''.join(f'{w}\n' for _, w, _ in shuffled))


# ---- the order of classes ----
def test_classes_and_files_are_in_imagefolders_order(tree):
    ours, theirs = load_data(tree, size=30), ImageFolder(tree/'train')
    assert list(ours.classes) == theirs.classes == sorted(WNIDS)
    assert ours.labels.tolist() == theirs.targets
    assert [Path(f).name for f in ours.files] == [Path(f).name for f, _ in theirs.samples]
    assert [Path(f).stem.split('_')[1] for f in ours.files[:3]] == ['10', '1002', '7']


def test_torchvisions_weights_count_classes_in_the_order_of_wnids():
    names = ResNet18_Weights.DEFAULT.meta['categories']
    places = [names.index(WNIDS[w]) for w in sorted(WNIDS)]
    assert places == sorted(places) and places[:3] == [0, 1, 2] and places[-1] == 999 and len(names) == 1000


@pytest.fixture(scope='module')
def real():
    "All 1,000 wnids, from a package that has them"
    timm = pytest.importorskip('timm')
    return tuple((Path(timm.__file__).parent/'data'/'_info'/'imagenet_synsets.txt').read_text().split())


def silent(classes):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        check_imagenet_order(classes)


def test_imagenets_own_names_pass(real):
    assert set(WNIDS) < set(real)
    silent(real)
    silent(tuple(ResNet18_Weights.DEFAULT.meta['categories']))


def test_wnids_in_another_order_are_refused(real):
    with pytest.raises(Refused, match="ImageNet-1K's in another order"): check_imagenet_order(real[1:]+real[:1])
    with pytest.raises(Refused, match="are not ImageNet-1K's"): check_imagenet_order((*real[:-1], 'n15075142'))


def thousand(classes):
    images = torch.zeros(1000, 3, 8, 8, dtype=torch.uint8)
    return ImageSet(images, torch.arange(1000), classes)


@pytest.mark.parametrize('classes, what', [
    (tuple(sorted(map(str, range(1000)))), 'numbers sorted as words'),
    (tuple(f'n{i:08d}' for i in range(1000)), "are not ImageNet-1K's")])
def test_teacher_imagenet_refuses_another_order(classes, what, monkeypatch):
    monkeypatch.setattr(teachers, 'make_model', lambda *a, **k: pytest.fail('weights were asked for'))
    with pytest.raises(Refused, match=what): load_teacher('imagenet', 'resnet18', thousand(classes))


def test_teacher_imagenet_warns_of_names_that_do_not_tell(monkeypatch):
    monkeypatch.setattr(teachers, 'make_model', lambda *a, **k: torch.nn.Linear(1, 1))
    with pytest.warns(ClassOrderWarning, match='new000, new001, …'):
        load_teacher('imagenet', 'resnet18', thousand([f'new{i:03d}' for i in range(1000)]))


# ---- validation images ----
def by_name(s): return {Path(f).name: (s.classes[k], int(x[0].float().mean())) for f, k, x in
                        zip(s.files, s.labels, s.images)}


@pytest.mark.parametrize('layout', ['kaggle', 'synsets'])
def test_both_layouts_of_validation_images_give_the_same_labels(layout, tree, tmp_path_factory):
    other = tmp_path_factory.mktemp('folders')
    validation(other, 'folders')
    validation(tree, layout)
    flat, folders = load_data(tree, 'test', size=30), load_data(other/'val', size=30)
    assert len(flat) == len(folders) == 24 and flat.classes == folders.classes == tuple(sorted(WNIDS))
    assert by_name(flat) == by_name(folders)
    assert load_data(tree, size=30).classes == flat.classes


def test_a_flat_folder_without_a_list_is_refused_with_a_way_out(tree):
    validation(tree, 'flat')
    with pytest.raises(Refused, match='nothing says which class each has.*put LOC_val_solution.csv or imagenet_2012'):
        load_data(tree, 'test', size=30)
    assert len(load_data(tree, size=30)) == 36   # the training images need no list


def test_validation_images_of_a_class_without_training_images_are_refused(tree):
    validation(tree, 'kaggle', (*WNIDS, 'n04557648'))
    with pytest.raises(Refused, match='no training images of class n04557648'): load_data(tree, 'test', size=30)


# ---- pixels ----
SIZES = [(500, 375), (375, 500), (333, 500), (640, 480), (301, 224), (180, 250)]


def photo(size, seed=0):
    "A photograph of scikit-learn's, or noise, at a size (width, height)"
    big = sample_photos(400, 8).images[seed]
    return Image.fromarray(big.permute(1, 2, 0).numpy()).resize(size, Image.BICUBIC)


def read_back(image, tmp_path, **how):
    "What load_data reads of it, and what Pillow does; PNG, so that only crop and resize differ"
    for c in 'ab':
        (tmp_path/c).mkdir(exist_ok=True)
        image.save(tmp_path/c/'x.png')
    return load_data(tmp_path, **how).images[0].short()


@pytest.mark.parametrize('size', SIZES)
def test_reading_is_torchvisions_centre_crop_and_resize(size, tmp_path):
    "The paper's fair storage: shortest side cropped, centred square, bilinear with antialiasing"
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    for image in (photo(size), noise):
        theirs = v2.Compose([v2.PILToTensor(), v2.CenterCrop(min(size)), v2.Resize(224, antialias=True)])(image)
        assert (read_back(image, tmp_path, size=224)-theirs.short()).abs().max() <= 1


@pytest.mark.parametrize('size', SIZES)
def test_zoom_is_resize_256_and_centre_crop_224(size, tmp_path):
    "Pixel for pixel"
    theirs = v2.Compose([v2.PILToTensor(), v2.Resize(256, antialias=True), v2.CenterCrop(224)])(photo(size))
    assert torch.equal(read_back(photo(size), tmp_path, size=224, zoom=PAPER_PROTOCOL.eval_zoom), theirs.short())


@pytest.mark.parametrize('size', SIZES)
def test_zoom_is_pillows_resize_to_a_level(size, tmp_path):
    "torchvision's transforms of a Pillow image, as the published evaluation applies them"
    theirs = v2.Compose([v2.Resize(256), v2.CenterCrop(224), v2.PILToTensor()])(photo(size))
    ours = read_back(photo(size), tmp_path, size=224, zoom=PAPER_PROTOCOL.eval_zoom)
    assert (ours-theirs.short()).abs().max() <= 1


# ---- the published scores ----
@pytest.fixture(scope='module')
def published():
    "A file in CCS's layout at full length: 1,281,167 entries of 1,000 classes with 732 to 1,300 images"
    counts = generator['full_counts'](0)
    labels = np.repeat(np.arange(1000), counts)
    return generator['scores'](labels, 0), torch.from_numpy(labels)


def written(path, tensors):
    path.write_bytes(pickle.dumps(tensors))
    return path


def test_a_score_file_of_full_length_is_read(published, tmp_path):
    tensors, labels = published
    assert len(labels) == 1_281_167 == N_TRAIN['imagenet']
    assert labels.bincount().min() == 732 and labels.bincount().max() == 1300 and len(labels.bincount()) == 1000
    found = read_ccs_scores(written(tmp_path/'imagenet-data-score.pt', tensors), labels)
    assert torch.equal(found['el2n'], tensors['el2n']) and torch.equal(found['aum'], -tensors['accumulated_margin'])
    assert set(found) == {'el2n', 'forgetting', 'aum', 'correctness', 'forgetting-inf'}


def test_a_score_file_in_another_order_is_refused_and_says_which(published, tmp_path):
    tensors, labels = published
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    mixed = written(tmp_path/'a.pt', {k: v[order] for k, v in tensors.items()})
    with pytest.raises(Refused, match='the set goes class after class, the file does not.*ImageFolder'):
        read_ccs_scores(mixed, labels)
    right = written(tmp_path/'b.pt', tensors)
    with pytest.raises(Refused, match='the file goes class after class, the set does not'):
        read_ccs_scores(right, labels[order])
    with pytest.raises(Refused, match=r'class \d+ has [\d,]+ images there and [\d,]+ here'):
        read_ccs_scores(right, 999-labels.flip(0))   # classes the other way round
    with pytest.raises(Refused, match='scores 1,281,167 images, but the set has 1,281,166'):
        read_ccs_scores(right, labels[:-1])


def test_scores_and_a_set_whose_files_are_in_another_order(tree, tmp_path):
    "The targets agree, so only the names of the files tell."
    full = load_data(tree, size=30)
    tensors = generator['scores'](full.labels.numpy(), 0)
    file = written(tmp_path/'scores.pt', tensors)
    assert torch.equal(read_scores(file, full)['el2n'], tensors['el2n'])
    turned = full[torch.tensor([1, 0, *range(2, len(full))])]
    with pytest.raises(Refused, match='n01440764_10.JPEG comes after .*n01440764_1002.JPEG'): read_scores(file, turned)
