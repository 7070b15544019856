"""Count what Python asks a device for in a training step, part by part, before and after steps were taken in chunks.

Writes nbs/results/launches.json, which nbs/experiments/e01_engine.ipynb reads.
BEFORE is a checkout of the commit before (`git worktree add BEFORE 4502719`); this script runs there and here.

Counted on a CPU, where the same operations are done: an operation that is neither a view nor an allocation is one
launch, though a library may launch several kernels for it.
A copy from ordinary memory to the device is none on a CPU; it is counted where Python asks for it, in `torch.tensor`
with a device and in `Tensor.to`, and so is whether the host waits for it.
The steps that a recording replays are not counted, as they are not launched one by one: a replay is one launch.
"""
import argparse
import json
import os
import subprocess
import sys
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pca_nb import train as engine
from pca_nb.imageset import ImageSet
from pca_nb.machine import environment_info
from pca_nb.models import make_model
from pca_nb.recipes import RECIPES
from pca_nb.scores import Recorder

# network, pixels, images per step here (counts do not depend on it), steps per epoch and per chunk of 128 images each
NETWORKS = (('convnet3-w32', 32, 4, 40, 42), ('resnet18', 224, 2, 2, 1))
CASES = dict(plain='hard', extract='pca', cutmix='hard-cutmix', recording='hard')
AFTERWARDS = 'when the run is over'  # not counted
EPOCHS = 4, 6  # the difference of two runs: what an epoch costs when steps are recorded already
PARTS = {  # function -> part, the innermost that is called from a place of the source
    ('augment', 'draw_view'): 'views drawn', ('augment', 'apply_view'): 'views rendered',
    ('decode', 'prefetch_batches'): 'views rendered', ('decode', 'read'): 'views rendered',
    ('_tensor', 'backward'): 'backward', ('scores', 'after_batch'): 'recorder',
    ('train', '_step'): 'forward and loss', ('train', '_set_rate'): 'optimiser', ('train', '_take'): 'rest',
    ('recording', '_again'): 'copies for a replay', ('train', '_plain'): AFTERWARDS,
}
ALLOCATES = ('empty', 'empty_like', 'empty_strided', 'new_empty', 'new_empty_strided', 'detach', 'lift_fresh')
MOVES = 'moved to the device'


def is_launch(op):
    if op.overloadpacket.__name__ in ALLOCATES: return False
    results = op._schema.returns
    return not (results and all(r.alias_info and not r.alias_info.is_write for r in results))


def part():
    "Return which part of a step asks: by the innermost function that has a name in PARTS."
    frame = sys._getframe(2)
    while frame:
        code = frame.f_code
        if f'torch{os.sep}optim' in code.co_filename: return 'optimiser'
        found = PARTS.get((Path(code.co_filename).stem, code.co_name))
        if found: return found
        frame = frame.f_back
    return 'rest'


class Counts(TorchDispatchMode):
    "What is asked for inside, by part, and how often the host waits for the device."
    def __init__(self):
        super().__init__()
        self.launches, self.waits = Counter(), Counter()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if is_launch(op): self.launches[part()] += 1
        if op.overloadpacket.__name__ == '_local_scalar_dense': self.waits[part()] += 1
        return op(*args, **(kwargs or {}))

    def move(self, waits):
        self.launches[MOVES] += 1
        if waits: self.waits[MOVES] += 1

    def __enter__(self):
        self.usual = torch.tensor, torch.Tensor.to
        torch.tensor, torch.Tensor.to = self.tensor, lambda *args, **kw: self.to(*args, **kw)
        return super().__enter__()

    def __exit__(self, *error):
        torch.tensor, torch.Tensor.to = self.usual
        return super().__exit__(*error)

    def tensor(self, *args, **kw):
        if kw.get('device') is not None: self.move(waits=True)
        return self.usual[0](*args, **kw)

    def to(self, t, *args, **kw):
        if self.leaves_the_host(): self.move(waits=not kw.get('non_blocking'))
        return self.usual[1](t, *args, **kw)

    def leaves_the_host(self):
        "The two tensors that are made on the host: the order of the images, and the rates of a chunk."
        caller = sys._getframe(3)  # of the lambda that stands in for `Tensor.to`
        if caller.f_code.co_name == 'send': caller = caller.f_back
        if caller.f_code.co_name == '<listcomp>': caller = caller.f_back
        module, name = Path(caller.f_code.co_filename).stem, caller.f_code.co_name
        return (module, name) in (('train', '_epoch'), ('train', '_rates'), ('chunks', 'chunks'))


class Replayed:
    "Stands in for a recording: what is replayed is one launch."
    counts = None

    def __init__(self, f, like): self.out = f()
    def replay(self): self.counts.launches['replay'] += 1


def refuse(f, like):
    "Record nothing: as on a GPU with `--no-graph`, where rates are on the device too."
    from pca_nb.recording import CannotRecord
    raise CannotRecord('')


def picture(n, size, grid):
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, size, size), generator=g, dtype=torch.uint8)
    labels = torch.arange(n) % 10
    return ImageSet(images, labels, range(10), torch.arange(n)[:, None].expand(n, grid*grid), grid)


def counted(arch, size, batch, steps, case, epochs, options):
    data = picture(batch*steps, size, 2 if case == 'extract' else 1)
    recipe = replace(RECIPES[CASES[case]], batch=batch, epochs=epochs)
    callbacks = [Recorder(len(data))] if case == 'recording' else []
    counts = Replayed.counts = Counts()
    with counts:
        engine.train(make_model(arch, 10, size), data, recipe, callbacks=callbacks, device='cpu',
                     dtype=torch.bfloat16, **options)
    return counts


def rows(engines):
    for arch, size, batch, steps, per_chunk in NETWORKS:
        if 'before' not in engines:
            from pca_nb.chunks import CHUNK_BYTES
            CHUNK_BYTES['cpu'] = per_chunk*batch*12*size*size  # as many steps as a chunk of a GPU holds
        for case in CASES:
            for name, options in engines.items():
                counted(arch, size, batch, steps, case, 1, options)  # constants are sent once in a process
                few, more = (counted(arch, size, batch, steps, case, e, options) for e in EPOCHS)
                n = steps*(EPOCHS[1]-EPOCHS[0])
                more.launches.subtract(few.launches)
                more.waits.subtract(few.waits)
                for kind in (more.launches, more.waits): del kind[AFTERWARDS]
                yield dict(arch=arch.removesuffix('-w32'), size=size, case=case, engine=name,
                           launches={k: round(v/n, 3) for k, v in sorted(more.launches.items()) if v},
                           waits={k: round(v/n, 3) for k, v in sorted(more.waits.items()) if v})


def main(before, out, engine_is=''):
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')  # that nothing is recorded
    if engine_is:  # in the checkout of the old engine
        print(json.dumps(list(rows({'before': {}}))))
        return
    script = Path(__file__).resolve()
    env = os.environ | dict(PYTHONPATH=str(Path(before).resolve()))
    old = subprocess.run([sys.executable, script, '--engine-is', 'before', before], env=env, check=True,
                         stdout=subprocess.PIPE, text=True).stdout
    new = rows({'after': dict(recorder=refuse), 'recorded': dict(recorder=Replayed)})
    content = dict(rows=[*json.loads(old.splitlines()[-1]), *new], **environment_info('cpu'))
    Path(out).write_text(json.dumps(content, indent=1)+'\n')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('before', help='a checkout of the engine before')
    parser.add_argument('out', nargs='?', default='nbs/results/launches.json')
    parser.add_argument('--engine-is', default='', help=argparse.SUPPRESS)
    main(**vars(parser.parse_args()))
