"""Rehearse ImageNet-1K: every command on a synthetic tree of 1,000 classes, and the memory of the full index.

e02_rehearsal.py ROOT HOME     ROOT is made by synthetic_imagenet.py, HOME is filled

Every command is a process of its own; its seconds, processor seconds and largest memory are those of the operating
system. Scoring and the teacher run under torchrun, in two processes of one thread. The network is small, so that two
CPU cores can do it: rates at 224 px with ResNet-18 come from `pca-nb imagenet plan`, whose lines are kept too.
A step that has a row is not done again; rows go to nbs/results/rehearsal.json, which
nbs/experiments/e02_imagenet.ipynb reads.
"""
import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

BIN = Path(sys.executable).parent
OUT = Path(__file__).resolve().parents[1]/'rehearsal.json'
NET = '--arch convnet4-w32'
TORCHRUN = 'torchrun --standalone --no-python --nproc-per-node 2 '
EVALUATE = f'pca-nb evaluate HOME/sets/{{}} --test HOME/val {NET} --seeds 1 --epochs 60 --home HOME/runs'
COMPRESS = 'pca-nb compress HOME/train --out HOME/sets/{0} --method {1} --ipc 1 --scores {2}'
STEPS = {  # name -> command
    'plan': 'pca-nb imagenet plan ROOT --home HOME/plan --gpus 8 --ipc 1',
    'prepare at 224 px': 'pca-nb imagenet prepare ROOT --out HOME/train224',
    'prepare at 64 px': 'pca-nb imagenet prepare ROOT --out HOME/train --size 64',
    'prepare validation': 'pca-nb imagenet prepare ROOT --out HOME/val --size 64 --split validation --zoom 1.142857',
    'score': f'{TORCHRUN}pca-nb score HOME/train --out HOME/scores.npz {NET} --epochs 10',
    'teacher': f'{TORCHRUN}pca-nb train-teacher HOME/train --test HOME/val --out HOME/teacher.pt {NET} --epochs 10',
    'set: random': 'pca-nb compress HOME/train --out HOME/sets/random --method random --ipc 1',
    'set: EL2N': COMPRESS.format('el2n', 'el2n-easyB', 'HOME/scores.npz'),
    'set: PCA': COMPRESS.format('pca', 'pca', 'HOME/scores.npz'),
    'set: PCA, published scores': COMPRESS.format('pca-published', 'pca', 'ROOT/imagenet-data-score.pt'),
    'evaluate random': EVALUATE.format('random'),
    'evaluate EL2N': EVALUATE.format('el2n'),
    'evaluate PCA': EVALUATE.format('pca'),
    'store labels': f'pca-nb store-labels HOME/sets/random --teacher HOME/teacher.pt --test HOME/val '
                    f'--out HOME/labels {NET} --epochs 20',
    'evaluate random, soft': EVALUATE.format('random').replace('--epochs 60', '--epochs 20')
                             + ' --recipe soft --teacher HOME/labels',
}


def run(command, root, home):
    "Run a command to its end; return what it took and said."
    words = [str(home/w[5:]) if w.startswith('HOME/') else str(root)+w[4:] if w.startswith('ROOT') else w
             for w in shlex.split(command)]
    env = os.environ | dict(CI='1', OMP_NUM_THREADS='1', PATH=f"{BIN}:{os.environ['PATH']}")
    start = time.perf_counter()
    process = subprocess.Popen(words, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    took = dict(seconds=time.perf_counter()-start, cpu=used.ru_utime+used.ru_stime, rss=1024*used.ru_maxrss)
    if status: sys.exit(f'{command}\n{said}')
    return took | dict(said=said.replace(str(home), 'HOME').replace(str(root), 'ROOT'))


def size_of(folder):
    return sum(f.stat().st_size for f in Path(folder).rglob('*') if f.is_file()) if Path(folder).exists() else 0


# --- the full index -------------------------------------------------------------------------------------------------

def rss():
    "Return the largest memory of this process so far; `getrusage` would count its parent's too."
    status = Path('/proc/self/status').read_text()
    return 1024*int(re.search(r'VmHWM:\s+(\d+) kB', status)[1])


def index_memory(folder):
    "Hold names, labels and scores of 1,281,167 images, then choose by them; return the largest memory after each."
    import torch
    from pca_nb.core import generator
    from pca_nb.decode import LazyImages
    from pca_nb.imageset import ImageSet
    from pca_nb.prune import take_easiest
    from pca_nb.scores import read_ccs_scores
    from synthetic_imagenet import full_counts, scores, wnid
    found = {'imports': rss()}
    labels = np.repeat(np.arange(1000), full_counts(0))
    file = Path(folder)/'scores.pt'
    if not file.exists():
        import pickle
        file.write_bytes(pickle.dumps(scores(labels, 0)))
    start = time.perf_counter()
    names = [f'{wnid(c)}/{wnid(c)}_{i}.JPEG' for i, c in enumerate(labels)]
    sources = [f'/data/imagenet/train/{name}' for name in names]
    classes = tuple(map(wnid, range(1000)))
    full = ImageSet(LazyImages(sources, 224), torch.from_numpy(labels), classes, files=tuple(names))
    found['names, paths and labels'] = rss()
    published = read_ccs_scores(file, full.labels)
    found['published scores'] = rss()
    chosen = take_easiest(published['el2n'], full.labels, full.classes, 40, generator(0, 'subset'))
    found['40 easiest per class'] = rss()
    return dict(images=len(full), chosen=len(chosen), bytes=found, seconds=time.perf_counter()-start)


def apart(folder):
    "Measure in a process of its own, whose memory nothing else has touched."
    code = f'import json, sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import e02_rehearsal as e; ' \
           f'print(json.dumps(e.index_memory({str(folder)!r})))'
    if not (Path(folder)/'scores.pt').exists():
        subprocess.run([sys.executable, '-c', code], check=True, stdout=subprocess.DEVNULL)  # writes the score file
    done = subprocess.run([sys.executable, '-c', code], check=True, text=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout.splitlines()[-1])


def main(root, home):
    from pca_nb.machine import environment_info
    from pca_nb.timing import cpu_name
    home.mkdir(parents=True, exist_ok=True)
    kept = json.loads(OUT.read_text()) if OUT.exists() else dict(rows=[])
    kept |= environment_info('cpu') | dict(cpu=cpu_name(), cores=os.cpu_count())
    kept['tree'] = dict(images=len(list(root.glob('train/*/*'))), bytes=size_of(root/'train'),
                        validation=len(list(root.glob('val/*'))))
    done = {row['step'] for row in kept['rows']}
    for step, command in STEPS.items():
        if step in done: continue
        print(step, flush=True)
        before = size_of(home)
        took = run(command, root, home)
        about = dict(step=step, command=command, disk=size_of(home)-before, load=os.getloadavg()[0])
        kept['rows'].append(about | took)
        OUT.write_text(json.dumps(kept, indent=1)+'\n')
    kept['index'] = apart(home)
    from pca_nb.imagenet_rates import measure, read_tree
    kept['rates'] = vars(measure(read_tree(root).train, home/'plan', device='cpu'))
    OUT.write_text(json.dumps(kept, indent=1)+'\n')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('root', type=Path)
    parser.add_argument('home', type=Path)
    main(**{k: v.resolve() for k, v in vars(parser.parse_args()).items()})
