"""Measure how fast sets are read, and how much memory that takes, beside torchvision's ImageFolder and `datasets`.

Two questions: does memory grow with a parquet file (128 to 2,000 MB, in row groups of 100 images and in a single one),
and how many images per second are read from 100,000 small files and from a parquet file of the same images.
Every measurement is a process of its own; its peak memory is counted from the moment when its imports are done.
Needs 3 GB of disk for a while and the packages `datasets` and `torchvision`.
Writes nbs/results/reading.json, which nbs/library/08_parquet.ipynb reads.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pca_nb.core import generator
from pca_nb.datasets import sample_photos
from pca_nb.files import encode_image
from pca_nb.machine import environment_info

MEGABYTES = (128, 256, 512, 1024, 2000)
FILES = 100_000

START = '''
import json, sys, time, warnings
from torchvision.datasets import ImageFolder
import datasets, numpy as np, torch
from pca_nb.datasets import load_data
warnings.simplefilter('ignore')
datasets.disable_progress_bars()
torch.set_num_threads(1)
path, cache = sys.argv[1:3]
def peak(): return int(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])/1024
base, wall, cpu = peak(), time.perf_counter(), time.process_time()
def their_pixels(rows): return sum(np.asarray(row['image'].convert('RGB')).shape[0]==32 for row in rows)
'''

END = '''
print(json.dumps(dict(images=n, seconds=round(time.perf_counter()-wall, 1),
                      processor_seconds=round(time.process_time()-cpu, 1), megabytes=round(peak()-base))))
'''

TASKS = {
    'pca_nb on demand': '''
s = load_data(path, size=64, resident=False)
order = torch.randperm(len(s), generator=torch.Generator().manual_seed(0))[:1000]
for part in order.split(50): s.images[part]
n = len(s)
''',
    'pca_nb': 'n = len(load_data(path, size=32))',
    'torchvision': 'n = sum(np.asarray(im).shape[0]==32 for im,_ in ImageFolder(path))',
    'datasets, folder': '''
n = their_pixels(datasets.load_dataset('imagefolder', data_dir=path, cache_dir=cache)['train'])
''',
    'datasets, parquet': '''
rows = datasets.load_dataset('parquet', data_files=path, cache_dir=cache)['train']
n = their_pixels(rows.cast_column('image', datasets.Image()))
'''}


def measure(task, path, home):
    "Run one task in a process of its own."
    with tempfile.TemporaryDirectory(dir=home) as cache:
        command = [sys.executable, '-c', START+TASKS[task]+END, str(path), cache]
        env = os.environ | dict(CI='1', HF_HUB_OFFLINE='1', TMPDIR=str(home))
        run = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    if run.returncode: sys.exit(run.stderr[-3000:])
    return json.loads(run.stdout.splitlines()[-1])


def photos(side, n):
    "Encode `n` windows of the sample photographs as JPEG."
    full = sample_photos(256).images
    g = generator(0, 'reading', side)
    places = torch.randint(257-side, (n, 2), generator=g).tolist()
    return [encode_image(full[i % len(full), :, y:y+side, x:x+side], 'jpeg') for i, (y, x) in enumerate(places)]


def write_parquet(path, images, n, rows_per_group):
    "Write `n` rows, a chunk at a time as far as the row groups allow."
    kind = pa.schema(dict(image=pa.struct(dict(bytes=pa.binary(), path=pa.string())), label=pa.int64()))
    chunk = min(n, max(rows_per_group, 1000))
    with pq.ParquetWriter(path, kind, use_dictionary=False) as f:
        for first in range(0, n, chunk):
            rows = range(first, min(n, first+chunk))
            cells = [dict(bytes=images[i % len(images)], path=f'{i}.jpg') for i in rows]
            table = pa.table(dict(image=cells, label=[i % 10 for i in rows]), kind)
            f.write_table(table, row_group_size=rows_per_group)


def write_folder(root, images, n):
    "Write `n` files into ten class folders."
    for c in range(10): (root/str(c)).mkdir(parents=True)
    for i in range(n): (root/str(i % 10)/f'{i:06d}.jpg').write_bytes(images[i % len(images)])


def memory_rows(home):
    "Yield rows of peak memory against the size of the file."
    images = photos(256, 200)
    mean = sum(map(len, images))/len(images)
    for megabytes in MEGABYTES:
        n = int(megabytes*2**20/mean)
        for groups, rows_per_group in (('100 images', 100), ('all images', n)):
            path = home/'set.parquet'
            write_parquet(path, images, n, rows_per_group)
            size = path.stat().st_size
            yield dict(row_group=groups, file_megabytes=round(size/2**20), **measure('pca_nb on demand', path, home))
            path.unlink()


def rate_rows(home, n):
    "Yield rows of time for small files and for a parquet file of the same images."
    images = photos(32, 1000)
    write_folder(home/'files', images, n)
    for task in ('pca_nb', 'torchvision', 'datasets, folder'):
        yield dict(place='files', reader=task.split(',')[0], **measure(task, home/'files', home))
    write_parquet(home/'files.parquet', images, n, 1000)
    for task in ('pca_nb', 'datasets, parquet'):
        yield dict(place='parquet', reader=task.split(',')[0], **measure(task, home/'files.parquet', home))


def main(out, n):
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        result = dict(memory=[], rates=[])
        for key, rows in (('memory', memory_rows(home)), ('rates', rate_rows(home, n))):
            for row in rows:
                result[key].append(row)
                print(row, 'load', os.getloadavg()[0], flush=True)
    with open(out, 'w') as f: json.dump(result | dict(load=os.getloadavg()[0], **environment_info('cpu')), f, indent=1)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', nargs='?', default='nbs/results/reading.json')
    parser.add_argument('--files', dest='n', type=int, default=FILES)
    main(**vars(parser.parse_args()))
