"""Tables of images, image lists and other people's layouts: read rightly or refused by name.

Every set is made here. The grey level of an image says what it is, so that a test image among the training images is
seen in the pixels."""
import io
import json
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from mutations import TESTS
from pca_nb import parquet_images
from pca_nb.core import Refused
from pca_nb.datasets import load_data
from pca_nb.hub_layout import split_files
from pca_nb.layouts import find_layout, list_images
from pca_nb.progress import ReadingNote

pytestmark = pytest.mark.filterwarnings('ignore::pca_nb.progress.ReadingNote')


# ---- helpers ----
def grey(level, side=8):
    "A PNG of one grey level."
    Image.new('RGB', (side, side), (level,)*3).save(buffer := io.BytesIO(), 'PNG')
    return buffer.getvalue()


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data) if isinstance(data, bytes) else path.write_text(data)
    return path


def write_parquet(path, levels, labels=None, image='image', label='label', how=None, **columns):
    "One image per grey level; labels are words, 'even' or 'odd', unless they are given."
    cells = [dict(bytes=grey(v), path=f'{v}.png') for v in levels]
    labels = ['odd' if v % 2 else 'even' for v in levels] if labels is None else labels
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({image: cells, label: labels, **columns}), path, **(how or {}))
    return path


def levels(s): return s.images[:, 0, 0, 0].tolist()


def notes(f, *args, **kw):
    "What is said while `f` runs."
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        f(*args, **kw)
    return [str(w.message) for w in said if issubclass(w.category, ReadingNote)]


# ---- splits of the Hub ----
LAYOUTS = {'shards': {'data/train-00000-of-00002': [0, 1], 'data/train-00001-of-00002': [2, 3],
                      'data/test-00000-of-00001': [100, 101]},
           'folders': {'train/0000': [0, 1], 'train/0001': [2, 3], 'test/0000': [100, 101]},
           'files': {'train': [0, 1, 2, 3], 'test': [100, 101]},
           'hashes': {'data/train-00000-of-00002-1b2c3d4e5f': [0, 1], 'data/train-00001-of-00002-1b2c3d4e5f': [2, 3],
                      'data/test-00000-of-00001-0123456789': [100, 101]},
           'converted': {'default/train/0000': [0, 1, 2, 3], 'default/test/0000': [100, 101]},
           'other splits': {'data/train-00000-of-00001': [0, 1, 2, 3], 'data/train_more-00000-of-00001': [50, 51],
                            'data/test-00000-of-00001': [100, 101]},
           'parts': {'train/part-00000-of-00002': [0, 1], 'train/part-00001-of-00002': [2, 3],
                     'test/part-00000-of-00001': [100, 101]}}


def hub(root, layout):
    for name, values in LAYOUTS[layout].items(): write_parquet(root/f'{name}.parquet', values)
    return root


@pytest.mark.parametrize('layout', LAYOUTS)
def test_test_images_stay_out_of_the_training_set(layout, tmp_path):
    "By default only training images, by name only the others."
    root = hub(tmp_path/'hf', layout)
    assert find_layout(root) == 'parquet'
    assert levels(load_data(root)) == [0, 1, 2, 3]
    assert levels(load_data(root, 'test')) == [100, 101]
    assert load_data(root).classes == ('even', 'odd')


def test_the_folder_data_and_single_files(tmp_path):
    "A folder below the root and a file are places as well; a file is read whole."
    root = hub(tmp_path/'hf', 'shards')
    assert levels(load_data(root/'data')) == [0, 1, 2, 3]
    assert levels(load_data(root/'data'/'test-00000-of-00001.parquet')) == [100, 101]


@pytest.mark.parametrize('layout', [k for k in LAYOUTS if k not in ('hashes', 'parts')])
def test_splits_are_those_that_datasets_finds(layout, tmp_path):
    data_files = pytest.importorskip('datasets.data_files')
    names = [f'{name}.parquet' for name in LAYOUTS[layout]]
    for name in names: write(tmp_path/name, b'x')
    found = data_files.DataFilesDict.from_patterns(data_files.get_data_patterns(str(tmp_path)), base_path=str(tmp_path))
    theirs = {str(split): sorted(os.path.relpath(f, tmp_path) for f in files) for split, files in found.items()}
    assert split_files('hf', names) == theirs


def test_validation_stands_in_for_test(tmp_path):
    root = tmp_path/'hf'
    write_parquet(root/'train.parquet', [0, 1])
    write_parquet(root/'val.parquet', [60, 61])
    said = notes(lambda: levels(load_data(root, 'test')))
    assert any('validation split is read in its place' in note for note in said)
    assert levels(load_data(root, 'validation')) == levels(load_data(root, 'test')) == [60, 61]
    with pytest.raises(Refused, match="no split 'holdout': choose one of train, validation"): load_data(root, 'holdout')


MIXED = {'no split': ('data/more', 'names no split'), 'two splits': ('data/train_test', 'more than one split'),
         'two sets': ('other/train', 'a split train in each of data, other'),
         'contradiction': ('test/train-7', 'more than one split')}


@pytest.mark.parametrize('kind', MIXED)
def test_files_in_doubt_are_refused(kind, tmp_path):
    "Nothing is read: not the others either."
    extra, why = MIXED[kind]
    root = hub(tmp_path/'hf', 'shards')
    write_parquet(root/f'{extra}.parquet', [7, 8])
    with pytest.raises(Refused, match=why): load_data(root)


def test_an_incomplete_download_is_said(tmp_path):
    root = hub(tmp_path/'hf', 'shards')
    (root/'data'/'train-00001-of-00002.parquet').unlink()
    assert any('1 of 2 files of split train are not there' in note for note in notes(load_data, root))


def test_the_hubs_cache_and_leftovers(tmp_path):
    "Links are followed, hidden folders are not."
    root = hub(tmp_path/'hf', 'shards')
    (tmp_path/'blobs').mkdir()
    for i, file in enumerate(sorted(root.rglob('*.parquet'))):
        file.rename(tmp_path/'blobs'/str(i))
        file.symlink_to(tmp_path/'blobs'/str(i))
    write_parquet(root/'.cache'/'train.parquet', [9])
    write(root/'README.md', '# pets\n')
    write(root/'data'/'._train-00000-of-00002.parquet', b'resource fork')
    assert levels(load_data(root)) == [0, 1, 2, 3]


# ---- dataset cards ----
def card(root, text): return write(root/'README.md', f'---\n{text}---\n# pets\n')


TWO = '''configs:
- config_name: small
  data_files:
  - {split: train, path: a/*.parquet}
  - {split: test, path: [b/0.parquet]}
- config_name: large
  data_files: c/**
'''


@pytest.fixture
def carded(tmp_path):
    "Files whose names say nothing; the card does."
    for name, values in {'a/0': [0, 1], 'a/1': [2, 3], 'b/0': [100, 101], 'c/0': [50, 51]}.items():
        write_parquet(tmp_path/'hf'/f'{name}.parquet', values)
    return tmp_path/'hf'


def test_a_card_names_the_splits(carded):
    card(carded, TWO)
    assert levels(load_data(carded, config='small')) == [0, 1, 2, 3]
    assert levels(load_data(carded, 'test', config='small')) == [100, 101]
    assert levels(load_data(carded, config='large')) == [50, 51]


def test_several_configurations_without_a_default(carded):
    card(carded, TWO)
    with pytest.raises(Refused, match="'small', 'large': choose one, as config='small'"): load_data(carded)
    with pytest.raises(Refused, match="no configuration 'tiny'"): load_data(carded, config='tiny')
    card(carded, TWO.replace('config_name: large', 'config_name: large\n  default: true'))
    assert levels(load_data(carded)) == [50, 51]
    card(carded, TWO.replace('small', 'default'))
    assert levels(load_data(carded)) == [0, 1, 2, 3]


def test_a_card_without_splits_does_not_mix_them(tmp_path):
    "`data_files: data/*` means everything there, and the names still count."
    root = hub(tmp_path/'hf', 'shards')
    card(root, 'configs:\n- {config_name: default, data_files: data/*}\n')
    assert levels(load_data(root)) == [0, 1, 2, 3]


CARDS = {'two claims': ('- {split: train, path: "*/*"}\n    - {split: test, path: b/0.parquet}',
                        'into more than one split'),
         'outside': ('- {split: train, path: ../a/0.parquet}', 'no file of split train is there'),
         'elsewhere': ('- {split: train, path: "hf://datasets/x/0.parquet"}', 'no file of split train is there'),
         'no path': ('- {split: train}', 'are not understood'), 'a number': ('3', 'are not understood'),
         'no YAML': ('- {split: train', 'are no YAML'),
         'no object': ('!!python/object/apply:os.abort []', 'are no YAML'),
         'deep': ('['*5000, 'are no YAML')}


@pytest.mark.parametrize('kind', CARDS)
def test_cards_that_cannot_be_followed(kind, carded):
    text, why = CARDS[kind]
    card(carded, f'configs:\n- config_name: default\n  data_files:\n    {text}\n')
    with pytest.raises(Refused, match=why): load_data(carded)


def test_a_card_is_followed_as_datasets_does(carded, monkeypatch, tmp_path):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    datasets = pytest.importorskip('datasets')
    card(carded, TWO)
    for split, config in (('train', 'small'), ('test', 'small'), ('train', 'large')):
        theirs = datasets.load_dataset(str(carded), config, split=split, cache_dir=str(tmp_path/'cache'))
        ours = load_data(carded, split, config=config)
        assert levels(ours) == [Image.open(io.BytesIO(cell['bytes'])).getpixel((0, 0))[0] for cell in theirs['image']]
        assert [ours.classes[y] for y in ours.labels] == theirs['label'][:]


# ---- labels ----
@pytest.mark.parametrize('kind', ['plain', 'dictionary', 'large', 'pandas'])
def test_words_are_class_names_in_sorted_order(kind, tmp_path):
    words = pa.array(['dog', 'cat', 'dog', 'Owl'])
    coded = pa.DictionaryArray.from_arrays(pa.array([0, 2, 0, 1]), pa.array(['dog', 'Owl', 'cat', 'never used']))
    labels = dict(plain=words, dictionary=words.dictionary_encode(), large=words.cast(pa.large_string()), pandas=coded)
    s = load_data(write_parquet(tmp_path/'x.parquet', [1, 2, 3, 4], labels[kind]))
    assert s.classes == ('Owl', 'cat', 'dog') and s.labels.tolist() == [2, 1, 2, 0]


@pytest.mark.parametrize('labels,why', [([0, 2, 0, 2], 'no image has label 1'), ([1, 2, 1, 2], 'no image has label 0'),
                                        ([0, 10**12, 1, 1], 'no image has label 2'), (['a', None, 'b', 'a'], 'row 1'),
                                        (['a']*4, 'only one class, a'), ([0.5, 1, 0, 1], 'is 0.5')])
def test_labels_that_name_no_classes(labels, why, tmp_path):
    path = write_parquet(tmp_path/'x.parquet', [1, 2, 3, 4], labels)
    with pytest.raises(Refused, match=why) as e: load_data(path)
    assert str(path) in str(e.value)


def test_files_of_different_sets_are_not_joined(tmp_path):
    "Numbers beside words, other class names, another column."
    root = tmp_path/'hf'
    write_parquet(root/'0.parquet', [0, 1])
    for other, why in ((dict(labels=[0, 1]), 'holds int64, but string'), (dict(label='kind'), "no column 'label'")):
        write_parquet(root/'1.parquet', [2, 3], **other)
        with pytest.raises(Refused, match=why): load_data(root)
    for file, names in (('0', ['cat', 'dog']), ('1', ['dog', 'cat'])):
        table = pq.read_table(write_parquet(root/f'{file}.parquet', [0, 1], [0, 1]))
        features = dict(info=dict(features=dict(label=dict(names=names, _type='ClassLabel'))))
        pq.write_table(table.replace_schema_metadata(dict(huggingface=json.dumps(features))), root/f'{file}.parquet')
    with pytest.raises(Refused, match='1.parquet has other class names than'): load_data(root)


# ---- columns ----
def test_columns_are_guessed_and_said(tmp_path):
    path = write_parquet(tmp_path/'x.parquet', [1, 2], image='photo', label='species')
    said = notes(load_data, path)
    assert any('images are taken from column photo' in n for n in said)
    assert any('labels are taken from column species' in n for n in said)
    assert levels(load_data(path)) == [1, 2]
    assert not notes(load_data, write_parquet(tmp_path/'y.parquet', [1, 2]))


def test_columns_in_doubt_are_chosen_by_options(tmp_path):
    path = write_parquet(tmp_path/'x.parquet', [1, 2], image='photo', label='species', owner=['Ann', 'Bob'],
                         mask=[dict(bytes=grey(v), path=None) for v in (90, 91)])
    with pytest.raises(Refused, match='photo, mask could hold the images.*image_column=.*--image-column'):
        load_data(path)
    with pytest.raises(Refused, match='species, owner could hold the labels.*--label-column'):
        load_data(path, image_column='photo')
    s = load_data(path, image_column='mask', label_column='owner')
    assert levels(s) == [90, 91] and s.classes == ('Ann', 'Bob')
    with pytest.raises(Refused, match='none of film'): load_data(path, image_column='film')


def test_the_declared_class_is_the_label(tmp_path):
    "Hugging Face's ClassLabel, among other integers."
    datasets = pytest.importorskip('datasets')
    features = datasets.Features(photo=datasets.Image(), id=datasets.Value('int64'),
                                 species=datasets.ClassLabel(names=['cat', 'dog']))
    rows = dict(photo=[Image.new('RGB', (8, 8), (v,)*3) for v in (1, 2)], id=[7, 8], species=[1, 0])
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path/'x.parquet'))
    s = load_data(tmp_path/'x.parquet')
    assert s.classes == ('cat', 'dog') and s.labels.tolist() == [1, 0] and levels(s) == [1, 2]


@pytest.mark.parametrize('words', [['train', 'test', 'train', 'val'], ['Training', 'testing', 'Training', 'dev']])
def test_a_column_of_splits_is_heeded(words, tmp_path):
    path = write_parquet(tmp_path/'x.parquet', [0, 101, 3, 60], ['a', 'b', 'b', 'a'], split=words)
    listing = list_images(path)
    assert (listing.names, listing.split, len(listing.splits)) == (('0.png', '3.png'), 'train', 3)
    assert levels(load_data(path)) == [0, 3]
    with pytest.raises(Refused, match='only one class'): load_data(path, 'test')


# ---- cells that hold paths ----
def path_table(path, names, labels=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = pa.array([dict(bytes=None, path=str(name)) for name in names],
                     pa.struct([('bytes', pa.binary()), ('path', pa.string())]))
    pq.write_table(pa.table(dict(image=cells, label=labels or ['ab'[i % 2] for i in range(len(names))])), path)
    return path


def test_paths_are_relative_to_the_file_or_the_folder(tmp_path):
    for name, v in {'hf/data/a.png': 1, 'hf/images/b.png': 2, 'hf/c.png': 3, 'private.png': 9}.items():
        write(tmp_path/name, grey(v))
    table = path_table(tmp_path/'hf'/'data'/'train.parquet', ['a.png', 'images/b.png', '../c.png'])
    assert levels(load_data(tmp_path/'hf')) == [1, 2, 3]
    with pytest.raises(Refused, match="row 1 of column 'image'.*'images/b.png'.*embed the images"): load_data(table)
    for name in ('../../private.png', '../hf/../../private.png', 'data/../../private.png'):
        path_table(table, ['a.png', name])
        with pytest.raises(Refused, match='no such file is in'): load_data(tmp_path/'hf')


def test_whole_paths_are_followed_and_said(tmp_path):
    write(tmp_path/'a.png', grey(1))
    table = path_table(tmp_path/'hf'/'x.parquet', [tmp_path/'a.png', tmp_path/'a.png'])
    assert any('2 images are read from whole paths' in note for note in notes(load_data, table))
    path_table(table, ['/nobody/a.png', tmp_path/'a.png'])
    with pytest.raises(Refused, match="names '/nobody/a.png'"): load_data(table)


def test_bytes_and_paths_in_one_file(tmp_path):
    "Order and names are those of the rows."
    write(tmp_path/'b.png', grey(2))
    cells = [dict(bytes=grey(1), path='a.png'), dict(bytes=None, path='b.png'), dict(bytes=grey(3), path=None)]
    pq.write_table(pa.table(dict(image=cells, label=['x', 'y', 'x'])), tmp_path/'x.parquet')
    s = load_data(tmp_path/'x.parquet')
    assert levels(s) == [1, 2, 3] and s.files == ('a.png', 'b.png', 'row 2')
    pq.write_table(pa.table(dict(file_name=['b.png', 'b.png'], label=['x', 'y'])), tmp_path/'y.parquet')
    assert levels(load_data(tmp_path/'y.parquet')) == [2, 2]


# ---- memory ----
PEAK = '''
import sys
from pca_nb.listing import ReadOptions
from pca_nb.parquet import list_parquet
def peak(): return int(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])//1024
listing = list_parquet(sys.argv[1])
before, total = peak(), 0
for source in listing.sources: total += len(source.read())
print(total>>20, peak()-before)
'''


@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='no /proc')
@pytest.mark.parametrize('group', [100, 10**6], ids=['small row groups', 'one row group'])
def test_memory_stays_flat(group, tmp_path):
    "A file of 300 MB is read in order with a good part less than its size."
    noise = np.random.default_rng(0).bytes(10**6)
    images = pa.array([noise[i:i+20_000] for i in range(15_000)])
    path = tmp_path/'x.parquet'
    pq.write_table(pa.table(dict(image=images, label=[i % 2 for i in range(15_000)])), path, row_group_size=group,
                   use_dictionary=False, compression='none')
    del images
    r = subprocess.run([sys.executable, '-c', PEAK, path], capture_output=True, text=True, timeout=300)
    assert r.returncode == 0, r.stderr[-2000:]
    total, peak = map(int, r.stdout.split())
    assert total > 280 and peak < 150, f'{peak} MB for {total} MB'


def test_a_bomb_is_refused(tmp_path):
    "One image of a megabyte, and ten thousand references to it: 10 GB in a file of some kilobytes."
    cells = pa.DictionaryArray.from_arrays(pa.array([0]*10_000), pa.array([bytes(10**6)]))
    table = pa.table(dict(image=cells, label=[i % 2 for i in range(10_000)]))
    path = tmp_path/'x.parquet'
    pq.write_table(table, path, store_schema=False, dictionary_pagesize_limit=2**26)
    assert path.stat().st_size < 10**6
    with pytest.raises(ValueError, match='unpacks to far more than it declares'): load_data(path, size=8)


def test_damage_inside_is_named(tmp_path, monkeypatch):
    "The footer is whole, the pages are not."
    path = write_parquet(tmp_path/'x.parquet', range(40), how=dict(row_group_size=10, compression='none'))
    data = bytearray(path.read_bytes())
    data[200:400] = os.urandom(200)
    path.write_bytes(data)
    with pytest.raises(ValueError, match='x.parquet'): load_data(path)


def test_training_in_random_order_unpacks_once(tmp_path, monkeypatch):
    "No more than a few passes over the file, however often images are asked for."
    path = write_parquet(tmp_path/'x.parquet', range(60), how=dict(row_group_size=10))
    monkeypatch.setattr(parquet_images, 'HELD_BYTES', 4000)  # two row groups, and not ten
    read = []
    stream = parquet_images.stream
    monkeypatch.setattr(parquet_images, 'stream', lambda file, leaf, g: read.append(g) or stream(file, leaf, g))
    s = load_data(path, resident=False)
    for seed in range(10):
        order = torch.randperm(60, generator=torch.Generator().manual_seed(seed))
        assert s.images[order][:, 0, 0, 0].tolist() == order.tolist()
    assert len(read) < 6*(2+parquet_images.READ_BY_GROUP+2), len(read)


# ---- image lists ----
@pytest.fixture
def pets(tmp_path):
    for name, v in {'cat/1.png': 1, 'cat/2.png': 2, 'dog/3.png': 3, 'dog/4.png': 4}.items():
        write(tmp_path/'pets'/name, grey(v))
    write(tmp_path/'private.png', grey(9))
    return tmp_path/'pets'


LISTS = {'header.csv': 'path,label\ncat/1.png,cat\ndog/3.png,dog\n', 'bare.csv': 'cat/1.png,cat\ndog/3.png,dog\n',
         'turned.csv': 'cat,cat/1.png\ndog,dog/3.png\n',
         'tab.tsv': 'file_name\tclass\ncat/1.png\tcat\ndog/3.png\tdog\n',
         'german.csv': '\ufeffDatei;Art\r\ncat/1.png;cat\r\n\r\ndog/3.png;dog\r\n',
         'windows.csv': 'path,label\ncat\\1.png,cat\ndog\\3.png,dog\n',
         'more.csv': 'path,label,split,age\ncat/1.png,cat,train,3\ndog/4.png,dog,test,4\ndog/3.png,dog,train,5\n'}


@pytest.mark.parametrize('name', LISTS)
def test_image_lists(name, pets):
    s = load_data(write(pets/name, LISTS[name]))
    assert levels(s) == [1, 3] and s.classes == ('cat', 'dog') and s.labels.tolist() == [0, 1]


REFUSED = {'absent': ('path,label\ncat/1.png,cat\n\ncat/9.png,dog\n', "row 4 .*'cat/9.png'"),
           'outside': ('path,label\ncat/1.png,cat\n../private.png,dog\n', "'../private.png', and no such file is in"),
           'twice': ('path,label\ncat/1.png,cat\n./cat/1.png,dog\n', 'cat/1.png 2 times, as cat, dog'),
           'no class': ('path,label\ncat/1.png,cat\ndog/3.png,\n', 'line 3 names no class'),
           'short': ('path,label\ncat/1.png\n', 'line 2 has 1 cells'),
           'gap': ('path,label\ncat/1.png,0\ndog/3.png,2\n', 'label 1'),
           'negative': ('path,label\ncat/1.png,0\ndog/3.png,-1\n', 'is -1'), 'empty': ('', 'no rows'),
           'doubt': ('path,kind,age\ncat/1.png,cat,3\ndog/3.png,dog,4\n', 'kind, age could hold.*--label-column'),
           'no paths': ('name,label\nRex,dog\nTom,cat\n', 'none of path'),
           'iPhone': ('path,label\ncat/1.png,cat\ndog/3.heic,dog\n', 'Pillow cannot decode')}


@pytest.mark.parametrize('kind', REFUSED)
def test_lists_in_doubt_are_refused(kind, pets):
    text, why = REFUSED[kind]
    path = write(pets/'x.csv', text)
    with pytest.raises(Refused, match=why) as e: load_data(path)
    assert str(path) in str(e.value)


def test_lists_take_options(pets):
    path = write(pets/'x.csv', 'a,b,kind,owner\ncat/1.png,cat/2.png,cat,Bob\ndog/3.png,dog/4.png,dog,Ann\n')
    s = load_data(path, image_column='b', label_column='owner', size=4)
    assert levels(s) == [2, 4] and s.classes == ('Ann', 'Bob') and s.labels.tolist() == [1, 0]


def test_a_list_beside_class_folders_changes_nothing(pets):
    write(pets/'notes.csv', 'path,label\ncat/1.png,dog\n')
    assert find_layout(pets) == 'class folders' and levels(load_data(pets)) == [1, 2, 3, 4]


# ---- Tiny-ImageNet and ImageNet ----
@pytest.fixture
def tiny(tmp_path):
    root = tmp_path/'tiny-imagenet-200'
    for wnid, v in {'n02': 20, 'n01': 10}.items():
        write(root/'train'/wnid/'images'/f'{wnid}_0.JPEG', grey(v))
        write(root/'train'/wnid/f'{wnid}_boxes.txt', f'{wnid}_0.JPEG\t0\t0\t62\t62\n')
    for k in (0, 1): write(root/'val'/'images'/f'val_{k}.JPEG', grey(100+k))
    write(root/'val'/'val_annotations.txt', 'val_0.JPEG\tn02\t0\t0\t62\t62\nval_1.JPEG\tn01\t0\t0\t62\t62\n')
    write(root/'test'/'images'/'test_0.JPEG', grey(200))
    return root


def test_tiny_imagenet_by_path(tiny):
    train, val = load_data(tiny), load_data(tiny, 'validation')
    assert levels(train) == [10, 20] and train.classes == ('n01', 'n02')
    assert levels(val) == [100, 101] and val.labels.tolist() == [1, 0] and val.classes == train.classes
    assert levels(load_data(tiny, 'test')) == [100, 101] and levels(load_data(tiny/'val')) == [100, 101]
    assert levels(load_data(tiny/'train')) == [10, 20]


@pytest.mark.parametrize('lines,why', [('val_9.JPEG\tn01\n', 'val_9.JPEG is listed, but not there'),
                                       ('val_0.JPEG\tn07\n', 'no training images of class n07'),
                                       ('../../x.JPEG\tn01\n', 'listed, but not there'), ('val_0.JPEG\n', 'line 1')])
def test_annotations_that_do_not_fit(lines, why, tiny):
    write(tiny/'val'/'val_annotations.txt', lines)
    with pytest.raises(Refused, match=why): load_data(tiny, 'validation')


CLASSES = ['n01440764', 'n01443537']
SOLUTION = 'ImageId,PredictionString\n'+''.join(
    f'ILSVRC2012_val_{k:08d},{CLASSES[k % 2]} 1 2 3 4 {CLASSES[k % 2]} 5 6 7 8 \n' for k in (3, 1, 2))
SYNSETS = ''.join(f'{CLASSES[k % 2]}\n' for k in (1, 2, 3))


@pytest.mark.parametrize('place,text', [('LOC_val_solution.csv', SOLUTION), ('val/LOC_val_solution.csv', SOLUTION),
                                        ('imagenet_2012_validation_synset_labels.txt', SYNSETS)])
def test_imagenets_flat_validation_folder(place, text, tmp_path):
    root = tmp_path/'imagenet'
    for k in (1, 2, 3): write(root/'val'/f'ILSVRC2012_val_{k:08d}.JPEG', grey(k))
    with pytest.raises(Refused, match='nothing says which class.*LOC_val_solution.csv'): load_data(root/'val')
    write(root/place, text)
    s = load_data(root/'val')
    assert levels(s) == [1, 2, 3] and s.labels.tolist() == [1, 0, 1] and list(s.classes) == CLASSES
    for wnid in CLASSES: write(root/'train'/wnid/'x.JPEG', grey(50))
    assert levels(load_data(root)) == [50, 50] and levels(load_data(root, 'test')) == [1, 2, 3]
    (root/'val'/'ILSVRC2012_val_00000002.JPEG').unlink()        # a part of them is read by number, not by position
    assert load_data(root, 'validation').labels.tolist() == [1, 1]


# ---- CIFAR's pickles ----
class Python2(pickle._Pickler):
    "Writes words as Python 2 did, as in the files that are handed on."
    dispatch = dict(pickle._Pickler.dispatch)

    def save_word(self, word):
        word = word if isinstance(word, bytes) else word.encode()
        short = len(word) < 256
        self.write((b'U'+bytes([len(word)]) if short else b'T'+len(word).to_bytes(4, 'little'))+word)
        self.memoize(word)
    dispatch[bytes] = dispatch[str] = save_word


def write_pickle(path, content, protocol):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('wb') as f:
        if protocol == 'Python 2': Python2(f, 2).dump(content)
        else: pickle.dump(content, f, protocol)


def cifar10(root, protocol='Python 2', n=3):
    rng = np.random.default_rng(0)
    names = [f'data_batch_{i}' for i in range(1, 6)]+['test_batch']
    for k, name in enumerate(names):
        content = dict(batch_label=name, labels=[(k+i) % 10 for i in range(n)],
                       filenames=[f'{name}_{i}.png' for i in range(n)],
                       data=rng.integers(0, 256, (n, 3072), dtype=np.uint8))
        write_pickle(root/name, content, protocol)
    words = ['airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck']
    write_pickle(root/'batches.meta', dict(num_cases_per_batch=n, label_names=words, num_vis=3072), protocol)
    return root


@pytest.mark.parametrize('protocol', ['Python 2', 2, 3, 4])
def test_cifar10_as_torchvision_reads_it(protocol, tmp_path, monkeypatch):
    torchvision = pytest.importorskip('torchvision')
    root = cifar10(tmp_path/'cifar-10-batches-py', protocol)
    theirs = torchvision.datasets.CIFAR10
    monkeypatch.setattr(theirs, '_check_integrity', lambda self: True)
    monkeypatch.setattr(torchvision.datasets.cifar, 'check_integrity', lambda *a: True)
    for split in ('train', 'test'):
        ours, want = load_data(root, split), theirs(tmp_path, train=split == 'train')
        assert torch.equal(ours.images, torch.from_numpy(want.data).permute(0, 3, 1, 2))
        assert ours.labels.tolist() == want.targets and list(ours.classes) == want.classes
    assert ours.files[0] == 'test_batch_0.png'


def test_cifar100(tmp_path):
    root = tmp_path/'cifar-100-python'
    data = np.arange(2*3072, dtype=np.uint8).reshape(2, 3072)
    for name, labels in (('train', [1, 0]), ('test', [0, 1])):
        write_pickle(root/name, dict(fine_labels=labels, coarse_labels=[0, 1], data=data), 'Python 2')
    meta = dict(fine_label_names=['apple', 'bear'], coarse_label_names=['fruit', 'animal'])
    write_pickle(root/'meta', meta, 'Python 2')
    assert load_data(root).labels.tolist() == [1, 0] and load_data(root, 'test').classes == ('apple', 'bear')
    coarse = load_data(root, label_column='coarse_labels')
    assert coarse.labels.tolist() == [0, 1] and coarse.classes == ('fruit', 'animal')
    with pytest.raises(Refused, match='choose one of fine_labels, coarse_labels'): load_data(root, label_column='hue')


class Runs:
    "A pickle that runs a command when it is opened."
    def __init__(self, mark): self.mark = mark
    def __reduce__(self): return os.system, (f'touch {self.mark}',)


HOSTILE = {'call': lambda mark: Runs(mark), 'in a list': lambda mark: [1, Runs(mark)],
           'as data': lambda mark: dict(data=Runs(mark), labels=[0]),
           'in an array': lambda mark: dict(data=np.array([Runs(mark)], dtype=object), labels=[0])}


@pytest.mark.parametrize('protocol', [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize('kind', HOSTILE)
def test_a_hostile_pickle_runs_nothing(kind, protocol, tmp_path):
    "And a plain `pickle.load` would have run it."
    mark = tmp_path/'it_ran'
    root = cifar10(tmp_path/'cifar-10-batches-py')
    write_pickle(root/'data_batch_3', HOSTILE[kind](mark), protocol)
    with pytest.raises(Refused, match='data_batch_3'): load_data(root)
    assert not mark.exists()
    with (root/'data_batch_3').open('rb') as f: pickle.load(f)
    assert mark.exists()


RAW = {'a state for a name': b'\x80\x02cnumpy\nndarray\n}(U\x01aU\x01bub.', 'a call of a list': b'\x80\x02]q\x00)R.',
       'itself': b'\x80\x02]q\x00h\x00a.', 'inst': b"(S'touch it_ran'\nios\nsystem\n.",
       'obj': b'\x80\x02(cos\nsystem\nU\x04trueo.', 'newobj': b'\x80\x02cnumpy\ndtype\nU\x02u1\x85\x81.',
       'persistent': b'\x80\x02U\x01aQ.', 'extension': b'\x80\x02\x82\x01.',
       'nothing': b'\x80\x02.', 'a mark': b'\x80\x02(.', 'two': b'\x80\x02K\x01K\x02.'}


@pytest.mark.parametrize('kind', RAW)
def test_odd_programs_are_refused(kind, tmp_path):
    root = cifar10(tmp_path/'cifar-10-batches-py')
    write(root/'batches.meta', RAW[kind])
    with pytest.raises(Refused, match='batches.meta'): load_data(root)


def test_numbers_that_do_not_fit(tmp_path):
    "Fewer labels than images, a label beyond the classes, pixels of another kind."
    root = cifar10(tmp_path/'cifar-10-batches-py')
    pixels = np.zeros((2, 3072), np.uint8)
    for content, why in ((dict(data=pixels, labels=[0]), 'do not fit'), (dict(data=pixels, labels=[0, 10]), '0 to 9'),
                         (dict(data=pixels.astype(np.float32), labels=[0, 1]), 'do not fit'),
                         (dict(data=pixels, labels=[0, 'x']), 'no class numbers'),
                         (dict(labels=[0]), "'data' is missing")):
        write_pickle(root/'test_batch', content, 4)
        with pytest.raises(ValueError, match=why) as e: load_data(root, 'test')
        assert str(root) in str(e.value)


# ---- thousands of damaged files ----
MUTATE = '''
import json, resource, sys, time, warnings
from pathlib import Path
import numpy as np
from pca_nb.datasets import load_data
from mutations import Mutations
warnings.simplefilter('ignore')
per_kind, places = int(sys.argv[1]), json.loads(sys.argv[2]) # [file to change, place to read]
damage = Mutations(0)
rng = damage.rng
flip, cut, junk, head = damage.flip, damage.cut, damage.junk, damage.head
now = int(open('/proc/self/statm').read().split()[0])*4096
for _,place in places: load_data(place, size=8)
resource.setrlimit(resource.RLIMIT_AS, (now+6*2**30,)*2)
out = dict(files=0, read=0, named=0, slowest=0., odd=[])
for name,place in places:
    file = Path(name)
    good = file.read_bytes()
    for f in (flip, cut, junk, head):
        for _ in range(per_kind//4):
            file.write_bytes(bad := f(good))
            out['files'] += 1
            start = time.perf_counter()
            try:
                load_data(place, size=8)
                out['read'] += 1
            except ValueError as e:
                out['named'] += 1
                if Path(place).name not in str(e): out['odd'].append((name, str(e)[:300]))
            except BaseException as e: out['odd'].append((name, bad[:300].hex(), repr(e)[:300]))
            out['slowest'] = max(out['slowest'], time.perf_counter()-start)
    file.write_bytes(good)
print(json.dumps(out))
'''


@pytest.mark.skipif(not Path('/proc/self/statm').exists(), reason='no /proc')
def test_mutated_tables_are_read_or_named(pets, tiny, tmp_path, slow, tally):
    "Parquet with two compressions, CSV, dataset card, CIFAR's pickles, annotations: bit flips, cuts, junk, heads."
    cells = write_parquet(tmp_path/'s'/'snappy.parquet', range(8))
    plain = write_parquet(tmp_path/'p'/'plain.parquet', range(8), how=dict(compression='none', row_group_size=3))
    cifar = cifar10(tmp_path/'cifar-10-batches-py')
    carded = hub(tmp_path/'hf', 'shards')
    card(carded, 'configs:\n- config_name: default\n  data_files:\n  - {split: train, path: data/train-*}\n')
    listed = write(pets/'list.csv', LISTS['more.csv'])
    val = tiny/'val'
    places = [(cells, cells), (plain, plain), (listed, listed), (carded/'README.md', carded),
              (cifar/'data_batch_2', cifar), (cifar/'batches.meta', cifar), (val/'val_annotations.txt', val)]
    places = json.dumps([(str(file), str(place)) for file, place in places])
    r = subprocess.run([sys.executable, '-c', MUTATE, '2000' if slow else '300', places],
                       capture_output=True, text=True, timeout=900, env=os.environ | dict(CI='1', PYTHONPATH=TESTS))
    assert r.returncode == 0, r.stderr[-3000:]
    out = json.loads(r.stdout.splitlines()[-1])
    tally.count('tables mutated', out['files'], out['files']-out['read']-out['named'])
    assert out['files'] >= 2000 and not out['odd'], out['odd'][:3]
    assert out['read'] > 100 and out['named'] > 500 and out['slowest'] < 20, out
