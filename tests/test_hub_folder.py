"Sets as repositories of the Hugging Face Hub: what `datasets` and `mlcroissant` find in them, and what is refused."
import errno
import hashlib
import json
import re
import socket

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from pca_nb import hub_folder
from pca_nb.combine import split_cells
from pca_nb.core import generator, Refused
from pca_nb.files import encode_image, read_folder, save_folder
from pca_nb.hub_card import CUT_CELLS, LICENSE_TODO
from pca_nb.hub_folder import save_hub_folder
from pca_nb.imageset import ImageSet
from pca_nb.parquet import read_parquet

CLASSES = [str(i) for i in range(11)]
STATS = (.1, .2, .3), (.4, .5, .6)


def made(n, seed, grid=1, side=12, classes=CLASSES, **more):
    "Random images, three of a kind one after the other"
    x = torch.randint(256, (n, 3, side, side), generator=generator(seed)).to(torch.uint8)
    index = torch.arange(n * grid**2).view(n, -1) + 7
    return ImageSet(x, torch.arange(n) // 3 % len(classes), classes, index, grid, 'toy/pca', STATS, **more)


@pytest.fixture
def both():
    "Composites to train on, plain images to test on"
    return dict(train=made(33, 0, grid=2), test=made(22, 1))


@pytest.fixture
def load(tmp_path, monkeypatch):
    "`load_dataset` without a network"
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    monkeypatch.setenv('HF_HOME', str(tmp_path/'hf'))
    datasets = pytest.importorskip('datasets')

    def no_network(*args): raise AssertionError('a connection was opened')
    monkeypatch.setattr(socket.socket, 'connect', no_network)
    return lambda folder: datasets.load_dataset(str(folder), cache_dir=str(tmp_path/'cache'))


def same(rows, s):
    assert rows.features['label'].names == list(s.classes)
    assert rows['label'][:] == s.labels.tolist()
    assert rows['index'][:] == s.index.tolist()
    pixels = np.stack([np.asarray(image) for image in rows['image']])
    assert np.array_equal(pixels, s.images.permute(0, 2, 3, 1).numpy())


def front_of(folder):
    "The front matter of a card, as `yaml` reads it"
    return yaml.safe_load((folder/'README.md').read_text(encoding='utf-8').split('\n---\n')[0].removeprefix('---\n'))


def everything(folder): return sorted(str(p.relative_to(folder)) for p in folder.rglob('*'))


# ---- other people's readers ----

@pytest.mark.parametrize('card', [True, False])
def test_datasets_loads_every_split(both, load, tmp_path, card):
    "By the card, and by the names of the files if the card is gone."
    folder = save_hub_folder(both, tmp_path/'set', shard_bytes=4000)
    if not card: (folder/'README.md').unlink()
    loaded = load(folder)
    assert set(loaded) == {'train', 'test'}
    for split, s in both.items(): same(loaded[split], s)


def test_one_set_is_the_training_set(both, load, tmp_path):
    loaded = load(save_hub_folder(both['train'], tmp_path/'set'))
    assert list(loaded) == ['train']
    same(loaded['train'], both['train'])


def test_the_card_says_what_datasets_finds(both, load, tmp_path):
    folder = save_hub_folder(both, tmp_path/'set', shard_bytes=4000)
    front = front_of(folder)
    loaded = load(folder)
    info = front['dataset_info']
    import datasets
    assert datasets.Features._from_yaml_list(info['features']) == loaded['train'].features
    told = {s['name']: s for s in info['splits']}
    for split, rows in loaded.items():
        assert told[split]['num_examples'] == len(rows)
        assert told[split]['num_bytes'] == pytest.approx(rows.data.nbytes, rel=.02)
    assert info['download_size'] == sum(p.stat().st_size for p in (folder/'data').iterdir())
    assert info['dataset_size'] == sum(s['num_bytes'] for s in told.values())
    assert front['configs'] == [dict(config_name='default', data_files=[
        dict(split='train', path='data/train-*'), dict(split='test', path='data/test-*')])]
    assert (front['size_categories'], front['task_categories']) == (['n<1K'], ['image-classification'])


def test_a_wrong_number_of_rows_is_noticed(both, load, tmp_path):
    "`datasets` compares with the card, so a lost shard is an error there."
    folder = save_hub_folder(both, tmp_path/'set', shard_bytes=4000)
    next((folder/'data').glob('train-00001-*')).unlink()
    from datasets.exceptions import NonMatchingSplitsSizesError
    with pytest.raises(NonMatchingSplitsSizesError, match='num_examples=33'): load(folder)


def test_soft_labels_are_a_column(load, tmp_path):
    "Of all splits, empty in one that has none."
    soft = torch.rand(33, 11, generator=generator(2)).softmax(1)
    sets = dict(train=made(33, 0, soft=soft), test=made(22, 1))
    folder = save_hub_folder(sets, tmp_path/'set')
    loaded = load(folder)
    assert np.array_equal(np.array(loaded['train']['soft'][:], np.float32), soft.numpy())
    assert loaded['test']['soft'][:] == [None] * 22
    assert '`soft`' in (folder/'README.md').read_text(encoding='utf-8')


def croissant_of(folder, caplog):
    "The metadata as `mlcroissant` understands it, without an error, and the properties that it misses"
    mlcroissant = pytest.importorskip('mlcroissant', reason="no mlcroissant: pip install 'pca_nb[dev]'")
    caplog.clear()
    d = mlcroissant.Dataset(jsonld=str(folder/'croissant.json'))
    assert not d.metadata.ctx.issues.errors
    assert 'not standard' not in caplog.text   # its word for an unusual @context
    return d, set(re.findall(r'Property "\S+/(\w+)" is recommended', d.metadata.ctx.issues.report()))


def test_mlcroissant_reads_the_images(both, tmp_path, caplog):
    folder = save_hub_folder(both, tmp_path/'set', shard_bytes=4000)
    for split, s in both.items():
        d, _ = croissant_of(folder, caplog)
        rows = list(d.records('default', filters={'default/split': split}))
        assert [r['default/label'] for r in rows] == s.labels.tolist()
        assert [r['default/index'] for r in rows] == s.index.tolist()
        pixels = np.stack([np.asarray(r['default/image']) for r in rows])
        assert np.array_equal(pixels, s.images.permute(0, 2, 3, 1).numpy())
    d, _ = croissant_of(folder, caplog)
    splits = [r['default/split'] for r in d.records('default')]
    assert (splits.count(b'train'), splits.count(b'test')) == (33, 22)
    names = {r['classes/label']: r['classes/name'] for r in d.records('classes')}
    assert [names[i] for i in range(11)] == CLASSES


def test_mlcroissant_misses_only_what_is_left_to_the_publisher(both, tmp_path, caplog):
    _, missed = croissant_of(save_hub_folder(both, tmp_path/'a'), caplog)
    assert missed == {'license', 'citeAs', 'datePublished'}
    about = dict(license='cc-by-4.0', citation='@article{x}', date='2025-01-31', url='https://example.com/x')
    d, missed = croissant_of(save_hub_folder(both, tmp_path/'b', about=about), caplog)
    assert not missed
    assert d.metadata.license == ['cc-by-4.0']


# ---- the same without `mlcroissant` ----

def ids(node):
    "All @id of a JSON-LD document, with the @type of those that define one"
    if isinstance(node, list): return [found for n in node for found in ids(n)]
    if not isinstance(node, dict): return []
    here = [(node['@id'], node.get('@type'))] if '@id' in node else []
    return here + [found for key, n in node.items() if key != '@context' for found in ids(n)]


def test_croissant_is_whole(both, tmp_path):
    "Hashes and sizes are those of the files, every reference has an end, every field a column."
    folder = save_hub_folder(both, tmp_path/'set', shard_bytes=4000)
    m = json.loads((folder/'croissant.json').read_text())
    assert (m['@type'], m['conformsTo']) == ('sc:Dataset', 'http://mlcommons.org/croissant/1.0')
    files = {d['contentUrl']: d for d in m['distribution'] if d['@type'] == 'cr:FileObject'}
    assert sorted(files) == sorted(f'data/{p.name}' for p in (folder/'data').iterdir())
    for path, d in files.items():
        assert d['sha256'] == hashlib.sha256((folder/path).read_bytes()).hexdigest()
        assert d['contentSize'] == f'{(folder/path).stat().st_size} B'
    found = ids(m)
    defined = [name for name, kind in found if kind]
    assert len(defined) == len(set(defined))
    assert {name for name, kind in found if not kind} <= set(defined)
    columns = {f['source']['extract'].get('column') for f in m['recordSet'][2]['field']} - {None}
    assert columns == set(pq.read_schema(folder/sorted(files)[0]).names)
    classes = m['recordSet'][1]['data']
    assert classes == [{'classes/label': i, 'classes/name': c} for i, c in enumerate(CLASSES)]


# ---- shards ----

def greedy(sizes, limit):
    "How many boxes things need that are packed in their order"
    boxes = []
    for n in sizes:
        if not boxes or sum(boxes[-1]) + n > limit: boxes.append([])
        boxes[-1].append(n)
    return len(boxes)


@pytest.mark.parametrize('shard_bytes', [1, 4000, 10**9])
def test_shards_hold_every_row_once(both, tmp_path, shard_bytes):
    s = both['train']
    files = sorted((save_hub_folder(s, tmp_path/'set', shard_bytes=shard_bytes)/'data').iterdir())
    encoded = [encode_image(x) for x in s.images]
    total = greedy(map(len, encoded), shard_bytes)
    assert total == {1: 33, 10**9: 1}.get(shard_bytes, total)
    assert [f.name for f in files] == [f'train-{k:05d}-of-{total:05d}.parquet' for k in range(total)]
    tables = [pq.read_table(f) for f in files]
    cells = [cell for t in tables for cell in t['image'].to_pylist()]
    assert [c['bytes'] for c in cells] == encoded
    assert [c['path'] for c in cells] == [f'{i:05d}.png' for i in range(33)]
    held = [sum(len(c['bytes']) for c in t['image'].to_pylist()) for t in tables]
    assert all(n <= shard_bytes for n in held) or max(map(len, tables)) == 1


def test_our_reader_reads_a_shard_whole(both, tmp_path):
    folder = save_hub_folder(both, tmp_path/'set')
    for split, s in both.items():
        back = read_parquet(folder/'data'/f'{split}-00000-of-00001.parquet')
        assert torch.equal(back.images, s.images)
        assert torch.equal(back.labels, s.labels)
        assert torch.equal(back.index, s.index)
        assert (back.grid, back.classes, back.name, back.stats) == (s.grid, s.classes, s.name, s.stats)


def test_our_reader_reads_the_folder_by_splits(both, tmp_path):
    pytest.importorskip('pca_nb.hub_layout', reason='the reader of Hub folders is not there yet')
    from pca_nb.listing import ReadOptions, read_listing
    from pca_nb.parquet import list_parquet
    folder = save_hub_folder(both, tmp_path/'set', shard_bytes=4000)
    for split, s in both.items():
        back = read_listing(list_parquet(folder, ReadOptions(split=split)))
        assert torch.equal(back.images, s.images)
        assert torch.equal(back.labels, s.labels)
        assert torch.equal(back.index, s.index)
        assert (back.grid, back.classes, back.name, back.stats) == (s.grid, s.classes, s.name, s.stats)


def test_a_file_is_read_in_pieces(both, tmp_path, monkeypatch):
    "Row groups of bounded size, for the viewer"
    monkeypatch.setattr(hub_folder, 'ROW_GROUP_BYTES', 2000)
    folder = save_hub_folder(both['train'], tmp_path/'set')
    groups = pq.ParquetFile(folder/'data'/'train-00000-of-00001.parquet').metadata
    rows = [groups.row_group(k).num_rows for k in range(groups.num_row_groups)]
    assert sum(rows) == 33
    assert set(rows) == {3}   # of about 570 bytes each


def test_images_on_demand_are_decoded_in_blocks(tmp_path, monkeypatch):
    s = made(600, 3, classes=['cat', 'dog'])
    lazy = read_folder(save_folder(s, tmp_path/'f'), resident=False)
    asked = []
    start = type(lazy.images).start

    def count(images, idx):
        asked.append(len(idx))
        return start(images, idx)
    monkeypatch.setattr(type(lazy.images), 'start', count)
    folder = save_hub_folder(lazy, tmp_path/'set')
    assert asked == [256, 256, 88]
    assert torch.equal(read_parquet(folder/'data'/'train-00000-of-00001.parquet').images, s.images)


# ---- the card ----

def python_in(card): return re.findall(r'```python\n(.*?)```', card, re.S)


@pytest.mark.parametrize('side,grid', [(12, 2), (17, 2), (17, 3), (16, 3)])
def test_the_cards_lines_cut_composites(tmp_path, side, grid):
    "Unequal cells too; one grey level may be lost in rounding."
    from PIL import Image
    s = made(4, 5, grid=grid, side=side, classes=['cat', 'dog'])
    card = (save_hub_folder(s, tmp_path/'set')/'README.md').read_text(encoding='utf-8')
    names = {}
    exec(python_in(card)[0], names)
    theirs = [np.asarray(c) for im in s.images
              for c in names['cells'](Image.fromarray(im.permute(1, 2, 0).numpy()), grid)]
    ours = split_cells(s).images.permute(0, 2, 3, 1).numpy()
    assert np.abs(np.stack(theirs).astype(int) - ours).max() <= 1


def test_the_cards_lines_load_the_set(both, load, tmp_path):
    folder = save_hub_folder(both['test'], tmp_path/'set')
    use, = python_in((folder/'README.md').read_text(encoding='utf-8'))
    assert CUT_CELLS not in use   # plain images have nothing to cut
    names = {}
    lines = use.replace('path/to/this/folder', str(folder)).replace('split=', f'cache_dir="{tmp_path}/cache", split=')
    exec(lines, names)
    same(names['images'], both['test'])


def test_the_licence_is_never_guessed(both, tmp_path):
    folder = save_hub_folder(both, tmp_path/'a')
    text = (folder/'README.md').read_text(encoding='utf-8')
    assert text.splitlines()[:2] == ['---', LICENSE_TODO]
    assert 'license' not in front_of(folder)
    assert 'license' not in json.loads((folder/'croissant.json').read_text())
    assert re.search(r'^## License\n\nTODO: ', text, re.M)
    folder = save_hub_folder(both, tmp_path/'b', about=dict(license='cc-by-4.0', method='EL2N'))
    assert front_of(folder)['license'] == 'cc-by-4.0'
    assert 'TODO' not in (folder/'README.md').read_text(encoding='utf-8')


def test_the_card_says_how_it_was_made(both, tmp_path):
    about = dict(method='PCA', ipc=3, scores='EL2N, 20 epochs', seed=0)
    folder = save_hub_folder(both, tmp_path/'set', 'webp', about=about)
    text = (folder/'README.md').read_text(encoding='utf-8')
    for line in ('| method | PCA |', '| ipc | 3 |', '| scores | EL2N, 20 epochs |', '| source set | toy/pca |',
                 '| stored as | webp |', '| mean per channel | 0.1, 0.2, 0.3 |',
                 '| train | 33 | 3 | 12×12 | 2×2, each 6×6 |', '| test | 22 | 0 to 3 | 12×12 | one |'):
        assert line in text
    assert front_of(folder)['tags'] == ['pca_nb', 'dataset-compression', 'composites']
    assert 'method: PCA; ipc: 3; scores: EL2N, 20 epochs; seed: 0' in \
        json.loads((folder/'croissant.json').read_text())['description']


ODD = ['no', '1e3', '\udcff', "it's: #1", 'a|b', '<b>x</b>', '\x1b[31mred\nnext\n---\nlicense: mit', 'ключ',
       '日本', '`', '']


def test_odd_names_break_nothing(load, tmp_path):
    s = made(33, 0, classes=ODD)
    about = {'title': '\x1b[2J# <script>\n---', 'method': 'a|b\n# no heading', 'scores': '<img src=x>',
             'citation': '```\n# out'}
    folder = save_hub_folder(s, tmp_path/'set', about=about)
    same(load(folder)['train'], s)
    text = (folder/'README.md').read_text(encoding='utf-8')
    front, body = text.removeprefix('---\n').split('\n---\n', 1)
    assert 'license' not in yaml.safe_load(front)
    assert yaml.safe_load(front)['pretty_name'] == about['title']
    assert all(c.isprintable() or c == '\n' for c in text)
    assert '<script>' not in body and '<img' not in body
    headings = [line for line in body.splitlines() if line.startswith('# ')]
    assert len(headings) == 2 and headings[1] == '# out'   # the title, and a line inside the citation's block
    assert len(re.findall(r'```', body)) == 4   # two blocks, both closed
    m = json.loads((folder/'croissant.json').read_text())
    assert len(m['recordSet'][1]['data']) == 11
    assert '\x1b' not in m['name'] + m['description']


# ---- refusals and faults ----

def refused(says, *args, **options):
    with pytest.raises(Refused) as e: save_hub_folder(*args, **options)
    assert says in str(e.value)


def test_refused_before_any_work(both, tmp_path, monkeypatch):
    def work(*args): raise AssertionError('images were encoded')
    monkeypatch.setattr(hub_folder, 'encode_images', work)
    s = both['train']
    new = tmp_path/'new'
    full = tmp_path/'full'
    full.mkdir()
    (full/'mine.txt').write_text('precious')
    refused('is there already', both, full)
    refused('is there already', both, full/'mine.txt')
    refused('choose one of png, jpeg, webp', both, new, 'tiff')
    refused('give 1 or more bytes', both, new, shard_bytes=0)
    refused('there is no set', {}, new)
    refused("'a-b' is no name", {'a-b': s}, new)
    refused("'../x' is no name", {'../x': s}, new)
    refused("'all' is no name", dict(all=s), new)
    refused('use `match_classes`', dict(train=s, test=made(33, 0, classes=CLASSES[::-1])), new)
    refused('holds no images', dict(train=s[torch.tensor([], dtype=torch.int64)]), new)
    refused('such as cc-by-4.0', both, new, about=dict(license='Creative Commons'))
    refused('write it as 2025-01-31', both, new, about=dict(date='January'))
    assert everything(tmp_path) == ['full', 'full/mine.txt']
    assert (full/'mine.txt').read_text() == 'precious'


@pytest.mark.parametrize('there', [False, True])
def test_complete_or_not_there(both, tmp_path, monkeypatch, there):
    "The disk fills up in the second split: nothing is left, and an empty folder stays."
    if there: (tmp_path/'set').mkdir()
    write = pq.write_table

    def fill(table, file, **options):
        if 'test' in file.name: raise OSError(errno.ENOSPC, 'No space left on device')
        return write(table, file, **options)
    monkeypatch.setattr(pq, 'write_table', fill)
    with pytest.raises(OSError, match='free some space'): save_hub_folder(both, tmp_path/'set')
    assert everything(tmp_path) == ['set'] * there
    monkeypatch.undo()
    save_hub_folder(both, tmp_path/'set')
    assert everything(tmp_path/'set') == ['README.md', 'croissant.json', 'data', 'data/test-00000-of-00001.parquet',
                                          'data/train-00000-of-00001.parquet']


def test_an_image_that_cannot_be_read_leaves_nothing(tmp_path):
    folder = save_folder(made(6, 0, classes=['cat', 'dog']), tmp_path/'f')
    lazy = read_folder(folder, size=12, resident=False)
    (folder/'images'/'dog'/'00004.png').write_bytes(b'')
    with pytest.raises(ValueError, match='00004.png: an empty file'): save_hub_folder(lazy, tmp_path/'set')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['f']
