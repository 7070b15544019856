"""Time `train` before and after views were drawn and rendered for many steps at once, in turn, on one thread.

Writes nbs/results/before-after.json, which nbs/experiments/e01_engine.ipynb reads.
BEFORE is a checkout of the commit before (`git worktree add BEFORE 4502719`).
Each engine runs in a process of its own; in every round both are timed, one right after the other, and the one that
begins changes from round to round.
Seconds are those that the process computed (its CPU time), beside those of the clock: on a busy machine the first are
the better measure of what the work takes.
"""
import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

SETTINGS = (  # network, pixels, images per step, images, epochs per round
    ('convnet2-w32', 16, 16, 400, 12),
    ('convnet3-w32', 32, 32, 640, 3),
    ('convnet3-bn', 32, 128, 512, 1),
    ('convnet4-w32', 64, 32, 320, 2),
)


def serve():
    "Train as standard input asks for, setting by setting; answer with seconds of the clock and of the processor."
    import torch
    from pca_nb.models import make_model
    from pca_nb.recipes import RECIPES
    from pca_nb.reference_loop import photos
    from pca_nb.train import train
    torch.set_num_threads(1)
    made = {}
    for line in sys.stdin:
        arch, size, batch, n, epochs = setting = SETTINGS[int(line)]
        if setting not in made: made[setting] = photos(n, size), make_model(arch, 10, size)
        data, net = made[setting]
        begin = time.perf_counter(), time.process_time()
        train(net, data, replace(RECIPES['hard'], batch=batch, epochs=epochs), device='cpu')
        print(json.dumps([time.perf_counter()-begin[0], time.process_time()-begin[1]]), flush=True)


def start(folder):
    env = os.environ | dict(PYTHONPATH=str(Path(folder).resolve()), OMP_NUM_THREADS='1', CI='1')
    return subprocess.Popen([sys.executable, __file__, '--serve', '-'], env=env, text=True, stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE)


def ask(process, setting):
    process.stdin.write(f'{setting}\n')
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def main(before, out, rounds, serves):
    if serves: return serve()
    from pca_nb.machine import environment_info
    from pca_nb.timing import cpu_name
    engines = dict(before=start(before), after=start(Path(__file__).resolve().parents[3]))
    rows = []
    for number, (arch, size, batch, n, epochs) in enumerate(SETTINGS):
        for process in engines.values(): ask(process, number)  # warms up
        for k in range(rounds):
            names = list(engines) if k % 2 else list(engines)[::-1]
            seconds = {name: ask(engines[name], number) for name in names}
            timed = {name: dict(clock=round(s[0], 4), cpu=round(s[1], 4)) for name, s in seconds.items()}
            rows.append(dict(arch=arch, size=size, batch=batch, images=n*epochs, round=k,
                             load=round(os.getloadavg()[0], 1), **timed))
        print(rows[-1], flush=True)
    for process in engines.values():
        process.stdin.close()
        process.wait()
    machine = environment_info('cpu')|dict(threads='1', cpu=cpu_name(), cores=os.cpu_count())
    Path(out).write_text(json.dumps(dict(rows=rows, **machine), indent=1)+'\n')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('before', help='a checkout of the engine before')
    parser.add_argument('out', nargs='?', default='nbs/results/before-after.json')
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--serve', dest='serves', action='store_true', help=argparse.SUPPRESS)
    main(**vars(parser.parse_args()))
