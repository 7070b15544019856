"""NLL and entropy of sets under crops, for t13, t10, f03 and a1: rows in nbs/results/entropy.jsonl.

entropy.py HOME jobs DATA                   one line a network: what `teach` and `collect_stats` take
entropy.py HOME score DATA SEED             record a scoring run; HOME is the folder of a grid
entropy.py HOME teach DATA NAME SEED        train a network
entropy.py HOME measure DATA NAME SEED ROWS crops, one and two, of the subsets by every score
entropy.py HOME theorem DATA SEED ROWS      what training's crops leave of a crop made before
entropy.py HOME exists DATA SEED ROWS       images of which no crop lowers the NLL
entropy.py HOME clouds DATA SEED FILE       single changes, for pictures
entropy.py HOME sets ROWS GRID PICTURES     what networks make of the sets of a finished grid, and an image per class
entropy.py HOME speed ROWS                  64 crops against bare forward passes, and a million crops
"""
import json
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from pca_nb.augment import normalise
from pca_nb.result_store import ResultStore
from pca_nb.grid import Grid
from pca_nb.rded import CropSearchCfg, selective_crop
from pca_nb.core import config_hash, generator, to_jsonable
from pca_nb.machine import environment_info, pick_device
from pca_nb.datasets import load_data
from pca_nb.entropy import (
    crop_changes, CROP_PAIRS, crop_stats, crop_twice, nll_and_entropy, predict_logits, set_entropy)
from pca_nb.crop_theory import crop_advantage, MIN_AREAS, RATIOS, zero_crossing
from pca_nb.teachers import make_teacher, TeacherCfg
from pca_nb.protocols import protocol_for
from pca_nb.runs import build_set, run_cfg
from pca_nb.models import make_model
from pca_nb.prune import first_per_class, PRUNERS
from pca_nb.scores import difficulty
from pca_nb.validate import best_memory_format
from pca_nb.reference_loop import photos

RULES = ('easy', 'easyB', 'random', 'hardB', 'hard')   # keys of `PRUNERS`; random without balance here
# data -> name -> side, network, smallest crop of its training (None: no crop), images a class that are looked at
NETS = {
    'cifar10': dict(own=(32, 'convnet3-w32', .08, (10,50,500)), whole=(32, 'convnet3-w32', None, (50,)),
                    deeper=(32, 'convnet4-w32', .08, (50,)),
                    wide=(32, 'convnet3', .08, (50,)), resnet=(32, 'resnet18', .08, (50,))),
    'imagenette': dict(own=(64, 'convnet4-w32', .08, (10,50)), whole=(64, 'convnet4-w32', None, (50,)),
                       deeper=(64, 'convnet5-w32', .08, (50,)),
                       small=(32, 'convnet3-w32', .08, (50,)), large=(128, 'convnet5-w32', .08, (50,)),
                       resnet=(128, 'resnet18', .08, (50,)))}


# crops an image, pairs of crops an image, crops an image of `theorem`, scores; less where there is no GPU
def effort(device):
    return (64, 32, 16, ('el2n', 'aum', 'own')) if device.type == 'cuda' else (16, 8, 8, ('el2n', 'own'))


def the_set(data, size, split='train'):
    return load_data(data, split, size)


def teacher(home, data, name, seed, device):
    "A network that learned as the scoring runs do; trained now or read back."
    size, arch, crop, _ = NETS[data][name]
    recipe = run_cfg(data, 'sre2l', 10, seed, size=size).synthesis.teachers[0].recipe
    cfg = TeacherCfg(arch, recipe if crop else replace(recipe, augment=replace(recipe.augment, crop_scale=None)), seed,
                     size)
    path = Path(home)/'teachers'/f"{data}-{config_hash(dict(data=data, teacher=to_jsonable(cfg)))}.pt"
    return make_teacher(the_set(data, size), cfg, the_set(data, size, 'test'), path, device)


def scores_of(home, data, seed, net, full, device):
    "Difficulty by the scores of the field, and by the network that is asked (its −log p)."
    d = Grid(home, device=device).scores(run_cfg(data, 'el2n-easyB', 10, seed))
    return dict(el2n=difficulty(d, 'el2n'), aum=difficulty(d, 'aum'),
                own=nll_and_entropy(predict_logits(full, net, 1024), full.labels)[0].float())


def subset(full, scores, name, ipc, seed):
    "(n,) positions of a subset, sorted."
    if name == 'random':
        return torch.randperm(len(full),
                              generator=generator(seed, 'entropy', 'random'))[:ipc*full.n_classes].sort().values
    return PRUNERS[name](scores, full.labels, full.classes, ipc, generator(seed, 'subset')).sort().values


def subsets(full, scores, ipcs, seed):
    "(score, subset, ipc) -> positions; random ones once."
    return {('any' if k == 'random' else s, k, n): subset(full, v, k, n, seed) for s, v in scores.items()
            for k in RULES for n in ipcs if s == 'el2n' or k != 'random' and n < 500}


def tidy(v):
    "For JSON: six places, no NaN."
    if isinstance(v, dict): return {k: tidy(x) for k, x in v.items()}
    if isinstance(v, (list, tuple)): return [tidy(x) for x in v]
    return (round(v, 6) if v == v else None) if isinstance(v, float) else v


class Out:
    "Rows into a file of lines; what is there is not measured again."
    KEY = 'what', 'data', 'net', 'seed', 'score', 'subset', 'ipc', 'low', 'look', 'judge', 'chosen'

    def __init__(self, path, **same): self.path, self.same = Path(path), same

    def have(self):
        return ({self._key(json.loads(line)) for line in self.path.read_text().splitlines()} if self.path.exists()
                else set())

    def _key(self, row): return json.dumps([row.get(k) for k in self.KEY])
    def has(self, **row): return self._key(self.same | row) in self.have()

    def add(self, rows):
        have = self.have()
        with open(self.path, 'a') as f:
            for r in rows:
                r = tidy(self.same | r)
                if self._key(r) not in have: f.write(json.dumps(r)+'\n')


def about(t, name, device):
    return dict(net=name, arch=t.arch, size=t.size, top1=t.top1, **{k: v for k, v in environment_info(device).items()
                                                                    if k in ('device', 'torch')})


def measure(home, data, name, seed, path, device):
    (n, n_twice, _, scores), (size, _, crop, ipcs) = effort(device), NETS[data][name]
    n = n//2 if name == 'resnet' else n
    full = the_set(data, size)
    t = teacher(home, data, name, seed, device)
    t.net.to(device)
    by = scores_of(home, data, seed, t.net, full, device)
    parts = subsets(full, {k: by[k] for k in scores if name == 'own' or k == 'el2n' or device.type == 'cuda'}, ipcs,
                    seed)
    pool = torch.cat(list(parts.values())).unique()
    inside = full[pool]
    el2n = torch.cat([v for (s, _, k), v in parts.items() if s in ('el2n', 'any') and k == 50]).unique()
    test = the_set(data, size, 'test')
    unseen = test[torch.randperm(len(test), generator=generator(seed, 'entropy', 'unseen'))[:500].sort().values]
    out = Out(path, data=data, seed=seed, views=crop, **about(t, name, device))
    z = predict_logits(inside, t.net)
    for low in MIN_AREAS:
        if out.has(what='crops', score='', subset='unseen', ipc=50, low=low): continue
        c = crop_stats(inside, t.net, (low, 1), n, seed=seed)
        o = crop_stats(unseen, t.net, (low, 1), n, seed=seed)
        rows = []
        for (s, k, ipc), idx in parts.items():
            at = torch.searchsorted(pool, idx)
            rows.append(dict(what='crops', score=s, subset=k, ipc=ipc, low=low,
                             right=100*(z[at].argmax(1) == inside.labels[at]).float().mean().item(), **c[at].row()))
        rows.append(dict(what='crops', score='', subset='unseen', ipc=50, low=low,
                         right=100*(predict_logits(unseen, t.net).argmax(1) == unseen.labels).float().mean().item(),
                         **o.row()))
        out.add(rows)
    for low in MIN_AREAS if name == 'own' else ():
        if out.has(what='twice', score='', subset='unseen', ipc=50, low=low, look='placed'): continue
        for where, images in (('train', full[el2n]), ('test', unseen)):
            c, rows = crop_twice(images, t.net, (low, 1), n_twice, seed=seed), []
            mine = ({('', 'unseen', 50): torch.arange(500)} if where == 'test'
                    else {(s, k, i): torch.searchsorted(el2n, v) for (s, k, i), v in parts.items()
                          if s in ('el2n', 'any') and i == 50})
            for (s, k, ipc), at in mine.items():
                for look in CROP_PAIRS:
                    rows.append(dict(what='twice', score=s, subset=k, ipc=ipc, low=low, look=look, **c[look][at].row(),
                                     **paired(c, look, at)))
            out.add(rows)


def paired(c, look, at):
    "How far the entropy rises above that of the crop placed anywhere, image by image: mean and standard error."
    d = (c[look].mean-c['placed'].mean)[1, at]
    return dict(over=d.mean().item(), over_se=(d.std()/len(d)**.5).item())


def theorem(home, data, seed, path, device):
    """D: the images PCA takes at IPC 10 (forty a class), or as many random ones; D′: each one's best crop of five
    by the network of the data's protocol."""
    size, n, few = NETS[data]['own'][0], effort(device)[2], device.type == 'cpu'
    full = the_set(data, size)
    t = teacher(home, data, 'own', seed, device)
    judges = (dict(own=t, seed=teacher(home, data, 'own', (seed+1) % 3, device))
              | ({} if few else dict(deeper=teacher(home, data, 'deeper', seed, device))))
    for j in judges.values(): j.net.to(device)
    d = Grid(home, device=device).scores(run_cfg(data, 'el2n-easyB', 10, seed))
    out = Out(path, data=data, seed=seed, **about(t, 'own', device))
    for name in ('easyB',) if few else ('easyB', 'random', 'hardB'):
        D = full[subset(full, difficulty(d, 'el2n'), name, 40, seed)]
        for chosen in ('nll', 'entropy') if few else ('nll', 'entropy', 'first'):
            crops = CropSearchCfg(5, chosen) if chosen != 'first' else CropSearchCfg(1)
            better = selective_crop(D, t.net, crops, generator(seed, 'entropy', 'crops'))
            scale = protocol_for(data, size).augment.crop_scale
            for judge, j in judges.items():
                if out.has(what='theorem', subset=name, chosen=chosen, judge=judge): continue
                gap = crop_advantage(D, better, j.net, RATIOS, n, seed)
                views = crop_stats(better, j.net, scale, n,
                                   seed=seed).after-crop_stats(D, j.net, scale, n, seed=seed).after
                def se(v): return (v.std(-1)/v.shape[-1]**.5).tolist()
                both = {m: dict(gap=gap[:, k].mean(1).tolist(), se=se(gap[:, k]), views=views[k].mean().item(),
                                views_se=se(views)[k], **zero_crossing(RATIOS, gap[:, k]))
                        for k, m in enumerate(('nll', 'entropy'))}
                out.add([dict(what='theorem', subset=name, chosen=chosen, judge=judge, images=len(D),
                              ratios=list(RATIOS), **both)])


def exists(home, data, seed, path, device):
    "Assumption A.4, image by image: of how many images does no crop lower the NLL (or the entropy)?"
    size, n = NETS[data]['own'][0], 64 if data == 'cifar10' else 16
    full = the_set(data, size)
    t = teacher(home, data, 'own', seed, device)
    d = Grid(home, device=device).scores(run_cfg(data, 'el2n-easyB', 10, seed))
    out = Out(path, data=data, seed=seed, **about(t, 'own', device))
    for k in RULES:
        c = crop_changes(full[subset(full, difficulty(d, 'el2n'), k, 50, seed)], t.net.to(device), (MIN_AREAS[0], 1),
                         n, seed=seed+100)
        never = (c >= 0).double().mean(1) # (2,N) share of crops that do not lower
        both = {f'{m}_{w}': v.mean().item() for m, x, lowest in zip(('nll', 'entropy'), never, c.amin(1))
                for w, v in (('none', (x == 1).double()), ('none_of_5', x**5), ('best', lowest))}
        out.add([dict(what='exists', subset=k, ipc=50, low=MIN_AREAS[0], score='el2n', crops=n, images=c.shape[2],
                      split=((c[0] < 0) & (c[1] > 0)).double().mean().item(), fall=(c[0] < 0).double().mean().item(),
                      **both)])


def clouds(home, data, seed, path, device):
    "ΔNLL and ΔH of 8 crops of 60 images of every subset, by EL2N."
    size = NETS[data]['own'][0]
    full = the_set(data, size)
    t = teacher(home, data, 'own', seed, device)
    d = Grid(home, device=device).scores(run_cfg(data, 'el2n-easyB', 10, seed))
    out = {}
    for k in RULES:
        idx = subset(full, difficulty(d, 'el2n'), k, 50, seed)
        idx = idx[torch.randperm(len(idx), generator=generator(seed, 'cloud'))[:60]]
        out[k] = crop_changes(full[idx], t.net.to(device), (MIN_AREAS[0], 1), 8, seed=seed).float().numpy()
    np.savez_compressed(path, **out)


def sets(home, path, grid, pictures, device, data='cifar10'):
    """Entropy of the stored images of every run, asked of the network of its seed (which made some of them), of
    another seed's, and of a deeper one; beside it the student's accuracy."""
    full, kept = the_set(data, NETS[data]['own'][0]), {}
    places = Grid(home, device=device)
    for row in ResultStore(grid).all():
        cfg = run_cfg(data, row['method'], row['ipc'], row['seed'])
        if cfg.key != row['key']:
            sys.exit(f"{row['method']}, seed {row['seed']}: the row was made by another configuration")
        s = places.synthetic_set(cfg)[0] if cfg.synthesis else build_set(cfg, full, places.scores(cfg))
        if row['seed'] == 0:
            # light grey where a class has no image
            kept[row['method']] = blank = np.full((full.n_classes, 3, *full.size), 235, np.uint8)
            at = first_per_class(torch.arange(len(s)), s.labels, 1)
            blank[s.labels[at]] = s.images[at]
        for judge, name, seed in (('own', 'own', row['seed']), ('seed', 'own', row['seed']+1),
                                  ('deeper', 'deeper', row['seed'])):
            t = teacher(home, data, name, seed % 3, device)
            out = Out(path, data=data, seed=row['seed'], **about(t, 'own', device))
            same = dict(what='sets', subset=row['method'], ipc=row['ipc'], judge=judge)
            out.add([dict(**same, look=look, accuracy=row['top1'], set=row['set'], right=e.pop('top1'),
                          **e | dict(images=int(e['images'])))
                     for look, e in set_entropy(s, t.net).T.to_dict().items()])
    if not kept: return
    shown = [m for m in kept if not m.startswith(('aum-h', 'aum-easy', 'forgetting-h', 'el2n-at')) or m == 'aum-easyB']
    np.savez_compressed(pictures, methods=np.array(shown), images=np.stack([kept[m][:6] for m in shown]),
                        classes=np.array(full.classes[:6]))


def speed(path, device, n=64):
    "64 crops an image against 65 bare forward passes of the same batches, medians of 5; and a million crops."
    cuda, out = device.type == 'cuda', []
    images = 4096 if cuda else 256
    batch = 4096 if cuda else 256
    for arch, size in (('convnet3-w32', 32), ('convnet4-w32', 64),
                       *([('resnet18', 32), ('resnet18', 128)] if cuda else [])):
        s = photos(images, size)
        net = make_model(arch, 10, size, seed=0).to(device).eval()
        x = normalise(s.images.to(device), s.stats).to(memory_format=best_memory_format(net))
        wait = torch.cuda.synchronize if cuda else lambda: None

        @torch.no_grad()
        def bare(x=x, net=net):
            for _ in range(n+1):
                for part in x.split(batch): net(part)

        def timed(f, wait=wait):
            t = time.perf_counter()
            f()
            wait()
            return time.perf_counter()-t
        timed(partial(crop_stats, s, net, n_crops=4)), timed(bare)
        ours_ = partial(crop_stats, s, net, n_crops=n)
        both = [(timed(ours_), timed(bare)) for _ in range(5 if cuda else 3)]
        ours, theirs = (float(np.median([b[k] for b in both])) for k in (0, 1))
        if cuda:
            torch.cuda.reset_peak_memory_stats()
            crop_stats(s, net, n_crops=4)
            wait()
            few = torch.cuda.max_memory_allocated()
            crop_stats(s, net, n_crops=64)
            wait()
            mem = dict(mib_4=few/2**20, mib_64=torch.cuda.max_memory_allocated()/2**20)
        else: mem = {}
        out.append(dict(what='speed', arch=arch, size=size, images=images, crops=n, seconds=ours, bare=theirs,
                        ratio=float(np.median([a/b for a, b in both])), million=ours/(images*n)*1e6, **mem))
        Out(path, data='photos', net=f'{arch}@{size}', seed=0, **{k: v for k, v in environment_info(device).items()
                                                                  if k in ('device', 'torch', 'threads')}).add(out[-1:])


if __name__ == '__main__':
    home, what, *rest = sys.argv[1:]
    dev = pick_device()
    if dev.type == 'cuda': torch.backends.cudnn.allow_tf32 = False # float32 is float32: changes near 0 have signs
    else: torch.set_num_threads(1)
    if what == 'jobs': print(*(f'{rest[0]} {n} {s}' for n in NETS[rest[0]] for s in range(3)), sep='\n')
    elif what == 'score': Grid(home, device=dev).scores(run_cfg(rest[0], 'el2n-easyB', 10, int(rest[1])))
    elif what == 'teach': print(teacher(home, rest[0], rest[1], int(rest[2]), dev), flush=True)
    elif what == 'measure': measure(home, rest[0], rest[1], int(rest[2]), rest[3], dev)
    elif what == 'theorem': theorem(home, rest[0], int(rest[1]), rest[2], dev)
    elif what == 'exists': exists(home, rest[0], int(rest[1]), rest[2], dev)
    elif what == 'clouds': clouds(home, rest[0], int(rest[1]), rest[2], dev)
    elif what == 'sets': sets(home, *rest, dev)
    elif what == 'speed': speed(rest[0], dev)
    else: sys.exit(f'{what}: no such step')
