"The main job from a shell, on folders as people have them."
import csv
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pca_nb.parquet import save_parquet
from pca_nb.datasets import load_data

PCA_NB = str(Path(sys.executable).parent/'pca-nb')


def sh(*args, env, ok=True):
    r = subprocess.run([PCA_NB, *map(str, args)], capture_output=True, text=True, env=env)
    assert (r.returncode == 0) == ok, r.stdout + r.stderr
    return r.stdout if ok else r.stderr


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    "Two classes of photographs of any size: bright top or bright bottom, 24 to train and 10 to test"
    root, rng = tmp_path_factory.mktemp('photos'), np.random.default_rng(0)
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


@pytest.mark.parametrize('method, grid', [('pca', 2), ('random', 1)])
def test_compress_then_evaluate(folders, tmp_path, clean_env, method, grid):
    out = sh('compress', folders/'train', '--method', method, '--ipc', 3, '--out', tmp_path/'small', '--epochs', 3, '--device', 'cpu', env=clean_env)
    s = load_data(tmp_path/'small')
    assert s.grid == grid and s.counts.tolist() == [3, 3] and 'bytes' in out and f'chosen: {6 * grid**2} of 48' in out
    chosen = list(csv.DictReader((tmp_path/'small'/'chosen.csv').open()))
    assert len(chosen) == 6 * grid**2 and all((folders/'train'/r['source']).exists() and r['source'].startswith(r['class']) for r in chosen)
    assert all((tmp_path/'small'/r['stored']).exists() for r in chosen)
    out = sh('evaluate', tmp_path/'small', '--test', folders/'test', '--seeds', 2, '--epochs', 12, '--device', 'cpu', env=clean_env)
    assert f'patches {"extract" if grid == 2 else "none"}' in out
    assert float(re.search(r'top-1 ([\d.]+) ± [\d.]+ % \(n=2\)', out)[1]) > 60   # chance is 50


def test_parquet_in_and_out(folders, tmp_path, clean_env):
    for split in ('train', 'test'):
        save_parquet(load_data(folders/split, size=24), tmp_path/f'{split}.parquet', 'webp')
    out = sh('compress', tmp_path/'train.parquet', '--method', 'el2n-easyB', '--ipc', 2, '--out', tmp_path/'small', '--epochs', 2, '--format', 'jpeg', env=clean_env)
    assert 'as jpeg' in out and load_data(tmp_path/'small').size == (24, 24)
    assert 'top-1' in sh('evaluate', tmp_path/'small', '--test', tmp_path/'test.parquet', '--seeds', 1, '--epochs', 2, env=clean_env)


def test_score_then_compress(folders, tmp_path, clean_env):
    out = sh('score', folders/'train', '--out', tmp_path/'s.npz', '--epochs', 2, env=clean_env)
    assert 'forgetting-inf' in out
    sh('compress', folders/'train', '--method', 'aum-easyB', '--ipc', 2, '--scores', tmp_path/'s.npz', '--out', tmp_path/'small', env=clean_env)
    assert len(load_data(tmp_path/'small')) == 4


def test_bench_on_a_folder_then_report(folders, tmp_path, clean_env):
    args = ('bench', folders/'train', '--test', folders/'test', '--methods', 'random', '--ipc', '1', '--seeds', 1, '--size', 16, '--home', tmp_path, '--workers', 1)
    out = sh(*args, env=clean_env)
    assert '1 to make' in out and '0 to make' in sh(*args, env=clean_env)
    sh('report', tmp_path/'bench.jsonl', '--out', tmp_path/'r.html', env=clean_env)
    page = (tmp_path/'r.html').read_text()
    assert '<table' in page and 'data:image/png;base64' in page and not re.findall(r'(?:src|href)="(?!data:)', page)


def test_table_reads_the_rows_that_are_there(tmp_path, clean_env):
    "the command that a notebook names prints the notebook's numbers, and makes only what is missing"
    from pca_nb.stats import summary
    from pca_nb.tables import read_table, rows_file, runs_for
    stored = rows_file('quick', Path(__file__).resolve().parents[1]/'nbs'/'results')
    mine = tmp_path/'rows.jsonl'
    mine.write_bytes(stored.read_bytes())
    out = sh('table', 't05', '--ipc', '1', '--rows', mine, '--home', tmp_path, '--workers', 1, env=clean_env | dict(PCA_NB_SCALE='quick'))
    t = summary(read_table('t05', 'quick', stored.parent, (1,))).set_index('method')
    assert '30 runs, 0 to make' in out and f"{t.loc['pca', 'mean']:.1f} ± {t.loc['pca', 'std']:.1f} (5)" in out
    gone = next(c.key for l, c in runs_for('t24', 'quick', (1,)) if (l, c.seed) == ('random', 0))
    mine.write_text(''.join(l+'\n' for l in mine.read_text().splitlines() if f'"key": "{gone}"' not in l))
    assert '5 runs, 1 to make' in sh('table', 't24', '--scale', 'quick', '--ipc', '1', '--seeds', 1, '--rows', mine, '--home', tmp_path, '--workers', 1, env=clean_env)


def test_speed_exits_with_1_when_something_is_broken(tmp_path, monkeypatch, capsys):
    "A ratio below half of its target; one that is merely missed is a line of the table and no failure."
    import pandas as pd
    from pca_nb import speed, timing
    from pca_nb.cli import main
    for ratio, code in ((1.9, 1), (2.1, 0), (4.5, 0)):
        r = timing.Result('reading', 'a loop', ratio, ratio, ratio, 5, 4.)
        table = pd.DataFrame([vars(r)|dict(verdict=r.verdict)])
        table.attrs.update(cpu='a cpu', cores=2, device='cpu', dtype='float32', torch='2', scale='quick')
        monkeypatch.setattr(speed, 'speed', lambda *a: table)
        monkeypatch.setattr(sys, 'argv', ['pca-nb', 'speed', '--quick', '--home', str(tmp_path)])
        with pytest.raises(SystemExit) as e: main()
        said = capsys.readouterr()
        assert e.value.code == code and ('below half of 4' in said.err) == bool(code) and ('missed' in said.out) == (ratio < 4)
        assert speed.read_speed(tmp_path/'speed.json').ratio[0] == ratio


def test_speed_of_one_thing(tmp_path, clean_env):
    "A real run of the shortest measurement."
    r = subprocess.run([Path(sys.executable).parent/'pca-nb', 'speed', '--quick', '--only', 'help', '--out', tmp_path/'s.json'], capture_output=True, text=True, env=clean_env)
    assert r.returncode == 0 and 'pca-nb --help' in r.stdout, r.stderr
    r = subprocess.run([Path(sys.executable).parent/'pca-nb', 'speed', '--only', 'teleport', '--out', tmp_path/'t.json'], capture_output=True, text=True, env=clean_env)
    assert r.returncode == 2 and "no measurement has 'teleport' in its name" in r.stderr and not (tmp_path/'t.json').exists()


def test_teacher_labels_evaluate(tmp_path, clean_env):
    "Train a teacher, learn from it live, write its answers, learn from those; what does not go together is refused in one line."
    run = lambda *a, ok=True: sh(*a, env=clean_env, ok=ok)
    run('compress', 'digits', '--method', 'random', '--ipc', 3, '--out', tmp_path/'small', '--device', 'cpu')
    small, t, kept = tmp_path/'small', tmp_path/'t.pt', tmp_path/'kept'
    out = run('teacher', 'digits', '--test', 'digits', '--out', t, '--epochs', 3, '--device', 'cpu')
    assert 'Teacher(convnet2-w32, 16 px, 10 classes' in out
    soft = ('evaluate', small, '--test', 'digits', '--recipe', 'soft', '--seeds', 2, '--epochs', 4, '--device', 'cpu')
    live = run(*soft, '--teacher', t)
    out = run('labels', small, '--teacher', t, '--test', 'digits', '--epochs', 4, '--out', kept, '--codec', 'fp32', '--device', 'cpu')
    assert '5,400 bytes' in out   # 30 images × 4 epochs × (25 + 20): the field's format
    again = run(*soft, '--teacher', kept)
    seed0 = lambda text: re.search(r'│ 0 +│.*', text)[0].split()   # columns may be wider
    assert seed0(live) == seed0(again) and 'only weights vary' in again
    for words, args in {'epochs: 4 are stored, 5 asked for': (*soft[:-4], '--epochs', 5, '--device', 'cpu', '--teacher', kept), '--least asks a teacher': (*soft, '--teacher', kept, '--least', 50),
                        'asked for at least 99.9 %': (*soft, '--teacher', t, '--least', 99.9), 'learns from a teacher': soft, 'was trained at 16 px': (*soft, '--teacher', t, '--size', 32),
                        'labels for another set': (*soft, '--teacher', kept, '--size', 32)}.items():
        err = run(*args, ok=False)
        assert words in ' '.join(err.split()) and len(err.strip().splitlines()) == 1, err
    t.write_bytes(t.read_bytes()[:3000])
    assert 'is no checkpoint' in run(*soft, '--teacher', t, ok=False)


@pytest.fixture(scope='module')
def teachers(tmp_path_factory):
    "Two small networks that know the digits, as files, and one that was taken away before it did."
    from pca_nb.teachers import make_teacher, Teacher, TeacherCfg
    from pca_nb.protocols import scoring_cfg
    from pca_nb.models import make_model
    root, (full, test) = tmp_path_factory.mktemp('teachers'), (load_data('digits', s) for s in ('train', 'test'))
    for seed in (0, 1):
        recipe = replace(scoring_cfg('digits', 16, len(full), '').recipe, epochs=3)
        make_teacher(full, TeacherCfg('convnet2-w32', recipe, seed, 16), test, root/f'{seed}.pt', 'cpu')
    Teacher(make_model('convnet2-w32', 10, 16, 0), 'convnet2-w32', 16, full.classes, full.stats, 10.).save(root/'fresh.pt')
    return root


@pytest.fixture
def here(capsys):
    "A command in this process; returns what it printed, its errors are raised as they are."
    from pca_nb.cli import app

    def run(*args):
        capsys.readouterr()
        app(list(map(str, args)), standalone_mode=False)
        return ' '.join(capsys.readouterr().out.split())
    return run


def test_compress_makes_images(teachers, tmp_path, clean_env):
    "Optimised from nothing: a set like any other for `validate`, whose list of chosen images names none."
    out = sh('compress', 'digits', '--method', 'sre2l', '--ipc', 2, '--teacher', teachers/'0.pt', '--steps', 5, '--out', tmp_path/'small', '--device', 'cpu', env=clean_env)
    assert 'sre2l: 5 iterations (4,000 are published) × 1 batch, asking Teacher(convnet2-w32' in out and 'chosen: none of 1197' in out
    assert re.search(r'made: [\d.]+ % named correctly by Teacher\(convnet2-w32.*; statistics from [\d.]+ to [\d.]+', out)
    s, rows = load_data(tmp_path/'small'), list(csv.DictReader((tmp_path/'small'/'chosen.csv').open()))
    assert s.counts.tolist() == [2] * 10 and (s.index == -1).all() and s.name == 'digits'
    assert len(rows) == 20 and all((tmp_path/'small'/r['stored']).exists() and r['source'] == r['position'] == r['score'] == '' for r in rows)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['small']   # no checkpoint is left
    assert 'top-1' in sh('evaluate', tmp_path/'small', '--test', 'digits', '--seeds', 1, '--epochs', 2, '--device', 'cpu', env=clean_env)


def test_compress_goes_on_where_it_was_stopped(teachers, tmp_path, here, monkeypatch):
    "Ctrl-C in the fourth iteration: the file it names is gone on from, by this work only, and removed at the end."
    from pca_nb import distill
    from pca_nb.cli import Stopped
    words = lambda out, steps=6: ('compress', 'digits', '--method', 'sre2l', '--ipc', 1, '--teacher', teachers/'0.pt', '--steps', steps, '--out', tmp_path/out, '--device', 'cpu')
    here(*words('whole'))
    terms, seen = distill._Loop.terms, []

    def stops(self, batch, k):
        if k == 3 and 3 not in seen:
            seen.append(k)
            raise KeyboardInterrupt
        seen.append(k)
        return terms(self, batch, k)
    monkeypatch.setattr(distill, 'SAVE_EVERY', 0)
    monkeypatch.setattr(distill._Loop, 'terms', stops)
    with pytest.raises(Stopped, match=rf'^stopped: run it again to go on from {tmp_path}/small.v1.ckpt$'): here(*words('small.v1'))
    assert not (tmp_path/'small.v1').exists()
    with pytest.raises(ValueError, match='small.v1.ckpt belongs to another run'): here(*words('small.v1', 7))
    here(*words('small.v1'))
    assert seen == [0, 1, 2, 3, 3, 4, 5] and not (tmp_path/'small.v1.ckpt').exists()
    assert (load_data(tmp_path/'small.v1').images == load_data(tmp_path/'whole').images).all()
    with pytest.raises(ValueError, match='small.v1 is there already'): here(*words('small.v1'))


def test_compress_asks_whom_it_should(teachers, tmp_path, here, monkeypatch):
    "What a method asks is refused or missed before any image is read; a network that knows nothing, before anything is made."
    from pca_nb import datasets
    load, reads, t = datasets.load_data, [], teachers/'0.pt'
    monkeypatch.setattr(datasets, 'load_data', lambda *a: reads.append(a) or load(*a))
    words = lambda method, *more: ('compress', 'digits', '--method', method, '--ipc', 1, '--out', tmp_path/'x', '--device', 'cpu', *more)
    for method, more, said in (('sre2l', (), 'sre2l asks a trained network: run `pca-nb teacher digits --test TEST --out teacher.pt`'),
                               ('gvbsm', (), 'gvbsm asks trained networks: run `pca-nb teacher digits'), ('rded', (), 'rded asks a trained network'),
                               ('pca', ('--teacher', t), 'pca asks no network'), ('sre2l', ('--teacher', f'{t},{t}'), '--teacher names 2 networks, sre2l asks one'),
                               ('pca-crop-nll-other', ('--teacher', f'{t},{t}'), 'names 2 networks'), ('random', ('--steps', 5), '--steps 5: random optimises nothing'),
                               ('rded', ('--steps', 5, '--teacher', t), '--steps 5: rded optimises nothing')):
        with pytest.raises(ValueError, match=re.escape(said)): here(*words(method, *more))
    assert not reads
    for method in ('sre2l', 'rded'):
        with pytest.raises(ValueError, match='is right on 10.0 %, asked for at least 20 %'): here(*words(method, '--teacher', teachers/'fresh.pt'))
        with pytest.raises(ValueError, match='was trained at 16 px'): here(*words(method, '--teacher', t, '--size', 32))
    assert not list(tmp_path.iterdir())


def test_compress_with_several_networks_and_with_crops(teachers, tmp_path, here, monkeypatch):
    "G-VBSM asks two; RDED's crops come from images that are listed, one a file below 64 px unless a factor is given; a newcomer's method may have no constants."
    from pca_nb.methods import Method, METHODS
    t, u = teachers/'0.pt', teachers/'1.pt'
    words = lambda method, files, out, *more: ('compress', 'digits', '--method', method, '--ipc', 1, '--teacher', files, '--out', tmp_path/out, '--device', 'cpu', *more)
    out = here(*words('gvbsm', f'{t},{u}', 'g', '--steps', 2))
    assert 'gvbsm: 2 iterations' in out and out.count('named correctly by') == 2
    for more, grid in (((), 1), (('--factor', 2), 2)):
        assert f'chosen: {10 * grid**2} of 1197' in here(*words('rded', t, f'r{grid}', *more))
        s = load_data(tmp_path/f'r{grid}')
        assert s.grid == grid and (s.index >= 0).all()
    asked = []
    monkeypatch.setitem(METHODS, 'mine', Method(lambda full, ipc, use: asked.append(len(use.teachers)) or METHODS['random'].make(full, ipc, use), teachers='several'))
    assert 'chosen: 10 of 1197' in here(*words('mine', f'{t},{u}', 'mine')) and asked == [2]
    assert 'chosen: 40 of 1197' in here(*words('pca-crop-nll', t, 'pc', '--epochs', 1)) and load_data(tmp_path/'pc').grid == 2


def test_compress_what_was_compressed(teachers, tmp_path, here):
    "Sources are the images at hand, wherever those were taken from."
    here('compress', 'digits', '--method', 'random', '--ipc', 2, '--out', tmp_path/'a', '--device', 'cpu')
    assert 'chosen: 10 of 20' in here('compress', tmp_path/'a', '--method', 'random', '--ipc', 1, '--out', tmp_path/'b', '--device', 'cpu')
    for r in csv.DictReader((tmp_path/'b'/'chosen.csv').open()): assert (tmp_path/'a'/r['source']).read_bytes() == (tmp_path/'b'/r['stored']).read_bytes()


def test_the_scoring_network_is_judged(tmp_path, here, capsys):
    "How often it was right is said; one that learned nothing is warned of."
    from pca_nb.cli import _tell_scores
    from pca_nb.scores import Dynamics
    assert 'the network was right in' in here('score', 'digits', '--epochs', 2, '--out', tmp_path/'s.npz', '--device', 'cpu')
    labels, right = torch.tensor([0]*6+[1]*4), torch.tensor([2.]*6+[0.]*4)
    _tell_scores(Dynamics(dict(correct=right), 2, 2, {}), labels)
    assert 'rank noise' in capsys.readouterr().err
    _tell_scores(Dynamics(dict(correct=right+torch.tensor([0.]*6+[2.]*4)), 2, 2, {}), labels)
    assert capsys.readouterr().err == ''


def test_several_teachers_or_a_line_about_it(teachers, tmp_path, here):
    "An ensemble's recipe averages all that are named, each checked; with one it says what the paper does."
    t, u, line = teachers/'0.pt', teachers/'1.pt', 'the paper uses an ensemble of teachers, this run has one'
    here('compress', 'digits', '--method', 'random', '--ipc', 1, '--out', tmp_path/'s', '--device', 'cpu')
    words = lambda recipe, files: ('evaluate', tmp_path/'s', '--test', 'digits', '--recipe', recipe, '--teacher', files, '--seeds', 1, '--epochs', 2, '--device', 'cpu')
    both, one, soft = here(*words('gvbsm', f'{t}, {u}')), here(*words('gvbsm', t)), here(*words('soft', t))
    assert line not in both and line not in soft and f'gvbsm: {line}' in one
    assert both.count('Teacher(convnet2-w32') == 2 and one.count('Teacher(convnet2-w32') == 1
    seed0 = lambda text: re.search(r'│ 0 │[^└]*', text)[0]
    assert seed0(both) != seed0(one)
    assert f'edc-code: {line}' in here(*words('edc-code', t))
    with pytest.raises(ValueError, match='is right on'): here(*words('gvbsm', f'{t},{teachers}/fresh.pt'))
    labels = ('labels', tmp_path/'s', '--test', 'digits', '--recipe', 'gvbsm', '--epochs', 2, '--codec', 'fp32', '--device', 'cpu')
    assert line in here(*labels, '--teacher', t, '--out', tmp_path/'k1') and line not in here(*labels, '--teacher', f'{t},{u}', '--out', tmp_path/'k2')
    assert seed0(here(*words('gvbsm', tmp_path/'k2'))) == seed0(both) and seed0(here(*words('gvbsm', tmp_path/'k1'))) == seed0(one)


def test_bench_all_are_the_papers_columns(tmp_path, here, monkeypatch):
    "One run a column, without making any; a method that optimises says how long a set took."
    import pandas as pd
    from pca_nb import cli
    from pca_nb.methods import BENCH
    asked = []

    def grid(cfgs, *a):
        asked.extend(cfgs)
        made = [dict(seconds=2.04, steps=1200) if c.method == 'sre2l' else dict(seconds=.5) if c.method == 'rded' else float('nan') for c in cfgs]
        return pd.DataFrame([dict(method=c.method, ipc=c.ipc, made=m) for c, m in zip(cfgs, made)])
    monkeypatch.setattr(cli, '_grid', grid)
    monkeypatch.setattr('pca_nb.stats.summary', lambda frame: frame)
    monkeypatch.setattr('pca_nb.stats.pretty', lambda frame: pd.DataFrame())
    out = here('bench', 'digits', '--methods', 'tiles,all,pca', '--ipc', '1,2', '--seeds', 1, '--home', tmp_path)
    assert [c.method for c in asked if c.ipc == 1] == ['tiles', *BENCH] and len(asked) == 2 * (1+len(BENCH))
    assert 'sre2l: 2.0 s at ipc 1, 2.0 s at ipc 2 to make a set, 1,200 iterations a batch rded: 0.5 s at ipc 1, 0.5 s at ipc 2 to make a set rows:' in out
    with pytest.raises(KeyError, match="unknown method 'everything'"): here('bench', '--methods', 'all,everything', '--home', tmp_path)
