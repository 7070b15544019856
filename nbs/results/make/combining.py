"""Time ways to combine images, f×f into one, beside a Pillow loop; every way must give the same bytes.

Each is timed in turn, round by round, in this one process, on two threads unless it says otherwise.
Writes nbs/results/combining.json, which nbs/library/029_combine.ipynb reads.
"""
import argparse
import json
import os
import statistics
import time
from dataclasses import replace
from itertools import product

import torch
import torch.nn.functional as F

from pca_nb import combine as library
from pca_nb.core import generator
from pca_nb.machine import environment_info, keep_freed_memory, thread_pool
from pca_nb.reference_loop import loop_combining, photos
from pca_nb.resize import cell_edges
from pca_nb.storage import atomic_write
from pca_nb.timing import cpu_name

SIDES = {224: 400, 64: 2000, 32: 8000}  # pixels -> composites of four images per round
THREADS = 2


def torch_alone(images, size): return F.interpolate(images, size, mode='bilinear', antialias=True)


def outer(near, middle, far):
    "Return the mean with weights 3, 3 and 1: the first and the last pixel of a halved axis."
    return ((near+middle)*6+far*2+7)//14


def halved(even, odd):
    "Return the weights 1, 3, 3, 1 over pixels that are given as those of even and of odd position, last axis."
    out = torch.empty_like(even)
    inner = torch.add(odd[..., :-2], even[..., 1:-1]+odd[..., 1:-1], alpha=3, out=out[..., 1:-1])
    inner.add_(even[..., 2:]).add_(4).bitwise_right_shift_(3)
    out[..., 0] = outer(even[..., 0], odd[..., 0], even[..., 1])
    out[..., -1] = outer(odd[..., -1], even[..., -1], odd[..., -2])
    return out


def in_int16(images, size):
    "Halve in whole numbers: columns, then rows. Two pixels are read as one number of 16 bits."
    pairs = images.view(torch.int16)
    columns = halved(pairs & 255, (pairs >> 8).bitwise_and_(255)).mT
    return halved(columns[..., ::2], columns[..., 1::2]).mT.to(torch.uint8)


def interleave(planes):
    "Put (N,H,W) uint8 planes side by side, four at a time: (⌈N/4⌉,4,H,W) uint8, channels last."
    words = planes[::4].int()
    for c in (1, 2, 3):
        some = planes[c::4]
        words[:len(some)].add_(some, alpha=2**(8*c))
    return words.view(torch.uint8).view(*words.shape, 4).permute(0, 3, 1, 2)


def separate(pixels, n):
    "Return the first `n` planes of what `interleave` put side by side."
    m, _, h, w = pixels.shape
    words = pixels.permute(0, 2, 3, 1).reshape(-1).view(torch.int32).view(m, h, w)
    planes = torch.empty(n, h, w, dtype=torch.uint8)
    for c in range(4):
        some = planes[c::4]
        some.copy_(words[:len(some)])  # the lowest byte
        words >>= 8
    return planes


def four_planes(images, size):
    "torch works on pixels of four bytes: give it four planes as if they were one image, put together by arithmetic."
    planes = images.flatten(0, 1)
    return separate(torch_alone(interleave(planes), size), len(planes)).view(*images.shape[:2], *size)


def rows_first(images, size):
    rows = torch_alone(images, (size[0], images.shape[-1]))
    return torch_alone(rows, size)


def combined(images, idx, shrink, take, per_call, pool):
    "Return composites of four, `per_call` images per call, in the threads of a pool or here."
    H, W = images.shape[-2:]
    out = torch.empty(len(idx), 3, H, W, dtype=torch.uint8)
    y, x = cell_edges(H, 2), cell_edges(W, 2)

    def fill(part, rows):
        for column, (i, j) in zip(rows.T, product(range(2), repeat=2)):
            cell = part[..., y[i]:y[i+1], x[j]:x[j+1]]
            cell.copy_(shrink(take(images, column), cell.shape[-2:]))
    for _ in (pool.map if pool else map)(fill, out.split(per_call), idx.split(per_call)):
        pass
    return out


def by_position(images, i): return images[i]
def by_selection(images, i): return images.index_select(0, i)
def lsq_anew(images, size):
    library._kept_weights.cache_clear()
    return library._lsq(images, size)


def where_it_lies(images, i): return images[i[0]:i[0]+1]
def last_selection(images, i): return images.permute(0, 2, 3, 1).index_select(0, i).permute(0, 3, 1, 2)


def few_of(idx): return idx[:max(64, len(idx)//20)]


def ways(full, idx):
    "Return name -> function; those whose name begins with a word of `SLOW` combine few of the rows."
    per_call = library._images_per_call(full.size, library.Tiling(2))
    pool = thread_pool(THREADS)
    last = full.images.contiguous(memory_format=torch.channels_last)
    few = few_of(idx)

    def way(shrink, take, n=per_call, pool=pool, images=full.images, idx=idx):
        return lambda: combined(images, idx, shrink, take, n, pool)

    def torch_threads():
        torch.set_num_threads(THREADS)
        try: return combined(full.images, few, torch_alone, by_selection, per_call, None)
        finally: torch.set_num_threads(1)
    return {
        'Pillow, image by image': lambda: loop_combining(full.images, few.tolist()),
        'torch, one image per call': way(torch_alone, where_it_lies, 1),
        'torch, 2 MB per call, images[i]': way(torch_alone, by_position),
        'torch, 1 MB per call': way(torch_alone, by_selection, max(1, per_call//2)),
        'torch, 2 MB per call (`combine`)': lambda: library.combine(full, idx).images,
        'torch, 4 MB per call': way(torch_alone, by_selection, 2*per_call),
        'torch, one thread': way(torch_alone, by_selection, pool=None),
        'torch, set stored channels last': way(torch_alone, last_selection, images=last),
        '1, 3, 3, 1 in int16': way(in_int16, by_selection),
        'four planes, one image per call': way(four_planes, where_it_lies, 1),
        'four planes, 2 MB per call': way(four_planes, by_selection),
        'four planes, 4 MB per call': way(four_planes, by_selection, 2*per_call),
        "torch's own threads": torch_threads,
        'lsq, matrices made for every image': way(lsq_anew, where_it_lies, 1, idx=few),
        'lsq (`combine`)': lambda: library.combine(full, few, 'lsq').images,
    }


SLOW = 'Pillow', "torch's", 'lsq'


def timed(run):
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter()-wall, time.process_time()-cpu


def rows(side, rounds):
    "Yield a row per way: medians over rounds, microseconds per image; rounds in turn."
    full = photos(256, side)
    full = replace(full, labels=torch.zeros_like(full.labels))
    idx = torch.randint(256, (SIDES[side], 4), generator=generator(0, 'tiles'))
    made = ways(full, idx)
    composites = {name: len(few_of(idx) if name.startswith(SLOW) else idx) for name in made}
    truth = combined(full.images, idx, torch_alone, where_it_lies, 1, None)
    lsq = made['lsq, matrices made for every image']()
    for name, run in made.items():
        if 'Pillow' in name: continue
        out = run()
        assert torch.equal(out, (lsq if 'lsq' in name else truth)[:len(out)]), name
    times = {name: [] for name in made}
    for _ in range(rounds):
        for name, run in made.items(): times[name].append(timed(run))
    for name, pairs in times.items():
        wall, cpu = ([t/composites[name]/4*1e6 for t in kind] for kind in zip(*pairs))
        yield dict(side=side, way=name, wall=round(statistics.median(wall), 1), low=round(min(wall), 1),
                   high=round(max(wall), 1), cpu=round(statistics.median(cpu), 1))


def main(out, rounds):
    keep_freed_memory()
    torch.set_num_threads(1)
    begun = os.getloadavg()[0]
    measured = [row for side in SIDES for row in rows(side, rounds)]
    x = photos(64, 224).images
    other = (rows_first(x, (112, 112)) != torch_alone(x, (112, 112))).float().mean().item()
    about = environment_info('cpu') | dict(cpu=cpu_name(), cores=os.cpu_count(), pool=THREADS, rounds=rounds,
                                           load=[round(begun, 1), round(os.getloadavg()[0], 1)])
    content = about | dict(rows=measured, rows_first_percent_other=round(100*other, 1))
    atomic_write(out, lambda tmp: tmp.write_text(json.dumps(content, indent=1)+'\n'))
    for row in measured: print(row)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', nargs='?', default='nbs/results/combining.json')
    parser.add_argument('--rounds', type=int, default=7)
    main(**vars(parser.parse_args()))
