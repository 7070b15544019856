"""Thousands of damaged image files and archives: no crash, no hang, no memory blow-up; every file is read or named.

A process of its own with four gigabytes of address space more than it starts with does the reading, so that a crash of
a decoder is a failing test and not the end of pytest."""
import json
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest

from mutations import TESTS
from pca_nb.files import read_folder, save_folder
from pca_nb.reference_loop import photos

READ = '''
import io, json, resource, struct, sys, tarfile, tempfile, time, warnings, zipfile, zlib
from pathlib import Path
import numpy as np
from PIL import Image
from pca_nb.archives import list_zip
from pca_nb.decode import read_image
from pca_nb.listing import read_listing, ReadOptions
from pca_nb.reference_loop import photos
from pca_nb.webdataset import list_webdataset
from mutations import Mutations
warnings.simplefilter('ignore')  # notes on what is skipped
per_format, seed = int(sys.argv[1]), int(sys.argv[2])
damage = Mutations(seed)
rng = damage.rng
flip, cut, junk, head = damage.flip, damage.cut, damage.junk, damage.head
a = photos(1, 64).images[0].permute(1, 2, 0).numpy()
def encoded(fmt, mode='RGB', side=64, **save):
    buf = io.BytesIO()
    Image.fromarray(a[:side, :side]).convert(mode).save(buf, fmt, **save)
    return buf.getvalue()
seeds = {'jpeg': encoded('JPEG'), 'progressive jpeg': encoded('JPEG', progressive=True),
         'cmyk jpeg': encoded('JPEG', 'CMYK'), 'png': encoded('PNG'), 'palette png': encoded('PNG', 'P'),
         'webp': encoded('WEBP'), 'bmp': encoded('BMP'), 'tiff': encoded('TIFF', compression='tiff_lzw'),
         'ppm': encoded('PPM'), 'avif': encoded('AVIF')}
small = [encoded('PNG', side=k) for k in (6, 7, 8, 9)]
def zipped(method, data=small):
    with zipfile.ZipFile(buf := io.BytesIO(), 'w', method) as z:
        for i,b in enumerate(data): z.writestr(f'{i%2}/{i}.png', b)
    return buf.getvalue()
def tarred(members, fmt):
    with tarfile.open(fileobj=(buf := io.BytesIO()), mode='w', format=fmt) as t:
        for name,b in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(b)
            t.addfile(info, io.BytesIO(b))
    return buf.getvalue().rstrip(bytes(1))+bytes(1500)  # with less filling, changes hit more often
pairs = {f'{i}.{field}': b for i,im in enumerate(small) for field,b in (('png', im), ('cls', b'%d'%(i%2)))}
records = {f'{i}.{field}': b for i,im in enumerate(small) for field,b in (('png', im), ('json', b'{"label":%d}'%(i%2)))}
folders = {f'{i%2}/{"x"*(110*(i>1))}{i}.png': im for i,im in enumerate(small)}
archives = {'zip': zipped(8), 'stored zip': zipped(0), 'tar': tarred(pairs, tarfile.USTAR_FORMAT),
            'tar of records': tarred(records, tarfile.GNU_FORMAT),
            'tar of folders': tarred(folders, tarfile.PAX_FORMAT)}
def chunk(kind, body): return struct.pack('>I', len(body))+kind+body+struct.pack('>I', zlib.crc32(kind+body))
def png(w, h, data=b''):
    head = chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, 8, 2, 0, 0, 0))
    return b'\\x89PNG\\r\\n\\x1a\\n'+head+chunk(b'IDAT', data)+chunk(b'IEND', b'')
def jpeg(w, h):
    b = bytearray(seeds['jpeg'])
    i = b.index(b'\\xff\\xc0')
    b[i+5:i+9] = struct.pack('>HH', h, w)
    return bytes(b)
bombs = [png(w, h, zlib.compress(bytes(10**6))) for w in (1, 30_000, 2**31-1) for h in (1, 30_000, 2**31-1)]
bombs += [jpeg(w, h) for w in (1, 9_000, 65_535) for h in (9_000, 65_535)]
bmp = seeds['bmp']
bombs += [bmp[:18]+struct.pack('<ii', w, h)+bmp[26:] for w in (1, 2**20, 2**31-1) for h in (2**20, -2**31)]
files = [('bomb', b) for b in bombs]+[('zip', zipped(8, [bytes(10**6), png(1, 30_000, zlib.compress(bytes(10**6)))]))]
files += [(k, f(b)) for k,b in (seeds|archives).items() for f in (flip, cut, junk, head) for _ in range(per_format//4)]
place = Path(tempfile.mkdtemp())
def read(kind, b):
    if kind not in archives: return read_image(b, 32)[None]
    file = place/('a.zip' if 'zip' in kind else 'a.tar')
    file.write_bytes(b)
    listing = list_zip(file) if 'zip' in kind else list_webdataset(file)
    return read_listing(listing, ReadOptions(size=32)).images
for kind,b in (seeds|archives).items(): read(kind, b)
now = int(open('/proc/self/statm').read().split()[0])*4096
resource.setrlimit(resource.RLIMIT_AS, (now+4*2**30,)*2)
out = dict(files=len(files), read=0, named=0, slowest=0., odd=[])
for kind,b in files:
    start = time.perf_counter()
    try:
        x = read(kind, b)
        assert tuple(x.shape[1:])==(3, 32, 32)
        out['read'] += 1
    except ValueError as e:
        out['named'] += 1
        if not str(e): out['odd'].append((kind, 'no words'))
    except BaseException as e: out['odd'].append((kind, repr(e)[:200]))
    out['slowest'] = max(out['slowest'], time.perf_counter()-start)
peak = next(line for line in open('/proc/self/status') if line.startswith('VmHWM'))
# ru_maxrss would begin at pytest's own size
out['peak_mb'] = int(peak.split()[1])/1024
print(json.dumps(out))
'''


def test_mutated_files_are_read_or_named(slow, tally):
    "Bit flips, truncations, junk, other file types' heads, and sizes from 1 pixel to 2³¹ in ten formats, two archives."
    r = subprocess.run([sys.executable, '-c', READ, '1600' if slow else '160', '0'], capture_output=True, text=True,
                       timeout=900, env=os.environ | dict(CI='1', PYTHONPATH=TESTS))
    assert r.returncode == 0, r.stderr[-3000:]
    out = json.loads(r.stdout.splitlines()[-1])
    tally.count('image files mutated', out['files'], out['files']-out['read']-out['named'])
    assert out['files'] >= 2000 and not out['odd'], out
    assert out['read'] > 200 and out['named'] > 200, out
    assert out['slowest'] < 10 and out['peak_mb'] < 2500, out


def test_a_huge_image_in_a_folder_is_named(tmp_path):
    """From a folder, as a user meets it: the error names the file and the way out, before anything is decoded at
    full size."""
    root = save_folder(photos(20, 24), tmp_path/'s')/'images'
    def chunk(kind, body): return struct.pack('>I', len(body))+kind+body+struct.pack('>I', zlib.crc32(kind+body))
    head = chunk(b'IHDR', struct.pack('>IIBBBBB', 30_000, 30_000, 8, 2, 0, 0, 0))
    body = chunk(b'IDAT', zlib.compress(bytes(10**6)))
    (root/'0'/'bomb.png').write_bytes(b'\x89PNG\r\n\x1a\n'+head+body+chunk(b'IEND', b''))
    (tmp_path/'s'/'pca_nb.json').unlink()
    with pytest.raises(ValueError,
                       match=r'1 of 21 images cannot be read: .*bomb.png: .*900000000 pixels.*repair or remove'):
        read_folder(root)


def test_mutated_files_of_a_folder_are_named(tmp_path):
    "The way a user meets them: sizes are guessed from headers, then everything is decoded, or only looked over."
    rng = np.random.default_rng(0)
    for c in 'ab':
        (tmp_path/c).mkdir()
        for i in range(6): (tmp_path/c/f'{i}.ppm').write_bytes(b'P6\n8 8\n255\n'+rng.bytes(192))
    (tmp_path/'a'/'junk.ppm').write_bytes(b'P6\nabc 8\n255\n'+rng.bytes(192))
    for resident in (True, False):
        with pytest.raises(ValueError, match=r'1 of 13 images cannot be read: .*junk.ppm: '):
            read_folder(tmp_path, resident=resident)
