"""Archives: class folders in a .zip or .tar and WebDataset shards, read rightly or refused by name.

Every test packs its own archive. The last part is what an untrusted file must never do, whatever its format."""
import io
import json
import os
import pickle
import random
import stat
import struct
import tarfile
import threading
import tracemalloc
import warnings
import zipfile
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from pca_nb import archives
from pca_nb.archives import is_zip, list_tar, list_zip, tar_members, TarMember, zip_members, ZipMember
from pca_nb.class_folders import list_class_folder
from pca_nb.core import Refused
from pca_nb.files import encode_images, read_folder, save_folder, save_npz
from pca_nb.imageset import ImageSet
from pca_nb.layouts import list_images, read_images
from pca_nb.listing import find_damaged, median_side, read_listing, ReadingNote, ReadOptions
from pca_nb.decode import LazyImages
from pca_nb.parquet import read_parquet, save_parquet
from pca_nb.shards import is_webdataset
from pca_nb.webdataset import list_webdataset, save_webdataset

pytestmark = pytest.mark.filterwarnings('ignore::pca_nb.listing.ReadingNote')


# ---- helpers ----
def picture(seed, fmt='PNG', mode='RGB', size=(20, 16)):
    "An image of random colours, as a file's bytes."
    im = Image.frombytes('RGB', size, random.Random(seed).randbytes(size[0]*size[1]*3)).convert(mode)
    im.save(buf := io.BytesIO(), fmt)
    return buf.getvalue()


def write_zip(path, files, method=zipfile.ZIP_DEFLATED):
    with warnings.catch_warnings(), zipfile.ZipFile(path, 'w', method) as z:
        warnings.simplefilter('ignore')  # duplicate names are meant
        for name, data in files.items() if isinstance(files, dict) else files: z.writestr(name, data)
    return path


def write_tar(path, files, fmt=tarfile.PAX_FORMAT):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, 'w', format=fmt) as t:
        for name, data in files.items() if isinstance(files, dict) else files:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(data)
            t.addfile(info, io.BytesIO(data))
    return path


def refuse(words, f, *args, **kw):
    "`f` refuses with all the words in one line, and says a way out."
    with pytest.raises(Refused) as e: f(*args, **kw)
    text = str(e.value)
    assert not (lacks := [w for w in map(str, words) if w not in text]), f'{lacks} not in: {text}'
    assert '\n' not in text and '\x1b' not in text and e.value.fix, text
    return text


CLASSES = {'cat/1.png': picture(1), 'cat/2.jpg': picture(2, 'JPEG'), 'dog/3.webp': picture(3, 'WEBP'),
           'dog/sub/4.png': picture(4)}
PACK = dict(zip=(write_zip, list_zip), tar=(write_tar, list_tar))


def pack(kind, tmp_path, files, name='pets'):
    write, read = PACK[kind]
    path = write(tmp_path/f'{name}.{kind}', files)
    return lambda **options: read(path, ReadOptions(**options))


# ---- class folders in an archive ----
@pytest.mark.parametrize('kind', PACK)
@pytest.mark.parametrize('wrap', ['', 'pets/', 'holiday 2019/', 'images/', 'data/'])
def test_class_folders_in_an_archive(kind, wrap, tmp_path):
    "As torchvision's order would have them, from within any one folder; pixels as from a folder on disk."
    files = {wrap+name: data for name, data in CLASSES.items()}
    listing = pack(kind, tmp_path, files)()
    for name, data in CLASSES.items():
        (tmp_path/'f'/name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/'f'/name).write_bytes(data)
    plain = list_class_folder(tmp_path/'f')
    assert (listing.names, listing.classes) == (plain.names, plain.classes) == (tuple(CLASSES), ('cat', 'dog'))
    assert listing.labels.tolist() == plain.labels.tolist() == [0, 0, 1, 1]
    s = read_listing(listing)
    assert torch.equal(s.images, read_listing(plain).images) and s.name == 'pets'
    guessed = [n for n in listing.notes if 'one folder' in n]
    assert len(guessed) == (wrap == 'holiday 2019/')  # only what is a guess is said


@pytest.mark.parametrize('kind', PACK)
def test_splits_in_an_archive(kind, tmp_path):
    "Test images stay out of the training set; `test` takes `validation`; an only split is a split, not a wrapper."
    files = {f'pets/{split}/{name}': data for split in ('train', 'val') for name, data in CLASSES.items()}
    read = pack(kind, tmp_path, files)
    assert (read().split, read().splits, len(read())) == ('train', ('train', 'validation'), 4)
    for wanted, folder in (('train', '/train/'), ('test', '/val/')):
        assert all(folder in str(s) for s in read(split=wanted).sources)
    refuse(['holdout', 'train, validation'], read, split='holdout')
    only = pack(kind, tmp_path, {f'val/{name}': data for name, data in CLASSES.items()}, 'only')
    refuse(["no split 'train'", 'validation'], only)
    mixed = pack(kind, tmp_path, files | {'pets/extra/a/1.png': picture(1)}, 'mixed')
    refuse(['but also extra'], mixed)


LEFT = ['__MACOSX/pets/cat/._1.png', 'pets/.DS_Store', 'pets/cat/._1.png', 'pets/cat/.ipynb_checkpoints/1.png',
        'pets/Thumbs.db', 'pets/dog/desktop.ini']


@pytest.mark.parametrize('kind', PACK)
def test_what_a_mac_leaves_behind_in_an_archive(kind, tmp_path):
    "Case 5: skipped and counted in one line; texts in another."
    files = {f'pets/{name}': data for name, data in CLASSES.items()}
    files |= {name: b'x' for name in LEFT} | {'pets/notes.txt': b'x', 'pets/cat/a.xml': b'x', 'pets/dog/b.xml': b'x'}
    listing = pack(kind, tmp_path, files)()
    assert listing.names == tuple(CLASSES)
    said = ' | '.join(listing.notes)
    assert '6 files skipped that a system or tool left behind' in said and '(1 .txt, 2 .xml)' in said


@pytest.mark.parametrize('kind', PACK)
def test_every_format_that_pillow_reads_in_an_archive(kind, tmp_path):
    "Case 2: nothing vanishes; what cannot be decoded is named."
    formats = dict(avif='AVIF', jfif='JPEG', jpe='JPEG', gif='GIF', bmp='BMP', tif='TIFF', ppm='PPM', webp='WEBP')
    files = {f'{"cat" if i%2 else "dog"}/{i}.{suffix}': picture(i, fmt)
             for i, (suffix, fmt) in enumerate(formats.items())}
    assert len(read_listing(pack(kind, tmp_path, files)())) == len(formats)
    foreign = pack(kind, tmp_path, files | {'cat/9.heic': b'x', 'dog/8.jxl': b'x'}, 'foreign')
    refuse(['2 images', 'cat/9.heic'], foreign)


MODES = {'grey': 'L', 'palette': 'P', 'ink': 'CMYK', 'alpha': 'RGBA', 'bits': '1'}


@pytest.mark.parametrize('kind', PACK)
def test_modes_in_an_archive(kind, tmp_path):
    "Grey, palette and CMYK images are what they are on disk."
    files = {f'{"cat" if i%2 else "dog"}/{name}.tif': picture(i, 'TIFF', mode)
             for i, (name, mode) in enumerate(MODES.items())}
    for name, data in files.items():
        (tmp_path/'f'/name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/'f'/name).write_bytes(data)
    assert torch.equal(read_listing(pack(kind, tmp_path, files)()).images, read_folder(tmp_path/'f').images)


@pytest.mark.parametrize('kind', PACK)
def test_no_classes_in_an_archive(kind, tmp_path):
    "No class, one class, an empty class: the archive and the way out."
    name = f'pets.{kind}'
    refuse([name, 'no class folders'], pack(kind, tmp_path, {'1.png': picture(1), '2.png': picture(2)}))
    refuse([name, 'no class folders'], pack(kind, tmp_path, {'readme.txt': b'x'}))
    refuse([name, 'no class folders'], pack(kind, tmp_path, {}))
    refuse([name, 'only one class, pets/cat'], pack(kind, tmp_path, {'pets/cat/1.png': picture(1)}))
    refuse([name, "class 'fox'"], pack(kind, tmp_path, {**CLASSES, 'fox/a.txt': b'x'}))


def test_an_empty_folder_in_a_zip_is_a_missing_class(tmp_path):
    refuse(["class 'fox'"], pack('zip', tmp_path, {'pets/fox/': b'', **{f'pets/{k}': v for k, v in CLASSES.items()}}))


STRANGE = ['größe', '日本', '<b>dog</b>'.replace('/', '⁄'), '<img src=x onerror=alert(1)>', "o'x & \"y\"", 'ان']


@pytest.mark.parametrize('kind', PACK)
def test_unicode_and_html_in_class_names_of_an_archive(kind, tmp_path):
    files = {f'{name}/{i}.png': picture(i) for i, name in enumerate(STRANGE)}
    assert read_listing(pack(kind, tmp_path, files)()).classes == tuple(sorted(STRANGE))


def test_utf8_names_of_a_mac_zip(tmp_path):
    "Its names are UTF-8 without the flag that says so; `zipfile` alone reads DOS letters."
    data = bytearray(write_zip(tmp_path/'a.zip', {'größe/1.png': picture(1), 'klein/2.png': picture(2)}).read_bytes())
    for mark, at in ((b'PK\3\4', 6), (b'PK\1\2', 8)):
        start = -1
        while (start := data.find(mark, start+1)) >= 0: data[start+at+1] &= ~8
    (tmp_path/'b.zip').write_bytes(data)
    assert 'größe/1.png' not in zipfile.ZipFile(tmp_path/'b.zip').namelist()
    assert list_zip(tmp_path/'b.zip').classes == ('größe', 'klein')


def test_backslashes_of_a_windows_zip(tmp_path):
    assert list_zip(write_zip(tmp_path/'a.zip', {'cat\\1.png': picture(1), 'dog\\2.png': picture(2)})).classes == (
        'cat', 'dog')


@pytest.mark.parametrize('method', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_members_of_a_zip_against_zipfile(method, tmp_path):
    "Comments, something before the archive, an empty member; from many threads, without opening the table again."
    path = write_zip(tmp_path/'a.zip', CLASSES | {'empty': b'', 'zeros': bytes(10**5)}, method)
    with zipfile.ZipFile(path, 'a') as z: z.comment = b'my pets'
    path.write_bytes(b'#!/bin/sh\n'*99+path.read_bytes())
    members, folders = zip_members(path)
    opened = zipfile.ZipFile.__init__
    with zipfile.ZipFile(path) as z: want = {n: z.read(n) for n in z.namelist()}
    try:
        zipfile.ZipFile.__init__ = None
        found = [{} for _ in range(8)]
        jobs = [threading.Thread(target=lambda d: d.update({n: m.read() for n, m in members.items()}), args=[d])
                for d in found]
        for j in jobs: j.start()
        for j in jobs: j.join()
    finally: zipfile.ZipFile.__init__ = opened
    assert found == [want]*8 and not folders
    m = members['zeros']
    assert pickle.loads(pickle.dumps(m)) == m and str(m) == f'{path}, zeros'


def test_members_of_a_large_zip64(tmp_path):
    "More than 65,535 members need the longer table; memory is that of names and places."
    with zipfile.ZipFile(tmp_path/'a.zip', 'w') as z:
        for i in range(66_000): z.writestr(zipfile.ZipInfo(f'{"cat" if i%2 else "dog"}/{i}.png'), b'x')
    listing = list_zip(tmp_path/'a.zip')
    assert len(listing) == 66_000 and listing.sources[-1].read() == b'x'


@pytest.mark.parametrize('fmt', [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_of_a_tar_against_tarfile(fmt, tmp_path):
    "Names up to 99, 100, 101 and 255 letters, unicode, folders, sizes around whole blocks."
    names = ['a'*n for n in (99, 100)] + ['b'*150+'/'+'c'*99]
    if fmt != tarfile.USTAR_FORMAT: names += ['d'*n for n in (101, 255, 300)] + ['größe/'+'日'*60]
    files = {name: bytes(100*i) for i, name in enumerate(names)} | {str(n): b'x'*n for n in (0, 1, 511, 512, 513, 1024)}
    path = write_tar(tmp_path/'a.tar', files, fmt)
    with tarfile.open(path, 'a', format=fmt) as t:
        (folder := tarfile.TarInfo('folder')).type = tarfile.DIRTYPE
        t.addfile(folder)
    with open(path, 'rb') as f: ours = [(m.name, m.offset, m.size) for m in tar_members(f)]
    with tarfile.open(path) as t: theirs = [(m.name, m.offset_data, m.size) for m in t if m.isfile()]
    assert ours == theirs and [name for name, *_ in ours] == [*files]
    with open(path, 'rb') as f: assert [m.read() for m in tar_members(f)] == [*files.values()]


def test_a_size_above_8_gib_in_either_dialect():
    "Octal has eleven digits; base 256 (GNU) and a pax record go on."
    assert archives._tar_number(b'77777777777\0') == 8*2**30-1
    assert archives._tar_number(b'\x80'+(9*2**30).to_bytes(11, 'big')) == 9*2**30
    assert archives._tar_words('x', b'19 size=9663676416\n') == dict(size=9*2**30)
    for bad in (b'7_7', b'-1', b'8', b'+7', '１'.encode()):
        with pytest.raises(ValueError): archives._tar_number(bad)


# ---- archives that lie ----
def zip_with(tmp_path, change, files=CLASSES, which=0):
    "A good zip whose table was changed by somebody with bad intentions."
    path = write_zip(tmp_path/'pets.zip', files)
    with zipfile.ZipFile(path, 'a') as z:
        change(z.infolist()[which])
        z._didModify = True
    return path


def setting(**fields):
    def change(info):
        for k, v in fields.items(): setattr(info, k, v)
    return change


LIES = {'link': (setting(external_attr=(stat.S_IFLNK | 0o777) << 16), 'is a link'),
        'device': (setting(external_attr=(stat.S_IFCHR | 0o777) << 16), 'is a link or a device'),
        'encrypted': (setting(flag_bits=1), 'is encrypted'),
        'bzip2': (setting(compress_type=zipfile.ZIP_BZIP2), 'method 12'),
        'lzma': (setting(compress_type=zipfile.ZIP_LZMA), 'method 14'),
        'too large': (setting(file_size=2**28+1), 'declares 268,435,457 bytes'),
        'ratio': (setting(file_size=2**27), '200 times as much'),
        'beyond the end': (setting(compress_size=10**6), 'beyond the archive'),
        'elsewhere': (setting(header_offset=10**6), 'beyond the archive'),
        'overlap': (setting(compress_size=2000), 'ends within another member')}


@pytest.mark.parametrize('kind', LIES)
def test_lies_in_the_table_of_a_zip(kind, tmp_path, monkeypatch):
    "Refused by name, before a single member is unpacked."
    monkeypatch.setattr(zlib, 'decompressobj', None)
    change, says = LIES[kind]
    text = refuse(['pets.zip', says], list_zip, zip_with(tmp_path, change))
    assert 'cat/1.png' in text


LEADS_OUT = ['../cat/1.png', '/cat/1.png', 'cat/../../1.png', 'C:/cat/1.png', '..\\1.png', '\\\\host\\1.png', '..']


@pytest.mark.parametrize('kind', PACK)
@pytest.mark.parametrize('name', LEADS_OUT)
def test_members_outside_their_folder(kind, name, tmp_path):
    "Wherever they lie in the archive, and whatever they are."
    refuse([f'pets.{kind}', 'leads out of it'], pack(kind, tmp_path, CLASSES | {name: picture(9)}))
    refuse([f'pets.{kind}', 'leads out of it'], pack(kind, tmp_path, {name+'.txt': b'x', **CLASSES}
                                                   if name != '..' else {'../x.txt': b'x', **CLASSES}))


@pytest.mark.parametrize('kind', PACK)
def test_a_member_twice(kind, tmp_path):
    files = [*CLASSES.items(), ('cat/1.png', b'x')]
    refuse([f'pets.{kind}', "'cat/1.png' is there twice"], pack(kind, tmp_path, files))


def test_control_characters_in_names_of_members(tmp_path):
    "Case 12, where archives name a member."
    for kind in PACK:
        refuse(['\\x1b[31m'], pack(kind, tmp_path, {**CLASSES, '../a\x1b[31mred\nnl.png': b'x'}))


def raw_zip(path, name, packed, size, crc, members=1):
    "A zip written by hand: members may share the same bytes."
    local = struct.pack('<4s5H3I2H', b'PK\3\4', 20, 0, 8, 0, 0, crc, len(packed), size, len(name), 0)+name+packed
    record = struct.pack('<4s6H3I5H2I', b'PK\1\2', 20, 20, 0, 8, 0, 0, crc, len(packed), size, len(name)+3,
                         0, 0, 0, 0, 0, 0)
    table = b''.join(record+b'%d/%d' % (i % 2, i)+name for i in range(members))
    end = struct.pack('<4s4H2IH', b'PK\5\6', 0, 0, members, members, len(table), len(local), 0)
    path.write_bytes(local+table+end)
    return path


def test_zip_bombs(tmp_path):
    "One that declares much is refused unread, one that declares little is stopped there; overlapping ones are refused."
    zeros = bytes(50*10**6)
    packed = zlib.compress(zeros, 9, -15)
    honest = write_zip(tmp_path/'a.zip', {'cat/1.png': zeros, 'dog/2.png': picture(2)})
    refuse(['a.zip', 'cat/1.png', '50,000,000', '200 times'], list_zip, honest)
    modest = raw_zip(tmp_path/'b.zip', b'1.png', packed, 1000, 0)
    member = ZipMember(str(modest), '1.png', 0, 1000, len(packed), True, 0)
    tracemalloc.start()
    with pytest.raises(Refused, match='more than the 1,000 bytes that it declares'): member.read()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10**6+len(packed), peak
    bomb = raw_zip(tmp_path/'c.zip', b'1.png', zlib.compress(bytes(10**6), 9, -15), 10**6, zlib.crc32(bytes(10**6)), 9)
    refuse(['c.zip', 'ends within another member'], list_zip, bomb)


@pytest.mark.parametrize('change,says', [(dict(file_size=50), 'more than the 50 bytes'),
                                         (dict(file_size=5000), '5,000 are declared'), (dict(CRC=1), 'checksum')])
def test_a_zip_that_lies_about_an_image(change, says, tmp_path):
    "Found when the image is read, and named as a damaged file is; `skip_damaged` goes on."
    path = zip_with(tmp_path, setting(**change))
    listing = list_zip(path)
    for resident in (True, False):
        text = refuse(['1 of 4 images', f'{path}, cat/1.png', says, 'skip_damaged'], read_listing, listing,
                      ReadOptions(resident=resident))
    assert text.count('cat/1.png') == 1
    assert len(read_listing(listing, ReadOptions(skip_damaged=True))) == 3
    assert [*find_damaged(LazyImages(listing.sources, 8))] == [0] and median_side(listing.sources) == 16


def test_damaged_headers_in_a_zip(tmp_path):
    "The header before the bytes, the packed bytes, and an archive that shrank since it was listed."
    path = write_zip(tmp_path/'pets.zip', CLASSES)
    good = path.read_bytes()
    listing = list_zip(path)
    for change, says in ((b'XX'+good[2:], 'its header is damaged'), (b'', 'its header is damaged'),
                         (good[:39]+b'\xff'*9+good[48:], 'cannot be unpacked')):
        path.write_bytes(change)
        with pytest.raises(Refused, match=says): listing.sources[0].read()
    path.unlink()
    refuse(['4 of 4 images', 'No such file'], read_listing, listing)


def test_encrypted_zip_of_another_tool(tmp_path):
    "What `zip -e` sets: bit 0 of every member."
    path = write_zip(tmp_path/'pets.zip', CLASSES)
    with zipfile.ZipFile(path, 'a') as z:
        for info in z.infolist(): info.flag_bits |= 1
        z._didModify = True
    refuse(['is encrypted', 'password'], list_zip, path)


@pytest.mark.parametrize('kind', PACK)
def test_cut_archives_are_refused_at_every_length(kind, tmp_path):
    "However much is missing; a tar may lose the filling after its end mark and nothing else."
    path = PACK[kind][0](tmp_path/f'pets.{kind}', CLASSES)
    good = path.read_bytes()
    whole = len(good)
    if kind == 'tar': whole = len(good.rstrip(b'\0'))//512*512+1024
    for n in {*range(0, whole, 97), *range(0, whole, 512), whole-512, whole-1}-{whole}:
        path.write_bytes(good[:n])
        refuse([path.name], PACK[kind][1], path)


def tar_info(name='dog/9.png', **fields):
    info = tarfile.TarInfo(name)
    for k, v in fields.items(): setattr(info, k, v)
    return info


TAR_KINDS = {'symbolic link': (tarfile.SYMTYPE, 'is a link'), 'hard link': (tarfile.LNKTYPE, 'is a link'),
             'device': (tarfile.CHRTYPE, 'is a device'), 'block device': (tarfile.BLKTYPE, 'is a device'),
             'pipe': (tarfile.FIFOTYPE, 'is a pipe'), 'sparse': (tarfile.GNUTYPE_SPARSE, 'is sparse'),
             'unknown': (b'Z', "of kind 'Z'")}


@pytest.mark.parametrize('kind', TAR_KINDS)
@pytest.mark.parametrize('reader', [list_tar, list_webdataset])
def test_links_and_devices_in_a_tar(kind, reader, tmp_path):
    code, says = TAR_KINDS[kind]
    path = write_tar(tmp_path/'a.tar', [*CLASSES.items(), (tar_info(type=code, linkname='/etc/passwd'), b'')])
    refuse(['a.tar', "'dog/9.png'", says], reader, path)


def test_sparse_members_of_pax(tmp_path):
    info = tar_info(pax_headers={'GNU.sparse.major': '1', 'GNU.sparse.realsize': str(2**40)})
    refuse(['a.tar', 'sparse'], list_tar, write_tar(tmp_path/'a.tar', [*CLASSES.items(), (info, b'')]))


def sized(data, at, size):
    "The archive with another size in the header at byte `at`, its checksum right."
    header = bytearray(data[at:at+512])
    header[124:136] = size
    header[148:156] = b' '*8
    header[148:156] = b'%06o\0 ' % sum(header)
    return data[:at]+bytes(header)+data[at+512:]


SIZES = [(b'77777777777\0', 'declares 8,589,934,591 bytes'), (b'00000000001\0', 'no header'),
         (b'\x80'+b'\xff'*11, 'declares'), (b'\xff'*12, 'number is damaged'),
         (b'-0000000001\0', 'number is damaged'), (b'00000000000\0', 'no header')]


@pytest.mark.parametrize('size,says', SIZES)
def test_a_tar_whose_sizes_lie(size, says, tmp_path):
    "Too large, too small, negative, absurd: the archive and the byte or member."
    path = write_tar(tmp_path/'a.tar', CLASSES)
    path.write_bytes(sized(path.read_bytes(), 0, size))
    refuse(['a.tar', says], list_tar, path)


def test_a_member_above_the_limit(tmp_path, monkeypatch):
    "An image that declares more than is allowed; a film beside it may be as large as it likes."
    monkeypatch.setattr(archives, 'MAX_MEMBER_BYTES', 5000)
    for kind in PACK:
        read = pack(kind, tmp_path, {**CLASSES, 'cat/film.mp4': bytes(9000)})
        assert len(read()) == 4
        large = pack(kind, tmp_path, {**CLASSES, 'cat/9.png': bytes(9000)})
        refuse(['cat/9.png', 'declares 9,000 bytes', '5,000'], large)
    refuse(["'0.png'", '9,000'], list_webdataset, write_tar(tmp_path/'w.tar', {'0.png': bytes(9000), '0.cls': b'0'}))


def test_a_tar_with_a_damaged_header_is_not_half_a_set(tmp_path):
    "`tarfile` stops at it without a word; joined archives likewise."
    path = write_tar(tmp_path/'a.tar', CLASSES)
    good = path.read_bytes()
    second = good.index(b'cat/2.jpg')
    path.write_bytes(good[:second]+b'X'+good[second+1:])
    with tarfile.open(path) as t: assert t.getnames() == ['cat/1.png']
    refuse(['a.tar', f'at byte {second:,}', 'checksum'], list_tar, path)
    path.write_bytes(good+good)
    refuse(['a.tar', 'after its end mark'], list_tar, path)
    path.write_bytes(good+bytes(10**6))  # a tape's filling is none
    assert len(list_tar(path)) == 4


def test_words_about_members_are_limited(tmp_path):
    "A pax header or a long name of more than a mebibyte, and damaged ones."
    refuse(['a.tar', 'bytes of words'], list_tar, write_tar(tmp_path/'a.tar', [*CLASSES.items(), ('x'*2**21, b'')]))
    for bad in (b'5 a=b', b'99 a=b\n', b'x a=b\n', b'-9 a=b\n', b'0 a=b\n', b'6  ab\n', b'99999999999 a=b\n',
                b'13 size=nine\n', b'11 size=-1\n'):
        path = write_tar(tmp_path/'b.tar', [(tar_info('p', type=b'x'), bad), *CLASSES.items()])
        refuse(['b.tar'], list_tar, path)


# ---- WebDataset ----
def samples(n=6, classes=3, first=0, fmt='PNG', suffix='png', **extra):
    "{member: bytes} of images and class numbers."
    files = {}
    for i in range(first, first+n):
        files[f'{i:05d}.{suffix}'] = picture(i, fmt)
        files[f'{i:05d}.cls'] = str(i % classes).encode()
        for field, make in extra.items(): files[f'{i:05d}.{field}'] = make(i)
    return files


def test_one_tar_with_pairs(tmp_path):
    "jpg and cls, in any order within a sample; classes are called by their numbers."
    files = samples(suffix='jpg', fmt='JPEG')
    listing = list_webdataset(write_tar(tmp_path/'birds.tar', files))
    assert listing.labels.tolist() == [0, 1, 2]*2 and listing.classes == ('0', '1', '2')
    assert [s.read() for s in listing.sources] == [v for k, v in files.items() if k.endswith('jpg')]
    assert (listing.names[0], listing.layout, listing.notes) == ('00000.jpg', 'WebDataset', ())
    assert read_listing(listing).name == 'birds'
    turned = write_tar(tmp_path/'b.tar', dict(sorted(files.items())))
    assert list_webdataset(turned).labels.tolist() == [0, 1, 2]*2


def test_shards_in_the_order_of_their_numbers(tmp_path):
    "10 comes after 9, and images keep the order of their shards."
    for i in range(12): write_tar(tmp_path/'w'/f'{i}.tar', samples(2, 2, 2*i))
    listing = list_webdataset(tmp_path/'w')
    assert [n for n in listing.names] == [f'{i//2}/{i:05d}.png' for i in range(24)]
    assert [s.read() for s in listing.sources[-4:]] == [picture(i) for i in range(20, 24)]


HUB = ['pets-{}-000000.tar', '{}/000000.tar', 'data/{}-00000-of-00001.tar', '{}_0.tar']


@pytest.mark.parametrize('pattern', HUB)
def test_splits_of_shards(pattern, tmp_path):
    "By the words in the names of files or folders: train by default, test by itself."
    for split, n in (('train', 6), ('validation', 3)): write_tar(tmp_path/'w'/pattern.format(split), samples(n))
    assert is_webdataset(tmp_path/'w')
    train, test = (list_webdataset(tmp_path/'w', ReadOptions(split=s)) for s in ('train', 'test'))
    assert (len(train), len(test), test.split, train.splits) == (6, 3, 'validation', ('train', 'validation'))
    refuse(["no split 'holdout'"], list_webdataset, tmp_path/'w', ReadOptions(split='holdout'))
    write_tar(tmp_path/'w'/'extra.tar', samples(3))
    refuse(['train, validation', 'but also extra.tar'], list_webdataset, tmp_path/'w')


def test_half_a_download_is_said(tmp_path):
    "A missing number, and one shard given where others lie beside it."
    for i in (0, 1, 3): write_tar(tmp_path/'w'/f'a-{i:06d}.tar', samples(3))
    assert 'shard 2 is missing' in ' '.join(list_webdataset(tmp_path/'w').notes)
    assert '2 other shards' in ' '.join(list_webdataset(tmp_path/'w'/'a-000000.tar').notes)
    alone = write_tar(tmp_path/'b'/'a-20260101.tar', samples(3))
    assert not list_webdataset(alone).notes and not list_webdataset(tmp_path/'b').notes


@pytest.mark.parametrize('name', ['a.tar.gz', 'a.tgz', 'a.tar.xz', 'a.tar.bz2', 'a.tar.zst'])
def test_packed_shards_are_refused(name, tmp_path):
    "Found by name; and by content, if the name does not say so."
    path = write_tar(tmp_path/'w'/'a.tar', samples())
    import gzip
    (tmp_path/'p').mkdir()
    (tmp_path/'p'/name).write_bytes(gzip.compress(path.read_bytes()))
    for place in (tmp_path/'p', tmp_path/'p'/name):
        assert is_webdataset(place)
        refuse([name, 'packed as a whole', 'unpack it'], list_webdataset, place)
    (tmp_path/'q.tar').write_bytes(gzip.compress(path.read_bytes()))
    refuse(['q.tar', 'at byte 0', 'packed'], list_webdataset, tmp_path/'q.tar')


def test_what_is_a_webdataset(tmp_path):
    "A folder of class folders with a stray .tar is none; hidden folders do not count."
    write_tar(tmp_path/'w'/'a.tar', samples())
    (tmp_path/'w'/'.cache').mkdir()
    assert is_webdataset(tmp_path/'w') and is_webdataset(tmp_path/'w'/'a.tar')
    (tmp_path/'w'/'cat').mkdir()
    (tmp_path/'w'/'cat'/'1.png').write_bytes(picture(1))
    assert not is_webdataset(tmp_path/'w') and not is_webdataset(tmp_path/'absent')
    assert is_zip(write_zip(tmp_path/'a.ZIP', CLASSES))
    assert not is_zip(tmp_path/'w'/'a.tar') and not is_zip(tmp_path/'absent.zip') and not is_zip(tmp_path)


LABELS = {'json number': (dict(json=lambda i: b'{"label": %d, "width": 3}' % (i % 3)), {}, '012', 'label'),
          'json name': (dict(json=lambda i: json.dumps({'class': 'cfx'[i % 3]}).encode()), {}, 'cfx', "'class'"),
          'json by name': (dict(json=lambda i: json.dumps(dict(label=0, breed='cfx'[i % 3])).encode()),
                           dict(label_column='breed'), 'cfx', ''),
          'text': (dict(txt=lambda i: 'cfx'[i % 3].encode()+b'\n'), {}, 'cfx', 'txt'),
          'number in a text': (dict(txt=lambda i: b'%d\n' % (i % 3)), {}, '012', 'txt'),
          'other field': (dict(species=lambda i: 'cfx'[i % 3].encode()), dict(label_column='species'), 'cfx', '')}


@pytest.mark.parametrize('kind', LABELS)
def test_labels_that_are_no_cls(kind, tmp_path):
    "Numbers or names, from a record or a text; what was guessed is said."
    extra, options, classes, said = LABELS[kind]
    files = {k: v for k, v in samples(**extra).items() if not k.endswith('cls')}
    listing = list_webdataset(write_tar(tmp_path/'a.tar', files), ReadOptions(**options))
    assert listing.labels.tolist() == [0, 1, 2]*2 and listing.classes == tuple(classes)
    assert [said in n for n in listing.notes] == [True]*bool(said)


def test_names_of_numbered_classes(tmp_path):
    "From a list in the folder; else from texts or records that agree; else numbers."
    names = ['cat', 'dog', 'fox']
    def of(folder, **extra): return list_webdataset(write_tar(tmp_path/folder/'a.tar', samples(**extra)).parent).classes
    assert of('txt', txt=lambda i: names[i % 3].encode()) == ('cat', 'dog', 'fox')
    assert of('json', json=lambda i: json.dumps({'class_name': names[i % 3]}).encode()) == ('cat', 'dog', 'fox')
    assert of('captions', txt=lambda i: f'a picture, {i}'.encode()) == ('0', '1', '2')
    assert of('same', txt=lambda i: b'a pet') == ('0', '1', '2')
    (tmp_path/'txt'/'classnames.txt').write_text('ant\nbee\ncow\nduck\n')
    listing = list_webdataset(tmp_path/'txt')
    assert listing.classes == ('ant', 'bee', 'cow', 'duck')  # no image of a duck
    assert listing.labels.tolist() == [0, 1, 2]*2
    (tmp_path/'txt'/'classnames.txt').write_text('ant\nbee\n')
    refuse(['label 2', '2 names'], list_webdataset, tmp_path/'txt')
    (tmp_path/'txt'/'classnames.txt').write_text('ant\n\nbee\n')
    refuse(['classnames.txt', 'line 2 is empty'], list_webdataset, tmp_path/'txt')
    (tmp_path/'txt'/'classnames.txt').write_bytes(b'\xff\xfe')
    refuse(['classnames.txt'], list_webdataset, tmp_path/'txt')


BAD_CLS = {'negative': (b'-1', 'has the label -1'), 'empty': (b'', "has the label ''"),
           'gap': (b'7', 'labels reach 7, but no image has label 3'), 'a word': (b'cat', 'some labels are numbers'),
           'absurd': (b'9'*18, 'labels reach 999999999999999999'), 'no text': (b'\xff\xfe', 'no UTF-8'),
           'huge': (b'1'*2**21, 'label of 2,097,152 bytes')}


@pytest.mark.parametrize('kind', BAD_CLS)
def test_labels_outside_the_classes(kind, tmp_path):
    "Case 13, −1 and its like: the shard, the key or the value, the way out."
    value, says = BAD_CLS[kind]
    path = write_tar(tmp_path/'a.tar', samples() | {'9.png': picture(9), '9.cls': value})
    refuse(['a.tar', says], list_webdataset, path)


BAD_JSON = [b'{', b'{"label": -1}', b'{"label": true}', b'{"label": 1.5}', b'{"label": null}', b'{"label": [1]}',
            b'[1]', b'['*10**5, b'{"label": '+b'9'*10**4+b'}', b'{"label": ""}', b'{"label": 1e999}', b'{"a": 1}']


@pytest.mark.parametrize('record', BAD_JSON, ids=lambda b: b[:16].decode())
def test_bad_records(record, tmp_path):
    good = {k: v for k, v in samples(json=lambda i: b'{"label": %d}' % (i % 3)).items() if not k.endswith('cls')}
    path = write_tar(tmp_path/'a.tar', good | {'9.png': picture(9), '9.json': record})
    refuse(['a.tar', "'9'"], list_webdataset, path)


TORN = {'no label': ({'9.png': b'x'}, "'9' has no cls"),
        'two images': ({'9.png': b'x', '9.jpg': b'y', '9.cls': b'1'}, 'several images, png, jpg'),
        'torn': ({'00000.txt': b'x'}, "'00000' is there twice, or in two parts"),
        'letters': ({'9.png': b'x', '9.PNG': b'y', '9.cls': b'1'}, 'two png'),
        'foreign': ({'9.heic': b'x', '9.cls': b'0'}, 'heic')}


@pytest.mark.parametrize('kind', TORN)
def test_torn_samples(kind, tmp_path):
    files, says = TORN[kind]
    refuse(['a.tar', says], list_webdataset, write_tar(tmp_path/'a.tar', [*samples().items(), *files.items()]))


def test_one_of_two_images_by_name(tmp_path):
    files = samples(**{'seg.png': lambda i: picture(50+i)})
    path = write_tar(tmp_path/'a.tar', files)
    refuse(['several images, png, seg.png', 'image_column'], list_webdataset, path)
    listing = list_webdataset(path, ReadOptions(image_column='seg.png'))
    assert [s.read() for s in listing.sources] == [picture(50+i) for i in range(6)]
    refuse(['has no jpg', 'png, seg.png'], list_webdataset, path, ReadOptions(image_column='jpg'))
    refuse(['no breed'], list_webdataset, path, ReadOptions(label_column='breed', image_column='png'))


def test_captions_are_no_classes(tmp_path):
    files = {k: v for k, v in samples(txt=lambda i: f'picture {i}'.encode()).items() if not k.endswith('cls')}
    path = write_tar(tmp_path/'a.tar', files)
    refuse(['a.tar', '6 different texts for 6 images', 'label_column'], list_webdataset, path)
    assert len(list_webdataset(path, ReadOptions(label_column='txt')).classes) == 6  # asked for


def test_what_is_skipped_in_a_shard_is_said(tmp_path):
    "A Mac's twins between the files of a sample, samples without an image, films."
    files = {}
    for name, data in samples(mp4=lambda i: b'film').items(): files |= {f'./._{name}': b'Mac', f'./{name}': data}
    listing = list_webdataset(write_tar(tmp_path/'a.tar', {'README.md': b'x', **files, '__MACOSX/a.jpg': b'x'}))
    assert len(listing) == 6
    said = ' | '.join(listing.notes)
    assert '19 files skipped that a system' in said and '1 samples skipped that have no image' in said
    assert '(1 .md, 6 .mp4)' in said


def test_no_images_and_no_shards(tmp_path):
    refuse(['a.tar', 'no images'], list_webdataset, write_tar(tmp_path/'a.tar', {'a.txt': b'x'}))
    refuse(['e.tar', 'no images'], list_webdataset, write_tar(tmp_path/'e.tar', {}))
    (tmp_path/'e').mkdir()
    refuse(['holds no .tar'], list_webdataset, tmp_path/'e')
    flat = write_tar(tmp_path/'f.tar', {'1.png': picture(1), '2.png': picture(2)})
    refuse(['f.tar', "'1' has no label", 'class folders'], list_webdataset, flat)


def test_class_folders_in_a_tar_are_no_webdataset(tmp_path):
    path = write_tar(tmp_path/'pets.tar', {'pets/README.txt': b'x', **{f'pets/{k}': v for k, v in CLASSES.items()}})
    assert list_webdataset(path).names == list_tar(path).names == tuple(CLASSES)
    assert list_webdataset(path).layout == 'tar of class folders'


def test_listing_shards_decodes_nothing_and_holds_no_bytes(tmp_path, monkeypatch):
    "The memory of a listing does not grow with the images' bytes."
    def fail(*_): raise AssertionError('an image was read')
    monkeypatch.setattr(TarMember, 'read', fail)
    def held(side):
        members = ((f'{i:04d}.{field}', data) for i in range(300)
                   for field, data in (('png', bytes(side)), ('cls', b'%d' % (i % 3))))
        path = write_tar(tmp_path/f'{side}.tar', [*members])
        tracemalloc.start()
        listing = list_webdataset(path)
        now, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(listing) == 300
        return now, peak
    (small, peak_small), (large, peak_large) = held(10), held(20_000)
    assert abs(large-small) < 30_000 and large < 300*1000 and abs(peak_large-peak_small) < 10**5, (small, large)


# ---- the writer ----
@pytest.fixture
def composites():
    x = torch.randint(256, (33, 3, 12, 12), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return ImageSet(x, torch.arange(33)//3, STRANGE+[str(i) for i in range(5)], torch.arange(33*4).view(33, 4)-1, 2,
                    'toy/pca', ((.1, .2, .3), (.4, .5, .6)))


def same(a, b):
    assert torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) and torch.equal(a.index, b.index)
    assert (a.grid, a.classes, a.name, a.stats) == (b.grid, b.classes, b.name, b.stats)


@pytest.mark.parametrize('per_shard', [1, 10, 33, 10_000])
def test_shards_come_back(per_shard, composites, tmp_path):
    "Pixels, labels, class names and provenance, whatever the number of shards."
    path = save_webdataset(composites, tmp_path/'w', per_shard)
    assert len([*path.glob('train-*.tar')]) == -(-33//per_shard) and is_webdataset(path)
    same(read_listing(list_webdataset(path)), composites)


def test_a_written_set_is_the_same_twice_and_from_disk(composites, tmp_path, monkeypatch):
    "Byte for byte; a set held on disk is written a few hundred images at a time."
    a = save_webdataset(composites, tmp_path/'a', 20)
    lazy = read_listing(list_webdataset(a), ReadOptions(resident=False))
    assert isinstance(lazy.images, LazyImages)
    b = save_webdataset(lazy, tmp_path/'b', 20)
    written = [{p.name: p.read_bytes() for p in folder.iterdir()} for folder in (a, b)]
    assert written[0] == written[1] and len(written[0]) == 3


def test_a_class_without_images_keeps_its_number(tmp_path):
    s = ImageSet(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([2, 0]), ('a', 'b', 'c'))
    same(read_listing(list_webdataset(save_webdataset(s, tmp_path/'w'))), s)


@pytest.mark.parametrize('fmt,field', [('jpeg', 'jpg'), ('webp', 'webp')])
def test_shards_of_other_formats(fmt, field, composites, tmp_path):
    path = save_webdataset(composites, tmp_path/'w', fmt=fmt)
    with tarfile.open(path/'train-000000.tar') as t: names = t.getnames()
    assert names[:3] == [f'00000000.{field}', '00000000.cls', '00000000.json']
    assert [s.read() for s in list_webdataset(path).sources] == encode_images(composites, fmt)


def test_a_writer_that_refuses_or_fails_leaves_nothing(composites, tmp_path, monkeypatch):
    (tmp_path/'full').mkdir()
    (tmp_path/'full'/'mine.txt').write_text('x')
    refuse(['is there already'], save_webdataset, composites, tmp_path/'full')
    refuse(['per_shard=0'], save_webdataset, composites, tmp_path/'w', 0)
    refuse(["'a/b'"], save_webdataset, composites, tmp_path/'w', name='a/b')
    refuse(["'a\\nb'"], save_webdataset, replace(composites, classes=('a\nb', *composites.classes[1:])), tmp_path/'w')
    def full(*a, **k): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(tarfile.TarFile, 'addfile', full)
    with pytest.raises(OSError, match='was not written .No space left'): save_webdataset(composites, tmp_path/'w')
    assert [p.name for p in tmp_path.iterdir()] == ['full']


def test_damaged_provenance_is_named(composites, tmp_path):
    path = save_webdataset(composites, tmp_path/'w', 100)/'train-000000.tar'
    with tarfile.open(path) as t: files = {m.name: t.extractfile(m).read() for m in t}
    record = json.loads(files['00000001.json'])
    for change in (dict(index=[1]), dict(index='abcd'), dict(index=[2**70]*4), dict(grid=0), dict(grid=[1]),
                   dict(stats=[[1], [2]]), dict(stats=[[0, 0, 0], [1, 1, float('nan')]]),
                   dict(stats=[[0]*3, [0]*3]), dict(stats=7)):
        files['00000001.json'] = json.dumps(record | dict(pca_nb=record['pca_nb'] | change)).encode()
        refuse([path.name, "'00000001'", 'origin'], list_webdataset, write_tar(path, files))
    files['00000001.json'] = json.dumps(record | dict(pca_nb=record['pca_nb'] | dict(name='other'))).encode()
    assert 'index' not in list_webdataset(write_tar(path, files)).details  # two sets in one folder: no common origin


def test_soft_labels_are_said_to_be_left_out(tmp_path):
    s = ImageSet(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 1]), ('a', 'b'), soft=torch.eye(2))
    with pytest.warns(ReadingNote, match='soft labels are not written'): save_webdataset(s, tmp_path/'w')


def test_the_library_webdataset_reads_our_shards(composites, tmp_path):
    "Pixels, class numbers and records, in order."
    wds = pytest.importorskip('webdataset')
    path = save_webdataset(composites, tmp_path/'w', 10)
    d = wds.WebDataset([str(p) for p in sorted(path.glob('*.tar'))], shardshuffle=False)
    images, labels, records = zip(*d.decode('rgb8').to_tuple('png', 'cls', 'json'))
    assert np.array_equal(np.stack(images), composites.images.permute(0, 2, 3, 1).numpy())
    assert list(labels) == composites.labels.tolist()
    assert [r['pca_nb']['index'] for r in records] == composites.index.tolist()
    assert [r['class'] for r in records] == [composites.classes[y] for y in labels]


def test_we_read_shards_of_the_library_webdataset(tmp_path):
    wds = pytest.importorskip('webdataset')
    images = np.random.default_rng(0).integers(0, 256, (7, 9, 9, 3), dtype=np.uint8)
    with wds.ShardWriter(str(tmp_path/'train-%06d.tar'), maxcount=3, verbose=0) as w:
        for i, im in enumerate(images): w.write({'__key__': f'{i:04d}', 'png': im, 'cls': i % 2, 'json': dict(a=i)})
    s = read_listing(list_webdataset(tmp_path))
    assert np.array_equal(s.images.permute(0, 2, 3, 1).numpy(), images) and s.labels.tolist() == [0, 1]*3+[0]


def test_hugging_faces_reader_of_shards(composites, tmp_path, monkeypatch):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    datasets = pytest.importorskip('datasets')
    path = save_webdataset(composites, tmp_path/'w', 10)
    d = datasets.load_dataset('webdataset', data_files=[str(p) for p in sorted(path.glob('*.tar'))], split='train',
                              cache_dir=str(tmp_path/'cache'))
    assert d['cls'][:] == composites.labels.tolist()
    assert np.array_equal(np.stack([np.asarray(x) for x in d['png']]), composites.images.permute(0, 2, 3, 1).numpy())


# ---- case 13: what held up well ----
class Evil:
    "Runs a command when unpickled."
    def __init__(self, flag): self.flag = flag
    def __reduce__(self): return os.system, (f'touch {self.flag}',)


def evil_npz(path, flag):
    "A set written by `save_npz`, its index an array of objects."
    s = ImageSet(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 1]), ('a', 'b'))
    arrays = dict(np.load(save_npz(s, path)))
    np.savez(path, **arrays | dict(index=np.array([[Evil(flag)], [Evil(flag)]], dtype=object)))


def evil_pickle(path, flag): path.write_bytes(pickle.dumps(dict(images=Evil(flag))))


def evil_torch(path, flag): torch.save((Evil(flag), Evil(flag)), path)


def evil_tar(path, flag):
    "Fields that the library `webdataset` unpickles by itself."
    bait = pickle.dumps(Evil(flag))
    write_tar(path, samples(pyd=lambda i: bait, pkl=lambda i: bait, pickle=lambda i: bait, pth=lambda i: bait))


def evil_zip(path, flag):
    write_zip(path, CLASSES | {'cat/a.pkl': pickle.dumps(Evil(flag)), 'data.pkl': pickle.dumps(Evil(flag))})


BAIT = {'s.pt': evil_pickle, 's.pth': evil_torch, 's.pkl': evil_pickle, 's.pickle': evil_pickle, 's.bin': evil_torch,
        's.npz': evil_npz, 's.npy': evil_pickle, 'p.npz': evil_pickle}
BAIT_ARCHIVES = {'s.tar': (evil_tar, list_webdataset), 's.zip': (evil_zip, list_zip)}


@pytest.mark.parametrize('name', BAIT)
def test_pickles_given_as_images_never_run(name, tmp_path):
    "By every door: refused in words that name the file."
    BAIT[name](tmp_path/name, tmp_path/'ran')
    for door in (list_images, read_images):
        with pytest.raises(ValueError, match=name): door(tmp_path/name)
    assert not (tmp_path/'ran').exists()


@pytest.mark.parametrize('name', BAIT_ARCHIVES)
def test_pickles_in_archives_never_run(name, tmp_path):
    "They are no images, and are counted."
    write, read = BAIT_ARCHIVES[name]
    write(tmp_path/name, tmp_path/'ran')
    listing = read(tmp_path/name)
    assert 'pkl' in ' '.join(listing.notes) and len(read_listing(listing)) == len(listing)
    assert not (tmp_path/'ran').exists()


def test_the_bait_is_live(tmp_path):
    evil_tar(tmp_path/'s.tar', tmp_path/'ran')
    with tarfile.open(tmp_path/'s.tar') as t: pickle.loads(t.extractfile('00000.pyd').read())
    assert (tmp_path/'ran').exists()


OUTSIDE = [dict(files=['../../x.png']*4), dict(files=['/etc/hostname']*4), dict(classes=['../../x', 'dog']),
           dict(classes=['..', 'dog']), dict(classes=['a/b', 'dog']), dict(classes=['', 'dog'])]


@pytest.mark.parametrize('change', OUTSIDE, ids=str)
def test_a_manifest_that_leads_out_of_its_folder(change, tmp_path):
    "A class or file `../../x` is refused on reading, even if such a file is there, and on writing."
    s = ImageSet(torch.zeros(4, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 0, 1, 1]), ('cat', 'dog'))
    root = save_folder(s, tmp_path/'a'/'b')
    (tmp_path/'x.png').write_bytes(picture(1))
    manifest = json.loads((root/'pca_nb.json').read_text())
    (root/'pca_nb.json').write_text(json.dumps(manifest | change))
    for door in (list_images, read_images, read_folder): refuse([root], door, root)
    if 'classes' in change:
        bad = replace(s, classes=tuple(change['classes']))
        refuse(["cannot be a folder's name"], save_folder, bad, tmp_path/'c'/'d')
        assert not (tmp_path/'c'/'d').exists()


def test_labels_of_a_manifest(tmp_path):
    "−1 and C: the folder and the limit."
    s = ImageSet(torch.zeros(4, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 0, 1, 1]), ('cat', 'dog'))
    root = save_folder(s, tmp_path/'a')
    manifest = json.loads((root/'pca_nb.json').read_text())
    for labels, span in (([0, 0, 1, -1], '-1 to 1'), ([0, 0, 1, 2], '0 to 2')):
        (root/'pca_nb.json').write_text(json.dumps(manifest | dict(labels=labels)))
        for door in (read_images, read_folder):
            with pytest.raises(Refused, match=span) as e: door(root)
            assert str(root) in str(e.value)


DOORS = dict(folder=(save_folder, read_images), npz=(save_npz, lambda p: read_images(p.with_suffix('.npz'))),
             parquet=(save_parquet, read_parquet),
             webdataset=(save_webdataset, lambda p: read_listing(list_webdataset(p))))


@pytest.mark.parametrize('door', DOORS)
def test_unicode_and_html_in_class_names(door, composites, tmp_path):
    "Through every format and back."
    write, read = DOORS[door]
    write(composites, tmp_path/'s')
    back = read(tmp_path/'s')
    assert back.classes == composites.classes and torch.equal(back.images, composites.images)


def test_html_in_names_is_escaped_on_a_page():
    import pandas as pd
    from pca_nb import html_report
    frame = pd.DataFrame({'<script>alert(1)</script>': [1]}, index=['<img src=x onerror=alert(1)>'])
    page = html_report.frame_html(frame, '<script>2</script>')
    assert '<script' not in page and '<img src' not in page and '&lt;script&gt;alert' in page


# ---- sets on disk ----
def test_a_set_held_on_disk_can_be_saved(composites, tmp_path):
    "Encoding reads images on demand; done in the threads that fetch them, it waited for itself forever."
    lazy = read_images(save_folder(composites, tmp_path/'a'), ReadOptions(resident=False))
    assert isinstance(lazy.images, LazyImages)
    done = []
    job = threading.Thread(target=lambda: done.append(encode_images(lazy)), daemon=True)
    job.start()
    job.join(60)
    assert done == [encode_images(composites)]
