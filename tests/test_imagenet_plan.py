"The plan for ImageNet: arithmetic that adds up, and commands that exist."
import shlex
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import typer
from PIL import Image

from pca_nb import cli, imagenet
from pca_nb.imagenet import cost_table, costs, plan_work, Work
from pca_nb.imagenet_commands import commands
from pca_nb.imagenet_rates import Rates, read_tree
from pca_nb.scores import Dynamics, SUMS

FULL = Work('a folder/imagenet', 'home', 1_281_167, 50_000, 1000, 732, gpus=8)
RATES = Rates('a made-up card', 1000., 1e9, 10_000., 1000., 4000., 500., 100e3, 1e9, 128, 512)
PLANS = {'8 cards': FULL,
         '1 card, published scores': replace(FULL, gpus=1, score_file='an imagenet-data-score.pt'),
         'default protocol': replace(FULL, protocol='default'),
         '20 classes': replace(FULL, n_classes=20, ipcs=(1, 10)),
         '2 cards, 160 px': replace(FULL, gpus=2, size=160)}


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    "20 classes with ten textures of 500×375 each, two to validate"
    root, rng = tmp_path_factory.mktemp('imagenet'), np.random.default_rng(0)
    for c in range(20):
        for split, n in (('train', 10), ('val', 2)):
            folder = root/split/f'n{c + 1000:08d}'
            folder.mkdir(parents=True)
            for i in range(n):
                blots = rng.integers(0, 255, (15, 20, 3), dtype=np.uint8)
                Image.fromarray(blots).resize((500, 375)).save(folder/f'{folder.name}_{i}.JPEG', quality=90)
    return root


def typed(work): return [line for _, lines in commands(work) for line in lines]


def words_of(line):
    "What stands behind `pca-nb`, without what runs it."
    words = shlex.split(line)
    return words[words.index('pca-nb')+1:]


def has_option(command, name): return any(name in p.opts for p in command.params)


def parse(words):
    "Let the command line parse words, without doing what they say; refused is what it does not know."
    command, context, name = typer.main.get_command(cli.app), None, 'pca-nb'
    while hasattr(command, 'commands'):
        name, *words = words
        context = typer.Context(command, info_name='pca-nb', parent=context)
        command = command.commands[name]
    if '--protocol' in words and not has_option(command, '--protocol'):   # until the commands know it
        at = words.index('--protocol')
        words = [*words[:at], *words[at+2:]]
    return name, command.make_context(name, list(words), parent=context).params


@pytest.mark.parametrize('plan', PLANS)
def test_every_command_of_a_plan_is_one_that_the_shell_knows(plan):
    seen = {parse(words_of(line))[0] for line in typed(PLANS[plan])}
    assert {'prepare', 'compress', 'evaluate', 'store-labels'} <= seen
    assert ('score' in seen) == (not PLANS[plan].score_file) and ('train-teacher' in seen) == (plan == '20 classes')


def test_the_parser_test_can_fail():
    for wrong in ('score x --out y --epoch 3', 'compress x --out y --ipc ten', 'imagenet prepare x',
                  'imagenet prapare x'):
        with pytest.raises((typer.BadParameter.__base__, KeyError)): parse(wrong.split())   # a UsageError


def test_every_name_in_a_command_is_known():
    from pca_nb.methods import METHODS
    from pca_nb.models import MODELS
    from pca_nb.recipes import RECIPES
    for line in typed(FULL):
        name, given = parse(words_of(line))
        if name == 'compress': assert given['method'] in METHODS
        if name == 'evaluate': assert given['arch'] in MODELS and given['recipe'] in RECIPES


def test_what_a_command_reads_an_earlier_one_writes():
    for work in PLANS.values():
        there = {work.root, work.score_file, 'imagenet', 'home/runs'}
        for line in typed(work):
            given = parse(words_of(line))[1]
            read = {str(given[k]) for k in ('root', 'data', 'test', 'scores', 'teacher') if given.get(k)}
            assert read <= there, line
            there.add(str(given.get('out_folder') or given.get('out_file')))


def test_every_row_of_the_table_is_paid_for_by_commands():
    "Runs of the table are trainings of the commands: seeds × evaluations."
    for work in PLANS.values():
        evaluations = [line for what, lines in commands(work) if what.startswith('evaluate') for line in lines]
        assert sum(c.runs for c in costs(work, RATES) if c.step.startswith('evaluate')) == 3*len(evaluations)


def test_hours_follow_the_cards_and_the_rates():
    by = {n: {c.step: c.seconds for c in costs(replace(FULL, gpus=n), RATES)} for n in (1, 4)}
    for step, seconds in by[1].items():
        shared = step.startswith(('evaluate', 'all scores', 'or EL2N'))   # the rest is done by this machine
        assert seconds == pytest.approx(by[4][step]*(4 if shared else 1)), step
    twice = {c.step: c.seconds for c in costs(FULL, replace(RATES, train=2000., forward=8000., decode=2000., write=2e9,
                                                            read=20_000., encode=1000.))}
    for c in costs(FULL, RATES): assert twice[c.step] == pytest.approx(c.seconds/2), c.step


def test_every_extrapolated_number_is_marked():
    table = cost_table(FULL, RATES)
    assert all(text.startswith('~') for text in table['hours'])
    assert all(text.startswith('~') for text in table['GB of memory per process'])
    exact = table.index.str.startswith(('prepare', 'all scores', 'or ', 'scores'))
    made = table.index.str.startswith('sets')
    assert all(not text.startswith('~') for text in table['GB on disk'][exact]) and made.sum() == 3
    assert all(text.startswith('~') for text in table['GB on disk'][made])


def test_what_small_classes_cannot_give_is_left_out_and_said():
    small = replace(FULL, fewest=20, ipcs=(1, 10))
    assert small.made(1)[-1] == 'pca' and 'pca' not in small.made(10)
    assert 'pca at IPC 10' in imagenet.assumptions(small, RATES)[-1]
    assert not any('pca-ipc10' in line for line in typed(small))


def test_a_tree_that_lacks_something_is_refused_by_name(tree, tmp_path):
    import shutil
    assert [len(part) for part in (read_tree(tree).train, read_tree(tree).val)] == [200, 40]
    for gone, why in (('train', 'has no folder train: give the folder that holds train and val'),
                      ('val', 'has no validation images: put them into val')):
        root = shutil.copytree(tree, tmp_path/gone)
        shutil.rmtree(root/gone)
        with pytest.raises(ValueError, match=why): read_tree(root)
    root = shutil.copytree(tree, tmp_path/'other')
    (root/'val'/'n00001003').rename(root/'val'/'n00009999')
    with pytest.raises(ValueError, match='val has 1 classes that train lacks, n00009999 for one'): read_tree(root)


def test_a_score_file_of_other_images_is_refused_before_measuring(tree, tmp_path, shell):
    Dynamics({k: torch.zeros(7) for k in SUMS}, 10, 10, {}).save(tmp_path/'s.npz')
    said = shell('imagenet', 'plan', tree, '--score-file', tmp_path/'s.npz', '--home', tmp_path/'x', ok=False)
    assert 's.npz scores 7 images, but the set has 200' in said and not (tmp_path/'x').exists()


def test_the_plan_of_a_small_tree(tree, tmp_path, shell):
    "Measured here; what it prints can be typed as it stands."
    said = shell('imagenet', 'plan', tree, '--gpus', 2, '--home', tmp_path/'x', '--size', 32, '--ipc', '1,10',
                 '--device', 'cpu')
    assert "20 classes are not ImageNet's 1,000" in said and '200 training images of 20 classes' in said
    assert 'measured: device: ' in said and 'over 200 images' in said and '16 per step (the recipe has 128)' in said
    assert 'pca at IPC 10' in said and '~ is extrapolated from the measurements above; hours are on 2 cards' in said
    lines = [line for line in said.splitlines() if 'pca-nb ' in line and not line.startswith(('measured', 'assumed'))]
    tree_ = read_tree(tree)
    assert lines == typed(plan_work(tree_, tree, tmp_path/'x', gpus=2, size=32, ipcs=(1, 10)))
    assert not list((tmp_path/'x').iterdir())   # what was measured is gone


def test_the_first_commands_of_a_plan_run(tree, tmp_path, shell):
    "At 32 px on a CPU, with a small network in place of ResNet-34: each reads what the one before wrote."
    work = plan_work(read_tree(tree), tree, tmp_path/'x', size=32, ipcs=(1,), protocol='default', seeds=1)
    quick = {'score': ['--epochs', '1', '--arch', 'convnet2-w32', '--device', 'cpu'], 'prepare': [], 'compress': [],
             'evaluate': ['--epochs', '1', '--arch', 'convnet2-w32', '--device', 'cpu']}
    done = set()
    for line in typed(work):
        words = words_of(line)
        name = words[1] if words[0] == 'imagenet' else words[0]
        if name not in quick or '--teacher' in words: continue
        if name == 'evaluate' and name in done: continue
        if name == 'score': words = words[:words.index('--arch')]
        if name == 'evaluate': words = [w for w in words if w not in ('--arch', 'resnet18')]
        shell(*words, *quick[name])
        done.add(name)
    assert done == set(quick) and (tmp_path/'x'/'runs'/'evaluate.jsonl').exists()


@pytest.mark.parametrize('words', ['imagenet --help', 'imagenet plan --help', 'imagenet prepare --help'])
def test_help_imports_nothing_heavy(words, clean_env):
    code = ("import sys; from pca_nb import cli\n"
            f"sys.argv = ['pca-nb', *{words.split()!r}]\n"
            "try: cli.main()\n"
            "except SystemExit: print(sorted({'torch', 'numpy', 'pandas', 'PIL'} & {*sys.modules}))")
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=clean_env)
    assert 'Usage: pca-nb imagenet' in r.stdout and r.stdout.rstrip().endswith('[]'), r.stdout+r.stderr


def test_protocol_and_ipc_are_checked_before_anything_is_listed(tmp_path, shell):
    assert "--ipc 'ten'" in shell('imagenet', 'plan', tmp_path, '--ipc', 'ten', ok=False)
    assert 'has no folder train' in shell('imagenet', 'plan', tmp_path, ok=False)
