"""Measure how long a command works before its first line of output.

first_line.py [--rounds 5] [--before CHECKOUT]   writes nbs/results/first-line.json, which nbs/app/82_cli.ipynb reads

Every command runs on the digits, or on a folder of 16 small JPEG photographs, and is ended at its first line; those
that train nothing are also followed to their end. Seconds are those on the clock and those of the processor, the start
of Python included; the machine's load stands beside them. With `--before` the same commands are measured in another
checkout of this repository, in turn.
"""
import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pca_nb.datasets import sample_photos
from pca_nb.files import save_folder
from pca_nb.machine import environment_info
from pca_nb.timing import cpu_name

ROOT = Path(__file__).resolve().parents[3]
SHORT = ('inspect digits', 'inspect FOLDER', 'table', 'report', 'a mistake')   # they train nothing
RUN = 'import sys; sys.argv[0] = "pca-nb"; from pca_nb.cli import main; main()'   # what the installed `pca-nb` runs


def make_inputs(home):
    "Write what the commands below read: photographs, a teacher, a small set and rows."
    save_folder(sample_photos(32), home/'photos', 'jpeg')
    for words in (['train-teacher', 'digits', '--test', 'digits', '--epochs', '4', '--out', home/'teacher.pt'],
                  ['compress', 'digits', '--method', 'random', '--ipc', '1', '--out', home/'small']):
        subprocess.run([sys.executable, '-c', RUN, *map(str, words)], check=True, stdout=subprocess.DEVNULL)


def commands(home):
    "Return name -> words of the commands."
    rows, small, teacher = ROOT/'nbs'/'results'/'digits.jsonl', home/'small'/'images', home/'teacher.pt'
    test = ('--test', 'digits')
    return {
        '--help': ['--help'],
        'demo': ['demo', '--home', home/'demo'],
        'inspect digits': ['inspect', 'digits'],
        'inspect FOLDER': ['inspect', home/'photos'/'images'],
        'score digits': ['score', 'digits', '--epochs', 2, '--out', home/'s.npz'],
        'score FOLDER': ['score', home/'photos'/'images', '--epochs', 2, '--out', home/'s.npz'],
        'compress': ['compress', 'digits', '--out', home/'new'],
        'evaluate': ['evaluate', small, *test, '--epochs', 2],
        'train-teacher': ['train-teacher', 'digits', *test, '--out', home/'new.pt'],
        'store-labels': ['store-labels', small, *test, '--teacher', teacher, '--out', home/'labels'],
        'benchmark': ['benchmark', 'digits', '--home', home/'benchmark'],
        'table': ['table', 't05', '--ipc', 1, '--rows', rows, '--home', home/'table'],
        'report': ['report', rows, '--table', 't05', '--out', home/'t05.html'],
        'speed': ['speed', '--quick', '--only', 'combining', '--home', home/'speed'],
        'a mistake': ['compress', 'digits', '--method', 'pcaa', '--out', home/'new'],
    }


def follow(words, checkout, to_the_end):
    "Return a command's first line, and its seconds on the clock and of the processor until then or until its end."
    start = time.perf_counter()
    env = os.environ | dict(PYTHONPATH=str(checkout), NO_COLOR='1', TERM='dumb', COLUMNS='140')
    child = subprocess.Popen([sys.executable, '-c', RUN, *map(str, words)], stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, text=True, env=env, cwd=checkout, start_new_session=True)
    line = child.stdout.readline()
    while line and not line.strip(): line = child.stdout.readline()   # the help begins with an empty line
    if to_the_end: child.stdout.read()
    seconds = time.perf_counter()-start
    if not to_the_end: os.killpg(child.pid, signal.SIGKILL)
    _, _, used = os.wait4(child.pid, 0)
    child.returncode = 0   # it is waited for
    child.stdout.close()
    return line.strip(), seconds, used.ru_utime+used.ru_stime


def measure(words, checkouts, rounds, to_the_end):
    "Yield a row per checkout: medians over rounds in which the checkouts take turns."
    taken = {version: [] for version in checkouts}
    for _ in range(rounds):
        for version, checkout in checkouts.items(): taken[version].append(follow(words, checkout, to_the_end))
    for version, all_rounds in taken.items():
        lines, seconds, processor = zip(*all_rounds, strict=True)
        yield dict(version=version, until='end' if to_the_end else 'first line', first_line=lines[-1][:100],
                   seconds=round(statistics.median(seconds), 2), slowest=round(max(seconds), 2),
                   processor_seconds=round(statistics.median(processor), 2), rounds=rounds,
                   load=round(os.getloadavg()[0], 2))


def main(out, rounds, before):
    checkouts = ({'before': Path(before).resolve()} if before else {}) | {'now': ROOT}
    kept = []
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        make_inputs(home)
        jobs = [(name, words, end) for name, words in commands(home).items() for end in {False, name in SHORT}]
        for name, words, to_the_end in jobs:
            for row in measure(words, checkouts, rounds, to_the_end):
                row['first_line'] = row['first_line'].replace(str(home), 'HOME').replace(f'{ROOT}/', '')
                kept.append(dict(command=name, **row))
                print(kept[-1], flush=True)
    about = environment_info('cpu') | dict(cpu=cpu_name(), cores=os.cpu_count())
    text = json.dumps(dict(rows=kept, machine=about), indent=1, ensure_ascii=False)
    Path(out).write_text(text+'\n', encoding='utf-8')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', nargs='?', default=ROOT/'nbs'/'results'/'first-line.json')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--before', default='', help='another checkout of this repository')
    main(**vars(parser.parse_args()))
