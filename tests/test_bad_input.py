"""Bad input gets an error that names the file or value, the limit and the way out, before any long work, and nothing
half-written. Odd but good images (grey, palette, alpha, CMYK, 16 bit, EXIF-rotated, mixed sizes) are read correctly."""
import contextlib
import io
import json
import os
import pickle
import re
import resource
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pca_nb import (
    cli, datasets, decode, files, html_report, methods, parquet, recipes, result_store, scores, tables, train)
from pca_nb.combine import Tiling
from pca_nb.storage import DamagedFileWarning
from pca_nb.imageset import ImageSet
from pca_nb.datasets import load_data
from pca_nb.models import make_model, MODELS

pytestmark = pytest.mark.filterwarnings('ignore:constrained_layout', 'ignore:Image size .* exceeds limit')
SIDE = 16  # pixels


# ---- helpers ----
def noise(size=SIDE, seed=0, channels=3):
    "Random (size,size,channels) uint8."
    return np.random.default_rng(seed).integers(0, 256, (size, size, channels), dtype=np.uint8)


def file_bytes(im, fmt='PNG', **save):
    "An image as a file's bytes."
    im.save(buf := io.BytesIO(), fmt, **save)
    return buf.getvalue()


def encoded(size=SIDE, seed=0, fmt='PNG'): return file_bytes(Image.fromarray(noise(size, seed)), fmt)


def half(b): return b[:len(b)//2]


def make_folder(root, n=6, size=SIDE, classes=('a', 'b')):
    "`n` random images in each class folder of `root`."
    for k, c in enumerate(classes):
        (root/c).mkdir(parents=True)
        for i in range(n): (root/c/f'{i}.png').write_bytes(encoded(size, 100*k+i))
    return root


def make_parquet(path, labels=(0, 1, 0, 1), images=None, names=None, **columns):
    "A parquet file of images and labels; `names` are those of Hugging Face's ClassLabel."
    columns = columns or dict(image=images or [encoded(seed=i) for i in range(len(labels))], label=list(labels))
    meta = {'huggingface': json.dumps(dict(info=dict(features=dict(label=dict(names=names)))))} if names else None
    pq.write_table(pa.table(columns).replace_schema_metadata(meta), path)
    return path


def recorded(path, n=12, **sums):
    "A score file as `pca-nb score` writes it."
    return scores.Dynamics({k: torch.arange(n).float() for k in scores.SUMS} | sums, 3, 10, {}).save(path)


def published(n=12, **fields):
    "A score file's content in the published layout, for two classes of n/2."
    t = torch.arange(n).float()
    return dict(targets=(t >= n//2).long(), el2n=t, forgetting=t, accumulated_margin=t, correctness=t) | fields


def dump(path, thing, how=pickle.dump):
    with open(path, 'wb') as f: how(thing, f)
    return path


def fail(why):
    "A function that must not be reached."
    def f(*a, **k): raise AssertionError(why)
    return f


def raises(words, f, *args, kind=ValueError):
    "`f(*args)` raises an error whose text has all the words; returns the text."
    with pytest.raises(kind) as e: f(*args)
    text = str(e.value)
    assert not (lacks := [w for w in map(str, words) if w not in text]), f'{lacks} not in: {text}'
    return text


def listing(root):
    "Every file and every hidden entry below `root`, with its size."
    found = [p for p in root.rglob('*') if p.is_file() or p.name.startswith('.')]
    return {(str(p.relative_to(root)), p.stat().st_size) for p in found}


def words_of(what, path, root):
    "A command that reads `path`, with good images at root/full and root/test where it wants more."
    grid = '--methods random --ipc 1 --seeds 1 --workers 1'.split()
    fast = '--epochs 1 --seeds 1'.split()
    return {'compress':        ['compress', path, '--out', root/'out', '--ipc', 1],
            'score':           ['score', path, '--out', root/'s.npz'],
            'evaluate':        ['evaluate', path, '--test', root/'test', *fast],
            'evaluate --test': ['evaluate', root/'full', '--test', path, *fast],
            'bench':           ['bench', path, '--test', root/'test', *grid],
            'bench --test':    ['bench', root/'full', '--test', path, *grid]}.get(what, [what, path])


COMMANDS = 'compress', 'score', 'evaluate', 'evaluate --test', 'bench', 'bench --test'


@pytest.fixture
def full(tmp_path): return make_folder(tmp_path/'full')


@pytest.fixture
def held(tmp_path): return make_folder(tmp_path/'test', n=2)


@pytest.fixture
def no_reading(monkeypatch): monkeypatch.setattr(decode, 'read_image', fail('images were decoded before the refusal'))


@pytest.fixture
def no_training(monkeypatch): monkeypatch.setattr(torch.Tensor, 'backward', fail('training began before the refusal'))


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys, no_training):
    "refused(command, path, *more, says=words): exit code 2, one line with the words, no training, no file left behind."
    monkeypatch.setenv('PCA_NB_HOME', str(tmp_path/'home'))
    def run(what, path, *more, says=()):
        before = listing(tmp_path)
        monkeypatch.setattr(sys, 'argv', ['pca-nb', *map(str, words_of(what, path, tmp_path)), *map(str, more)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as e: cli.main()
        err = capsys.readouterr().err
        assert e.value.code == 2 and re.fullmatch(r'pca-nb: [^\n]+\n', err), err
        assert not (lacks := [w for w in map(str, says) if w not in err]), f'{lacks} not in: {err}'
        assert not (changed := listing(tmp_path) ^ before) and not (tmp_path/'out').exists(), changed
        return err
    return run


# ---- files that are no images ----
FORMATS = dict(png='PNG', jpg='JPEG', webp='WEBP', bmp='BMP', tif='TIFF', ppm='PPM')
BROKEN = {'zero.png': b'', 'zero.jpg': b'', 'text.jpg': b'I am no image\n', 'text.png': b'neither am I\n',
          **{f'half.{e}': half(encoded(fmt=f)) for e, f in FORMATS.items()}}
REASON = dict(zero='an empty file', text='not an image', half='')


@pytest.mark.parametrize('name', BROKEN)
def test_unreadable_image_is_named(name, full):
    "A truncated or zero-byte image and a text file named .jpg: path, reason, count and way out."
    (full/'b'/name).write_bytes(BROKEN[name])
    raises(('1 of 13', full/'b'/name, REASON[name[:4]], 'repair or remove'), load_data, full)


@pytest.mark.parametrize('what', COMMANDS)
def test_unreadable_image_stops_every_command(what, full, held, tmp_path, refused):
    "Each command names the file and leaves nothing."
    bad = shutil.copytree(full, tmp_path/'bad')
    (bad/'a'/'0.png').write_bytes(BROKEN['half.png'])
    refused(what, bad, says=(bad/'a'/'0.png', 'truncated', 'repair or remove'))


def test_many_unreadable_images_are_counted(full):
    "All are counted, five are named."
    for p in (full/'b').iterdir(): p.write_bytes(b'')
    assert raises(['6 of 12 images cannot be read'], load_data, full).count('an empty file') == 5


@pytest.mark.parametrize('name', ['zero.png', 'text.jpg'])
def test_unreadable_image_of_a_set_too_big_for_memory_is_found_at_once(name, full, monkeypatch):
    "What a header shows is not left to the middle of an epoch when pixels are decoded on demand."
    monkeypatch.setattr(decode, 'MAX_RESIDENT_BYTES', 0)
    (full/'b'/name).write_bytes(BROKEN[name])
    raises((full/'b'/name, 'repair or remove'), load_data, full)


def test_truncated_image_read_on_demand_is_named(full, monkeypatch):
    "Decoding later still names the file and the way out."
    monkeypatch.setattr(decode, 'MAX_RESIDENT_BYTES', 0)
    (full/'b'/'0.png').write_bytes(BROKEN['half.png'])
    images = load_data(full).images
    assert isinstance(images, decode.LazyImages)
    raises((full/'b'/'0.png', 'repair or remove'), images.__getitem__, slice(None))


@pytest.mark.parametrize('name', BROKEN)
def test_unreadable_image_in_a_parquet_is_named(name, tmp_path):
    "The parquet file and the row."
    path = make_parquet(tmp_path/'x.parquet', images=[encoded()]*3+[BROKEN[name]])
    text = raises((path, '1 of 4', REASON[name[:4]], 'repair or remove'), load_data, path)
    assert re.search('(image|row) 3', text)


def test_image_with_too_many_pixels_is_named(full, monkeypatch):
    "Pillow's limit against decompression bombs: the file, and no bare traceback."
    (full/'b'/'bomb.png').write_bytes(encoded(64))
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 32*32)
    raises((full/'b'/'bomb.png', '1 of 13', 'repair or remove'), load_data, full)


@pytest.mark.parametrize('value,kind', [(1, np.float32), (65536, np.int32), (-1, np.int32)])
def test_pixels_without_a_known_range_are_refused(value, kind, full):
    "No guess at a scale: the file, the value and the way out."
    Image.fromarray(np.full((SIDE, SIDE), value, kind)).save(full/'b'/'x.tif')
    raises((full/'b'/'x.tif', value if kind == np.int32 else 'float', 'save it as 8 or 16 bit'), load_data, full)


# ---- odd but good images ----
def seen(root, im, name='x.png', size=SIDE, **save):
    "What `load_data` makes of one image (or its bytes) among plain ones: (size,size,3)."
    path = make_folder(root/'odd', 1, size)/'b'/name
    if isinstance(im, bytes): path.write_bytes(im)
    else: im.save(path, **save)
    s = load_data(root/'odd')
    return s.images[s.files.index(f'b/{name}')].permute(1, 2, 0).numpy()


def near(got, want, by=1):
    "Same shape, 8 bits, no value further apart than `by`."
    assert got.shape == want.shape and got.dtype == np.uint8
    assert np.abs(got.astype(float)-want).max() <= by


def on_white(colour, alpha): return colour*(alpha/255.)+255*(1-alpha/255.)


def grey(a): return np.broadcast_to(a[..., None], (*a.shape, 3))


def exif(orientation):
    e = Image.Exif()
    e[0x112] = orientation
    return e


UPRIGHT = {1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
           5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
           8: lambda a: np.rot90(a)}  # EXIF orientation -> what a person sees


@pytest.mark.parametrize('how', UPRIGHT)
def test_exif_orientation(how, tmp_path):
    "All eight orientations of a 16×24 picture, upright before the centre crop."
    wide = noise(24)[:SIDE]
    up = UPRIGHT[how](wide)
    top, left = (up.shape[0]-SIDE)//2, (up.shape[1]-SIDE)//2
    near(seen(tmp_path, Image.fromarray(wide), exif=exif(how)), up[top:top+SIDE, left:left+SIDE], 0)


def test_exif_orientation_of_a_jpeg(tmp_path):
    "A camera's file, orientation 6: the top left corner goes to the top right."
    a = grey(np.kron([[0, 60], [120, 240]], np.ones((16, 16))).astype(np.uint8))
    near(seen(tmp_path, Image.fromarray(a), 'x.jpg', 32, exif=exif(6), quality=100), np.rot90(a, -1), 3)


A = noise()
ALPHA = noise(seed=1)[..., :1]
CMYK = noise(seed=4, channels=4)
INDEX = noise(seed=2)[..., 0] % 8
COLOURS = noise(seed=3)[0, :8]
INK = (255.-CMYK[..., :3])*(255.-CMYK[..., 3:])/255  # ink subtracts light
DEEP = np.random.default_rng(5).integers(0, 65536, (SIDE, SIDE, 4)).astype(np.uint16)


def planes(mode, *channels): return Image.merge(mode, [Image.fromarray(np.ascontiguousarray(c)) for c in channels])


def cmyk(): return planes('CMYK', *np.moveaxis(CMYK, -1, 0))


def palette():
    im = Image.fromarray(INDEX)
    im.putpalette(COLOURS.tobytes())
    return im


ODD = {  # name -> image, how to save it, what a person sees
    'grey': (Image.fromarray(A[..., 0]), {}, grey(A[..., 0])),
    'grey, one transparent': (Image.fromarray(INDEX), dict(transparency=2), grey(np.where(INDEX == 2, 255, INDEX))),
    'grey and alpha': (planes('LA', A[..., 0], ALPHA[..., 0]), {}, on_white(grey(A[..., 0]), ALPHA)),
    'black and white': (Image.fromarray(A[..., 0] > 99), {}, grey(255*(A[..., 0] > 99))),
    'colour and alpha': (planes('RGBA', *np.moveaxis(np.dstack([A, ALPHA]), -1, 0)), {}, on_white(A, ALPHA)),
    'colour, one transparent': (Image.fromarray(COLOURS[INDEX]), dict(transparency=tuple(COLOURS[5].tolist())),
                                np.where(INDEX[..., None] == 5, 255, COLOURS[INDEX])),
    'palette': (palette(), {}, COLOURS[INDEX]),
    'palette, one transparent': (palette(), dict(transparency=3), np.where(INDEX[..., None] == 3, 255, COLOURS[INDEX])),
    'palette and alpha': (palette(), dict(transparency=ALPHA[0, :8].tobytes()),
                          on_white(COLOURS[INDEX], ALPHA[0, :8][INDEX])),
}


@pytest.mark.parametrize('name', ODD)
def test_grey_palette_and_alpha(name, tmp_path):
    "Three channels; what is transparent lies on white."
    im, save, want = ODD[name]
    near(seen(tmp_path, im, **save), want)


def test_cmyk_tiff(tmp_path):
    "(255-C)(255-K)/255."
    near(seen(tmp_path, cmyk(), 'x.tif'), INK)


@pytest.mark.parametrize('ink,light', [((255, 0, 0, 0), (0, 255, 255)), ((0, 255, 0, 0), (255, 0, 255)),
                                       ((0, 0, 255, 0), (255, 255, 0)), ((0, 0, 0, 255), (0, 0, 0)),
                                       ((0, 0, 0, 0), (255, 255, 255)), ((0, 0, 0, 155), (100, 100, 100))])
def test_cmyk_jpeg(ink, light, tmp_path):
    "Pure inks, and not their negatives."
    got = seen(tmp_path, Image.new('CMYK', (SIDE, SIDE), ink), 'x.jpg', quality=100)
    near(got, np.broadcast_to(light, (SIDE, SIDE, 3)), 2)


@pytest.mark.parametrize('ext', ['png', 'tif', 'big-endian.tif', 'pgm'])
def test_16_bit_grey(ext, tmp_path):
    "Value/257, rounded: 0 stays 0, 65535 becomes 255."
    a = DEEP[..., 0].copy()
    a[0, :4] = 0, 65535, 128, 129
    im = Image.frombytes('I;16B', a.shape, a.astype('>u2').tobytes()) if 'big' in ext else Image.fromarray(a)
    near(got := seen(tmp_path, im, f'x.{ext}'), grey((a/257.).round()), 0)
    assert got[0, :4, 0].tolist() == [0, 255, 0, 1]


def png16(a):
    "A PNG file with 16 bits a channel, from (h,w,1 to 4) uint16: grey, grey+alpha, colour, colour+alpha."
    def chunk(kind, body): return struct.pack('>I', len(body))+kind+body+struct.pack('>I', zlib.crc32(kind+body))
    head = struct.pack('>IIBBBBB', a.shape[1], a.shape[0], 16, {1: 0, 2: 4, 3: 2, 4: 6}[a.shape[2]], 0, 0, 0)
    rows = zlib.compress(b''.join(b'\0'+r.astype('>u2').tobytes() for r in a))
    return b'\x89PNG\r\n\x1a\n'+chunk(b'IHDR', head)+chunk(b'IDAT', rows)+chunk(b'IEND', b'')


@pytest.mark.parametrize('channels', [1, 2, 3, 4])
def test_16_bit_png(channels, tmp_path):
    "Grey and colour, without and with alpha."
    a = DEEP[..., :channels]/257.
    colour, alpha = (a, 255.) if channels % 2 else (a[..., :-1], a[..., -1:])
    near(seen(tmp_path, png16(DEEP[..., :channels])), on_white(np.broadcast_to(colour, A.shape), alpha), 2)


def test_odd_images_in_a_parquet(tmp_path):
    "The same reading behind another door: rotated, CMYK, palette, 16 bit."
    cells = {file_bytes(Image.fromarray(A), exif=exif(6)): np.rot90(A, -1), file_bytes(cmyk(), 'TIFF'): INK,
             file_bytes(palette()): COLOURS[INDEX], png16(DEEP[..., :1]): grey(DEEP[..., 0]/257.)}
    s = load_data(make_parquet(tmp_path/'x.parquet', images=list(cells)))
    for got, want in zip(s.images.permute(0, 2, 3, 1).numpy(), cells.values(), strict=True): near(got, want)


def test_mixed_sizes_are_read(tmp_path, monkeypatch):
    "The median shortest side is the working size, colours stay, and the set can be compressed."
    sizes, colours = [(16, 16), (20, 40), (40, 17), (32, 32)], noise(seed=6)[0, :4]
    for i, (size, colour) in enumerate(zip(sizes, colours)):
        (folder := tmp_path/'mixed'/'ab'[i//2]).mkdir(parents=True, exist_ok=True)
        Image.new('RGB', size, tuple(colour.tolist())).save(folder/f'{i}.png')
    s = load_data(tmp_path/'mixed')
    assert s.size == (int(np.median([16, 20, 17, 32])),)*2
    assert (s.images.permute(0, 2, 3, 1).numpy() == colours[:, None, None]).all()
    words = words_of('compress', tmp_path/'mixed', tmp_path)
    monkeypatch.setattr(sys, 'argv', ['pca-nb', *map(str, words), '--method', 'random'])
    with pytest.raises(SystemExit) as e: cli.main()
    assert not e.value.code and load_data(tmp_path/'out').size == s.size


# ---- folders ----
@pytest.mark.parametrize('what', COMMANDS)
def test_empty_class_folder(what, full, held, tmp_path, refused, monkeypatch):
    "The folder, the class and the way out; not one of its images is decoded."
    bad, read = shutil.copytree(full, tmp_path/'bad'), decode.read_image
    (bad/'c').mkdir()
    monkeypatch.setattr(decode, 'read_image', lambda src, *a: fail('decoded')() if 'bad' in str(src) else read(src, *a))
    refused(what, bad, says=(bad, 'class c', 'remove the folder or fill it'))


def test_class_folder_of_other_files(full, no_reading):
    "Only a text file in it: empty."
    (full/'c').mkdir()
    (full/'c'/'notes.txt').write_text('no image')
    raises((full, 'no images in class c', 'remove the folder or fill it'), load_data, full)


@pytest.mark.parametrize('what', ['compress', 'score', 'evaluate', 'bench'])
def test_one_class_only(what, full, held, tmp_path, refused):
    "A folder with one class: the class and the limit."
    refused(what, make_folder(tmp_path/'one', classes=('solo',)), says=('solo', 'at least two'))


def test_one_class_only_is_found_before_reading(tmp_path, no_reading):
    "The folder's name and the limit, before an image is decoded."
    one = make_folder(tmp_path/'one', classes=('solo',))
    raises((one, 'at least two'), load_data, one)


def test_one_class_only_in_a_parquet(tmp_path):
    "All labels 0: the file and the limit."
    path = make_parquet(tmp_path/'x.parquet', [0]*4)
    raises((path, 'at least two'), load_data, path)


NO_CLASSES = {'empty': (lambda p: p.mkdir(), ('no class folders', 'sub-folder')),
              'splits and more': (lambda p: [make_folder(p/s) for s in ('train', 'val', 'extra')],
                                  ('train, val', 'but also extra', 'give')),
              'absent': (lambda p: None, ('neither a folder or file nor a known data set', 'digits', 'give a path'))}


@pytest.mark.parametrize('kind', NO_CLASSES)
def test_folder_that_holds_no_classes(kind, tmp_path):
    "An empty folder, a folder of splits and something else, no folder."
    make, words = NO_CLASSES[kind]
    make(tmp_path/'x')
    raises((tmp_path/'x', *words), load_data, tmp_path/'x', kind=(ValueError, KeyError))


SHORT = {  # what is asked for -> images needed a class, options
    'pca': (16, '--ipc', 4), 'pca, factor 3': (9, '--factor', 3), 'tiles': (8, '--method', 'tiles', '--ipc', 2),
    'random': (7, '--method', 'random', '--ipc', 7), 'ccs': (7, '--method', 'ccs', '--ipc', 7)}


@pytest.mark.parametrize('what', SHORT)
def test_class_with_fewer_images_than_needed(what, full, refused):
    "IPC·f² images asked for, five there: both numbers, the class, the way out."
    (full/'b'/'5.png').unlink()
    need, *more = SHORT[what]
    refused('compress', full, *more, says=(f'needs {need} images per class', "class 'b' has 5", 'lower ipc'))


@pytest.mark.parametrize('method,ipc,need', [('pca', 4, 16), ('tiles', 2, 8), ('el2n-easyB', 7, 7), ('ccs', 7, 7)])
def test_bench_with_fewer_images_than_needed(method, ipc, need, full, held, refused):
    "The same from a grid, before a scoring run."
    says = f'needs {need} images per class', 'has 6', 'lower ipc'
    refused('bench', full, '--methods', method, '--ipc', ipc, says=says)


@pytest.mark.parametrize('method,ipc', [('ccs', 5), ('ccs-global', 5), ('aum-hard', 7)])
@pytest.mark.parametrize('what,option', [('compress', '--method'), ('bench', '--methods')])
def test_budget_that_the_set_cannot_fill(what, option, method, ipc, full, held, refused):
    "CCS cuts 30 % of 12 images, 9 are less than 2·5; 2·7 exceed the set even without balance: known before scoring."
    refused(what, full, option, method, '--ipc', ipc, says=(f'ipc={ipc}', 'lower'))


def test_factor_above_the_image_side(tmp_path, refused):
    "Five cells along four pixels, before the scoring run."
    tiny = make_folder(tmp_path/'tiny', 25, 4)
    refused('compress', tiny, '--factor', 5, says=('factor=5', '4 pixels', 'lower the factor'))


@pytest.fixture
def composites(full, tmp_path):
    "A folder of composites, six a class."
    s = load_data(full)
    s = ImageSet(s.images.repeat(4, 1, 1, 1), s.labels.repeat(4), s.classes)
    return files.save_folder(methods.make_tiles(s, 6,
                                                methods.MethodInputs(None, torch.Generator().manual_seed(0),
                                                                     Tiling(2))), tmp_path/'tiled')


def test_composites_are_not_compressed_again(composites, refused):
    "Refused before the scoring run."
    refused('compress', composites, says=['plain images'])


# ---- the folder that `save_folder` wrote, damaged ----
@pytest.fixture
def stored(full, tmp_path): return files.save_folder(load_data(full), tmp_path/'stored')


DAMAGE = {'torn': lambda m: json.dumps(m)[:60], 'empty': lambda m: '{}', 'text': lambda m: 'hello',
          **{f'labels {k}': lambda m, k=k: json.dumps(m | dict(labels=k)) for k in ([0, 1], [0]*11+[2], [0]*11+[-1])}}


@pytest.mark.parametrize('how', DAMAGE)
def test_damaged_manifest_is_named(how, stored):
    "A torn or foreign manifest, labels that are too few, C or -1: the folder or its manifest is named."
    manifest = stored/files.MANIFEST
    manifest.write_text(DAMAGE[how](json.loads(manifest.read_text())))
    raises([stored], load_data, stored)


def test_absent_stored_image_is_named(stored):
    "Folder, file and way out."
    (gone := sorted(stored.rglob('*.png'))[-1]).unlink()
    assert re.search('restore|again|remove', raises((stored, gone.name, 'missing'), load_data, stored)), 'no way out'


# ---- parquet and npz ----
@pytest.mark.parametrize('columns,known', [(dict(pixels=[.5], label=[0]), parquet.IMAGE_COLUMNS),
                                           (dict(image=[b'x'], kind=[.5]), parquet.LABEL_COLUMNS)],
                         ids=['image', 'label'])
def test_parquet_without_the_columns(columns, known, tmp_path, refused):
    "The file, the columns it has, the ones that are looked for, and the way out."
    path = make_parquet(tmp_path/'x.parquet', **columns)
    refused('compress', path, says=(path, *columns, *known, 'name'))


CELLS = {'numbers': [1, 2, 3, 4], 'null': [None, b'', b'', b''], 'paths only': [dict(bytes=None, path='a.png')]*4}


@pytest.mark.parametrize('kind', CELLS)
def test_parquet_without_image_bytes(kind, tmp_path):
    "File, row, column and way out."
    path = make_parquet(tmp_path/'x.parquet', images=CELLS[kind])
    raises((path, 'row 0', "'image'", 'embed the images'), load_data, path)


def test_parquet_without_rows(tmp_path):
    "An empty table: the file, and a sentence."
    path = make_parquet(tmp_path/'x.parquet', image=pa.array([], pa.binary()), label=pa.array([], pa.int64()))
    raises([path], load_data, path)


CONTENT = {'empty': lambda p: p.write_bytes(b''), 'text': lambda p: p.write_text('hello\n'), 'absent': Path.unlink,
           'half': lambda p: p.write_bytes(half(p.read_bytes())),
           'npy': lambda p: dump(p, np.zeros(3), lambda a, f: np.save(f, a))}


@pytest.mark.parametrize('write,ext', [(parquet.save_parquet, 'parquet'), (files.save_npz, 'npz')],
                         ids=['parquet', 'npz'])
@pytest.mark.parametrize('kind', CONTENT)
def test_damaged_set_file_is_named(kind, write, ext, full, tmp_path, refused):
    "Zero bytes, text, nothing there, the first half, another format; no advice to open it unsafely."
    CONTENT[kind](path := write(load_data(full), tmp_path/f'x.{ext}'))
    assert 'unsafe' not in refused('compress', path, says=(path, 'o such file' if kind == 'absent' else ''))


CHANGES = dict(images=np.zeros((3, 3, 8, 8), np.uint8), meta=np.full(5, 99, np.uint8), index=np.zeros((2, 1), np.int64))


@pytest.mark.parametrize('what', CHANGES)
def test_inconsistent_npz_is_named(what, full, tmp_path):
    "Arrays that do not fit each other: the file."
    path = files.save_npz(load_data(full), tmp_path/'x.npz')
    np.savez(path, **dict(np.load(path)) | {what: CHANGES[what]})
    raises([path], load_data, path)


def test_size_is_kept_for_every_kind_of_file(full, tmp_path):
    "`size` resizes an .npz as it does a folder and a parquet file; it is not passed over."
    s = load_data(full)
    for f in (full, parquet.save_parquet(s, tmp_path/'x.parquet'), files.save_npz(s, tmp_path/'x.npz')):
        assert load_data(f, size=8).size == (8, 8), f.suffix


# ---- labels ----
LABELS = {'negative': ([0, 1, -1, 1], ('row 2', 'is -1', 'integers from 0')),
          'null': ([0, 1, None, 1], ('row 2', 'is None', 'integers from 0')),
          'fraction': ([.5, 1., 0., 1.], ('row 0', 'is 0.5', 'integers from 0')),
          'no word': (['x', 'y', '', 'y'], ('row 2', "is ''", 'name of its class')),
          'gap': ([0, 1, 3, 1], ('label 2', 'without gaps')), 'gap at 0': ([1, 2, 1, 2], ('label 0', 'without gaps'))}


@pytest.mark.parametrize('kind', LABELS)
def test_labels_outside_the_classes(kind, tmp_path, refused):
    "Labels of a parquet file that are not 0..C-1: file, row or value, way out."
    labels, words = LABELS[kind]
    path = make_parquet(tmp_path/'x.parquet', labels)
    refused('compress', path, says=(path, *words))


def test_labels_beyond_the_named_classes(tmp_path):
    "A Hugging Face file with two names and a label 2: the file, the range, the limit."
    path = make_parquet(tmp_path/'x.parquet', [0, 1, 2, 1], names=['cat', 'dog'])
    raises((path, '0 to 2', '0 to 1'), load_data, path)


def test_named_class_without_images_is_no_gap(tmp_path):
    "With names there is no doubt what the classes are."
    s = load_data(make_parquet(tmp_path/'x.parquet', [0, 2, 0, 2], names=['a', 'b', 'c']))
    assert s.counts.tolist() == [2, 0, 2]


@pytest.mark.parametrize('labels,span', [([0, 1, -1, 1], '-1 to 1'), ([0, 1, 2, 1], '0 to 2')], ids=['-1', 'C'])
def test_labels_of_an_image_set(labels, span):
    "The type itself refuses: the range and the limit."
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    raises((span, '2 classes allow 0 to 1'), ImageSet, images, torch.tensor(labels), ('a', 'b'))


@pytest.mark.parametrize('label', [-1, 2])
def test_labels_of_an_npz(label, full, tmp_path):
    "The file and the limit."
    path = files.save_npz(load_data(full), tmp_path/'x.npz')
    np.savez(path, **dict(np.load(path)) | dict(labels=np.full(12, label)))
    raises((path, '0 to 1'), load_data, path)


# ---- the test images of `validate` ----
def test_test_set_with_other_class_names(full, tmp_path, refused):
    "The names that do not match, the names there are, the way out."
    other = make_folder(tmp_path/'other', classes=('x', 'y'))
    refused('evaluate --test', other, says=('x, y', 'a, b', 'use the same names'))


def test_test_set_of_composites(full, composites, refused):
    "Accuracy is measured on whole images."
    refused('evaluate --test', composites, says=['whole images'])


# ---- score files ----
def score_file(kind, root, n=12, **fields):
    "A recorded or published score file, some of its fields (by their recorded names) replaced."
    if kind == 'recorded': return recorded(root/'s.npz', n, **fields)
    return dump(root/'s.pt', published(n, **{k.replace('margin', 'accumulated_margin'): v for k, v in fields.items()}))


KINDS = pytest.mark.parametrize('kind', ['recorded', 'published'])
NAN = torch.tensor([0.]*4+[float('nan')]*2+[0.]*6)


@KINDS
@pytest.mark.parametrize('method', ['pca', 'ccs', 'aum-hardB', 'el2n-easyB'])
def test_nan_scores(kind, method, full, tmp_path, refused):
    "How many, where the first is, what to do."
    file = score_file(kind, tmp_path, el2n=NAN, margin=NAN)
    says = '2 of 12 scores are NaN', 'position 4', 'record them again'
    refused('compress', full, '--method', method, '--scores', file, says=says)


@KINDS
@pytest.mark.parametrize('method', ['cover', 'cover-plain'])
def test_scores_without_features(kind, method, full, tmp_path, refused):
    "Published files and those of earlier versions cannot tell which images look alike."
    says = 'came without the features', 'leave the scores out', 'pca-nb score'
    file = score_file(kind, tmp_path)
    refused('compress', full, '--method', method, '--ipc', 1, '--factor', 2, '--scores', file, says=says)


def test_features_that_do_not_fit(full, tmp_path, refused):
    "NaN: how many, where the first is; another length than the scores."
    def words(features):
        d = scores.read_dynamics(recorded(tmp_path/'s.npz'))
        arrays = {k: v.numpy() for k, v in d.sums.items()} | dict(epochs=3, el2n_epochs=10, meta='{}')
        np.savez(tmp_path/'s.npz', **arrays, features=features.numpy())
        return 'compress', full, '--method', 'cover-plain', '--ipc', 1, '--scores', tmp_path/'s.npz'
    odd = torch.rand(12, 5).half()
    odd[4:6, 2] = float('nan')
    refused(*words(odd), says=('2 of 12 images have features that are infinite or NaN', 'position 4', 'again'))
    refused(*words(torch.rand(11, 5).half()), says=('features (11, 5) of 12 images', 'same run'))


@KINDS
@pytest.mark.parametrize('n', [11, 13, 0])
def test_score_file_of_the_wrong_length(kind, n, full, tmp_path, refused):
    "The file, both lengths, the way out."
    file = score_file(kind, tmp_path, n)
    refused('compress', full, '--scores', file, says=(file, f'scores {n} images', 'the set has 12', 'same set'))


@KINDS
def test_score_file_with_one_column_of_the_wrong_length(kind, full, tmp_path, refused):
    "Only the column that ranks is short."
    file = score_file(kind, tmp_path, el2n=torch.zeros(10))
    refused('compress', full, '--scores', file, says=('10 scores', '12 images', 'same set'))


def test_score_does_not_take_up_a_file_of_another_set(full, tmp_path, refused):
    "`pca-nb score --out` on scores of other images."
    refused('score', full, says=(recorded(tmp_path/'s.npz', 11), '11 images', '12', 'same set'))


def test_published_scores_in_another_order(full, tmp_path, refused):
    "Targets that differ from the labels: how many, and which order is meant."
    file = score_file('published', tmp_path, targets=torch.tensor([0, 1]*6))
    refused('compress', full, '--scores', file, says=(file, '6 targets differ', 'sorted class folders'))


class Evil:
    "Runs a command when unpickled."
    def __init__(self, flag): self.flag = flag
    def __reduce__(self): return os.system, (f'touch {self.flag}',)


class Nested(Evil):
    "The same inside a tensor's storage."
    def __reduce__(self):
        torch.save(Evil(self.flag), b := io.BytesIO())
        return torch.storage._load_from_bytes, (b.getvalue(),)


class Misfit(Evil):
    "An allowed call with arguments that do not fit."
    def __reduce__(self): return torch._utils._rebuild_tensor_v2, ()


WAY_OUT = 'record them again|layout'  # with a file of one's own, with a published one


def old_torch_save(thing, f): torch.save(thing, f, _use_new_zipfile_serialization=False)


UNTRUSTED = {**{f'.{e}': (f's.{e}', Evil, pickle.dump) for e in ('pt', 'pkl', 'pickle', 'npz', 'npy', 'bin')},
             'torch.save': ('s.pt', Evil, torch.save), 'old torch.save': ('s.pt', Evil, old_torch_save),
             'nested': ('s.pt', Nested, pickle.dump), 'misfit': ('s.pt', Misfit, pickle.dump),
             'in a dict': ('s.pt', lambda flag: published(extra=Evil(flag)), pickle.dump)}


@pytest.mark.parametrize('kind', UNTRUSTED)
def test_untrusted_pickle_as_score_file(kind, full, tmp_path, refused):
    "Nothing in it runs, the file is named in one line, the way out is not to open it unsafely."
    name, make, how = UNTRUSTED[kind]
    file = dump(tmp_path/name, make(tmp_path/'ran'), how)
    err = refused('compress', full, '--scores', file, says=[file])
    assert not (tmp_path/'ran').exists() and not re.search('unsafe|weights_only', err) and re.search(WAY_OUT, err)


@pytest.mark.parametrize('kind', ['.pt', 'in a dict'])
def test_the_untrusted_pickle_would_have_run(kind, tmp_path):
    "The bait is live: plain pickle takes it."
    name, make, how = UNTRUSTED[kind]
    with open(dump(tmp_path/name, make(tmp_path/'ran'), how), 'rb') as f: pickle.load(f)
    assert (tmp_path/'ran').exists()


NO_SCORES = {  # file -> content
    **{f'{k}.{e}': v for e in ('npz', 'pt') for k, v in dict(text=b'hello\n', zero=b'', image=encoded()).items()},
    'array.npz': lambda f: np.save(f, np.zeros(12)), 'other.npz': lambda f: np.savez(f, a=1),
    'list.pt': lambda f: pickle.dump([1, 2], f), 'part.pt': lambda f: pickle.dump(dict(el2n=torch.zeros(12)), f),
    'zipped.pt': lambda f: torch.save(published(), f)}


@pytest.mark.parametrize('name', NO_SCORES)
def test_file_that_holds_no_scores(name, full, tmp_path, refused):
    "Text, nothing, an image, other arrays: the file is named in one line."
    content = NO_SCORES[name]
    file = dump(tmp_path/name, content, lambda c, f: c(f) if callable(c) else f.write(c))
    err = refused('compress', full, '--scores', file, says=[file])
    assert 'unsafe' not in err and re.search(WAY_OUT, err)


def test_half_a_score_file(full, tmp_path, refused):
    "Truncated on the way."
    file = recorded(tmp_path/'s.npz')
    file.write_bytes(half(file.read_bytes()))
    refused('compress', full, '--scores', file, says=(file, 'record them again'))


def test_absent_score_file(full, tmp_path, refused):
    "The path and two ways out."
    file = tmp_path/'none.npz'
    refused('compress', full, '--scores', file, says=(file, 'pca-nb score', 'leave the scores out'))


def test_score_that_a_published_file_lacks(full, tmp_path, refused):
    "The scores it has are listed."
    file = score_file('published', tmp_path)
    says = "'entropy'", 'el2n, forgetting, aum'
    refused('compress', full, '--method', 'entropy-easyB', '--scores', file, says=says)


@pytest.mark.parametrize('content', [b'hello\n', b'', encoded()], ids=['text', 'empty', 'image'])
def test_damaged_checkpoint_is_set_aside(content, full, tmp_path):
    "What lies where a checkpoint belongs and cannot be read: named, kept under another name, and the run starts over."
    (tmp_path/'s.ckpt').write_bytes(content)
    cfg = scores.ScoringCfg('convnet2-w32', recipes.Recipe(epochs=1, batch=4))
    with pytest.warns(DamagedFileWarning, match='s.ckpt is damaged .* set aside as s.ckpt.damaged1'):
        scores.record_dynamics(load_data(full), cfg, tmp_path/'s.npz', 'cpu')
    assert (tmp_path/'s.ckpt.damaged1').read_bytes() == content and len(scores.read_dynamics(tmp_path/'s.npz')) == 12


def test_checkpoint_of_something_else_is_refused(full, tmp_path, refused):
    "A whole file that is no checkpoint of a run stays where it is."
    torch.save(dict(a=torch.zeros(1)), tmp_path/'s.ckpt')
    refused('score', full, says=(tmp_path/'s.ckpt', 'remove'))


# ---- names and numbers ----
NAMES = {  # command and option -> a wrong value, known names
    'compress --method': ('aumm-easyB', ('random', 'ccs', 'pca', 'el2n-easyB', 'tiles')),
    'compress --format': ('gif', files.ENCODERS), 'bench --methods': ('random,pcaa', methods.METHODS),
    **{f'{c} --shrink': ('nearest', ('antialias', 'lsq')) for c in ('compress', 'bench')},
    **{f'{c} --recipe': ('sofft', recipes.RECIPES) for c in ('evaluate', 'bench')},
    **{f'{c} --arch': ('resnet9', MODELS) for c in ('compress', 'score', 'evaluate', 'bench')}}


def misname(what, full, refused):
    (value, known), (name, option) = NAMES[what], what.split()
    more = ('--methods', 'pca') if what == 'bench --shrink' else ()
    refused(name, full, *more, option, value, says=('unknown', repr(value.split(',')[-1]), *known))


@pytest.mark.parametrize('what', NAMES)
def test_unknown_name_lists_the_known(what, full, held, refused):
    "Method, recipe, network, format, way to shrink: the value and every known one."
    misname(what, full, refused)


@pytest.mark.parametrize('what', NAMES)
def test_unknown_name_is_found_before_reading(what, full, held, refused, no_reading):
    "A typing error does not cost the reading of the images."
    misname(what, full, refused)


def test_unknown_data_lists_the_known(refused):
    "Neither a path nor a name."
    refused('compress', 'cifar11', says=("'cifar11'", *datasets.DATASETS, 'give a path'))


@pytest.mark.parametrize('words, says', [
    (('t99',), ("'t99'", *tables.TABLES)), (('t05', '--scale', 'huge'), ("'huge'", *tables.SCALES)),
    (('t05', '--ipc', '7'), ('1, 10', '7')), (('t05', '--ipc', 'ten'), ("'ten'", 'whole numbers'))])
def test_unknown_table_scale_or_ipc(words, says, refused):
    "What there is to choose from, before any run."
    refused('table', *words, says=says)


@pytest.mark.parametrize('what', ['compress', 'score', 'evaluate', 'bench'])
@pytest.mark.parametrize('device', ['gpu', 'cuda'])
def test_unknown_or_absent_device(what, device, full, held, refused):
    "The device asked for and one that works, before training."
    if device == 'cuda' and torch.cuda.is_available(): pytest.skip('cuda is present here')
    more = ('--methods', 'el2n-easyB') if what == 'bench' else ()
    refused(what, full, *more, '--device', device, says=(device, 'cpu'))


@pytest.mark.parametrize('option,value', [*(('--ipc', v) for v in ('ten', '1,0', '-1', '')), ('--methods', ',')])
def test_bench_with_an_impossible_list(option, value, full, held, refused):
    "The option is named, and the value where there is one."
    refused('bench', full, option, value, says=(option.strip('-'), value.split(',')[-1]))


def test_bench_of_own_data_without_test(full, refused):
    "The way out is the option."
    refused('bench', full, '--test', '', says=(full, '--test'))


# ---- outputs ----
@pytest.fixture
def closed(tmp_path):
    "A place that nobody can write below, root included: a regular file."
    (tmp_path/'file').write_text('not a folder')
    return tmp_path/'file'


UNWRITABLE = {  # command and option -> the rest, given the place
    'compress --out': lambda p: [p/'x'], 'score --out': lambda p: [p/'x.npz'], 'bench --rows': lambda p: [p/'x.jsonl'],
    'bench --home': lambda p: [p/'x'], 'demo --home': lambda p: [p/'x', '--seeds', 1, '--workers', 1],
    'bench --home with --rows': lambda p: [p/'x', '--rows', p.parent/'r.jsonl', '--methods', 'el2n-easyB']}


def write_to(what, full, closed, refused):
    name, option, *_ = what.split()
    args = [option, *UNWRITABLE[what](closed)]
    refused(name, *([] if name == 'demo' else [full]), *args, says=(closed, 'choose another place'))


@pytest.mark.parametrize('what', UNWRITABLE)
def test_unwritable_output(what, full, held, closed, refused):
    "The place and the way out, before training."
    write_to(what, full, closed, refused)


@pytest.mark.parametrize('what', [w for w in UNWRITABLE if 'demo' not in w])
def test_unwritable_output_is_found_before_reading(what, full, held, closed, refused, no_reading):
    "And before the images are read."
    write_to(what, full, closed, refused)


@pytest.mark.skipif(not Path('/proc/self').exists(), reason='no /proc here')
def test_output_in_a_read_only_file_system(full, refused):
    "/proc takes no folders."
    refused('compress', full, '--out', '/proc/pca_nb/x', says=('/proc/pca_nb', 'choose another place'))


def test_existing_output_is_kept(full, refused):
    "A folder that holds something is not written into."
    refused('compress', full, '--out', full, says=(full, 'there already', 'choose another place or remove it'))


@pytest.fixture
def many():
    "A hundred images of noise, too much for `tight`."
    images = torch.from_numpy(np.stack([noise(seed=i) for i in range(100)]))
    return ImageSet(images.permute(0, 3, 1, 2), torch.arange(100) % 2, ('a', 'b'))


def finished_rows():
    "Two rows as `ResultStore.frame` gives them."
    texts = 'key data arch set device dtype threads python torch torchvision pca_nb optimizer'.split()
    row = dict.fromkeys(texts, 'x') | dict.fromkeys('nll best_top1 images image_bytes epochs'.split(), 1)
    row |= dict(method='random', ipc=1, seconds=dict(train=1), labels='hard', label_bytes=0)
    return pd.DataFrame([row | dict(seed=s, top1=50.+s) for s in range(2)])


def run_with_checkpoint(s, path):
    train.train(make_model('convnet2-w32', 2, SIDE), s, recipes.Recipe(epochs=1), device='cpu', ckpt=path)


WRITERS = {  # name -> what writes a set (or what comes of it) into a folder
    'folder': lambda s, p: files.save_folder(s, p/'x'), 'parquet': lambda s, p: parquet.save_parquet(s, p/'x.parquet'),
    'npz': lambda s, p: files.save_npz(s, p/'x.npz'), 'scores': lambda s, p: recorded(p/'x.npz', 9000),
    'checkpoint': lambda s, p: run_with_checkpoint(s, p/'x.pt'),
    'report': lambda s, p: html_report.write_report(finished_rows(), p/'x.html')}


@pytest.mark.parametrize('what', [w for w in WRITERS if w != 'checkpoint'])
def test_unwritable_place(what, many, closed, tmp_path):
    "Every writer names the place and the way out, and what is there stays."
    raises((closed, 'choose another place'), WRITERS[what], many, closed, kind=OSError)
    assert listing(tmp_path) == {('file', 12)}


@pytest.mark.parametrize('what', ['folder', 'parquet', 'npz', 'report'])
def test_unwritable_place_is_found_before_the_work(what, many, closed, monkeypatch):
    "Nothing is encoded or drawn for a place that cannot be written."
    for room, f in ((files, 'encode_image'), (html_report, 'figure_html'), (np, 'savez_compressed')):
        monkeypatch.setattr(room, f, fail('work before the refusal'))
    raises(['choose another place'], WRITERS[what], many, closed, kind=OSError)


@contextlib.contextmanager
def largest_file(n):
    "The kernel refuses to let a file grow beyond `n` bytes."
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n, hard))
    try: yield
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def tmpfs(place):
    "A real file system of 8 kB; unmounted lazily, as a traceback may hold a file open."
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=8k', 'tmpfs', place]
    if not shutil.which('mount') or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip('mounting is not allowed here')
    try: yield
    finally: subprocess.run(['umount', '-l', place], check=True)


@pytest.fixture(params=['size limit', 'tmpfs'])
def tight(request, tmp_path, many):
    """An empty folder, and a context in which writing there soon fails: for files above 2500 bytes, or for 8 kB in all.
    The limit holds inside `with` only: pytest's own output may go to a file that is longer."""
    make_folder(tmp_path/'full', 10, 40)
    (place := tmp_path/'tight').mkdir()
    if request.param == 'size limit': yield place, lambda: largest_file(2500)
    else:
        with tmpfs(place): yield place, contextlib.nullcontext


@pytest.mark.parametrize('what', WRITERS)
def test_full_disk(what, tight, many, tally):
    "The file, the way out; neither a part nor a temporary file is left."
    place, full_disk = tight
    with tally.one(f'full disk while writing: {what}'):
        with full_disk():
            raises((place/'x', 'free some space or choose another place'), WRITERS[what], many, place, kind=OSError)
        assert not list(place.iterdir())


def test_full_disk_from_the_shell(tight, tmp_path, refused):
    "`pca-nb compress`, one line."
    place, full_disk = tight
    more = '--method', 'random', '--ipc', 10, '--out', place/'x'
    with full_disk(): refused('compress', tmp_path/'full', *more, says=(place/'x', 'free some space'))
    assert not list(place.iterdir())


@pytest.mark.parametrize('room,name,good', [(Path, 'write_bytes', 2), (Path, 'write_text', 0), (os, 'replace', 0)])
def test_folder_is_complete_or_absent(room, name, good, many, tmp_path, monkeypatch):
    "The disk fills at the third image, at the manifest, at the last step: no folder, no temporary one."
    real, calls = getattr(room, name), []
    def full(*a, **k):
        calls.append(a)
        if len(calls) > good: raise OSError(28, 'No space left on device')
        return real(*a, **k)
    monkeypatch.setattr(room, name, full)
    says = tmp_path/'x', 'No space left on device', 'free some space'
    raises(says, files.save_folder, many, tmp_path/'x', kind=OSError)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('what', ['parquet', 'npz', 'scores'])
def test_file_is_complete_or_as_before(what, many, tmp_path):
    "The disk fills in the middle of a file: an older file of that name stays as it was."
    old = WRITERS[what](many, tmp_path)
    before = old.read_bytes()
    with largest_file(2500): raises((old, 'free some space'), WRITERS[what], many, tmp_path, kind=OSError)
    assert list(tmp_path.iterdir()) == [old] and old.read_bytes() == before


def test_choice_is_part_of_the_output(tmp_path, refused):
    "The disk fills at chosen.csv, after the images: the folder is not left without it."
    src = make_folder(tmp_path/'long', 0)
    for i in range(32): (src/'ab'[i//16]/f'{i:0>240}.png').write_bytes(encoded(seed=i))
    with largest_file(7000):
        refused('compress', src, '--method', 'tiles', '--factor', 4, says=(tmp_path/'out', 'free some space'))


def test_score_file_without_a_suffix(tmp_path):
    "It is written and can be read, and no temporary file stays."
    file = recorded(tmp_path/'scores')
    assert list(tmp_path.iterdir()) == [file] and len(scores.read_dynamics(file)) == 12


# ---- rows ----
def test_row_is_whole_or_reported(tight, tally):
    "A row that did not fit is an error, not silence; what was accepted can be read again."
    place, full_disk = tight
    rows, taken = result_store.ResultStore(place/'r.jsonl'), []
    def fill():
        for i in range(40):
            rows.add(dict(key=str(i), note='x'*700))
            taken.append(str(i))
    with tally.one('full disk while writing: rows'):
        with full_disk(): raises((rows.path, 'free some space'), fill, kind=OSError)
        # what did not fit was taken back
        assert [r['key'] for r in rows.all()] == taken and rows.path.read_bytes().endswith(b'\n')


def test_row_after_a_torn_one(tmp_path):
    "Half a row at the end, as a full disk leaves it: the next row starts a line of its own."
    rows = result_store.ResultStore(tmp_path/'r.jsonl')
    rows.add(dict(key='a'))
    rows.path.write_text(rows.path.read_text()+'{"key": "b", "no')
    rows.add(dict(key='c'))
    assert [r['key'] for r in rows.all()] == ['a', 'c']


NO_ROWS = dict(empty=b'', text=b'hello\n', foreign=b'{"a": 1}\n', number=b'3\n', binary=b'\xff\xfe\n')


@pytest.mark.parametrize('kind', NO_ROWS)
def test_file_that_holds_no_rows(kind, tmp_path, refused):
    "`pca-nb report` of something else: the file and the way out."
    (file := tmp_path/'r.jsonl').write_bytes(NO_ROWS[kind])
    refused('report', file, '--out', tmp_path/'out', says=(file, 'no rows', 'pca-nb benchmark'))


def test_report_of_absent_rows(tmp_path, refused):
    "The path and the way out."
    refused('report', tmp_path/'r.jsonl', says=(tmp_path/'r.jsonl', 'pca-nb benchmark'))


def test_report_of_a_folder(tmp_path, refused):
    "A folder where a file is meant is named."
    refused('report', tmp_path, '--out', tmp_path/'out', says=[tmp_path])


def test_rows_into_a_folder(full, held, tmp_path, refused):
    "The same for `bench --rows`."
    (tmp_path/'rows').mkdir()
    refused('bench', full, '--rows', tmp_path/'rows', says=[tmp_path/'rows'])


# ---- the same from a real shell ----
SHELL = {  # name -> what is spoiled, options, words
    'truncated image': lambda f, root: (f.write_bytes(half(f.read_bytes())), [], [f, 'repair or remove']),
    'untrusted pickle': lambda f, root: (p := dump(root/'s.pt', Evil(root/'ran')), ['--scores', p], [p, 'not opened']),
    'unwritable output': lambda f, root: (f, ['--out', f/'x'], [f, 'choose another place'])}


@pytest.mark.parametrize('what', SHELL)
def test_in_a_shell(what, full, tmp_path, clean_env):
    "Exit code 2, nothing but one line on stderr, no traceback, nothing written."
    _, more, says = SHELL[what](full/'b'/'3.png', tmp_path)
    before = listing(tmp_path)
    words = [Path(sys.executable).with_name('pca-nb'), *words_of('compress', full, tmp_path), *more]
    r = subprocess.run([*map(str, words)], cwd=tmp_path, env=clean_env, capture_output=True, text=True)
    assert r.returncode == 2 and re.fullmatch(r'pca-nb: [^\n]+\n', r.stderr) and 'Traceback' not in r.stdout, r.stderr
    assert not [w for w in map(str, says) if w not in r.stderr], r.stderr
    assert listing(tmp_path) == before and not (tmp_path/'out').exists()
