"""Measure NLL and entropy of sets under crops: rows in nbs/results/entropy.jsonl.

nbs/experiments/ t13_crop_entropy, t10_crop_before, f03_entropy and a1_proofs read them. Rows that are there are not
measured again. HOME is the folder of a grid (`--home` of `pca-nb table`): scoring runs, teachers and distilled sets
are kept and found there. The first argument is the step:
"""
import argparse
import json
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from pca_nb.augment import normalise
from pca_nb.core import config_hash, generator, to_jsonable
from pca_nb.crop_theory import crop_advantage, MIN_AREAS, RATIOS, zero_crossing
from pca_nb.datasets import load_data
from pca_nb.entropy import (
    crop_changes, CROP_PAIRS, crop_stats, crop_twice, nll_and_entropy, predict_logits, set_entropy)
from pca_nb.grid import Grid
from pca_nb.machine import environment_info, pick_device
from pca_nb.models import make_model
from pca_nb.protocols import protocol_for
from pca_nb.prune import first_per_class, PRUNERS
from pca_nb.rded import CropSearchCfg, selective_crop
from pca_nb.reference_loop import photos
from pca_nb.result_store import ResultStore
from pca_nb.runs import build_set, run_cfg
from pca_nb.scores import difficulty
from pca_nb.teachers import make_teacher, TeacherCfg
from pca_nb.validate import best_memory_format

RULES = ('easy', 'easyB', 'random', 'hardB', 'hard')   # keys of `PRUNERS`; random without balance here
# data -> name -> side, network, smallest crop of its training (None: no crop), images per class of the subsets
NETS = {
    'cifar10': {
        'own': (32, 'convnet3-w32', .08, (10, 50, 500)),
        'whole': (32, 'convnet3-w32', None, (50,)),
        'deeper': (32, 'convnet4-w32', .08, (50,)),
        'wide': (32, 'convnet3', .08, (50,)),
        'resnet': (32, 'resnet18', .08, (50,)),
    },
    'imagenette': {
        'own': (64, 'convnet4-w32', .08, (10, 50)),
        'whole': (64, 'convnet4-w32', None, (50,)),
        'deeper': (64, 'convnet5-w32', .08, (50,)),
        'small': (32, 'convnet3-w32', .08, (50,)),
        'large': (128, 'convnet5-w32', .08, (50,)),
        'resnet': (128, 'resnet18', .08, (50,)),
    },
}
# how much is measured: crops per image, pairs of crops per image, crops per image of `theorem`, scores
EFFORT = {'cuda': (64, 32, 16, ('el2n', 'aum', 'own')), 'cpu': (16, 8, 8, ('el2n', 'own'))}
DEVICE = pick_device()


def teacher(home, data, name, seed):
    "Return a network that learned as the scoring runs do; trained now or read back."
    size, arch, crop, _ = NETS[data][name]
    recipe = run_cfg(data, 'sre2l', 10, seed, size=size).synthesis.teachers[0].recipe
    if crop is None:
        recipe = replace(recipe, augment=replace(recipe.augment, crop_scale=None))
    cfg = TeacherCfg(arch, recipe, seed, size)
    name = config_hash(dict(data=data, teacher=to_jsonable(cfg)))
    path = Path(home)/'teachers'/f'{data}-{name}.pt'
    return make_teacher(load_data(data, 'train', size), cfg, load_data(data, 'test', size), path, DEVICE)


def dynamics(home, data, seed):
    return Grid(home, device=DEVICE).scores(run_cfg(data, 'el2n-easyB', 10, seed))


def scores_of(home, data, seed, net, full):
    "Return difficulty by the field's scores, and by the network that judges (its −log p)."
    d = dynamics(home, data, seed)
    nll = nll_and_entropy(predict_logits(full, net, 1024), full.labels)[0]
    return dict(el2n=difficulty(d, 'el2n'), aum=difficulty(d, 'aum'), own=nll.float())


def subset(full, scores, name, ipc, seed):
    "Return the (n,) positions of a subset, sorted."
    if name == 'random':
        order = torch.randperm(len(full), generator=generator(seed, 'entropy', 'random'))
        return order[:ipc*full.n_classes].sort().values
    return PRUNERS[name](scores, full.labels, full.classes, ipc, generator(seed, 'subset')).sort().values


def subsets(full, scores, ipcs, seed):
    "Return (score, subset, ipc) -> positions; random ones once, 500 per class by EL2N only."
    parts = {}
    for score, values in scores.items():
        for name in RULES:
            for ipc in ipcs:
                if score == 'el2n' or (name != 'random' and ipc < 500):
                    key = ('any' if name == 'random' else score, name, ipc)
                    parts[key] = subset(full, values, name, ipc, seed)
    return parts


def tidy(v):
    "Return a value for JSON: six places, no NaN."
    if isinstance(v, dict):
        return {k: tidy(x) for k, x in v.items()}
    if isinstance(v, (list, tuple)):
        return [tidy(x) for x in v]
    if isinstance(v, float):
        return round(v, 6) if v == v else None
    return v


class Out:
    "Rows into a file of lines; what is there is not measured again."
    KEY = 'what', 'data', 'net', 'seed', 'score', 'subset', 'ipc', 'low', 'look', 'judge', 'chosen'

    def __init__(self, path, **same):
        self.path = Path(path)
        self.same = same

    def have(self):
        if not self.path.exists():
            return set()
        return {self._key(json.loads(line)) for line in self.path.read_text().splitlines()}

    def _key(self, row):
        return json.dumps([row.get(k) for k in self.KEY])

    def has(self, **row):
        return self._key(self.same | row) in self.have()

    def add(self, rows):
        have = self.have()
        with open(self.path, 'a') as f:
            for row in rows:
                row = tidy(self.same | row)
                if self._key(row) not in have:
                    f.write(json.dumps(row)+'\n')


def about(t, name):
    "Return what every row says of its network and machine."
    here = {k: v for k, v in environment_info(DEVICE).items() if k in ('device', 'torch')}
    return dict(net=name, arch=t.arch, size=t.size, top1=t.top1, **here)


def right(net, images, at=slice(None)):
    "Return the percentage of images that a network names correctly."
    return 100*(predict_logits(images, net).argmax(1)[at] == images.labels[at]).float().mean().item()


def unseen_images(data, size, seed):
    test = load_data(data, 'test', size)
    order = torch.randperm(len(test), generator=generator(seed, 'entropy', 'unseen'))
    return test[order[:500].sort().values]


def measure(home, data, name, seed, rows):
    "Crops, one and two, of the subsets by every score."
    n, n_twice, _, scores = EFFORT[DEVICE.type]
    size, _, crop, ipcs = NETS[data][name]
    if name == 'resnet':
        n = n//2
    full = load_data(data, 'train', size)
    t = teacher(home, data, name, seed)
    t.net.to(DEVICE)
    by = scores_of(home, data, seed, t.net, full)
    used = {k: by[k] for k in scores if name == 'own' or k == 'el2n' or DEVICE.type == 'cuda'}
    parts = subsets(full, used, ipcs, seed)
    unseen = unseen_images(data, size, seed)
    out = Out(rows, data=data, seed=seed, views=crop, **about(t, name))
    measure_one(out, t.net, full, parts, unseen, n, seed)
    if name == 'own':
        measure_two(out, t.net, full, parts, unseen, n_twice, seed)


def measure_one(out, net, full, parts, unseen, n, seed):
    "Add the rows 'crops': one crop, for every subset and range."
    pool = torch.cat(list(parts.values())).unique()
    inside = full[pool]
    predicted = predict_logits(inside, net).argmax(1)
    for low in MIN_AREAS:
        if out.has(what='crops', score='', subset='unseen', ipc=50, low=low):
            continue
        known = crop_stats(inside, net, (low, 1), n, seed=seed)
        new = crop_stats(unseen, net, (low, 1), n, seed=seed)
        rows = []
        for (score, name, ipc), idx in parts.items():
            at = torch.searchsorted(pool, idx)
            share = 100*(predicted[at] == inside.labels[at]).float().mean().item()
            rows.append(dict(what='crops', score=score, subset=name, ipc=ipc, low=low, right=share, **known[at].row()))
        rows.append(dict(what='crops', score='', subset='unseen', ipc=50, low=low, right=right(net, unseen),
                         **new.row()))
        out.add(rows)


def measure_two(out, net, full, parts, unseen, n, seed):
    "Add the rows 'twice': two crops, for the subsets of 50 per class by EL2N and for unseen images."
    mine = {k: v for k, v in parts.items() if k[0] in ('el2n', 'any') and k[2] == 50}
    pool = torch.cat(list(mine.values())).unique()
    known = {k: torch.searchsorted(pool, v) for k, v in mine.items()}
    new = {('', 'unseen', 50): torch.arange(500)}
    for low in MIN_AREAS:
        if out.has(what='twice', score='', subset='unseen', ipc=50, low=low, look='placed'):
            continue
        for images, where in ((full[pool], known), (unseen, new)):
            crops = crop_twice(images, net, (low, 1), n, seed=seed)
            rows = []
            for (score, name, ipc), at in where.items():
                for look in CROP_PAIRS:
                    rows.append(dict(what='twice', score=score, subset=name, ipc=ipc, low=low, look=look,
                                     **crops[look][at].row(), **over_placed(crops, look, at)))
            out.add(rows)


def over_placed(crops, look, at):
    "Return how far the entropy rises above that of the crop placed anywhere, image by image: mean, standard error."
    d = (crops[look].mean-crops['placed'].mean)[1, at]
    return dict(over=d.mean().item(), over_se=(d.std()/len(d)**.5).item())


def theorem(home, data, seed, rows):
    """What training's crops leave of a crop made before.

    D: the images PCA takes at IPC 10 (forty per class), or as many random ones; D′: each one's best crop of five
    by the network of the data's protocol.
    """
    few = DEVICE.type == 'cpu'
    size = NETS[data]['own'][0]
    full = load_data(data, 'train', size)
    t = teacher(home, data, 'own', seed)
    judges = dict(own=t, seed=teacher(home, data, 'own', (seed+1) % 3))
    if not few:
        judges['deeper'] = teacher(home, data, 'deeper', seed)
    for judge in judges.values():
        judge.net.to(DEVICE)
    el2n = difficulty(dynamics(home, data, seed), 'el2n')
    out = Out(rows, data=data, seed=seed, **about(t, 'own'))
    scale = protocol_for(data, size).augment.crop_scale
    for name in ('easyB',) if few else ('easyB', 'random', 'hardB'):
        whole = full[subset(full, el2n, name, 40, seed)]
        for chosen in ('nll', 'entropy') if few else ('nll', 'entropy', 'first'):
            search = CropSearchCfg(1) if chosen == 'first' else CropSearchCfg(5, chosen)
            cropped = selective_crop(whole, t.net, search, generator(seed, 'entropy', 'crops'))
            for judge, j in judges.items():
                what = dict(what='theorem', subset=name, chosen=chosen, judge=judge)
                if not out.has(**what):
                    gaps = theorem_gaps(whole, cropped, j.net, scale, seed)
                    out.add([dict(**what, images=len(whole), ratios=list(RATIOS), **gaps)])


def theorem_gaps(whole, cropped, net, scale, seed):
    "Return the gaps of NLL and entropy at every share, and under training's own crops (`views`)."
    n = EFFORT[DEVICE.type][2]
    gap = crop_advantage(whole, cropped, net, RATIOS, n, seed)
    after = [crop_stats(s, net, scale, n, seed=seed).after for s in (cropped, whole)]
    views = after[0]-after[1]
    both = {}
    for k, m in enumerate(('nll', 'entropy')):
        se = (gap[:, k].std(-1)/gap.shape[-1]**.5).tolist()
        views_se = (views.std(-1)/views.shape[-1]**.5).tolist()[k]
        both[m] = dict(gap=gap[:, k].mean(1).tolist(), se=se, views=views[k].mean().item(), views_se=views_se,
                       **zero_crossing(RATIOS, gap[:, k]))
    return both


def exists(home, data, seed, rows):
    "Assumption A.4, image by image: of how many images does no crop lower the NLL (or the entropy)?"
    n = 64 if data == 'cifar10' else 16
    full = load_data(data, 'train', NETS[data]['own'][0])
    t = teacher(home, data, 'own', seed)
    el2n = difficulty(dynamics(home, data, seed), 'el2n')
    out = Out(rows, data=data, seed=seed, **about(t, 'own'))
    for name in RULES:
        images = full[subset(full, el2n, name, 50, seed)]
        c = crop_changes(images, t.net.to(DEVICE), (MIN_AREAS[0], 1), n, seed=seed+100)
        never = (c >= 0).double().mean(1)              # (2,N) share of crops that do not lower
        both = {}
        for m, share, lowest in zip(('nll', 'entropy'), never, c.amin(1)):
            both[f'{m}_none'] = (share == 1).double().mean().item()
            both[f'{m}_none_of_5'] = (share**5).mean().item()
            both[f'{m}_best'] = lowest.mean().item()
        split = ((c[0] < 0) & (c[1] > 0)).double().mean().item()
        fall = (c[0] < 0).double().mean().item()
        out.add([dict(what='exists', subset=name, ipc=50, low=MIN_AREAS[0], score='el2n', crops=n, images=c.shape[2],
                      split=split, fall=fall, **both)])


def clouds(home, data, seed, file):
    "ΔNLL and ΔH of 8 crops of 60 images of every subset, by EL2N, for pictures; FILE keeps other data sets' too."
    full = load_data(data, 'train', NETS[data]['own'][0])
    t = teacher(home, data, 'own', seed)
    el2n = difficulty(dynamics(home, data, seed), 'el2n')
    found = dict(np.load(file)) if Path(file).exists() else {}
    for name in RULES:
        idx = subset(full, el2n, name, 50, seed)
        some = idx[torch.randperm(len(idx), generator=generator(seed, 'cloud'))[:60]]
        changes = crop_changes(full[some], t.net.to(DEVICE), (MIN_AREAS[0], 1), 8, seed=seed)
        found[f'{data}/{name}'] = changes.float().numpy()
    np.savez_compressed(file, **found)


def sets(home, grid, pictures, rows, data='cifar10'):
    """Entropy of the stored images of every run of a grid, and a picture per class.

    Three judges: the network of the run's seed (which made some of the sets), another seed's, and a deeper one;
    beside it the student's accuracy. GRID is the grid's file of rows.
    """
    full = load_data(data, 'train', NETS[data]['own'][0])
    places = Grid(home, device=DEVICE)
    kept = {}
    for row in ResultStore(grid).all():
        cfg = run_cfg(data, row['method'], row['ipc'], row['seed'])
        if cfg.key != row['key']:
            sys.exit(f"{row['method']}, seed {row['seed']}: the row was made by another configuration")
        s = places.synthetic_set(cfg)[0] if cfg.synthesis else build_set(cfg, full, places.scores(cfg))
        if row['seed'] == 0:
            kept[row['method']] = first_images(s, full)
        add_set_rows(home, rows, row, s, data)
    if kept:
        save_pictures(pictures, kept, full.classes)


def first_images(s, full):
    "Return the first image of every class; light grey where a class has none."
    images = np.full((full.n_classes, 3, *full.size), 235, np.uint8)
    at = first_per_class(torch.arange(len(s)), s.labels, 1)
    images[s.labels[at]] = s.images[at]
    return images


def add_set_rows(home, path, row, s, data):
    judges = (('own', 'own', row['seed']), ('seed', 'own', row['seed']+1), ('deeper', 'deeper', row['seed']))
    for judge, name, seed in judges:
        t = teacher(home, data, name, seed % 3)
        same = dict(what='sets', subset=row['method'], ipc=row['ipc'], judge=judge)
        found = []
        for look, e in set_entropy(s, t.net).T.to_dict().items():
            correct = e.pop('top1')
            e['images'] = int(e['images'])
            found.append(dict(**same, look=look, accuracy=row['top1'], set=row['set'], right=correct, **e))
        Out(path, data=data, seed=row['seed'], **about(t, 'own')).add(found)


def save_pictures(path, kept, classes):
    left_out = ('aum-h', 'aum-easy', 'forgetting-h', 'el2n-at')
    shown = [m for m in kept if m == 'aum-easyB' or not m.startswith(left_out)]
    np.savez_compressed(path, methods=np.array(shown), images=np.stack([kept[m][:6] for m in shown]),
                        classes=np.array(classes[:6]))


def wait():
    if DEVICE.type == 'cuda':
        torch.cuda.synchronize()


def seconds(f):
    start = time.perf_counter()
    f()
    wait()
    return time.perf_counter()-start


@torch.no_grad()
def bare_passes(net, x, batch, n):
    for _ in range(n):
        for part in x.split(batch):
            net(part)


def memory(s, net):
    "Return the peak memory of 4 and of 64 crops per image, MiB; nothing on a CPU."
    if DEVICE.type != 'cuda':
        return {}
    found = {}
    torch.cuda.reset_peak_memory_stats()
    for n in (4, 64):
        crop_stats(s, net, n_crops=n)
        wait()
        found[f'mib_{n}'] = torch.cuda.max_memory_allocated()/2**20
    return found


def speed(rows, n=64):
    "64 crops per image against 65 bare forward passes of the same batches, medians; and a million crops."
    cuda = DEVICE.type == 'cuda'
    images = 4096 if cuda else 256
    settings = [('convnet3-w32', 32), ('convnet4-w32', 64)]
    if cuda:
        settings += [('resnet18', 32), ('resnet18', 128)]
    here = {k: v for k, v in environment_info(DEVICE).items() if k in ('device', 'torch', 'threads')}
    for arch, size in settings:
        s = photos(images, size)
        net = make_model(arch, 10, size, seed=0).to(DEVICE).eval()
        x = normalise(s.images.to(DEVICE), s.stats).to(memory_format=best_memory_format(net))
        bare = partial(bare_passes, net, x, images, n+1)
        seconds(partial(crop_stats, s, net, n_crops=4))
        seconds(bare)
        ours = partial(crop_stats, s, net, n_crops=n)
        rounds = [(seconds(ours), seconds(bare)) for _ in range(5 if cuda else 3)]
        our_seconds, bare_seconds = (float(np.median([r[k] for r in rounds])) for k in (0, 1))
        row = dict(what='speed', arch=arch, size=size, images=images, crops=n, seconds=our_seconds, bare=bare_seconds,
                   ratio=float(np.median([a/b for a, b in rounds])), million=our_seconds/(images*n)*1e6,
                   **memory(s, net))
        Out(rows, data='photos', net=f'{arch}@{size}', seed=0, **here).add([row])


def score(home, data, seed):
    "Record a scoring run in HOME."
    dynamics(home, data, seed)


def teach(home, data, name, seed):
    "Train a network, kept in HOME."
    print(teacher(home, data, name, seed), flush=True)


def jobs(data):
    "Print a line per network: what `teach` and `measure` take."
    for name in NETS[data]:
        for seed in range(3):
            print(data, name, seed)


RESULTS = 'nbs/results'
ARGUMENTS = {
    'home': {},
    'data': dict(choices=NETS),
    'name': dict(metavar='NET', help='a name of `jobs`'),
    'seed': dict(type=int),
    'file': dict(nargs='?', default=f'{RESULTS}/crop-clouds.npz'),
    'grid': dict(help="the grid's file of rows"),
    'pictures': dict(nargs='?', default=f'{RESULTS}/entropy-sets.npz'),
    '--rows': dict(default=f'{RESULTS}/entropy.jsonl'),
}
STEPS = {
    jobs: ('data',),
    score: ('home', 'data', 'seed'),
    teach: ('home', 'data', 'name', 'seed'),
    measure: ('home', 'data', 'name', 'seed', '--rows'),
    theorem: ('home', 'data', 'seed', '--rows'),
    exists: ('home', 'data', 'seed', '--rows'),
    clouds: ('home', 'data', 'seed', 'file'),
    sets: ('home', 'grid', 'pictures', '--rows'),
    speed: ('--rows',),
}


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parsers = parser.add_subparsers(required=True, metavar='STEP')
    for step, names in STEPS.items():
        sub = parsers.add_parser(step.__name__, help=step.__doc__.splitlines()[0], description=step.__doc__)
        sub.set_defaults(step=step)
        for argument in names:
            sub.add_argument(argument, **ARGUMENTS[argument])
    if DEVICE.type == 'cuda':
        torch.backends.cudnn.allow_tf32 = False        # float32 is float32: changes near 0 have signs
    else:
        torch.set_num_threads(1)
    arguments = vars(parser.parse_args())
    arguments.pop('step')(**arguments)
