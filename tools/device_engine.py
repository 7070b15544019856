"""Ask a borrowed GPU what this project needs from it first: at most ten minutes, in order of value.

1. speed:    rows of `pca-nb speed` on training, recorded and not
2. checks:   recorded = not recorded, no waiting, CPU = GPU, resumed = uninterrupted (engine_checks.py)
3. together: 1, 4 and 16 runs of one shape in one process
4. rows:     rows of a table, as many as there is time for

A row is written to OUT/device_engine.jsonl as soon as it is there, with device and versions; OUT is $OUT, else
_runs/device. Ratios of speed are written once more to OUT/speed.json, as `pca-nb speed` keeps them.
Rows that are there are not made again, so the script goes on where it stopped.
A step is a process of its own: if it fails or uses up its time, the next one begins.
`--dry-run` does everything on the CPU, with tiny sizes and a `Tape` in place of CUDA graphs.
airbench is measured if it can be imported, CIFAR-10 is used if PCA_NB_DATA names a folder that has it.
"""
import argparse
import importlib
import inspect
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

BUDGETS = dict(speed=200, checks=100, together=100, rows=180)  # seconds per step
ENOUGH = 5  # seconds that must be left for a step, or a part of one, to begin


@dataclass
class Plan:
    "What a step needs to know."
    out: Path
    dry: bool
    end: float  # time.time() at which everything must be over

    @property
    def rows_file(self): return self.out/'device_engine.jsonl'
    @property
    def device(self): return 'cpu' if self.dry else 'cuda'
    @property
    def left(self): return self.end-time.time()

    def done(self):
        "Return the names of what has a row already."
        if not self.rows_file.exists(): return set()
        rows = map(json.loads, self.rows_file.read_text().splitlines())
        return {(r['step'], r['part']) for r in rows if 'error' not in r}

    def write(self, step, part, **row):
        line = json.dumps(dict(step=step, part=part, dry=self.dry, **row))
        self.out.mkdir(parents=True, exist_ok=True)
        with self.rows_file.open('a') as f: f.write(line+'\n')
        print(line[:200], flush=True)


# --- speed ----------------------------------------------------------------------------------------------------------

def speed_setups(plan, apart):
    "Return the two setups, recorded and not; without recording a step takes long, so fewer are taken."
    from pca_nb.recording import CudaRecording, Tape
    from pca_nb.timing import GPU, Setup, SpeedScale
    if plan.dry:
        scale = SpeedScale(repeats=1, train32=64, epochs=1, train224=10, batch224=10, epochs224=1, pixel_steps=1)
        return Setup(scale, 'cpu', apart, Tape), Setup(scale, 'cpu', apart, None)
    scale = SpeedScale(**GPU | dict(repeats=3, compiled=False))
    return (Setup(scale, 'cuda', apart, CudaRecording),
            Setup(replace(scale, epochs=6, epochs224=4, pixel_steps=20), 'cuda', apart, None))


def training_32(plan, setup):
    from pca_nb.reference_loop import photos
    from pca_nb.training_speed import time_training
    arch, batch = ('convnet2-w32', 32) if plan.dry else ('convnet3-bn', 128)
    targets = setup.target(gpu=5., recorded=8.), setup.target(gpu=.95, recorded=.90)
    return time_training(arch, photos(setup.scale.train32, 32), batch, setup.scale.epochs, targets, setup)


def training_224(plan, setup):
    from pca_nb.reference_loop import photos
    from pca_nb.training_speed import time_training
    arch, size = ('convnet2-w32', 32) if plan.dry else ('resnet18', 224)
    scale, target = setup.scale, setup.target(gpu=.95, recorded=.95)
    return time_training(arch, photos(scale.train224, size), scale.batch224, scale.epochs224, (5., target), setup)


def recording(plan, setup):
    from pca_nb.measurements import _recording_in_turns
    return _recording_in_turns(setup)


def distilling(plan, setup):
    from pca_nb.pixel_speed import _pixel_row
    networks = [('convnet2-w32', 16, 20)] if plan.dry else [('convnet3-bn', 32, 100), ('resnet18', 224, 100)]
    return [_pixel_row(setup, *network) for network in networks]


def airbench(plan, setup):
    from pca_nb.airbench_speed import time_airbench
    return time_airbench(setup)


SPEED = dict(training_32=training_32, training_224=training_224, recording=recording, distilling=distilling,
             airbench=airbench)


def speed_parts(plan):
    "Yield (name, function that returns rows)."
    from pca_nb.reference_loop import WorkerProcess
    with WorkerProcess() as apart:
        recorded, not_recorded = speed_setups(plan, apart)
        for name, measure in SPEED.items(): yield name, partial(results, measure, plan, recorded)
        for name in ('training_32', 'training_224'):
            yield f'{name}, not recorded', partial(results, SPEED[name], plan, not_recorded)


def results(measure, plan, setup):
    "Return rows of `pca-nb speed` as dicts; one that says so where nothing can be measured."
    found = measure(plan, setup)
    return [vars(r)|dict(verdict=r.verdict) for r in found] or [dict(note='not measured here')]


# --- checks ---------------------------------------------------------------------------------------------------------

def check_parts(plan):
    checks = importlib.import_module('engine_checks')
    place = checks.place_on(plan.device)
    todo = [('recorded_is_eager', 'plain'), ('nobody_waits', 'stored')] if plan.dry else checks.CHECKED

    def row(check, case):
        right, said = checks.is_right(place, check, case)
        return [dict(holds=right, said=said)]
    for check, case in todo: yield f'{check}, {case}', partial(row, check, case)


# --- runs together --------------------------------------------------------------------------------------------------

def together_parts(plan):
    try: from pca_nb.together import train_together
    except ImportError:
        print('runs together: this version of the package cannot do it')
        return
    from pca_nb.recipes import RECIPES
    recipe = replace(RECIPES['hard'], batch=16, epochs=4 if plan.dry else 60, eval_every=1000)
    data = picture_sets(20 if plan.dry else 160)

    def row(n):
        seconds = [seconds_together(train_together, n, data, recipe, plan) for _ in range(1 if plan.dry else 3)]
        return [dict(runs=n, seconds=seconds, steps=recipe.epochs*-(-len(data[0])//16))]
    for n in (1, 2) if plan.dry else (1, 4, 16): yield f'{n} runs', partial(row, n)


def picture_sets(n):
    from pca_nb.reference_loop import photos
    return [photos(n, 32, seed) for seed in range(16)]


def seconds_together(train_together, n, data, recipe, plan):
    from pca_nb.models import make_model
    from pca_nb.timing import now
    from pca_nb.train import Trainer
    runs = [Trainer(make_model('convnet3-w32', 10, 32, s), data[s], recipe, s, device=plan.device) for s in range(n)]
    begin = now()
    train_together(runs)
    return round(now()-begin, 4)


# --- rows of a table ------------------------------------------------------------------------------------------------

def grid_parts(plan):
    from pca_nb.grid import run_grid
    if 'minutes' not in inspect.signature(run_grid).parameters:
        print('rows: this version of the package has no grid under a budget of time')
        return
    for scale in ('quick',) if plan.dry else scales_at_hand(): yield f't05, {scale}', partial(grid_row, plan, scale)


def scales_at_hand():
    from pca_nb.core import Refused
    from pca_nb.datasets import load_data
    try: load_data('cifar10', 'test')
    except (Refused, OSError): return ('quick',)
    return ('quick', 'cifar10')


def grid_row(plan, scale):
    "Make rows of a table for half of the time that is left, and say how many."
    from pca_nb.grid import run_grid
    from pca_nb.result_store import ResultStore
    from pca_nb.tables import runs_for
    cfgs = [c for _, c in runs_for('t05', scale)]
    if plan.dry: cfgs = [c for c in cfgs if c.method == 'random'][:1]
    store = ResultStore(plan.out/f'rows-{scale}.jsonl')
    begin = time.time()
    with tempfile.TemporaryDirectory() as home:
        run_grid(cfgs, store, home, device=plan.device, minutes=max(1, plan.left/2)/60)
    return [dict(table='t05', scale=scale, rows=len(cfgs)-len(store.missing(cfgs)), missing=len(store.missing(cfgs)),
                 seconds=round(time.time()-begin, 1))]


# --- one step after another -----------------------------------------------------------------------------------------

STEPS = dict(speed=speed_parts, checks=check_parts, together=together_parts, rows=grid_parts)


def do_step(step, plan):
    "Do one step in this process, part by part; an error is written down and the next part begins."
    from pca_nb.machine import environment_info
    from pca_nb.timing import cpu_name
    machine = environment_info(plan.device)|dict(cpu=cpu_name(), cores=os.cpu_count())
    done = plan.done()
    for part, make in STEPS[step](plan):
        if (step, part) in done: continue
        if plan.left < ENOUGH:
            print(f'{step}, {part}: no time is left')
            continue
        begin = time.time()
        try: rows = make()
        except Exception as e: rows = [dict(error=f'{type(e).__name__}: {str(e)[:500]}')]
        took = round(time.time()-begin, 1)
        for row in rows: plan.write(step, part, **row, took=took, machine=machine)
        if step == 'speed': keep_speed(plan)


def keep_speed(plan):
    "Write the ratios there are as `pca-nb speed` keeps them."
    import pandas as pd
    from pca_nb.speed import save_speed
    from pca_nb.timing import Result
    rows = [r for r in map(json.loads, plan.rows_file.read_text().splitlines()) if 'ratio' in r]
    table = pd.DataFrame(rows).reindex(columns=[*Result.__dataclass_fields__, 'verdict'])
    table.attrs.update(rows[-1]['machine'] if rows else {}, scale='dry run' if plan.dry else 'of device_engine.py')
    save_speed(table, plan.out/'speed.json')


def run_for(command, seconds):
    "Run a command in a process group of its own; end it all when its time is over. Return how it ended."
    process = subprocess.Popen(command, start_new_session=True)
    try: return {0: 'done'}.get(process.wait(max(seconds, 0)), f'failed with exit code {process.returncode}')
    except subprocess.TimeoutExpired: return f'stopped after {seconds:.0f} s'
    finally:
        try: os.killpg(process.pid, signal.SIGKILL)  # workers too
        except ProcessLookupError: pass
        process.wait()


def main(out, only='', skip='', minutes=10., dry_run=False, step='', end=0.):
    plan = Plan(Path(out), dry_run, end or time.time()+60*minutes-15)  # the last seconds are for what is copied back
    if step: return do_step(step, plan)
    for name in STEPS:
        if (only and name not in only.split(',')) or name in skip.split(','): continue
        if plan.left < ENOUGH:
            print(f'{name}: no time is left')
            continue
        budget = min(BUDGETS[name], plan.left)
        command = [sys.executable, __file__, out, '--step', name, '--end', str(time.time()+budget)]
        print(f'{name}: {budget:.0f} s at most', flush=True)
        print(f"{name}: {run_for(command+['--dry-run']*dry_run, budget)}", flush=True)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', nargs='?', default=os.environ.get('OUT', '_runs/device'))
    parser.add_argument('--only', default='', help='steps, separated by commas')
    parser.add_argument('--skip', default='', help='steps, separated by commas')
    parser.add_argument('--minutes', type=float, default=10.)
    parser.add_argument('--dry-run', action='store_true')
    parser.add_argument('--step', default='', help=argparse.SUPPRESS)
    parser.add_argument('--end', type=float, default=0., help=argparse.SUPPRESS)
    main(**vars(parser.parse_args()))
