"The lines under a board run when pasted into an empty notebook, and make what the board shows."
import json
from pathlib import Path

import pytest
import torch
from matplotlib import pyplot as plt

from pca_nb.board import Board
from pca_nb.boards import RunBoard
from pca_nb.codecs import CODECS
from pca_nb.imageset import content_hash
from pca_nb.methods import METHODS, display_name
from pca_nb.panels_runs import crop_of, judge_crop, label_answers, stored_loss

nbs = Path(__file__).resolve().parents[1]/'nbs'
DASHBOARDS = sorted((nbs/'dashboards').glob('*.ipynb'))


def cells(name):
    "The code cells of a dashboard."
    path = nbs/'dashboards'/f'{name}.ipynb'
    return [''.join(c['source']) for c in json.loads(path.read_text(encoding='utf-8'))['cells']
            if c['cell_type'] == 'code']


def opened(name, monkeypatch):
    "The board that a dashboard opens, and the names that its cells have made"
    monkeypatch.chdir(nbs/'dashboards')
    names = {}
    for source in cells(name):
        last = source.splitlines()[-1]
        if '_board(' in last:
            return eval(last, names), names
        exec(source, names)
    raise AssertionError(f'{name} opens no board')


def pasted(board):
    "The names that the lines of a board make in an empty notebook"
    names = {}
    exec(board.code.value, names)
    plt.close('all')
    return names


def test_there_is_a_test_for_every_dashboard():
    assert [p.stem for p in DASHBOARDS] == ['b1_scores', 'b2_bench', 'b3_crops', 'b4_runs', 'b5_labels']


@pytest.mark.parametrize('name', ['b1_scores', 'b2_bench', 'b3_crops', 'b5_labels'])
def test_the_lines_start_from_what_the_cells_made(name, monkeypatch):
    board, names = opened(name, monkeypatch)
    assert isinstance(board, Board)
    made = pasted(board)
    for k in ('full', 's'):
        if k in made:
            assert content_hash(made[k]) == content_hash(names[k])
    if 'net' in made:
        for a, b in zip(made['net'].state_dict().values(), names['teacher'].net.state_dict().values()):
            assert torch.equal(a, b)
    for k, s in made.get('subsets', {}).items():
        assert content_hash(s) == content_hash(names['subsets'][k])
    imports = [line for line in board.code.value.splitlines() if line.startswith(('import', 'from'))]
    assert imports[0] == 'import pca_nb as pn' and len(imports) == len(set(imports))


def test_score_lines_choose_the_images_that_are_shown(monkeypatch):
    board, _ = opened('b1_scores', monkeypatch)
    for state in (dict(ranks=(20, 30)), dict(x='aum', y='forgetting-inf', ranks=(90, 100), ipc=3),
                  dict(x='el2n', y='aum', box=(1, 2, -60, 0))):
        board.set(**state)
        names = pasted(board)
        hist, _, bars, _ = board.fig.axes
        assert hist.get_title() == f"{len(names['chosen'])} of {len(names['full'])} images"
        assert [bar.get_height() for bar in bars.patches] == names['easiest'].counts.tolist()
    shown = board.picture.value
    board.set(box=(50, 60, 0, 1))
    assert 'no image lies in this box' in board.words.value and board.picture.value == shown


def test_pca_lines_make_the_set_that_is_shown(monkeypatch):
    board, _ = opened('b2_bench', monkeypatch)
    methods = [key for _, key in board.controls['method'].options]
    assert len(methods) > 8 and set(methods) <= set(METHODS)
    assert [label for label, _ in board.controls['method'].options] == [display_name(m) for m in methods]
    for m in methods:
        board.set(method=m, cls=4, ipc=3, factor=3, shrink='antialias', epoch=24)
        names = pasted(board)
        title = board.fig.axes[0].get_title(loc='left')
        assert f'{display_name(m)}, class 4: {len(names["chosen"])} originals in {len(names["stored"])} stored' in title
        assert f'{len(names["small"])} stored images' in title and f'{names["small"].index.numel()} of 1197' in title


def test_crop_lines_judge_the_crop_that_is_shown(monkeypatch):
    board, here = opened('b3_crops', monkeypatch)
    for state, which in ((dict(i=7, ratio=.3, k=2), dict(ratio=.3, k=2)), (dict(i=9, box=(1, 2, 9, 8)),
                                                                         dict(box=(1, 2, 9, 8)))):
        board.set(subset='hardest by EL2N', **state)
        names = pasted(board)
        judged = judge_crop(here['s'], here['teacher'].net, state['i'], crop_of(here['s'].size, **which))
        assert str(names['judged']) == str(judged)
        assert f"NLL {judged.nll[1]:.2f}, entropy {judged.entropy[1]:.2f}" in board.fig.axes[1].get_title()
        cloud = board.fig.axes[-1].collections[0].get_offsets()
        assert torch.equal(torch.tensor(cloud.data[:, 0]), names['nll'].flatten())


@pytest.mark.parametrize('codec', CODECS)
def test_label_lines_store_the_label_that_is_shown(codec, monkeypatch):
    board, here = opened('b5_labels', monkeypatch)
    board.set(i=33, k=2, temperature=4., codec=codec, crop=.5)
    names = pasted(board)
    logits = label_answers(here['s'], here['teacher'].net, 2, (.5, 1.))[1]
    assert torch.equal(names['probs'], (logits[33]/4).softmax(0))
    assert names['loss'] == stored_loss(logits, codec, 4.)
    assert f"{codec}: {names['loss']['bytes']} bytes" in board.fig.axes[-1].get_title()


def test_run_lines_make_the_rows_that_are_shown(tmp_path):
    board = RunBoard(tmp_path, min_steps=10, methods=('random', 'tiles'), device='cpu')
    board.controls['methods'].value = ('random', 'tiles')
    board.start()
    board.job.thread.join()
    shown = board.table.value
    assert '2 of 2 rows' in board.words.value and 'random composites' in shown and 'nan' not in shown
    names = {}
    before = (tmp_path/'benchmark.jsonl').read_bytes()
    exec(board.code.value, names)
    assert (tmp_path/'benchmark.jsonl').read_bytes() == before # read, not made again
    assert names['rows'].key.tolist() == [cfg.key for _, cfg in board.grid.runs]


def test_a_broken_line_would_be_seen(monkeypatch):
    board, _ = opened('b2_bench', monkeypatch)
    board.code.value = board.code.value.replace('pn.compress(', 'pn.compres(')
    with pytest.raises(AttributeError, match="no attribute 'compres'"):
        pasted(board)
