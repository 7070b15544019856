"The main job from a shell, on folders as people have them."
import csv
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from pca_nb import cli, datasets, distill, speed, timing
from pca_nb.datasets import load_data
from pca_nb.workers import process_pool
from pca_nb.methods import BENCH, METHODS, Method
from pca_nb.models import make_model
from pca_nb.parquet import save_parquet
from pca_nb.protocols import scoring_cfg
from pca_nb.scores import Dynamics
from pca_nb.stats import summary
from pca_nb.tables import read_table, rows_file, runs_for
from pca_nb.teachers import Teacher, TeacherCfg, make_teacher
from pca_nb.terminal import Stopped

CPU = ('--device', 'cpu')


def sh(*args, env):
    "A command as a person types it: another process."
    words = [str(Path(sys.executable).parent/'pca-nb'), *map(str, args)]
    r = subprocess.run(words, capture_output=True, text=True, env=env)
    assert r.returncode == 0, r.stdout + r.stderr
    return r.stdout


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    "Two classes of photographs of any size: bright top or bright bottom, 24 to train and 10 to test"
    root = tmp_path_factory.mktemp('photos')
    rng = np.random.default_rng(0)
    for split, n in (('train', 24), ('test', 10)):
        for c in ('sky', 'snow'):
            (root/split/c).mkdir(parents=True)
            for i in range(n):
                h, w = rng.integers(20, 60, 2)
                a = rng.integers(0, 90, (h, w, 3))
                a[:h // 2] += 120 if c == 'sky' else 0
                a[h // 2:] += 120 if c == 'snow' else 0
                Image.fromarray(a.astype(np.uint8)).save(root/split/c/f'{i:02d}.{"png" if i % 2 else "jpg"}')
    return root


def listed(folder):
    "What `compress` says it chose."
    with (folder/'chosen.csv').open() as f:
        return list(csv.DictReader(f))


def check_compress_then_evaluate(run, folders, out, method, grid):
    said = run('compress', folders/'train', '--method', method, '--ipc', 3, '--out', out, '--epochs', 3, *CPU)
    s = load_data(out)
    chosen = listed(out)
    assert s.grid == grid and s.counts.tolist() == [3, 3]
    assert 'bytes' in said and f'chosen: {6 * grid**2} of 48' in said
    assert len(chosen) == 6 * grid**2 and all((out/r['stored']).exists() for r in chosen)
    assert all((folders/'train'/r['source']).exists() and r['source'].startswith(r['class']) for r in chosen)
    said = run('evaluate', out, '--test', folders/'test', '--seeds', 2, '--epochs', 12, *CPU)
    assert f'patches {"extract" if grid == 2 else "none"}' in said and 'ahead: 2 trainings, 24 steps in all' in said
    assert float(re.search(r'top-1 ([\d.]+) ± [\d.]+ % \(n=2\)', said)[1]) > 60   # chance is 50


def test_compress_then_evaluate(folders, tmp_path, clean_env):
    "In processes of their own, as installed."
    check_compress_then_evaluate(lambda *a: sh(*a, env=clean_env), folders, tmp_path/'small', 'pca', 2)


def test_compress_plain_images_then_evaluate(folders, tmp_path, shell):
    check_compress_then_evaluate(shell, folders, tmp_path/'small', 'random', 1)


def test_evaluate_keeps_rows_and_reads_them(folders, tmp_path, shell):
    "A row per seed if there is a home; what is finished is not trained again."
    words = ('evaluate', folders/'train', '--test', folders/'test', '--epochs', 2, '--size', 16, '--home', tmp_path,
             *CPU)
    first = shell(*words, '--seeds', 1)
    assert 'ahead: 1 training, 6 steps' in first and len((tmp_path/'evaluate.jsonl').read_text().splitlines()) == 1
    again = shell(*words, '--seeds', 2)
    assert 'ahead: 1 training, 6 steps' in again and len((tmp_path/'evaluate.jsonl').read_text().splitlines()) == 2
    assert 'ahead' not in shell(*words, '--seeds', 2) and not list((tmp_path/'ckpt').iterdir())


def test_parquet_in_and_out(folders, tmp_path, shell):
    for split in ('train', 'test'):
        save_parquet(load_data(folders/split, size=24), tmp_path/f'{split}.parquet', 'webp')
    small, train = tmp_path/'small', tmp_path/'train.parquet'
    said = shell('compress', train, '--method', 'el2n-easyB', '--ipc', 2, '--out', small, '--epochs', 2, '--format',
                 'jpeg')
    assert 'as jpeg' in said and load_data(small).size == (24, 24)
    assert 'top-1' in shell('evaluate', small, '--test', tmp_path/'test.parquet', '--seeds', 1, '--epochs', 2)


def test_score_then_compress(folders, tmp_path, shell):
    scores = tmp_path/'s.npz'
    assert 'forgetting-inf' in shell('score', folders/'train', '--out', scores, '--epochs', 2)
    words = ('compress', folders/'train', '--method', 'aum-easyB', '--ipc', 2, '--scores', scores, '--out',
             tmp_path/'small')
    assert 'ahead' not in shell(*words)   # nothing is trained
    assert len(load_data(tmp_path/'small')) == 4
    words = ('compress', folders/'train', '--method', 'cover', '--ipc', 1, '--factor', 2, '--scores', scores, '--out')
    assert 'ahead' not in shell(*words, tmp_path/'cover')
    assert load_data(tmp_path/'cover').grid == 2
    shell(*words, tmp_path/'again', '--shrink', 'lsq')   # which is the method's own
    a, b = (load_data(tmp_path/k) for k in ('cover', 'again'))
    assert torch.equal(a.images, b.images)


def test_benchmark_on_a_folder_then_report(folders, tmp_path, shell):
    words = ('benchmark', folders/'train', '--test', folders/'test', '--methods', 'random', '--ipc', 1, '--seeds', 1,
             '--size', 16, '--home', tmp_path, '--workers', 1, *CPU)
    out = shell(*words)
    assert '1 to make' in out and 'convnet2-w32' in out and '0 to make' in shell(*words)
    shell('report', tmp_path/'benchmark.jsonl', '--out', tmp_path/'r.html')
    page = (tmp_path/'r.html').read_text()
    assert '<table' in page and 'data:image/png;base64' in page and not re.findall(r'(?:src|href)="(?!data:)', page)


def test_table_reads_the_rows_that_are_there(tmp_path, shell, monkeypatch):
    "the command that a notebook names prints the notebook's numbers, and makes only what is missing"
    stored = rows_file('quick', Path(__file__).resolve().parents[1]/'nbs'/'results')
    mine = tmp_path/'rows.jsonl'
    mine.write_bytes(stored.read_bytes())
    places = ('--rows', mine, '--home', tmp_path, '--workers', 1)
    monkeypatch.setenv('PCA_NB_SCALE', 'quick')
    out = shell('table', 't05', '--ipc', 1, *places)
    t = summary(read_table('t05', 'quick', stored.parent, (1,))).set_index('method')
    assert '30 runs, 0 to make' in out and f"{t.loc['pca', 'mean']:.1f} ± {t.loc['pca', 'std']:.1f} (5)" in out
    gone = next(c.key for label, c in runs_for('t24', 'quick', (1,)) if (label, c.seed) == ('random', 0))
    mine.write_text(''.join(row+'\n' for row in mine.read_text().splitlines() if f'"key": "{gone}"' not in row))
    assert '5 runs, 1 to make' in shell('table', 't24', '--ipc', 1, '--seeds', 1, *places)


def test_speed_exits_with_1_when_something_is_broken(tmp_path, monkeypatch, capsys):
    "A ratio below half of its target; one that is merely missed is a line of the table and no failure."
    for ratio, code in ((1.9, 1), (2.1, 0), (4.5, 0)):
        r = timing.Result('reading', 'a loop', ratio, ratio, ratio, 5, 4.)
        table = pd.DataFrame([vars(r)|dict(verdict=r.verdict)])
        table.attrs.update(cpu='a cpu', cores=2, device='cpu', dtype='float32', torch='2', scale='quick')
        monkeypatch.setattr(speed, 'speed', lambda *a, table=table: table)
        monkeypatch.setattr(sys, 'argv', ['pca-nb', 'speed', '--quick', '--home', str(tmp_path)])
        with pytest.raises(SystemExit) as e: cli.main()
        said = capsys.readouterr()
        assert e.value.code == code and ('below half of 4' in said.err) == bool(code)
        assert ('missed' in said.out) == (ratio < 4)
        assert speed.read_speed(tmp_path/'speed.json').ratio[0] == ratio


def test_speed_of_one_thing(tmp_path, shell):
    "A real run of the shortest measurement."
    assert 'pca-nb --help' in shell('speed', '--quick', '--only', 'help', '--out', tmp_path/'s.json')
    said = shell('speed', '--only', 'teleport', '--out', tmp_path/'t.json', ok=False)
    assert "no measurement has 'teleport' in its name" in said and not (tmp_path/'t.json').exists()


def test_no_graph_is_an_option_of_every_command_that_trains():
    "A command that chooses a device trains on it, but for the one that writes a teacher's answers."
    import typer
    commands = typer.main.get_command(cli.app).commands
    options = {name: [o for p in c.params for o in p.opts] for name, c in commands.items()}
    trains = {name for name, opts in options.items() if '--device' in opts and name != 'store-labels'} | {'demo'}
    assert {name for name, opts in options.items() if '--no-graph' in opts} == trains and len(trains) == 8


@pytest.mark.parametrize('words, seen', [(('--no-graph',), '0'), ((), None)])
def test_no_graph_reaches_the_workers_and_ends_with_the_command(tmp_path, shell, monkeypatch, words, seen):
    here, there = [], []
    monkeypatch.delenv('PCA_NB_GRAPH', raising=False)

    def measure(*_):
        here.append(os.environ.get('PCA_NB_GRAPH'))
        with process_pool(1) as pool: there.append(pool.submit(os.getenv, 'PCA_NB_GRAPH').result())
        return speed.as_table([])
    monkeypatch.setattr(speed, 'speed', measure)
    monkeypatch.setattr(speed, 'save_speed', lambda table, path: path)
    monkeypatch.setattr(cli, 'show_speed', print)
    shell('speed', '--out', tmp_path/'s.json', *words)
    assert (here, there) == ([seen], [seen]) and 'PCA_NB_GRAPH' not in os.environ


def seed0(text):
    "The line of seed 0 in a printed table; columns may be wider."
    return re.search(r'│ 0 +│.*', text)[0].split()


def test_teacher_labels_evaluate(tmp_path, shell):
    "Train a teacher, learn from it live, store its labels, learn from those; what does not go together is refused."
    small, t, kept = tmp_path/'small', tmp_path/'t.pt', tmp_path/'kept'
    shell('compress', 'digits', '--method', 'random', '--ipc', 3, '--out', small, *CPU)
    out = shell('train-teacher', 'digits', '--test', 'digits', '--out', t, '--epochs', 3, *CPU)
    assert 'Teacher(convnet2-w32, 16 px, 10 classes' in out and 'ahead: 1 training' in out
    base = ('evaluate', small, '--test', 'digits', '--recipe', 'soft', '--seeds', 2, *CPU)
    soft = (*base, '--epochs', 4)
    live = shell(*soft, '--teacher', t)
    words = ('store-labels', small, '--teacher', t, '--test', 'digits', '--epochs', 4, '--out', kept, '--codec',
             'fp32', *CPU)
    assert '5,400 bytes' in shell(*words)   # 30 images × 4 epochs × (25 + 20): the usual format
    again = shell(*soft, '--teacher', kept)
    assert seed0(live) == seed0(again) and 'only weights vary' in again
    refused = {'epochs: 4 are stored, 5 asked for': (*base, '--epochs', 5, '--teacher', kept),
               '--min-top1 needs a teacher': (*soft, '--teacher', kept, '--min-top1', 50),
               'asked for at least 99.9 %': (*soft, '--teacher', t, '--least', 99.9),
               'learns from a teacher': soft,
               'was trained at 16 px': (*soft, '--teacher', t, '--size', 32),
               'labels for another set': (*soft, '--teacher', kept, '--size', 32)}
    for said, args in refused.items():
        err = shell(*args, ok=False)
        assert said in ' '.join(err.split()) and len(err.strip().splitlines()) == 1, err
    t.write_bytes(t.read_bytes()[:3000])
    assert 'is no checkpoint' in shell(*soft, '--teacher', t, ok=False)


@pytest.fixture(scope='module')
def teachers(tmp_path_factory):
    "Two small networks that know the digits, as files, and one that was taken away before it did."
    root = tmp_path_factory.mktemp('teachers')
    full = load_data('digits')
    test = load_data('digits', 'test')
    for seed in (0, 1):
        recipe = replace(scoring_cfg('digits', 16, len(full), '').recipe, epochs=3)
        make_teacher(full, TeacherCfg('convnet2-w32', recipe, seed, 16), test, root/f'{seed}.pt', 'cpu')
    fresh = Teacher(make_model('convnet2-w32', 10, 16, 0), 'convnet2-w32', 16, full.classes, full.stats, 10.)
    fresh.save(root/'fresh.pt')
    return root


@pytest.fixture
def here(capsys):
    "A command in this process; returns what it printed, its errors are raised as they are."
    def run(*args):
        capsys.readouterr()
        cli.app(list(map(str, args)), standalone_mode=False)
        return ' '.join(capsys.readouterr().out.split())
    return run


def compressing(method, out, *more, ipc=1):
    "The words of a compression of digits."
    return ('compress', 'digits', '--method', method, '--ipc', ipc, '--out', out, *CPU, *more)


def test_compress_makes_images(teachers, tmp_path, here):
    "Optimised from nothing: a set like any other for `evaluate`, whose list of chosen images names none."
    small = tmp_path/'small'
    out = here(*compressing('sre2l', small, '--teacher', teachers/'0.pt', '--steps', 5, ipc=2))
    assert 'sre2l: 5 iterations (4,000 are published) × 1 batch, with Teacher(convnet2-w32' in out
    assert 'chosen: none of 1197' in out
    assert re.search(r'made: [\d.]+ % named correctly by Teacher\(convnet2-w32.*; statistics from [\d.]+ to [\d.]+',
                     out)
    s = load_data(small)
    rows = listed(small)
    assert s.counts.tolist() == [2] * 10 and (s.index == -1).all() and s.name == 'digits'
    assert len(rows) == 20 and all((small/r['stored']).exists() for r in rows)
    assert all(r['source'] == r['position'] == r['score'] == '' for r in rows)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['small']   # no checkpoint is left
    assert 'top-1' in here('evaluate', small, '--test', 'digits', '--seeds', 1, '--epochs', 2, *CPU)


def test_compress_goes_on_where_it_was_stopped(teachers, tmp_path, here, monkeypatch):
    "Ctrl-C in the fourth iteration: the file it names is resumed from, by this work only, and removed at the end."
    def words(out, steps=6): return compressing('sre2l', tmp_path/out, '--teacher', teachers/'0.pt', '--steps', steps)
    here(*words('whole'))
    terms, seen = distill._Loop.terms, []

    def stops(self, batch, *inputs):
        k = batch.k
        first = k not in seen
        seen.append(k)
        if k == 3 and first: raise KeyboardInterrupt
        return terms(self, batch, *inputs)
    monkeypatch.setattr(distill, 'SAVE_EVERY', 0)
    monkeypatch.setattr(distill._Loop, 'terms', stops)
    resume = rf'^stopped: run it again to go on from {tmp_path}/small.v1.ckpt$'
    with pytest.raises(Stopped, match=resume): here(*words('small.v1'))
    assert not (tmp_path/'small.v1').exists()
    with pytest.raises(ValueError, match='small.v1.ckpt belongs to another run'): here(*words('small.v1', 7))
    here(*words('small.v1'))
    assert seen == [0, 1, 2, 3, 3, 4, 5] and not (tmp_path/'small.v1.ckpt').exists()
    assert (load_data(tmp_path/'small.v1').images == load_data(tmp_path/'whole').images).all()
    with pytest.raises(ValueError, match='small.v1 is there already'): here(*words('small.v1'))


def test_compress_refuses_networks_before_it_reads(teachers, tmp_path, here, monkeypatch):
    "Networks that a method has no use for or lacks, before any image is read; one that knows nothing, before any work."
    load, reads, t = datasets.load_data, [], teachers/'0.pt'
    monkeypatch.setattr(datasets, 'load_data', lambda *a, **kw: reads.append(a) or load(*a, **kw))
    train = 'run `pca-nb train-teacher digits --test TEST --out teacher.pt`'
    refused = (('sre2l', (), f'sre2l needs a trained network: {train}'),
               ('gvbsm', (), f'gvbsm needs trained networks: {train}'),
               ('rded', (), 'rded needs a trained network'), ('pca', ('--teacher', t), 'pca needs no trained network'),
               ('sre2l', ('--teacher', f'{t},{t}'), '2 trained networks given, sre2l needs one'),
               ('pca-crop-nll-other', ('--teacher', f'{t},{t}'), '2 trained networks given'),
               ('random', ('--steps', 5), 'steps=5, but random optimises nothing'),
               ('rded', ('--steps', 5, '--teacher', t), 'steps=5, but rded optimises nothing'))
    for method, more, said in refused:
        with pytest.raises(ValueError, match=re.escape(said)): here(*compressing(method, tmp_path/'x', *more))
    assert not reads
    for method in ('sre2l', 'rded'):
        with pytest.raises(ValueError, match='is right on 10.0 %, asked for at least 20 %'):
            here(*compressing(method, tmp_path/'x', '--teacher', teachers/'fresh.pt'))
        with pytest.raises(ValueError, match='was trained at 16 px'):
            here(*compressing(method, tmp_path/'x', '--teacher', t, '--size', 32))
    assert not list(tmp_path.iterdir())


def test_compress_with_several_networks_and_with_crops(teachers, tmp_path, here, monkeypatch):
    "G-VBSM needs two; RDED's crops come from listed images; a newcomer's method may have no constants."
    t, both = teachers/'0.pt', f"{teachers/'0.pt'},{teachers/'1.pt'}"
    out = here(*compressing('gvbsm', tmp_path/'g', '--teacher', both, '--steps', 2))
    assert 'gvbsm: 2 iterations' in out and out.count('named correctly by') == 2
    for more, grid in (((), 1), (('--factor', 2), 2)):   # one crop per file below 64 px unless a factor is given
        out = here(*compressing('rded', tmp_path/f'r{grid}', '--teacher', t, *more))
        s = load_data(tmp_path/f'r{grid}')
        assert f'chosen: {10 * grid**2} of 1197' in out and s.grid == grid and (s.index >= 0).all()
    given = []

    def mine(full, ipc, inputs):
        given.append(len(inputs.teachers))
        return METHODS['random'].make(full, ipc, inputs)
    monkeypatch.setitem(METHODS, 'mine', Method(mine, teachers='several'))
    assert 'chosen: 10 of 1197' in here(*compressing('mine', tmp_path/'mine', '--teacher', both)) and given == [2]
    out = here(*compressing('pca-crop-nll', tmp_path/'pc', '--teacher', t, '--epochs', 1))
    assert 'chosen: 40 of 1197' in out and load_data(tmp_path/'pc').grid == 2


def test_compress_what_was_compressed(tmp_path, here):
    "Sources are the images at hand, wherever those were taken from."
    a, b = tmp_path/'a', tmp_path/'b'
    here(*compressing('random', a, ipc=2))
    assert 'chosen: 10 of 20' in here('compress', a, '--method', 'random', '--ipc', 1, '--out', b, *CPU)
    for r in listed(b): assert (a/r['source']).read_bytes() == (b/r['stored']).read_bytes()


def test_old_spellings_are_accepted_with_a_line(tmp_path, shell):
    assert 'fit is called lsq now' in shell(*compressing('random', tmp_path/'a', '--shrink', 'fit'))
    said = shell('bench', 'digits', '--methods', 'nothing-like-it', '--home', tmp_path, ok=False)
    assert "unknown method 'nothing-like-it'" in said


def test_the_scoring_network_is_judged(tmp_path, here, capsys):
    "How often it was right is said; one that learned nothing is warned of."
    from pca_nb.cli_images import say_accuracy
    assert 'the network was right in' in here('score', 'digits', '--epochs', 2, '--out', tmp_path/'s.npz', *CPU)
    labels = torch.tensor([0]*6+[1]*4)
    right = torch.tensor([2.]*6+[0.]*4)
    say_accuracy(Dynamics(dict(correct=right), 2, 2, {}), labels)
    assert 'rank noise' in capsys.readouterr().err
    say_accuracy(Dynamics(dict(correct=right+torch.tensor([0.]*6+[2.]*4)), 2, 2, {}), labels)
    assert capsys.readouterr().err == ''


def test_several_teachers_or_a_line_about_it(teachers, tmp_path, here):
    "An ensemble's recipe averages all that are named, each checked; with one it says what the paper does."
    t, line, s = teachers/'0.pt', 'the paper uses an ensemble of teachers, this run has one', tmp_path/'s'
    two = f"{t},{teachers/'1.pt'}"
    here(*compressing('random', s))

    def soft(recipe, files):
        return here('evaluate', s, '--test', 'digits', '--recipe', recipe, '--teacher', files, '--seeds', 1,
                    '--epochs', 2, *CPU)

    def row(text): return re.search(r'│ 0 │[^└]*', text)[0]
    both = soft('gvbsm', two)
    one = soft('gvbsm', t)
    assert line not in both and line not in soft('soft', t) and f'gvbsm: {line}' in one
    assert both.count('Teacher(convnet2-w32') == 2 and one.count('Teacher(convnet2-w32') == 1
    assert row(both) != row(one)
    assert f'edc-code: {line}' in soft('edc-code', t)
    with pytest.raises(ValueError, match='is right on'): soft('gvbsm', f'{t},{teachers}/fresh.pt')
    labels = ('store-labels', s, '--test', 'digits', '--recipe', 'gvbsm', '--epochs', 2, '--codec', 'fp32', *CPU)
    assert line in here(*labels, '--teacher', t, '--out', tmp_path/'k1')
    assert line not in here(*labels, '--teacher', two, '--out', tmp_path/'k2')
    assert row(soft('gvbsm', tmp_path/'k2')) == row(both) and row(soft('gvbsm', tmp_path/'k1')) == row(one)


def test_benchmark_all_are_the_papers_columns(tmp_path, here, monkeypatch):
    "One run per column, without making any; a method that optimises says how long a set took."
    ran = []

    def grid(cfgs, *a):
        ran.extend(cfgs)
        notes = dict(sre2l=dict(seconds=2.04, steps=1200), rded=dict(seconds=.5))
        return pd.DataFrame([dict(method=c.method, ipc=c.ipc, made=notes.get(c.method, float('nan'))) for c in cfgs])
    monkeypatch.setattr(cli, 'run_announced', grid)
    monkeypatch.setattr('pca_nb.stats.summary', lambda frame: frame)
    monkeypatch.setattr('pca_nb.stats.format_table', lambda frame: pd.DataFrame())
    out = here('benchmark', 'digits', '--methods', 'tiles,all,pca', '--ipc', '1,2', '--seeds', 1, '--home', tmp_path)
    assert [c.method for c in ran if c.ipc == 1] == ['tiles', *BENCH] and len(ran) == 2 * (1+len(BENCH))
    assert ('sre2l: 2.0 s at ipc 1, 2.0 s at ipc 2 to make a set, 1,200 iterations per batch '
            'rded: 0.5 s at ipc 1, 0.5 s at ipc 2 to make a set rows:') in out
    with pytest.raises(KeyError, match="unknown method 'everything'"):
        here('benchmark', '--methods', 'all,everything', '--home', tmp_path)


LISTEN = """
import contextlib, io, json, sys
from pca_nb.cli import main

class FirstLine(BaseException): "Ends a command."

class Ear(io.StringIO):
    def write(self, text):
        super().write(text)
        if text.strip(): raise FirstLine

heard = {}
for words in json.loads(sys.argv[1]):
    sys.argv = ['pca-nb', *words]
    ear = Ear()
    with contextlib.redirect_stdout(ear), contextlib.redirect_stderr(ear), contextlib.suppress(FirstLine): main()
    last = ear.getvalue().strip().splitlines()[-1] # before it rich says again what was interrupted
    heard[words[0]] = last.strip(), sorted({m.partition('.')[0] for m in sys.modules})
print(json.dumps(heard))
"""
AT_ONCE = {  # what a command says before it imports torch
    '--help': ((), 'Usage: pca-nb'),
    'inspect': (('digits', '--split', 'test'), 'reading digits, test')}
SOON = {     # what the others say before they import more than torch and pandas
    'report': (('ROWS', '--table', 't05', '--out', 'PLACE/x.html'), 'ROWS_IN_FILE'),
    'table': (('t05', '--ipc', '1', '--rows', 'ROWS', '--home', 'PLACE'), '30 runs, 0 to make'),
    'demo': (('--seeds', '1', '--home', 'PLACE'), '14 runs, 14 to make'),
    'benchmark': (('PLACE/a', '--test', 'PLACE/b', '--home', 'PLACE'), 'reading PLACE/a'),
    'score': (('digits', '--out', 'PLACE/s.npz'), 'reading digits'),
    'compress': (('digits', '--out', 'PLACE/small'), 'reading digits'),
    'evaluate': (('PLACE/a', '--test', 'digits'), 'reading PLACE/a'),
    'train-teacher': (('digits', '--test', 'digits', '--out', 'PLACE/t.pt'), 'reading digits'),
    'store-labels': (('PLACE/a', '--test', 'digits', '--teacher', 't.pt', '--out', 'PLACE/l'), 'reading PLACE/a'),
    'speed': (('--quick', '--home', 'PLACE'), 'training')}
COMPUTE = {'numpy', 'torch', 'pandas', 'PIL'}
HEAVY = {'torchvision', 'sympy', 'sklearn', 'scipy', 'matplotlib', 'seaborn', 'IPython', 'ipywidgets', 'anywidget',
         'plotly', 'datasets', 'kornia', 'distributed', 'fastcore'}


def test_the_first_line_waits_for_no_import_that_it_does_not_need(tmp_path, clean_env):
    "Seconds depend on the machine, so what is imported until then is counted; one process, so later ones inherit."
    rows = str(rows_file('quick', Path(__file__).resolve().parents[1]/'nbs'/'results'))
    n_rows = len(Path(rows).read_text().splitlines())
    expected = {name: (words, line.replace('ROWS_IN_FILE', f'{n_rows} rows in ROWS'))
                for name, (words, line) in (AT_ONCE | SOON).items()}
    own = {c.name or c.callback.__name__ for c in cli.app.registered_commands}
    assert own == set(expected)-{'--help'}   # a new command says its first line here too

    def place(text): return text.replace('PLACE', str(tmp_path)).replace('ROWS', rows)
    asked = [[name, *map(place, words)] for name, (words, _) in expected.items()]
    r = subprocess.run([sys.executable, '-c', LISTEN, json.dumps(asked)], capture_output=True, text=True, env=clean_env)
    assert r.returncode == 0, r.stderr
    heard = json.loads(r.stdout)
    for name, (_, line) in expected.items():
        said, imported = heard[name]
        too_much = HEAVY | COMPUTE if name in AT_ONCE else HEAVY
        assert said.startswith(place(line)) and not too_much & set(imported), (name, said, too_much & set(imported))
