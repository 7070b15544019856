"The main job from a shell, on folders as people have them."
import csv
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pca_nb.data import load_data, to_parquet

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
        to_parquet(load_data(folders/split, size=24), tmp_path/f'{split}.parquet', 'webp')
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
    from pca_nb.tables import read_table, rows_file, runs_of
    stored = rows_file('quick', Path(__file__).resolve().parents[1]/'nbs'/'results')
    mine = tmp_path/'rows.jsonl'
    mine.write_bytes(stored.read_bytes())
    out = sh('table', 't05', '--ipc', '1', '--rows', mine, '--home', tmp_path, '--workers', 1, env=clean_env | dict(PCA_NB_SCALE='quick'))
    t = summary(read_table('t05', 'quick', stored.parent, (1,))).set_index('method')
    assert '30 runs, 0 to make' in out and f"{t.loc['pca', 'mean']:.1f} ± {t.loc['pca', 'std']:.1f} (5)" in out
    gone = next(c.key for l, c in runs_of('t24', 'quick', (1,)) if (l, c.seed) == ('random', 0))
    mine.write_text(''.join(l+'\n' for l in mine.read_text().splitlines() if f'"key": "{gone}"' not in l))
    assert '5 runs, 1 to make' in sh('table', 't24', '--scale', 'quick', '--ipc', '1', '--seeds', 1, '--rows', mine, '--home', tmp_path, '--workers', 1, env=clean_env)


def test_speed_exits_with_1_when_something_is_broken(tmp_path, monkeypatch, capsys):
    "A ratio below half of its target; one that is merely missed is a line of the table and no failure."
    import pandas as pd
    from pca_nb import speed
    from pca_nb.cli import main
    for ratio, code in ((1.9, 1), (2.1, 0), (4.5, 0)):
        r = speed.Result('reading', 'a loop', ratio, ratio, ratio, 5, 4.)
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
